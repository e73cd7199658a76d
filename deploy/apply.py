"""From the plan to the endpoint: each part is made once, and what fails is undone."""

from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

import destroy
import scaling
import ttl
from aws import Aws, Failure, Stop, as_stop, code_of, unless_denied, unless_missing
from diagnose import explain
from names import LIVE, PREVIOUS, PROJECT, log_group, tag_list
from patience import patiently
from plan import Plan
from state import State, describe_config, look, tags_of, variant_of
from watch import LIMIT, UnfinishedError, settled

USUALLY = "4 to 10 minutes"


def rest(aws: Aws, project: str) -> State:
    """The endpoint once it has stopped moving; a failed one is removed: AWS allows nothing else."""
    state = look(aws, project)
    if state.endpoint is not None:
        settled(aws, project)
        state = look(aws, project)
    if state.endpoint is None:
        return state
    if state.status == "Failed":
        reason, since = state.endpoint.get("FailureReason", ""), state.endpoint["CreationTime"]
        print(f"{project} had failed to start: {explain(aws, log_group(project), reason, since)}")
        print(f"{project}: that endpoint is removed first", flush=True)
        destroy.remove_endpoint(aws, project)
        return State(None, {})
    return replace(state, scaling=unless_denied(scaling.remember, aws, project) or [])


def make(aws: Aws, plan: Plan, before: State, schedule_role: str | None) -> None:
    """Everything that the plan wants and AWS lacks. Raises Stop when the endpoint fails."""
    settings, project, start = plan.settings, plan.project, datetime.now(UTC)
    # First, so that not even an interrupted deployment costs for ever.
    arrange_end(aws, project, before, settings.ttl, schedule_role)
    ensure(aws, plan, "model", plan.model)
    ensure(aws, plan, "endpoint_config", plan.config)
    if before.endpoint is None:
        tags = tag_list(plan.tags)
        call = aws("sagemaker").create_endpoint
        patiently(call, EndpointName=project, EndpointConfigName=plan.name, Tags=tags)
    elif before.config != plan.name:
        update(aws, project, plan.config, before, settings)
    arrived(aws, project, plan.name, start, settings)


def arrange_end(aws: Aws, project: str, before: State, seconds: int | None, role: str | None) -> None:
    """The end that the settings want: in so many seconds, never (0), or as it was (None)."""
    if role:
        end = ttl.arrange(aws, project, role, seconds)
        print(f"{project}: will be deleted at {end:%Y-%m-%d %H:%M} UTC")
    elif seconds == 0 and ttl.cancel(aws, project):
        print(f"{project}: will not be deleted by itself any more")
    elif before.endpoint is None and unless_denied(ttl.cancel, aws, project):
        print(f"{project}: the end that was arranged for an endpoint before this one is taken back")


def ensure(aws: Aws, plan: Plan, kind: str, request: dict) -> None:
    """Make a model or an endpoint_config, unless it is there. Raises Stop if somebody else's is."""
    client = aws("sagemaker")
    word = "".join(part.capitalize() for part in kind.split("_"))
    name = request[f"{word}Name"]
    found = unless_missing(getattr(client, f"describe_{kind}"), **{f"{word}Name": name})
    if found is None:
        patiently(getattr(client, f"create_{kind}"), **request, Tags=tag_list(plan.tags))
        print(f"{name}: {kind.replace('_', ' ')} made", flush=True)
    elif tags_of(aws, found[f"{word}Arn"]).get(PROJECT) != plan.project:
        raise Stop(2, f"{name} was not made by this tool: delete it, or give your project another name")


def update(aws: Aws, project: str, config: dict, before: State, settings: Namespace) -> None:
    """Move the endpoint to another configuration, while the old instances go on answering."""
    old = describe_config(aws, before.config) or {}
    new_type = variant_of(config).get("InstanceType")
    same_type = bool(old) and variant_of(old).get("InstanceType") == new_type
    scaled = bool(before.scaling)
    if scaled and not (settings.max and same_type):
        scaling.cancel(aws, project)  # AWS does not change the type of instances that are being scaled
        scaled = False
    # As many instances as the load needs now; but what is captured would be retained as well.
    captures = [one.get("DataCaptureConfig") or None for one in (old, config)]
    retain = scaled and captures[0] == captures[1]
    request: dict[str, Any] = {"RetainAllVariantProperties": retain}
    if settings.guard:
        alarms = scaling.guard(aws, project, settings.latency)
        count = variant_of(config).get("InitialInstanceCount", 1)
        if retain:
            count = before.endpoint["ProductionVariants"][0].get("DesiredInstanceCount", 1)
        request["DeploymentConfig"] = scaling.rollout(settings, alarms, count)
    move(aws, project, config["EndpointConfigName"], **request)


def move(aws: Aws, project: str, config: str, **request: Any) -> None:
    """UpdateEndpoint; when it had to be repeated, it is refused, because the first request is at work."""
    try:
        patiently(
            aws("sagemaker").update_endpoint, EndpointName=project, EndpointConfigName=config, **request
        )
    except ClientError as error:
        if code_of(error) != "ValidationException" or look(aws, project).status != "Updating":
            raise


def arrived(aws: Aws, project: str, config: str, start: datetime, settings: Namespace | None = None) -> None:
    """Wait until the endpoint serves a configuration. Raises Stop, with the log since `start`, if not."""
    guarded = settings is not None and settings.guard
    limit = scaling.longest(settings) + LIMIT if guarded else LIMIT
    found = settled(aws, project, config, USUALLY, limit)
    if found is None:
        raise Stop(1, f"the endpoint {project} went away while it was made")
    reason = found.get("FailureReason", "")
    if found["EndpointStatus"] == "InService" and found["EndpointConfigName"] == config:
        return
    what = "went back to what it served before" if found["EndpointStatus"] == "InService" else "failed"
    raise Stop(1, f"the endpoint {project} {what}: {explain(aws, log_group(project), reason, start)}")


def mark_live(aws: Aws, project: str, config: str, before: State, tags: dict[str, str]) -> None:
    """Write on the endpoint what passed the gate, and what did so before it: rollback's way home."""
    now = look(aws, project)
    marks = tags | {LIVE: config}
    if before.live and before.live != config:
        marks[PREVIOUS] = before.live
    changed = {key: value for key, value in marks.items() if now.tags.get(key) != value}
    if changed:
        aws("sagemaker").add_tags(ResourceArn=now.endpoint["EndpointArn"], Tags=tag_list(changed))


def arrange_scaling(aws: Aws, project: str, settings: Namespace) -> None:
    """The scaling and the alarms that the settings want, and no others."""
    if settings.max:
        scaling.arrange(aws, project, settings)
    elif unless_denied(scaling.target, aws, project):
        scaling.cancel(aws, project)
    wanted = {"5xx", "latency"} if settings.guard else set()
    wanted |= {scaling.WAKE} if settings.max and settings.kind == "async" and settings.min == 0 else set()
    alarms = unless_denied(scaling.alarms, aws, project) or []
    scaling.remove_alarms(aws, [name for name in alarms if name.rpartition(":")[2] not in wanted])


# --- when it fails


def undone(aws: Aws, before: State, project: str, config: str, model: str, error: Exception) -> Stop:
    """Undo what was begun for a configuration and its model; the error, with what became of the endpoint."""
    stop = as_stop(error)
    if isinstance(stop, UnfinishedError):
        return stop
    print(f"{project}: failed, and is undone now", flush=True)
    try:
        said = undo(aws, before, project, config, model)
    except Failure as again:
        reason = as_stop(again)
        said = f"not everything could be undone ({reason}): see `invoke status`; `invoke destroy` removes all"
    return Stop(stop.code, f"{stop}\n{said}")


def undo(aws: Aws, before: State, project: str, config: str, model: str) -> str:
    """Back to what was live `before`, or to nothing; returns what was done."""
    state = look(aws, project)
    if state.endpoint is not None:
        settled(aws, project)
        state = look(aws, project)
    if not state.live:
        destroy.remove_endpoint(aws, project)
        unless_denied(ttl.cancel, aws, project)
        scaling.remove_alarms(aws, unless_denied(scaling.alarms, aws, project) or [])
        destroy.remove_parts(aws, project, config, model)
        return "nothing is left of it, and nothing costs"
    if state.live == config:
        return f"{project} was left as it is"
    scaled = unless_denied(scaling.target, aws, project)
    if state.config != state.live:
        start = datetime.now(UTC)
        move(aws, project, state.live, RetainAllVariantProperties=bool(scaled))
        arrived(aws, project, state.live, start)
    if before.scaling and not scaled:  # it was cancelled for the update
        scaling.restore(aws, before.scaling)
    if config != state.previous:
        destroy.remove_parts(aws, project, config, model)
    return f"{project} serves what it served before"
