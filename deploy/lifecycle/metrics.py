"""An endpoint's last hour in CloudWatch: twelve points of five minutes, and sparklines of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from aws.client import Aws
from aws.names import VARIANT
from common import CommandError

METRICS = {  # CloudWatch's metric, its statistic, what to divide by
    "invocations": ("Invocations", "Sum", 1),
    "4xx": ("Invocation4XXErrors", "Sum", 1),
    "5xx": ("Invocation5XXErrors", "Sum", 1),
    "model_p50_ms": ("ModelLatency", "p50", 1000),  # CloudWatch stores microseconds
    "model_p99_ms": ("ModelLatency", "p99", 1000),
    "overhead_p50_ms": ("OverheadLatency", "p50", 1000),
    "overhead_p99_ms": ("OverheadLatency", "p99", 1000),
}
PERIOD = timedelta(minutes=5)
POINTS = 12
BARS = "▁▂▃▄▅▆▇█"
NO_VALUE = "·"
FAILED = ("InternalError", "Forbidden")  # StatusCode of a metric


def last_hour(aws: Aws, project: str) -> dict:
    """Requests, errors and latencies (ms) of the hour, and of each five minutes under "points".

    None for what was not measured. The last point is of the current five minutes. Raises CommandError if
    CloudWatch returns only a part.
    """
    begin = first_period(datetime.now(UTC))
    response = aws("cloudwatch").get_metric_data(
        MetricDataQueries=queries(project), StartTime=begin, EndTime=begin + POINTS * PERIOD
    )
    results = {result["Id"]: result for result in response["MetricDataResults"]}
    failed = [result["StatusCode"] for result in results.values() if result["StatusCode"] in FAILED]
    if failed:
        text = f"CloudWatch did not return every metric ({failed[0]})"
        raise CommandError(3, f"{text}: run the command again")
    points = {
        key: align(results.get(f"m{number}", {}), begin, unit)
        for number, (key, (_, _, unit)) in enumerate(METRICS.items())
    }
    hour = {key: aggregate(points[key], statistic) for key, (_, statistic, _) in METRICS.items()}
    return {"from": begin.isoformat(), "minutes": 5, **hour, "points": points}


def first_period(now: datetime) -> datetime:
    """The start of the first of twelve periods, the last of which contains `now`."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + ((now - midnight) // PERIOD + 1 - POINTS) * PERIOD


def queries(project: str) -> list[dict]:
    """GetMetricData's queries; m0 is the first metric."""
    dimensions = [{"Name": "EndpointName", "Value": project}, {"Name": "VariantName", "Value": VARIANT}]
    metrics = [
        ({"Namespace": "AWS/SageMaker", "MetricName": name, "Dimensions": dimensions}, statistic)
        for name, statistic, _ in METRICS.values()
    ]
    period = int(PERIOD.total_seconds())
    return [
        {"Id": f"m{number}", "MetricStat": {"Metric": metric, "Period": period, "Stat": statistic}}
        for number, (metric, statistic) in enumerate(metrics)
    ]


def align(result: dict, begin: datetime, unit: int) -> list[float | None]:
    """A metric's values as twelve points, None where CloudWatch has none."""
    points: list[float | None] = [None] * POINTS
    for time, value in zip(result.get("Timestamps", []), result.get("Values", []), strict=True):
        number = (time - begin) // PERIOD
        if 0 <= number < POINTS:
            points[number] = round(value / unit, 2)
    return points


def aggregate(points: Sequence[float | None], statistic: str) -> float | None:
    """The hour's value: the sum of counts; the worst point of percentiles, which cannot be added."""
    values = [value for value in points if value is not None]
    if not values:
        return None
    return round(sum(values) if statistic == "Sum" else max(values), 2)


def sparkline(points: Sequence[float | None]) -> str:
    """A bar for each point, in proportion to the highest."""
    highest = max((value or 0 for value in points), default=0)
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] if value else NO_VALUE for value in points)


def as_text(hour: dict | None) -> str:
    """The sparklines with their totals, and the latencies, one per line."""
    if hour is None:
        return "unknown: see the note"
    if not hour["invocations"]:
        return "no requests"
    points = hour["points"]
    lines = [f"{sparkline(points['invocations'])}  {hour['invocations']:,.0f} requests in 12 x 5 minutes"]
    lines += [
        f"{sparkline(points[key])}  {hour[key]:,.0f} answered with {key}"
        for key in ("4xx", "5xx")
        if hour[key]
    ]
    if len(lines) == 1:
        lines[0] += ", none with 4xx or 5xx"
    latencies = [
        f"{name} p50 {hour[f'{name}_p50_ms']:g} ms, p99 {hour[f'{name}_p99_ms']:g} ms"
        for name in ("model", "overhead")
        if hour[f"{name}_p50_ms"] is not None and hour[f"{name}_p99_ms"] is not None
    ]
    return "\n".join(lines + ([f"worst 5 minutes: {'; '.join(latencies)}"] if latencies else []))
