"""From the plan to the endpoint: everything is created once, and a failure is rolled back."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from aws.client import (
    Aws,
    Failure,
    as_command_error,
    error_code,
    none_if_denied,
    none_if_missing,
    retry_until_consistent,
)
from aws.names import LIVE_TAG, PREVIOUS_TAG, PROJECT_TAG, log_group, tag_list
from aws.wait import LIMIT, UnfinishedError, wait_until_stable
from common import CommandError
from lifecycle import autoscaling, remove, ttl
from lifecycle.alarms import (
    SCALE_FROM_ZERO,
    create_guard_alarms,
    delete_alarms,
    deployment_config,
    list_alarms,
    update_timeout,
)
from lifecycle.diagnose import explain
from lifecycle.plan import Plan
from lifecycle.settings import Settings
from lifecycle.state import State, describe_config, get_state, get_tags, variant_of

USUAL_DURATION = "4 to 10 minutes"


def wait_until_idle(aws: Aws, project: str) -> State:
    """The endpoint once it is not in transition; a failed one is deleted, which is all that AWS allows."""
    state = get_state(aws, project)
    if state.endpoint is not None:
        wait_until_stable(aws, project)
        state = get_state(aws, project)
    if state.endpoint is None:
        return state
    if state.status == "Failed":
        reason, since = state.endpoint.get("FailureReason", ""), state.endpoint["CreationTime"]
        print(f"{project} had failed to start: {explain(aws, log_group(project), reason, since)}")
        print(f"{project}: that endpoint is deleted first", flush=True)
        remove.remove_endpoint(aws, project)
        return State(None, {})
    return replace(state, scaling=none_if_denied(autoscaling.snapshot, aws, project) or [])


def apply_plan(aws: Aws, plan: Plan, before: State, schedule_role: str | None) -> None:
    """Create or update what differs from the plan. Raises CommandError when the endpoint fails."""
    settings, project, start = plan.settings, plan.project, datetime.now(UTC)
    # First, so that an interrupted deployment is deleted as well.
    set_deletion_time(aws, project, before, settings.ttl, schedule_role)
    create_if_missing(aws, project, "model", plan.model, plan.tags)
    create_if_missing(aws, project, "endpoint_config", plan.config, plan.tags)
    if before.endpoint is None:
        tags = tag_list(plan.tags)
        call = aws("sagemaker").create_endpoint
        retry_until_consistent(call, EndpointName=project, EndpointConfigName=plan.name, Tags=tags)
    elif before.config != plan.name:
        update_endpoint(aws, project, plan.config, before, settings)
    wait_until_serving(aws, project, plan.name, start, update_limit(settings))


def set_deletion_time(aws: Aws, project: str, before: State, seconds: int | None, role: str | None) -> None:
    """Schedule the endpoint's deletion in so many seconds, cancel it (0), or leave it (None)."""
    if role and seconds:
        time = ttl.schedule_deletion(aws, project, role, seconds)
        print(f"{project}: scheduled for deletion at {time:%Y-%m-%d %H:%M} UTC")
    elif seconds == 0 and ttl.cancel(aws, project):
        print(f"{project}: no longer scheduled for deletion")
    elif before.endpoint is None and none_if_denied(ttl.cancel, aws, project):
        print(f"{project}: the scheduled deletion of an earlier endpoint was cancelled")


def create_if_missing(aws: Aws, project: str, kind: str, request: dict, tags: dict[str, str]) -> None:
    """Create a model or an endpoint_config unless it exists. Raises CommandError if it is somebody else's."""
    client = aws("sagemaker")
    resource = "".join(part.capitalize() for part in kind.split("_"))  # Model, EndpointConfig
    name = request[f"{resource}Name"]
    found = none_if_missing(getattr(client, f"describe_{kind}"), **{f"{resource}Name": name})
    if found is None:
        retry_until_consistent(getattr(client, f"create_{kind}"), **request, Tags=tag_list(tags))
        print(f"{name}: {kind.replace('_', ' ')} created", flush=True)
    elif get_tags(aws, found[f"{resource}Arn"]).get(PROJECT_TAG) != project:
        text = f"{name} was not created by this tool"
        raise CommandError(2, f"{text}: delete it, or give your project another name")


def update_endpoint(aws: Aws, project: str, config: dict, before: State, settings: Settings) -> None:
    """Request another configuration; the old instances serve until the new ones do."""
    old = describe_config(aws, before.config)
    new_type = variant_of(config).get("InstanceType")
    same_type = old is not None and variant_of(old).get("InstanceType") == new_type
    scaled = bool(before.scaling)
    if scaled and not (settings.max and same_type):
        autoscaling.remove(aws, project)  # AWS does not change the instance type of a scaled variant
        scaled = False
    # Retaining the properties keeps the number of instances that the load needs now. It would also keep the
    # old DataCaptureConfig.
    old_capture = (old or {}).get("DataCaptureConfig") or None
    retain = scaled and old_capture == (config.get("DataCaptureConfig") or None)
    request: dict[str, Any] = {"RetainAllVariantProperties": retain}
    if settings.guard:
        alarms = create_guard_alarms(aws, project, settings.latency)
        count = variant_of(config).get("InitialInstanceCount", 1)
        if retain and before.endpoint:
            count = before.endpoint["ProductionVariants"][0].get("DesiredInstanceCount", 1)
        request["DeploymentConfig"] = deployment_config(settings, alarms, count)
    request_update(aws, project, config["EndpointConfigName"], **request)


def request_update(aws: Aws, project: str, config: str, **request: Any) -> None:
    """UpdateEndpoint. A request that boto3 retried is rejected, because the first one is in progress."""
    try:
        retry_until_consistent(
            aws("sagemaker").update_endpoint, EndpointName=project, EndpointConfigName=config, **request
        )
    except ClientError as error:
        if error_code(error) != "ValidationException" or get_state(aws, project).status != "Updating":
            raise


def update_limit(settings: Settings) -> float:
    """Seconds to wait for an endpoint; longer if an update is guarded."""
    return update_timeout(settings) + LIMIT if settings.guard else LIMIT


def wait_until_serving(aws: Aws, project: str, config: str, start: datetime, limit: float = LIMIT) -> None:
    """Wait until the endpoint serves a configuration. Raises CommandError, with the log since `start`."""
    endpoint = wait_until_stable(aws, project, config, USUAL_DURATION, limit)
    if endpoint is None:
        raise CommandError(1, f"the endpoint {project} was deleted while it was being created")
    in_service = endpoint["EndpointStatus"] == "InService"
    if in_service and endpoint["EndpointConfigName"] == config:
        return
    what = "was rolled back by AWS" if in_service else "failed"
    reason = explain(aws, log_group(project), endpoint.get("FailureReason", ""), start)
    raise CommandError(1, f"the endpoint {project} {what}: {reason}")


def mark_live(aws: Aws, project: str, config: str, before: State, tags: dict[str, str]) -> None:
    """Tag the endpoint with the configuration that passed the smoke test, and with the one before it.

    Raises CommandError if the endpoint was deleted meanwhile.
    """
    now = get_state(aws, project)
    if now.endpoint is None:
        raise CommandError(1, f"the endpoint {project} was deleted during the smoke test")
    wanted = tags | {LIVE_TAG: config}
    if before.live and before.live != config:
        wanted[PREVIOUS_TAG] = before.live
    changed = {key: value for key, value in wanted.items() if now.tags.get(key) != value}
    if changed:
        aws("sagemaker").add_tags(ResourceArn=now.endpoint["EndpointArn"], Tags=tag_list(changed))


def apply_scaling(aws: Aws, project: str, settings: Settings) -> None:
    """Create the autoscaling and the alarms of the settings, and remove all others."""
    if settings.max:
        autoscaling.configure(aws, project, settings)
    elif none_if_denied(autoscaling.find_target, aws, project):
        autoscaling.remove(aws, project)
    wanted = {"5xx", "latency"} if settings.guard else set()
    wanted |= {SCALE_FROM_ZERO} if settings.max and settings.kind == "async" and settings.min == 0 else set()
    alarms = none_if_denied(list_alarms, aws, project) or []
    delete_alarms(aws, [name for name in alarms if name.rpartition(":")[2] not in wanted])


# --- after a failure


def restore_after_failure(
    aws: Aws, before: State, project: str, config: str, model: str, failure: Exception
) -> CommandError:
    """Roll back what was created for a configuration and its model; the error, with the endpoint's state."""
    error = as_command_error(failure)
    if isinstance(error, UnfinishedError):
        return error
    print(f"{project}: failed; rolling back", flush=True)
    try:
        result = restore_previous(aws, before, project, config, model)
    except Failure as second:
        reason = as_command_error(second)
        advice = "see `invoke status`; `invoke destroy` deletes everything"
        result = f"not everything could be rolled back ({reason}): {advice}"
    return CommandError(error.code, f"{error}\n{result}")


def restore_previous(aws: Aws, before: State, project: str, config: str, model: str) -> str:
    """Return to what was live `before`, or delete the endpoint; a sentence on what was done."""
    state = get_state(aws, project)
    if state.endpoint is not None:
        wait_until_stable(aws, project)
        state = get_state(aws, project)
    if not state.live:
        remove.remove_endpoint(aws, project)
        none_if_denied(ttl.cancel, aws, project)
        delete_alarms(aws, none_if_denied(list_alarms, aws, project) or [])
        remove.remove_parts(aws, project, config, model)
        return "everything was removed; nothing is billed"
    if state.live == config:
        return f"{project} was left unchanged"
    scaled = none_if_denied(autoscaling.find_target, aws, project)
    if state.config != state.live:
        start = datetime.now(UTC)
        request_update(aws, project, state.live, RetainAllVariantProperties=bool(scaled))
        wait_until_serving(aws, project, state.live, start)
    if before.scaling and not scaled:  # update_endpoint removed it
        autoscaling.restore(aws, before.scaling)
    if config != state.previous:
        remove.remove_parts(aws, project, config, model)
    return f"{project} serves its previous version"
