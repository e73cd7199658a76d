"""The verb `status`: what runs and what it costs, of one project or with `--all` of all in the Region."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

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

# LastModifiedTime also changes when the creation is complete. A model's download and a container's start may
# take an hour each (ModelDataDownloadTimeoutInSeconds, ContainerStartupHealthCheckTimeoutInSeconds).
LONGEST_CREATION = timedelta(hours=2)


def show(aws: Aws, project: str, *, everything: bool, as_json: bool) -> int:
    """Print the status of one endpoint, or of every endpoint that this tool created.

    Returns 0 if every one of them is live, 3 if one could not be described, else 1.
    """
    names = list_endpoints(aws) if everything else []
    found = [facts_or_error(aws, name) for name in names] if everything else [facts(aws, project)]
    if as_json:
        print(json.dumps(found if everything else found[0], indent=2, default=str))
    elif not found:
        print(f"this tool has created no endpoint in {aws.region}")
    failed = [row for row in found if "error" in row]
    for row in found:
        if not as_json and row not in failed:
            print_table(row)
    for row in failed:
        print(f"error: {row['project']}: {row['error']}", file=sys.stderr)
    if failed:
        return 3
    return 0 if all(row["status"] == "InService" and row["proven"] for row in found) else 1


# --- facts


def facts_or_error(aws: Aws, project: str) -> dict[str, Any]:
    """A project's facts, or the error: one that may not be read does not hide the others."""
    try:
        return facts(aws, project)
    except Failure as error:
        return {"project": project, "region": aws.region, "error": terminal_safe(as_command_error(error))}


def facts(aws: Aws, project: str) -> dict[str, Any]:
    """Everything about a project, in the form of the JSON output; what may not be read is None and a note."""
    state = get_state(aws, project)
    parts: dict[str, Any] = {
        "configurations": [config["EndpointConfigName"] for config in list_configs(aws, project)],
        "models": [model["ModelName"] for model in list_models(aws, project)],
    }
    optional: dict[str, tuple[str, Callable[[], object]]] = {
        "ends": ("scheduled deletion", lambda: ttl.deletion_time(aws, project)),
        "scaling": ("autoscaling", lambda: scaling_limits(aws, project)),
        "alarms": ("alarms", lambda: alarms.list_alarms(aws, project)),
        "last_hour": ("last hour", lambda: last_hour(aws, project) if state.endpoint else None),
    }
    unknown: dict[str, str] = {}
    for key, (what, read) in optional.items():
        try:
            parts[key] = read()
        except Failure as error:
            parts[key] = None
            unknown[key] = f"{what} unknown: {as_command_error(error)}"
    found = endpoint_facts(aws, state, parts["scaling"], is_scaling_known="scaling" not in unknown)
    return {"project": project, "region": aws.region, **found, **parts, "notes": list(unknown.values())}


def endpoint_facts(aws: Aws, state: State, limits: dict | None, *, is_scaling_known: bool) -> dict[str, Any]:
    """The endpoint's state, age and price. `limits` are autoscaling's, if `is_scaling_known`."""
    if state.endpoint is None:
        return {"status": None, "proven": False}
    config = describe_config(aws, state.config)
    variant = variant_of(config) if config else {}
    current = next(iter(state.endpoint.get("ProductionVariants") or [{}]))
    count = current.get("CurrentInstanceCount", variant.get("InitialInstanceCount"))
    hours = (datetime.now(UTC) - state.endpoint["CreationTime"]) / timedelta(hours=1)
    kind = kind_of(config) if config else "unknown"
    price = Price(None, None, "unknown")
    if config:
        price = price_of_variant(aws.region, kind, variant, count or 0)
    reason = why_not_estimated(state, config, count, limits, price, is_scaling_known=is_scaling_known)
    known = price.per_hour is not None and not reason
    return {
        "status": state.status,
        "reason": state.endpoint.get("FailureReason"),
        "proven": state.live == state.config,
        "kind": kind,
        "instance": variant.get("InstanceType"),
        "count": count,
        "serverless": variant.get("ServerlessConfig"),
        "serves": state.config,
        "previous": state.previous,
        "created": state.endpoint["CreationTime"].isoformat(timespec="seconds"),
        "age_hours": round(hours, 3),
        "per_hour": price.per_hour,
        "per_month": price.per_month,
        "price": price.sentence,
        "scales": autoscaling_sentence(aws.region, kind, variant, price, count, limits),
        "spent": round(hours * price.per_hour, 2) if known and price.per_hour is not None else None,
        "spent_unknown": reason,
        "console": console_url(aws.partition, aws.region, state.endpoint["EndpointName"]),
    }


def why_not_estimated(
    state: State,
    config: dict | None,
    count: int | None,
    limits: dict | None,
    price: Price,
    *,
    is_scaling_known: bool,
) -> str | None:
    """Why the age times today's price is not what the endpoint has cost; None if it is.

    It is only if neither the configuration nor the number of instances has changed since the creation. The
    same rule as in cost/actual.py.
    """
    variant = variant_of(config) if config else {}
    if "ServerlessConfig" in variant:
        return "serverless is billed per request"
    if price.per_hour is None or config is None or state.endpoint is None:
        return "the price is unknown"
    created = state.endpoint["CreationTime"]
    if state.status != "InService":
        return f"it is {state.status}"
    if not is_scaling_known:
        return "autoscaling's limits are unknown"
    if limits and limits["min"] != limits["max"]:
        return "autoscaling changes the number of instances"
    if config["CreationTime"] > created or state.previous:
        return "its configuration was changed after its creation"
    if count != variant.get("InitialInstanceCount", 1):
        return "its number of instances was changed after its creation"
    if state.endpoint["LastModifiedTime"] - created > LONGEST_CREATION:
        return "it was changed after its creation"
    return None


def autoscaling_sentence(
    region: str, kind: str, variant: dict, price: Price, count: int | None, limits: dict | None
) -> str | None:
    """Autoscaling's limits and their prices; None without autoscaling."""
    if not limits or "InitialInstanceCount" not in variant:
        return None
    if not count:  # scaled to zero, whose price does not tell the price of one instance
        count = variant["InitialInstanceCount"]
        price = price_of_variant(region, kind, variant)
    return price_range(price, count, limits["min"], limits["max"])


def scaling_limits(aws: Aws, project: str) -> dict[str, int] | None:
    """Autoscaling's fewest and most instances; None without autoscaling."""
    target = autoscaling.find_target(aws, project)
    return {"min": target["MinCapacity"], "max": target["MaxCapacity"]} if target else None


# --- the table


def print_table(row: dict[str, Any]) -> None:
    """Print a project's table, and below it the console's URL, which must not be wrapped."""
    Console().print(table(row))
    if row["status"]:
        print(f"console: {row['console']}")


def table(row: dict[str, Any]) -> Table:
    """A project's facts, one per line."""
    title = Text(f"{row['project']} in {row['region']}")
    rows = Table(title=title, show_header=False, title_justify="left")
    rows.add_column(overflow="fold")
    rows.add_column(overflow="fold")

    def add(key: str, text: str) -> None:
        rows.add_row(
            key, Text(terminal_safe(text))
        )  # a Text: brackets in AWS's messages are not rich's markup

    for key, text in endpoint_rows(row) if row["status"] else [("state", "there is no endpoint")]:
        add(key, text)
    if time := row["ends"]:
        add("deletion", f"{time:%Y-%m-%d %H:%M} UTC, in {time_left(time)}")
    elif row["status"]:
        add("deletion", "not scheduled")
    if row["scaling"] and not row["status"]:
        add("scaling", f"{row['scaling']['min']} to {row['scaling']['max']} instances")
    for key in ("configurations", "models", "alarms"):
        if row[key]:
            add(key, "\n".join(row[key]))
    leftovers = ("ends", "scaling", "configurations", "models", "alarms")
    if not row["status"] and any(row[key] for key in leftovers):
        add("left over", "the above: `invoke destroy` removes it")
    for note in row["notes"]:
        add("note", note)
    return rows


def endpoint_rows(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The table's first rows, of an endpoint that exists."""
    state = row["status"] if row["proven"] else f"{row['status']}, not proven: `invoke deploy` tests it"
    cost = (
        f"not estimated: {row['spent_unknown']}; `invoke cost --actual --billed` queries the bill, for $0.01"
    )
    if row["spent"] is not None:
        cost = f"about ${row['spent']:,.2f}"
    return [
        ("state", state + (f" ({row['reason']})" if row["reason"] else "")),
        ("kind", f"{row['kind']}, {capacity(row)}"),
        ("age", format_age(row["age_hours"])),
        ("price", "\n".join(filter(None, (row["price"], row["scales"])))),
        ("so far", cost),
        ("last hour", as_text(row["last_hour"])),
        ("serves", row["serves"] + (f" (before: {row['previous']})" if row["previous"] else "")),
    ]


def capacity(row: dict[str, Any]) -> str:
    """The instances, or serverless's memory and concurrency."""
    if row["serverless"]:
        return f"{row['serverless']['MemorySizeInMB']} MB, {row['serverless']['MaxConcurrency']} at a time"
    return f"{row['count']} x {row['instance']}"


def format_age(hours: float) -> str:
    """Hours as days, hours and minutes."""
    days, minutes = divmod(int(hours * 60), 1440)
    return (f"{days} d " if days else "") + f"{minutes // 60}:{minutes % 60:02} h"


def time_left(time: datetime) -> str:
    """The time until then."""
    return format_age(max((time - datetime.now(UTC)) / timedelta(hours=1), 0))
