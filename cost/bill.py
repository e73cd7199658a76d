"""The monthly bill, line by line: what each kind of endpoint is charged for. Money is always Decimal."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from prices import CostError, Price, PriceBook, find_instance
from throughput import Throughput
from traffic import Traffic, per_month

GB, MB, KB = Decimal(10**9), Decimal(10**6), Decimal(10**3)  # decimal units, as in fast.ai's guide
S3_TIERS = (("first-50TB", Decimal(51200)), ("next-450TB", Decimal(460800)), ("over-500TB", None))  # GB
FREE = Price("request", "request", Decimal(0), "2026-09-27", "aws-page", "aws.amazon.com/sagemaker/pricing")
SERVERLESS_LIMIT = 200  # concurrent requests of one endpoint: AWS's maximum of MaxConcurrency
# KB per request. AWS's limits for real-time and serverless. S3 would allow more for asynchronous and
# batch, but the model server does not: MAX_BODY in serve/inference.py.
MAX_PICTURE = {"real-time": 25_000, "serverless": 4_000, "async": 25_000, "batch": 25_000}


@dataclass(frozen=True)
class Scenario:
    """What to price. Picture in KB, answer and logs in bytes per request, model in MB, volume in GB."""

    kind: str
    instance: str
    count: int
    memory: int  # GB of a serverless container
    provisioned: int  # serverless containers that are always warm
    hours: Decimal  # of a month
    traffic: Traffic
    picture: Decimal
    answer: Decimal
    model: Decimal
    logs: Decimal
    volume: Decimal | None  # None: AWS's default for the type
    scaling: bool
    target_utilization: float  # the share of an instance's throughput to plan for
    start_minutes: float  # until a new instance serves
    idle_minutes: float  # without a request until asynchronous scales to zero
    throughput: Throughput

    @property
    def requests(self) -> Decimal:
        """Requests in the month."""
        return per_month(self.traffic.rate, self.hours)

    def pictures_per_second(self) -> float:
        """Throughput of one instance or serverless container. Raises CostError if it is unknown."""
        if self.kind == "serverless":
            return self.throughput.serverless(self.memory)
        rate = self.throughput.of(self.instance)
        if rate is None:
            text = f"the throughput of {self.instance} has not been measured"
            raise CostError(f"{text}: give --throughput, or run `invoke bench` on one")
        return rate

    def load(self) -> float:
        """The busiest minute's traffic as a share of the capacity of all instances, or of 200 containers."""
        servers = SERVERLESS_LIMIT if self.kind == "serverless" else self.count
        return self.traffic.peak / (self.pictures_per_second() * servers)


@dataclass(frozen=True)
class Line:
    """One line of the bill."""

    item: str
    amount: Decimal
    price: Price

    @property
    def monthly(self) -> Decimal:
        """USD per month."""
        return self.amount * self.price.price


def bill(scenario: Scenario, book: PriceBook, instance_hours: Decimal | None = None) -> list[Line]:
    """The lines of a scenario. `instance_hours` of the month, where a simulation has counted them."""
    if scenario.kind == "serverless":
        return serverless(scenario, book)
    hours = billed_hours(scenario) if instance_hours is None else instance_hours
    return [*hosting(scenario, book, hours), *traffic_lines(scenario, book)]


def total(lines: Iterable[Line]) -> Decimal:
    """USD per month."""
    return sum((line.monthly for line in lines), Decimal(0))


def traffic_lines(scenario: Scenario, book: PriceBook) -> list[Line]:
    """The charges of an endpoint with instances, except for the instances.

    Asynchronous and batch keep pictures and answers in S3. SageMaker charges data only for endpoints.
    """
    lines = [] if scenario.kind == "batch" else data(scenario, book)
    if scenario.kind == "real-time":
        lines += storage("Model in S3", scenario.model * MB / GB, book)
        lines.append(Line("Requests", scenario.requests, FREE))
    else:
        lines += through_s3(scenario, book)
    # Target tracking makes a high and a low alarm; scaling from zero takes a third one.
    number = {"real-time": 2 * scenario.scaling, "async": 3, "batch": 0}[scenario.kind]
    return [*lines, *logs(scenario, book), *alarms(number, book)]


def serverless(scenario: Scenario, book: PriceBook) -> list[Line]:
    """Memory for the duration of each request, and provisioned concurrency where it is configured."""
    milliseconds = math.ceil(1000 / scenario.pictures_per_second() - 1e-9)  # AWS bills whole milliseconds
    seconds = scenario.requests * Decimal(milliseconds) / 1000
    on_provisioned = seconds * decimal(share_on_provisioned(scenario))
    size = f"{scenario.memory}GB"
    lines: list[Line] = []
    if scenario.provisioned:
        usage = book.find(f"serverless:provisioned-concurrency-usage:{size}")
        duration = book.find(f"serverless:provisioned-concurrency-duration:{size}")
        lines = [
            Line("Provisioned", scenario.provisioned * scenario.hours * 3600, usage),
            Line("Compute, provisioned", on_provisioned, duration),
        ]
    return [
        Line("Compute", seconds - on_provisioned, book.find(f"serverless:{size}")),
        *lines,
        *data(scenario, book),
        *storage("Model in S3", scenario.model * MB / GB, book),
        Line("Requests", scenario.requests, FREE),
        *logs(scenario, book),
    ]


# --- groups of lines


def hosting(scenario: Scenario, book: PriceBook, instance_hours: Decimal) -> list[Line]:
    """Instance-hours, and each instance's EBS volume for the same time; types with NVMe have none."""
    instance = find_instance(scenario.instance)
    lines = [Line("Hosting", instance_hours, book.find(f"hosting:{scenario.instance}"))]
    size = instance.volume if scenario.volume is None or not instance.volume else scenario.volume
    if size:
        lines.append(Line("Volume", size * instance_hours / scenario.hours, book.find("hosting:ebs-gp2")))
    return lines


def data(scenario: Scenario, book: PriceBook) -> list[Line]:
    """SageMaker's charge for pictures into and answers out of an endpoint."""
    return [
        Line("Data in", scenario.requests * scenario.picture * KB / GB, book.find("hosting:data-in")),
        Line("Data out", scenario.requests * scenario.answer / GB, book.find("hosting:data-out")),
    ]


def storage(item: str, size: Decimal, book: PriceBook) -> list[Line]:
    """GB-months in S3, one line for each price tier that they reach."""
    lines: list[Line] = []
    for tier, width in S3_TIERS:
        part = size if width is None else min(size, width)
        if part or not lines:
            lines.append(Line(item, part, book.find(f"s3:standard:{tier}")))
        size -= part
    return lines


def through_s3(scenario: Scenario, book: PriceBook) -> list[Line]:
    """Storage of the model and a month of pictures and answers; one write and one read for each of them."""
    size = scenario.requests * (scenario.picture * KB + scenario.answer) / GB
    thousands = 2 * scenario.requests / 1000
    return [
        *storage("Model and data in S3", scenario.model * MB / GB + size, book),
        Line("S3 writes", thousands, book.find("s3:put-copy-post-list")),
        Line("S3 reads", thousands, book.find("s3:get-select")),
    ]


def logs(scenario: Scenario, book: PriceBook) -> list[Line]:
    """CloudWatch Logs: ingestion of the month's logs, and their storage."""
    if not scenario.logs:
        return []
    size = scenario.requests * scenario.logs / GB
    ingest, stored = book.find("cloudwatch-logs:ingest"), book.find("cloudwatch-logs:storage")
    return [Line("Logs", size, ingest), Line("Log storage", size, stored)]


def alarms(number: int, book: PriceBook) -> list[Line]:
    """The CloudWatch alarms that scaling makes."""
    return [Line("Scaling alarms", Decimal(number), book.find("cloudwatch:alarm"))] if number else []


# --- amounts


def decimal(number: float) -> Decimal:
    """A measured amount, to nine digits; never money."""
    return Decimal(f"{number:.9g}")


def instances_needed(scenario: Scenario) -> int:
    """Instances for the busiest minute at the target utilization, at least the configured count."""
    usable = scenario.pictures_per_second() * scenario.target_utilization
    return max(scenario.count, math.ceil(scenario.traffic.peak / usable - 1e-9))


def billed_hours(scenario: Scenario) -> Decimal:
    """Instance-hours of a month."""
    if scenario.kind == "real-time":
        return scenario.count * scenario.hours
    if scenario.kind == "async":
        return async_hours(scenario)
    starts = batch_instances(scenario) * scenario.hours / 24  # one job a day
    computing = scenario.requests * decimal(1 / scenario.pictures_per_second()) / 3600
    return starts * decimal(scenario.start_minutes) / 60 + computing


def async_hours(scenario: Scenario) -> Decimal:
    """Instance-hours of an endpoint that runs while the last request is only minutes ago.

    For Poisson traffic that is 1 - exp(-rate x minutes) of the time; a CSV file of times is counted exactly.
    """
    usable = scenario.pictures_per_second() * scenario.target_utilization
    stays = 60 * (scenario.start_minutes + scenario.idle_minutes)
    curve = scenario.traffic.curve
    if curve.times:
        span = 60 * len(curve.shares)
        times = [*curve.times, curve.times[0] + span]
        covered = sum(min(stays, after - before) for before, after in pairwise(times)) / span
        return scenario.hours * decimal(covered * math.ceil(float(scenario.traffic.rate) / usable - 1e-9))
    levels = scenario.traffic.levels()
    running = sum(
        part * math.ceil(rate / usable - 1e-9) * -math.expm1(-rate * stays) for rate, part in levels
    )
    return scenario.hours * decimal(running)


def batch_instances(scenario: Scenario) -> int:
    """Instances for a daily job to finish within the day."""
    return math.ceil(float(scenario.traffic.rate) / scenario.pictures_per_second() - 1e-9)


def share_on_provisioned(scenario: Scenario) -> float:
    """The share of the requests that run on provisioned containers."""
    if not scenario.provisioned:
        return 0.0
    capacity = scenario.provisioned * scenario.pictures_per_second()
    served = sum(part * min(rate, capacity) for rate, part in scenario.traffic.levels())
    return min(1.0, served / float(scenario.traffic.rate))
