"""What runs and what it costs: the project's endpoint, or with `--all` all that this tool made here."""

import json
import sys
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aws.client import Aws, Failure, as_command_error
from aws.names import console_url
from aws.pricing import Price, price_of_variant, price_range
from common import terminal_safe
from lifecycle import alarms, autoscaling, ttl
from lifecycle.metrics import as_text, last_hour
from lifecycle.state import (
    State,
    describe_config,
    get_state,
    kind_of,
    list_configs,
    list_endpoints,
    list_models,
    variant_of,
)


def show(aws: Aws, project: str, everything: bool, as_json: bool) -> int:
    """Print the status of one endpoint or of all of ours.

    Returns 0 if every one of them is live, 3 if one could not be looked at, else 1.
    """
    found = [facts_or_error(aws, name) for name in sorted(list_endpoints(aws))] if everything else []
    found = found if everything else [facts(aws, project)]
    if as_json:
        print(json.dumps(found if everything else found[0], indent=2, default=str))
    elif not found:
        print(f"this tool made no endpoint that exists in {aws.region}")
    wrong = [one for one in found if "error" in one]
    for one in found:
        if not as_json and one not in wrong:
            show_one(one)
    for one in wrong:
        print(f"error: {one['project']}: {one['error']}", file=sys.stderr)
    if wrong:
        return 3
    return 0 if all(one["status"] == "InService" and one["proven"] for one in found) else 1


def show_one(one: dict) -> None:
    """Print a project's table, and under it what must not be folded."""
    Console().print(table(one))
    if one["status"]:
        print(f"console: {one['console']}")


def facts_or_error(aws: Aws, project: str) -> dict:
    """The project's facts, or why there are none: one that may not be seen hides no other."""
    try:
        return facts(aws, project)
    except Failure as error:
        return {"project": project, "region": aws.region, "error": terminal_safe(as_command_error(error))}


def facts(aws: Aws, project: str) -> dict:
    """Everything that AWS says of a project, as JSON holds it."""
    state = get_state(aws, project)
    parts = {
        "configurations": [one["EndpointConfigName"] for one in list_configs(aws, project)],
        "models": [one["ModelName"] for one in list_models(aws, project)],
    }
    notes: list[str] = []
    for key, ask in (
        ("ends", lambda: ttl.deletion_time(aws, project)),
        ("scaling", lambda: scaling_limits(aws, project)),
        ("alarms", lambda: alarms.list_alarms(aws, project)),
        ("last_hour", lambda: last_hour(aws, project) if state.endpoint else None),
    ):
        try:
            parts[key] = ask()
        except Failure as error:
            parts[key] = None
            notes.append(f"{key} unknown: {as_command_error(error)}")
    unseen = [note.partition(" ")[0] for note in notes]
    found = endpoint_facts(aws, state, parts["scaling"], "scaling" not in unseen)
    return {"project": project, "region": aws.region, **found, **parts, "notes": notes}


def endpoint_facts(aws: Aws, state: State, scaled: dict | None, is_sure: bool) -> dict:
    """What the endpoint is, how old, what it costs. `is_sure` says that `scaled` is known."""
    if state.endpoint is None:
        return {"status": None, "proven": False}
    config = describe_config(aws, state.config)
    wanted = variant_of(config) if config else {}
    running = next(iter(state.endpoint.get("ProductionVariants") or [{}]))
    count = running.get("CurrentInstanceCount", wanted.get("InitialInstanceCount"))
    hours = (datetime.now(UTC) - state.endpoint["CreationTime"]) / timedelta(hours=1)
    kind = kind_of(config) if config else "unknown"
    cost = price_of_variant(aws.region, kind, wanted, count or 0) if config else Price(None, None, "unknown")
    unknown = why_not_estimated(state, wanted, scaled, is_sure, cost)
    return {
        "status": state.status,
        "reason": state.endpoint.get("FailureReason"),
        "proven": state.live == state.config,
        "kind": kind,
        "instance": wanted.get("InstanceType"),
        "count": count,
        "serverless": wanted.get("ServerlessConfig"),
        "serves": state.config,
        "previous": state.previous,
        "created": state.endpoint["CreationTime"].isoformat(timespec="seconds"),
        "age_hours": round(hours, 3),
        "per_hour": cost.per_hour,
        "per_month": cost.per_month,
        "price": cost.sentence,
        "scales": autoscaling_sentence(aws.region, kind, wanted, cost, count, scaled),
        "spent": None if unknown else round(hours * cost.per_hour, 2),
        "spent_unknown": unknown,
        "console": console_url(aws.partition, aws.region, state.endpoint["EndpointName"]),
    }


def why_not_estimated(
    state: State, wanted: dict, scaled: dict | None, is_sure: bool, cost: Price
) -> str | None:
    """Why the hours times today's price are not what was spent; None where they are."""
    if "ServerlessConfig" in wanted:
        return "serverless is paid by the request"
    if cost.per_hour is None:
        return "the price is unknown"
    if state.status in ("Creating", "Failed"):
        return "it has not served"
    if not is_sure or (scaled and scaled["min"] != scaled["max"]):
        return "the number of instances changes"
    return "it was changed since it was made" if state.previous else None


def autoscaling_sentence(
    region: str, kind: str, wanted: dict, cost: Price, count: int | None, scaled: dict | None
) -> str | None:
    """What autoscaling may make of the price, in words; None without autoscaling."""
    if not scaled or "InitialInstanceCount" not in wanted:
        return None
    if not count:  # asleep: what one costs is not in what none costs
        count = wanted["InitialInstanceCount"]
        cost = price_of_variant(region, kind, wanted)
    return price_range(cost, count, scaled["min"], scaled["max"])


def scaling_limits(aws: Aws, project: str) -> dict | None:
    """Autoscaling's fewest and most instances."""
    found = autoscaling.find_target(aws, project)
    return found and {"min": found["MinCapacity"], "max": found["MaxCapacity"]}


def table(one: dict) -> Table:
    """One project's facts, a line each."""
    title = Text(f"{one['project']} in {one['region']}")
    rows = Table(title=title, show_header=False, title_justify="left")
    rows.add_column(overflow="fold")
    rows.add_column(overflow="fold")

    def add(key: str, text: str) -> None:
        rows.add_row(
            key, Text(terminal_safe(text))
        )  # else brackets in what AWS says would be rich's commands

    for key, text in endpoint_rows(one) if one["status"] else [("state", "there is no endpoint")]:
        add(key, text)
    if end := one["ends"]:
        add("ends", f"{end:%Y-%m-%d %H:%M} UTC, in {time_left(end)}")
    elif one["status"]:
        add("ends", "not by itself")
    if one["scaling"] and not one["status"]:
        add("scaling", f"{one['scaling']['min']} to {one['scaling']['max']} instances")
    for key in ("configurations", "models", "alarms"):
        if one[key]:
            add(key, "\n".join(one[key]))
    if not one["status"] and any(
        one[key] for key in ("ends", "scaling", "configurations", "models", "alarms")
    ):
        add("left over", "what is named here: `invoke destroy` removes it")
    for note in one["notes"]:
        add("note", note)
    return rows


def endpoint_rows(one: dict) -> list[tuple[str, str]]:
    """What there is to say of an endpoint that exists."""
    state = one["status"] if one["proven"] else f"{one['status']}, not proven: `invoke deploy` asks it"
    so_far = (
        f"not reckoned: {one['spent_unknown']}; `invoke cost --actual --billed` asks AWS's bill, for $0.01"
    )
    return [
        ("state", state + (f" ({one['reason']})" if one["reason"] else "")),
        ("kind", f"{one['kind']}, {capacity(one)}"),
        ("age", format_age(one["age_hours"])),
        ("price", "\n".join(filter(None, (one["price"], one["scales"])))),
        ("so far", so_far if one["spent_unknown"] else f"about ${one['spent']:,.2f}"),
        ("last hour", as_text(one["last_hour"])),
        ("serves", one["serves"] + (f" (before: {one['previous']})" if one["previous"] else "")),
    ]


def capacity(one: dict) -> str:
    """The instances, or what serverless has instead."""
    if one["serverless"]:
        return f"{one['serverless']['MemorySizeInMB']} MB, {one['serverless']['MaxConcurrency']} at a time"
    return f"{one['count']} x {one['instance']}"


def format_age(hours: float) -> str:
    """Hours as days, hours and minutes."""
    minutes = int(hours * 60)
    days, rest = divmod(minutes, 1440)
    return (f"{days} d " if days else "") + f"{rest // 60}:{rest % 60:02} h"


def time_left(end: datetime) -> str:
    """The time until then."""
    return format_age(max((end - datetime.now(UTC)) / timedelta(hours=1), 0))
