"""From the plan to the endpoint: each part is made once, and what fails is undone."""

from argparse import Namespace
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
from lifecycle.state import State, describe_config, get_state, get_tags, variant_of

USUAL_DURATION = "4 to 10 minutes"


def wait_until_idle(aws: Aws, project: str) -> State:
    """The endpoint once it has stopped moving; a failed one is removed: AWS allows nothing else."""
    state = get_state(aws, project)
    if state.endpoint is not None:
        wait_until_stable(aws, project)
        state = get_state(aws, project)
    if state.endpoint is None:
        return state
    if state.status == "Failed":
        reason, since = state.endpoint.get("FailureReason", ""), state.endpoint["CreationTime"]
        print(f"{project} had failed to start: {explain(aws, log_group(project), reason, since)}")
        print(f"{project}: that endpoint is removed first", flush=True)
        remove.remove_endpoint(aws, project)
        return State(None, {})
    return replace(state, scaling=none_if_denied(autoscaling.snapshot, aws, project) or [])


def apply_plan(aws: Aws, plan: Plan, before: State, schedule_role: str | None) -> None:
    """Everything that the plan wants and AWS lacks. Raises Stop when the endpoint fails."""
    settings, project, start = plan.settings, plan.project, datetime.now(UTC)
    # First, so that not even an interrupted deployment costs for ever.
    set_deletion_time(aws, project, before, settings.ttl, schedule_role)
    create_if_missing(aws, plan, "model", plan.model)
    create_if_missing(aws, plan, "endpoint_config", plan.config)
    if before.endpoint is None:
        tags = tag_list(plan.tags)
        call = aws("sagemaker").create_endpoint
        retry_until_consistent(call, EndpointName=project, EndpointConfigName=plan.name, Tags=tags)
    elif before.config != plan.name:
        update_endpoint(aws, project, plan.config, before, settings)
    wait_until_serving(aws, project, plan.name, start, settings)


def set_deletion_time(aws: Aws, project: str, before: State, seconds: int | None, role: str | None) -> None:
    """The end that the settings want: in so many seconds, never (0), or as it was (None)."""
    if role:
        end = ttl.schedule_deletion(aws, project, role, seconds)
        print(f"{project}: will be deleted at {end:%Y-%m-%d %H:%M} UTC")
    elif seconds == 0 and ttl.cancel(aws, project):
        print(f"{project}: will not be deleted by itself any more")
    elif before.endpoint is None and none_if_denied(ttl.cancel, aws, project):
        print(f"{project}: the end that was arranged for an endpoint before this one is taken back")


def create_if_missing(aws: Aws, plan: Plan, kind: str, request: dict) -> None:
    """Make a model or an endpoint_config, unless it is there. Raises Stop if somebody else's is."""
    client = aws("sagemaker")
    word = "".join(part.capitalize() for part in kind.split("_"))
    name = request[f"{word}Name"]
    found = none_if_missing(getattr(client, f"describe_{kind}"), **{f"{word}Name": name})
    if found is None:
        retry_until_consistent(getattr(client, f"create_{kind}"), **request, Tags=tag_list(plan.tags))
        print(f"{name}: {kind.replace('_', ' ')} made", flush=True)
    elif get_tags(aws, found[f"{word}Arn"]).get(PROJECT_TAG) != plan.project:
        raise CommandError(
            2, f"{name} was not made by this tool: delete it, or give your project another name"
        )


def update_endpoint(aws: Aws, project: str, config: dict, before: State, settings: Namespace) -> None:
    """Move the endpoint to another configuration, while the old instances go on answering."""
    old = describe_config(aws, before.config) or {}
    new_type = variant_of(config).get("InstanceType")
    same_type = bool(old) and variant_of(old).get("InstanceType") == new_type
    scaled = bool(before.scaling)
    if scaled and not (settings.max and same_type):
        autoscaling.remove(aws, project)  # AWS does not change the type of instances that are being scaled
        scaled = False
    # As many instances as the load needs now; but what is captured would be retained as well.
    captures = [one.get("DataCaptureConfig") or None for one in (old, config)]
    retain = scaled and captures[0] == captures[1]
    request: dict[str, Any] = {"RetainAllVariantProperties": retain}
    if settings.guard:
        alarms = create_guard_alarms(aws, project, settings.latency)
        count = variant_of(config).get("InitialInstanceCount", 1)
        if retain:
            count = before.endpoint["ProductionVariants"][0].get("DesiredInstanceCount", 1)
        request["DeploymentConfig"] = deployment_config(settings, alarms, count)
    request_update(aws, project, config["EndpointConfigName"], **request)


def request_update(aws: Aws, project: str, config: str, **request: Any) -> None:
    """UpdateEndpoint; when it had to be repeated, it is refused, because the first request is at work."""
    try:
        retry_until_consistent(
            aws("sagemaker").update_endpoint, EndpointName=project, EndpointConfigName=config, **request
        )
    except ClientError as error:
        if error_code(error) != "ValidationException" or get_state(aws, project).status != "Updating":
            raise


def wait_until_serving(
    aws: Aws, project: str, config: str, start: datetime, settings: Namespace | None = None
) -> None:
    """Wait until the endpoint serves a configuration. Raises Stop, with the log since `start`, if not."""
    guarded = settings is not None and settings.guard
    limit = update_timeout(settings) + LIMIT if guarded else LIMIT
    found = wait_until_stable(aws, project, config, USUAL_DURATION, limit)
    if found is None:
        raise CommandError(1, f"the endpoint {project} went away while it was made")
    reason = found.get("FailureReason", "")
    if found["EndpointStatus"] == "InService" and found["EndpointConfigName"] == config:
        return
    what = "went back to what it served before" if found["EndpointStatus"] == "InService" else "failed"
    raise CommandError(1, f"the endpoint {project} {what}: {explain(aws, log_group(project), reason, start)}")


def mark_live(aws: Aws, project: str, config: str, before: State, tags: dict[str, str]) -> None:
    """Write on the endpoint what passed the gate, and what did so before it: rollback's way home."""
    now = get_state(aws, project)
    marks = tags | {LIVE_TAG: config}
    if before.live and before.live != config:
        marks[PREVIOUS_TAG] = before.live
    changed = {key: value for key, value in marks.items() if now.tags.get(key) != value}
    if changed:
        aws("sagemaker").add_tags(ResourceArn=now.endpoint["EndpointArn"], Tags=tag_list(changed))


def apply_scaling(aws: Aws, project: str, settings: Namespace) -> None:
    """The scaling and the alarms that the settings want, and no others."""
    if settings.max:
        autoscaling.configure(aws, project, settings)
    elif none_if_denied(autoscaling.find_target, aws, project):
        autoscaling.remove(aws, project)
    wanted = {"5xx", "latency"} if settings.guard else set()
    wanted |= {SCALE_FROM_ZERO} if settings.max and settings.kind == "async" and settings.min == 0 else set()
    alarms = none_if_denied(list_alarms, aws, project) or []
    delete_alarms(aws, [name for name in alarms if name.rpartition(":")[2] not in wanted])


# --- when it fails


def restore_after_failure(
    aws: Aws, before: State, project: str, config: str, model: str, error: Exception
) -> CommandError:
    """Undo what was begun for a configuration and its model; the error, with what became of the endpoint."""
    stop = as_command_error(error)
    if isinstance(stop, UnfinishedError):
        return stop
    print(f"{project}: failed, and is undone now", flush=True)
    try:
        said = restore_previous(aws, before, project, config, model)
    except Failure as again:
        reason = as_command_error(again)
        said = f"not everything could be undone ({reason}): see `invoke status`; `invoke destroy` removes all"
    return CommandError(stop.code, f"{stop}\n{said}")


def restore_previous(aws: Aws, before: State, project: str, config: str, model: str) -> str:
    """Back to what was live `before`, or to nothing; returns what was done."""
    state = get_state(aws, project)
    if state.endpoint is not None:
        wait_until_stable(aws, project)
        state = get_state(aws, project)
    if not state.live:
        remove.remove_endpoint(aws, project)
        none_if_denied(ttl.cancel, aws, project)
        delete_alarms(aws, none_if_denied(list_alarms, aws, project) or [])
        remove.remove_parts(aws, project, config, model)
        return "nothing is left of it, and nothing costs"
    if state.live == config:
        return f"{project} was left as it is"
    scaled = none_if_denied(autoscaling.find_target, aws, project)
    if state.config != state.live:
        start = datetime.now(UTC)
        request_update(aws, project, state.live, RetainAllVariantProperties=bool(scaled))
        wait_until_serving(aws, project, state.live, start)
    if before.scaling and not scaled:  # it was cancelled for the update
        autoscaling.restore(aws, before.scaling)
    if config != state.previous:
        remove.remove_parts(aws, project, config, model)
    return f"{project} serves what it served before"
