"""Rank every kind of endpoint and every instance type by price for this traffic, and find the break-even."""

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from bill import (
    MAX_PICTURE,
    SERVERLESS_LIMIT,
    Scenario,
    batch_instances,
    bill,
    billed_hours,
    hosting,
    instances_needed,
    total,
    traffic_lines,
)
from monthly import as_of, describe_target
from prices import CostError, Instance, PriceBook, instances
from traffic import Traffic, concurrency_for

INSTANCE_KINDS = ("real-time", "async", "batch")  # the kinds that run on instances
SECONDS_PER_DAY = 86400
MAX_PER_DAY = 10**9  # requests: where the search for the break-even stops


@dataclass(frozen=True)
class Row:
    """One way to serve the traffic: its price per month, and its utilization in the busiest minute."""

    scenario: Scenario
    monthly: Decimal
    load: float
    basis: str  # of the throughput
    note: str = ""


def rank(scenario: Scenario, book: PriceBook) -> tuple[list[Row], list[dict]]:
    """Every way that can serve the traffic, cheapest first; and what cannot be ranked, with the reason."""
    rows: list[Row] = []
    unranked: list[dict] = []
    for instance in instances().values():
        reason = why_unranked(instance, scenario, book)
        if not reason:
            rows += [on_instances(resize(scenario, kind, instance.name), book) for kind in INSTANCE_KINDS]
        elif f"hosting:{instance.name}" in book.prices:
            unranked.append(unranked_row(instance, book, reason))
    for provisioned in dict.fromkeys((0, scenario.provisioned or 1)):
        row = serverless(scenario, book, provisioned)
        reason = why_impossible(row)
        if reason:
            target = describe_target(row.scenario)
            unranked.append({"kind": "serverless", "on": target, "per_hour": None, "reason": reason})
        else:
            rows.append(replace(row, note=serverless_note(row.scenario)))
    return sorted(rows, key=lambda row: row.monthly), unranked


def serverless_note(scenario: Scenario) -> str:
    """The `concurrency` (a setting of deploy) that the busiest minute needs; and a note about cold starts."""
    load = scenario.traffic.peak / scenario.pictures_per_second()
    note = f"concurrency of {concurrency_for(load)} or more"
    return note if scenario.provisioned else f"{note}; cold start when idle"


def why_impossible(row: Row) -> str:
    """Why serverless cannot serve the traffic; empty if it can."""
    if row.scenario.picture > MAX_PICTURE["serverless"]:
        return f"a picture of {row.scenario.picture} KB is over the limit of {MAX_PICTURE['serverless']:,} KB"
    needed = math.ceil(row.load * SERVERLESS_LIMIT)
    return f"needs a concurrency of {needed:,}, over the limit of {SERVERLESS_LIMIT}" if row.load > 1 else ""


def pays_from(price: Decimal, rows: list[Row], book: PriceBook) -> float | None:
    """Pictures/s at which a type of this hourly price is as cheap per picture as the cheapest ranked one."""
    per_picture = [
        float(book.find(f"hosting:{row.scenario.instance}").price) / row.scenario.pictures_per_second()
        for row in rows
        if row.scenario.kind == "real-time"
    ]
    return round(float(price) / min(per_picture), 1) if per_picture else None


def why_unranked(instance: Instance, scenario: Scenario, book: PriceBook) -> str:
    """Why a type is not ranked; empty if it is."""
    if f"hosting:{instance.name}" not in book.prices:
        return f"no price in {book.region}"
    if scenario.throughput.of(instance.name) is not None:
        return ""
    return "not measured on a GPU or accelerator" if instance.accelerator else "not measured on ARM"


def unranked_row(instance: Instance, book: PriceBook, reason: str) -> dict:
    """A type without a measurement: its price, and no guess of its throughput."""
    price = book.find(f"hosting:{instance.name}").price
    return {"kind": "real-time", "on": instance.name, "per_hour": price, "reason": reason}


def resize(scenario: Scenario, kind: str, instance: str) -> Scenario:
    """The scenario on as many instances of a type as the busiest minute, or a daily batch job, needs."""
    least = scenario.count if kind == "real-time" else 1
    scenario = replace(scenario, kind=kind, instance=instance, count=least, scaling=False)
    needed = batch_instances(scenario) if kind == "batch" else instances_needed(scenario)
    return replace(scenario, count=needed)


def on_instances(scenario: Scenario, book: PriceBook) -> Row:
    """A resized scenario with its price."""
    if scenario.kind == "batch":
        load = float(scenario.traffic.rate) / (scenario.pictures_per_second() * scenario.count)
        return priced_row(scenario, book, load, "one job per day")
    idle, start = scenario.idle_minutes, scenario.start_minutes
    note = f"answers through S3; after {idle:g} idle minutes the first takes {start:g} minutes"
    return priced_row(scenario, book, scenario.load(), note if scenario.kind == "async" else "")


def serverless(scenario: Scenario, book: PriceBook, provisioned: int = 0) -> Row:
    """Serverless with this provisioned concurrency, with its price."""
    scenario = replace(scenario, kind="serverless", provisioned=provisioned)
    return priced_row(scenario, book, scenario.load())


def priced_row(scenario: Scenario, book: PriceBook, load: float, note: str = "") -> Row:
    """A Row with its price."""
    basis = "assumed" if scenario.kind == "serverless" else scenario.throughput.basis_of(scenario.instance)
    return Row(scenario, total(bill(scenario, book)), load, basis, note)


# --- the report


def report(scenario: Scenario, book: PriceBook) -> dict:
    """All ways, cheapest first; what cannot be ranked; the break-even; a plot's lines. Raises CostError."""
    rows, unranked = rank(scenario, book)
    for other in unranked:
        if other["per_hour"]:
            other["pays_from"] = pays_from(other["per_hour"], rows, book)
    if not any(row.scenario.kind == "real-time" for row in rows):
        raise CostError(f"no instance type has a price in {book.region}: --refresh reads AWS's list")
    prices = [line.price for row in rows for line in bill(row.scenario, book)]
    return {
        "kinds": [as_json(row) for row in rows],
        "unranked": unranked,
        "break_even": {"requests_a_day": break_even(scenario, book), "least_instances": scenario.count},
        "plot": curves(scenario, book),
        "as_of": as_of(prices),
        "notes": ["real-time has a fixed number of instances here; --simulate includes autoscaling"],
    }


def as_json(row: Row) -> dict:
    """One row as JSON."""
    return {
        "kind": row.scenario.kind,
        "on": describe_target(row.scenario),
        "instances": None if row.scenario.kind == "serverless" else row.scenario.count,
        "load": round(row.load, 6),
        "monthly": row.monthly,
        "per_1000": row.monthly / row.scenario.requests * 1000,
        "speed": round(row.scenario.pictures_per_second(), 3),
        "basis": row.basis,
        "note": row.note,
    }


# --- break-even


def with_rate(scenario: Scenario, per_day: float) -> Scenario:
    """The same scenario with this many requests per day, distributed in the same way.

    Of recorded times only the shares of each minute are kept.
    """
    curve = replace(scenario.traffic.curve, times=None)
    return replace(scenario, traffic=Traffic(Fraction(per_day) / SECONDS_PER_DAY, curve))


def cheapest(scenario: Scenario, book: PriceBook, kind: str) -> Decimal:
    """The lowest monthly price of a kind over every type that can be ranked."""
    resized = [resize(scenario, kind, name) for name in ranked_types(scenario, book)]
    on_instances = min(total(hosting(option, book, billed_hours(option))) for option in resized)
    return on_instances + total(traffic_lines(resized[0], book))


def ranked_types(scenario: Scenario, book: PriceBook) -> list[str]:
    """The types that have a price and a throughput."""
    return [instance.name for instance in instances().values() if not why_unranked(instance, scenario, book)]


def break_even(scenario: Scenario, book: PriceBook) -> int | None:
    """Requests per day at which serverless stops being cheaper than real-time; None if it never is.

    Real-time rises in steps, so near this number the two can change places more than once.
    """

    def is_cheaper(per_day: int) -> bool:
        changed = with_rate(scenario, per_day)
        row = serverless(changed, book)
        return not why_impossible(row) and row.monthly < cheapest(changed, book, "real-time")

    if not is_cheaper(1):
        return None
    low, high = 1, 2
    while high < MAX_PER_DAY and is_cheaper(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_cheaper(middle) else (low, middle)
    return high


def curves(scenario: Scenario, book: PriceBook, points: int = 19) -> dict[str, list[tuple[float, float]]]:
    """For a plot: (requests per day, USD per month) of serverless and the cheapest of each other kind."""
    lines: dict[str, list] = {"serverless": [], **{kind: [] for kind in INSTANCE_KINDS}}
    for step in range(points):
        per_day = round(10 ** (1 + 6 * step / (points - 1)))
        changed = with_rate(scenario, per_day)
        row = serverless(changed, book)
        if not why_impossible(row):
            lines["serverless"].append((per_day, float(row.monthly)))
        for kind in INSTANCE_KINDS:
            lines[kind].append((per_day, float(cheapest(changed, book, kind))))
    return lines
