"""What runs and what it costs: the project's endpoint, or with `--all` all that this tool made here."""

import json
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

import scaling
import ttl
from aws import Aws, AwsError, as_stop
from hourly import Price, of_variant
from names import VARIANT, console
from state import State, configs, describe_config, endpoints, kind_of, look, models, variant_of

METRICS = {  # what `status` says of the last hour: CloudWatch's metric, its statistic, what to divide by
    "invocations": ("Invocations", "Sum", 1),
    "4xx": ("Invocation4XXErrors", "Sum", 1),
    "5xx": ("Invocation5XXErrors", "Sum", 1),
    "model_p50_ms": ("ModelLatency", "p50", 1000),  # CloudWatch has microseconds
    "model_p99_ms": ("ModelLatency", "p99", 1000),
    "overhead_p50_ms": ("OverheadLatency", "p50", 1000),
    "overhead_p99_ms": ("OverheadLatency", "p99", 1000),
}


def show(aws: Aws, project: str, everything: bool, as_json: bool) -> int:
    """Print the status of one endpoint or of all of ours; 0 if every one of them is live, else 1."""
    names = sorted(endpoints(aws)) if everything else [project]
    found = [facts(aws, name) for name in names]
    if as_json:
        print(json.dumps(found if everything else found[0], indent=2, default=str))
    elif not found:
        print(f"this tool made no endpoint that exists in {aws.region}")
    for one in [] if as_json else found:
        Console().print(table(one))
    return 0 if all(one["status"] == "InService" and one["proven"] for one in found) else 1


def facts(aws: Aws, project: str) -> dict:
    """Everything that AWS says of a project, as JSON holds it."""
    state = look(aws, project)
    parts = {
        "configurations": [one["EndpointConfigName"] for one in configs(aws, project)],
        "models": [one["ModelName"] for one in models(aws, project)],
    }
    notes: list[str] = []
    for key, ask in (
        ("ends", lambda: ttl.end_of(aws, project)),
        ("scaling", lambda: limits(aws, project)),
        ("alarms", lambda: scaling.alarms(aws, project)),
        ("last_hour", lambda: last_hour(aws, project) if state.endpoint else None),
    ):
        try:
            parts[key] = ask()
        except AwsError as error:
            parts[key] = None
            notes.append(f"{key} unknown: {as_stop(error)}")
    return {"project": project, "region": aws.region, **of_endpoint(aws, state), **parts, "notes": notes}


def of_endpoint(aws: Aws, state: State) -> dict:
    """What the endpoint is, how old, and what it has cost so far, at today's number of instances."""
    if state.endpoint is None:
        return {"status": None, "proven": False}
    config = describe_config(aws, state.config)
    wanted = variant_of(config) if config else {}
    running = next(iter(state.endpoint.get("ProductionVariants") or [{}]))
    count = running.get("CurrentInstanceCount", wanted.get("InitialInstanceCount"))
    hours = (datetime.now(UTC) - state.endpoint["CreationTime"]) / timedelta(hours=1)
    instance = wanted.get("InstanceType")
    kind = kind_of(config) if config else "unknown"
    cost = of_variant(aws.region, kind, wanted, count or 0) if config else Price(None, None, "unknown")
    return {
        "status": state.status,
        "reason": state.endpoint.get("FailureReason"),
        "proven": state.live == state.config,
        "kind": kind,
        "instance": instance,
        "count": count,
        "serverless": wanted.get("ServerlessConfig"),
        "serves": state.config,
        "previous": state.previous,
        "created": state.endpoint["CreationTime"].isoformat(timespec="seconds"),
        "age_hours": round(hours, 3),
        "per_hour": cost.per_hour,
        "per_month": cost.per_month,
        "price": cost.sentence,
        "spent": None if cost.per_hour is None else round(hours * cost.per_hour, 2),
        "console": console(aws.region, state.endpoint["EndpointName"]),
    }


def limits(aws: Aws, project: str) -> dict | None:
    """Autoscaling's fewest and most instances."""
    found = scaling.target(aws, project)
    return found and {"min": found["MinCapacity"], "max": found["MaxCapacity"]}


def last_hour(aws: Aws, project: str) -> dict[str, float | None]:
    """Requests, errors and latencies (ms) of the last hour; None where nothing was measured."""
    dimensions = [
        {"Name": "EndpointName", "Value": project},
        {"Name": "VariantName", "Value": VARIANT},
    ]
    queries = [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {"Namespace": "AWS/SageMaker", "MetricName": name, "Dimensions": dimensions},
                "Period": 3600,
                "Stat": statistic,
            },
        }
        for number, (name, statistic, _) in enumerate(METRICS.values())
    ]
    now = datetime.now(UTC)
    answer = aws("cloudwatch").get_metric_data(
        MetricDataQueries=queries, StartTime=now - timedelta(hours=1), EndTime=now
    )
    values = {result["Id"]: result["Values"] for result in answer["MetricDataResults"]}
    return {
        key: together(values.get(f"m{number}", []), statistic, unit)
        for number, (key, (_, statistic, unit)) in enumerate(METRICS.items())
    }


def together(values: list[float], statistic: str, unit: int) -> float | None:
    """An hour may touch two of CloudWatch's periods: sums are added, of percentiles the larger one counts."""
    if not values:
        return None
    return round((sum(values) if statistic == "Sum" else max(values)) / unit, 2)


def table(one: dict) -> Table:
    """One project's facts, a line each."""
    rows = Table(title=f"{one['project']} in {one['region']}", show_header=False, title_justify="left")
    rows.add_column(overflow="fold")
    rows.add_column(overflow="fold")
    if one["status"]:
        add = rows.add_row
        state = one["status"] if one["proven"] else f"{one['status']}, not proven: `invoke deploy` asks it"
        add("state", state + (f" ({one['reason']})" if one["reason"] else ""))
        add("kind", f"{one['kind']}, {machines(one)}")
        add("age", age(one["age_hours"]))
        spent = f"; about ${one['spent']:.2f} so far" if one["spent"] is not None else ""
        add("price", one["price"] + spent)
        add("last hour", hour(one["last_hour"]))
        add("serves", one["serves"] + (f" (before: {one['previous']})" if one["previous"] else ""))
        add("console", one["console"])
    else:
        rows.add_row("state", "there is no endpoint")
    end = one["ends"]
    rows.add_row("ends", f"{end:%Y-%m-%d %H:%M} UTC, in {left(end)}" if end else "not by itself")
    if one["scaling"]:
        rows.add_row("scaling", f"{one['scaling']['min']} to {one['scaling']['max']} instances")
    for key in ("configurations", "models", "alarms"):
        if one[key]:
            rows.add_row(key, "\n".join(one[key]))
    for note in one["notes"]:
        rows.add_row("note", note)
    return rows


def machines(one: dict) -> str:
    """The instances, or what serverless has instead."""
    if one["serverless"]:
        return f"{one['serverless']['MemorySizeInMB']} MB, {one['serverless']['MaxConcurrency']} at a time"
    return f"{one['count']} x {one['instance']}"


def age(hours: float) -> str:
    """Hours as days, hours and minutes."""
    minutes = int(hours * 60)
    days, rest = divmod(minutes, 1440)
    return (f"{days} d " if days else "") + f"{rest // 60}:{rest % 60:02} h"


def left(end: datetime) -> str:
    """The time until then."""
    return age(max((end - datetime.now(UTC)) / timedelta(hours=1), 0))


def hour(seen: dict | None) -> str:
    """The last hour's figures, in words."""
    if not seen or not seen["invocations"]:
        return "no requests"
    counts = f"{seen['invocations']:.0f} requests, {seen['4xx'] or 0:.0f} 4xx, {seen['5xx'] or 0:.0f} 5xx"
    times = [
        f"{name} p50 {seen[f'{name}_p50_ms']:g} ms, p99 {seen[f'{name}_p99_ms']:g} ms"
        for name in ("model", "overhead")
        if seen[f"{name}_p50_ms"] is not None and seen[f"{name}_p99_ms"] is not None
    ]
    return "; ".join([counts, *times])
