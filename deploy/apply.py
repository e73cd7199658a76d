"""From the plan to the endpoint: each part is made once, and what fails is undone."""

import time
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

import destroy
import scaling
import ttl
from aws import (
    Aws,
    Failure,
    Stop,
    as_stop,
    code_of,
    is_missing,
    is_there_already,
    unless_denied,
    unless_missing,
)
from diagnose import explain
from names import LIVE, PREVIOUS, PROJECT, log_group, tag_list
from plan import Plan
from state import State, describe_config, look, tags_of, variant_of
from watch import settled

CONSISTENT = (1, 2, 4, 8, 15)  # seconds between tries, while AWS learns of what was just made
USUALLY = "4 to 10 minutes"


def rest(aws: Aws, project: str) -> State:
    """The endpoint once it has stopped moving; a failed one is removed: AWS allows nothing else."""
    state = look(aws, project)
    if state.endpoint is not None:
        settled(aws, project)
        state = look(aws, project)
    if state.status == "Failed":
        print(f"{project}: an endpoint that failed to start is removed first", flush=True)
        destroy.remove_endpoint(aws, project)
        return State(None, {})
    return state


def make(aws: Aws, plan: Plan, before: State, schedule_role: str | None) -> None:
    """Everything that the plan wants and AWS lacks. Raises Stop when the endpoint fails."""
    settings, project, start = plan.settings, plan.project, datetime.now(UTC)
    if schedule_role:  # first, so that not even an interrupted deployment costs for ever
        end = ttl.arrange(aws, project, schedule_role, settings.ttl)
        print(f"{project}: will be deleted at {end:%Y-%m-%d %H:%M} UTC")
    elif settings.ttl == 0 and ttl.cancel(aws, project):
        print(f"{project}: will not be deleted by itself any more")
    ensure(aws, plan, "model", plan.model)
    ensure(aws, plan, "endpoint_config", plan.config)
    if before.endpoint is None:
        tags = tag_list(plan.tags)
        call = aws("sagemaker").create_endpoint
        patiently(call, EndpointName=project, EndpointConfigName=plan.name, Tags=tags)
    elif before.config != plan.name:
        update(aws, project, plan.config, before, settings)
    arrived(aws, project, plan.name, start)


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


def patiently(call: Callable, **request: Any) -> None:
    """A call about what was just made, of which AWS may not know yet; made already is as well."""
    for wait in (*CONSISTENT, None):
        try:
            call(**request)
            return
        except ClientError as error:
            if is_there_already(error):
                return
            not_yet = is_missing(error) or "assume" in str(error)  # a role needs seconds to be known
            if wait is None or code_of(error) != "ValidationException" or not not_yet:
                raise
            time.sleep(wait)


def update(aws: Aws, project: str, config: dict, before: State, settings: Namespace) -> None:
    """Move the endpoint to another configuration, while the old instances go on answering."""
    old = describe_config(aws, before.config)
    scaled = unless_denied(scaling.target, aws, project)
    new_type = variant_of(config).get("InstanceType")
    if scaled and not (settings.max and old and variant_of(old).get("InstanceType") == new_type):
        scaling.cancel(aws, project)  # AWS does not change the type of instances that are being scaled
        scaled = None
    request: dict[str, Any] = {"RetainAllVariantProperties": bool(scaled)}  # as many as the load needs now
    if settings.guard:
        alarms = scaling.guard(aws, project, settings.latency)
        request["DeploymentConfig"] = scaling.rollout(settings, alarms)
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


def arrived(aws: Aws, project: str, config: str, start: datetime) -> None:
    """Wait until the endpoint serves a configuration. Raises Stop, with the log since `start`, if not."""
    found = settled(aws, project, config, USUALLY)
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


def undone(aws: Aws, project: str, config: str, model: str, error: Exception) -> Stop:
    """Undo what was begun for a configuration and its model; the error, with what became of the endpoint."""
    stop = as_stop(error)
    print(f"{project}: failed, and is undone now", flush=True)
    try:
        said = undo(aws, project, config, model)
    except Failure as again:
        reason = as_stop(again)
        said = f"not everything could be undone ({reason}): `invoke destroy` removes what is left"
    return Stop(stop.code, f"{stop}\n{said}")


def undo(aws: Aws, project: str, config: str, model: str) -> str:
    """Back to what was live, or to nothing; returns what was done."""
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
    if state.config != state.live:
        move(aws, project, state.live)
        settled(aws, project, state.live, USUALLY)
    if config != state.previous:
        destroy.remove_parts(aws, project, config, model)
    return f"{project} serves what it served before"
