"""An endpoint's last hour as CloudWatch measured it: twelve points of five minutes, and a picture of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from aws.client import Aws
from aws.names import VARIANT
from common import CommandError

METRICS = {  # CloudWatch's metric, its statistic, what to divide by
    "invocations": ("Invocations", "Sum", 1),
    "4xx": ("Invocation4XXErrors", "Sum", 1),
    "5xx": ("Invocation5XXErrors", "Sum", 1),
    "model_p50_ms": ("ModelLatency", "p50", 1000),  # CloudWatch has microseconds
    "model_p99_ms": ("ModelLatency", "p99", 1000),
    "overhead_p50_ms": ("OverheadLatency", "p50", 1000),
    "overhead_p99_ms": ("OverheadLatency", "p99", 1000),
}
PERIOD = timedelta(minutes=5)
POINTS = 12
BARS = "▁▂▃▄▅▆▇█"
NO_VALUE = "·"


def last_hour(aws: Aws, project: str) -> dict:
    """Requests, errors and latencies (ms): together, and each five minutes' under "points".

    None where nothing was measured. The last point is of the five minutes that are not over yet. Raises Stop
    when CloudWatch answers for only a part.
    """
    begin = first_period(datetime.now(UTC))
    answer = aws("cloudwatch").get_metric_data(
        MetricDataQueries=queries(project), StartTime=begin, EndTime=begin + POINTS * PERIOD
    )
    results = {result["Id"]: result for result in answer["MetricDataResults"]}
    bad = [
        one["StatusCode"] for one in results.values() if one["StatusCode"] in ("InternalError", "Forbidden")
    ]
    if bad:
        raise CommandError(3, f"CloudWatch did not answer for every metric ({bad[0]}): repeat the command")
    points = {
        key: align(results.get(f"m{number}", {}), begin, unit)
        for number, (key, (_, _, unit)) in enumerate(METRICS.items())
    }
    whole = {key: aggregate(points[key], statistic) for key, (_, statistic, _) in METRICS.items()}
    return {"from": begin.isoformat(), "minutes": 5, **whole, "points": points}


def first_period(now: datetime) -> datetime:
    """Where the first of the twelve periods begins, of which the last holds this moment."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + ((now - midnight) // PERIOD + 1 - POINTS) * PERIOD


def queries(project: str) -> list[dict]:
    """GetMetricData's questions, m0 for the first metric."""
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
    """A metric's values where they belong among the points."""
    points: list[float | None] = [None] * POINTS
    for at, value in zip(result.get("Timestamps", []), result.get("Values", []), strict=True):
        number = (at - begin) // PERIOD
        if 0 <= number < POINTS:
            points[number] = round(value / unit, 2)
    return points


def aggregate(points: Sequence[float | None], statistic: str) -> float | None:
    """The hour's: counts are added; of percentiles, which cannot be, the worst five minutes'."""
    values = [value for value in points if value is not None]
    if not values:
        return None
    return round(sum(values) if statistic == "Sum" else max(values), 2)


def sparkline(points: Sequence[float | None]) -> str:
    """A character for each point, as high as its share of the highest."""
    highest = max((value or 0 for value in points), default=0)
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] if value else NO_VALUE for value in points)


def as_text(seen: dict | None) -> str:
    """The picture, the counts and the times, a line each."""
    if seen is None:
        return "unknown: see the note"
    if not seen["invocations"]:
        return "no requests"
    said = [
        f"{sparkline(seen['points']['invocations'])}  {seen['invocations']:,.0f} requests in 12 x 5 minutes"
    ]
    for key in ("4xx", "5xx"):
        if seen[key]:
            said.append(f"{sparkline(seen['points'][key])}  {seen[key]:,.0f} answered with {key}")
    if len(said) == 1:
        said[0] += ", none with 4xx or 5xx"
    times = [
        f"{name} p50 {seen[f'{name}_p50_ms']:g} ms, p99 {seen[f'{name}_p99_ms']:g} ms"
        for name in ("model", "overhead")
        if seen[f"{name}_p50_ms"] is not None and seen[f"{name}_p99_ms"] is not None
    ]
    return "\n".join(said + ([f"worst 5 minutes: {'; '.join(times)}"] if times else []))
