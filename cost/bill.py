"""The month's bill, line by line: what each kind of endpoint is charged for. Money is Decimal throughout."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from prices import Book, CostError, Price, find_instance
from speed import Speeds
from traffic import Traffic, per_month

GB, MB, KB = Decimal(10**9), Decimal(10**6), Decimal(10**3)  # as the guide counts
S3_TIERS = (("first-50TB", Decimal(51200)), ("next-450TB", Decimal(460800)), ("over-500TB", None))  # GB
FREE = Price("request", "request", Decimal(0), "2026-09-27", "aws-page", "aws.amazon.com/sagemaker/pricing")
SERVERLESS_LIMIT = 200  # requests at a time
LARGEST = {"real-time": 25_000, "serverless": 4_000, "async": 1_000_000, "batch": 100_000}  # KB a request


@dataclass(frozen=True)
class Case:
    """What is to be priced. Picture in KB, answer and logs in bytes a request, model in MB, volume in GB."""

    kind: str
    instance: str
    count: int
    memory: int  # GB of a serverless container
    provisioned: int  # serverless containers kept ready
    hours: Decimal  # of a month
    traffic: Traffic
    picture: Decimal
    answer: Decimal
    model: Decimal
    logs: Decimal
    volume: Decimal | None  # None: what AWS gives the type
    scaling: bool
    busy: float  # the share of an instance's speed to plan for
    start: float  # minutes until a new instance answers
    idle: float  # minutes without a request until asynchronous scales to zero
    speeds: Speeds

    @property
    def requests(self) -> Decimal:
        """Requests in the month."""
        return per_month(self.traffic.rate, self.hours)

    def speed(self) -> float:
        """Pictures per second of one instance or serverless container; CostError when nobody knows."""
        if self.kind == "serverless":
            return self.speeds.serverless(self.memory)
        speed = self.speeds.of(self.instance)
        if speed is None:
            text = f"how many pictures a second {self.instance} answers has not been measured"
            raise CostError(f"{text}: give --throughput, or run `invoke bench` on one")
        return speed

    def load(self) -> float:
        """The busiest minute's traffic as a share of what the instances, or 200 containers, can do."""
        servers = SERVERLESS_LIMIT if self.kind == "serverless" else self.count
        return self.traffic.peak / (self.speed() * servers)


@dataclass(frozen=True)
class Line:
    """One line of the bill."""

    item: str
    amount: Decimal
    price: Price

    @property
    def monthly(self) -> Decimal:
        """USD a month."""
        return self.amount * self.price.price


def bill(case: Case, book: Book, instance_hours: Decimal | None = None) -> list[Line]:
    """The lines of a case. `instance_hours` of the month, where a simulation has counted them."""
    if case.kind == "serverless":
        return serverless(case, book)
    hours = hours_paid(case) if instance_hours is None else instance_hours
    return [*hosting(case, book, hours), *by_traffic(case, book)]


def total(lines: Iterable[Line]) -> Decimal:
    """USD a month."""
    return sum((line.monthly for line in lines), Decimal(0))


def by_traffic(case: Case, book: Book) -> list[Line]:
    """What a kind with instances costs besides them.

    Asynchronous and batch have pictures and answers in S3. SageMaker's charge for data is for endpoints only.
    """
    lines = [] if case.kind == "batch" else data(case, book)
    if case.kind == "real-time":
        lines += [*storage("Model in S3", case.model * MB / GB, book), Line("Requests", case.requests, FREE)]
    else:
        lines += through_s3(case, book)
    number = {"real-time": 2 * case.scaling, "async": 3, "batch": 0}[case.kind]
    return [*lines, *logs(case, book), *alarms(number, book)]


def serverless(case: Case, book: Book) -> list[Line]:
    """Memory for as long as a request takes; and for as long as it is kept ready, where that is asked for."""
    seconds = case.requests * Decimal(math.ceil(1000 / case.speed() - 1e-9)) / 1000  # billed by the ms
    kept = seconds * decimal(share_on_provisioned(case))
    size = f"{case.memory}GB"
    lines = []
    if case.provisioned:
        ready = book.find(f"serverless:provisioned-concurrency-usage:{size}")
        running = book.find(f"serverless:provisioned-concurrency-duration:{size}")
        lines = [
            Line("Kept ready", case.provisioned * case.hours * 3600, ready),
            Line("Compute, kept ready", kept, running),
        ]
    return [
        Line("Compute", seconds - kept, book.find(f"serverless:{size}")),
        *lines,
        *data(case, book),
        *storage("Model in S3", case.model * MB / GB, book),
        Line("Requests", case.requests, FREE),
        *logs(case, book),
    ]


# --- groups of lines


def hosting(case: Case, book: Book, instance_hours: Decimal) -> list[Line]:
    """Instance-hours, and each one's volume for as long as it is there; NVMe machines have none."""
    instance = find_instance(case.instance)
    lines = [Line("Hosting", instance_hours, book.find(f"hosting:{case.instance}"))]
    size = instance.volume if case.volume is None or not instance.volume else case.volume
    if size:
        lines.append(Line("Volume", size * instance_hours / case.hours, book.find("hosting:ebs-gp2")))
    return lines


def data(case: Case, book: Book) -> list[Line]:
    """What SageMaker charges for pictures in and answers out of an endpoint."""
    return [
        Line("Data in", case.requests * case.picture * KB / GB, book.find("hosting:data-in")),
        Line("Data out", case.requests * case.answer / GB, book.find("hosting:data-out")),
    ]


def storage(item: str, size: Decimal, book: Book) -> list[Line]:
    """GB-months in S3, a line for each tier that they reach."""
    lines = []
    for tier, width in S3_TIERS:
        part = size if width is None else min(size, width)
        if part or not lines:
            lines.append(Line(item, part, book.find(f"s3:standard:{tier}")))
        size -= part
    return lines


def through_s3(case: Case, book: Book) -> list[Line]:
    """The model, a month of pictures and answers, and for each of both one write and one read."""
    size = case.requests * (case.picture * KB + case.answer) / GB
    thousands = 2 * case.requests / 1000
    return [
        *storage("Model and data in S3", case.model * MB / GB + size, book),
        Line("S3 writes", thousands, book.find("s3:put-copy-post-list")),
        Line("S3 reads", thousands, book.find("s3:get-select")),
    ]


def logs(case: Case, book: Book) -> list[Line]:
    """CloudWatch: taking the month's log in, and keeping it."""
    if not case.logs:
        return []
    size = case.requests * case.logs / GB
    prices = book.find("cloudwatch-logs:ingest"), book.find("cloudwatch-logs:storage")
    return [Line("Logs", size, prices[0]), Line("Logs kept", size, prices[1])]


def alarms(number: int, book: Book) -> list[Line]:
    """The alarms that scaling makes."""
    return [Line("Scaling alarms", Decimal(number), book.find("cloudwatch:alarm"))] if number else []


# --- amounts


def decimal(number: float) -> Decimal:
    """A measured amount, to nine digits; never money."""
    return Decimal(f"{number:.9g}")


def instances_needed(case: Case) -> int:
    """Instances for the busiest minute at the target load, at least the configured count."""
    return max(case.count, math.ceil(case.traffic.peak / (case.speed() * case.busy) - 1e-9))


def hours_paid(case: Case) -> Decimal:
    """Instance-hours of a month."""
    if case.kind == "real-time":
        return case.count * case.hours
    if case.kind == "async":
        return hours_up(case)
    starting = jobs_instances(case) * case.hours / 24 * decimal(case.start) / 60  # one job a day
    return starting + case.requests * decimal(1 / case.speed()) / 3600


def hours_up(case: Case) -> Decimal:
    """Instance-hours of an endpoint that is there while a request came in the last minutes.

    For Poisson traffic that is 1 - exp(-rate x minutes) of the time; real times say it themselves.
    """
    able, stays = case.speed() * case.busy, 60 * (case.start + case.idle)
    if case.traffic.curve.times:
        span = 60 * len(case.traffic.curve.shares)
        times = [*case.traffic.curve.times, case.traffic.curve.times[0] + span]
        covered = sum(min(stays, after - before) for before, after in pairwise(times)) / span
        return case.hours * decimal(covered * math.ceil(float(case.traffic.rate) / able - 1e-9))
    levels = case.traffic.levels()
    up = sum(part * math.ceil(rate / able - 1e-9) * -math.expm1(-rate * stays) for rate, part in levels)
    return case.hours * decimal(up)


def jobs_instances(case: Case) -> int:
    """Instances for a daily job to end within the day."""
    return math.ceil(float(case.traffic.rate) / case.speed() - 1e-9)


def share_on_provisioned(case: Case) -> float:
    """The share of the requests that find one of the containers kept ready."""
    if not case.provisioned:
        return 0.0
    served = sum(part * min(rate, case.provisioned * case.speed()) for rate, part in case.traffic.levels())
    return min(1.0, served / float(case.traffic.rate))
