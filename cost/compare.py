"""Which kind of endpoint, and which instance, is cheapest for this traffic, and from what traffic on."""

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from bill import (
    LARGEST,
    SERVERLESS_LIMIT,
    Case,
    bill,
    by_traffic,
    hosting,
    hours_paid,
    instances_needed,
    jobs_instances,
    total,
)
from month import as_of, where
from prices import Book, CostError, Instance, instances
from traffic import Traffic, at_a_time

KINDS = ("real-time", "async", "batch")  # those with instances
DAY = 86400
MOST = 10**9  # requests a day, as far as break-even is looked for


@dataclass(frozen=True)
class Row:
    """One way to serve the traffic: what it costs a month, and how busy it is in the busiest minute."""

    case: Case
    monthly: Decimal
    load: float
    basis: str  # of the pictures per second
    note: str = ""


def rows(case: Case, book: Book) -> tuple[list[Row], list[dict]]:
    """Every way that can carry the traffic, cheapest first; and what cannot be ranked, with the reason."""
    found: list[Row] = []
    left: list[dict] = []
    for instance in instances().values():
        reason = unranked(instance, case, book)
        if not reason:
            found += [on_instances(fit(case, kind, instance.name), book) for kind in KINDS]
        elif f"hosting:{instance.name}" in book.prices:
            left.append(aside(instance, case, book, reason))
    for provisioned in dict.fromkeys((0, case.provisioned or 1)):
        row = serverless(case, book, provisioned)
        reason = impossible(row)
        if reason:
            left.append({"kind": "serverless", "on": where(row.case), "per_hour": None, "reason": reason})
        else:
            found.append(replace(row, note=serverless_note(row.case)))
    return sorted(found, key=lambda row: row.monthly), left


def serverless_note(case: Case) -> str:
    """The concurrency that the busiest minute needs, which is a setting of deploy; and cold starts."""
    note = f"concurrency of {at_a_time(case.traffic.peak / case.speed())} or more"
    return note if case.provisioned else f"{note}; cold starts after a pause"


def impossible(row: Row) -> str:
    """Why serverless cannot do it; nothing if it can."""
    if row.case.picture > LARGEST["serverless"]:
        return f"a picture of {row.case.picture} KB, and {LARGEST['serverless']:,} is the most"
    need = math.ceil(row.load * SERVERLESS_LIMIT)
    return f"would need {need:,} at a time, and {SERVERLESS_LIMIT} is the most" if row.load > 1 else ""


def pays_from(price: Decimal, found: list[Row], book: Book) -> float | None:
    """Pictures/s from which a type of this hourly price has them as cheap as the cheapest of those ranked."""
    per_picture = [
        float(book.find(f"hosting:{row.case.instance}").price) / row.case.speed()
        for row in found
        if row.case.kind == "real-time"
    ]
    return round(float(price) / min(per_picture), 1) if per_picture else None


def unranked(instance: Instance, case: Case, book: Book) -> str:
    """Why a type is not in the ranking; nothing if it is."""
    if f"hosting:{instance.name}" not in book.prices:
        return f"no price in {book.region}"
    if case.speeds.of(instance.name) is not None:
        return ""
    return "not measured on a GPU or accelerator" if instance.accelerator else "not measured on ARM"


def aside(instance: Instance, case: Case, book: Book, reason: str) -> dict:
    """A type that nothing was measured on: its price, without a guess at what it can do."""
    price = book.find(f"hosting:{instance.name}").price
    return {"kind": "real-time", "on": instance.name, "per_hour": price, "reason": reason}


def fit(case: Case, kind: str, instance: str) -> Case:
    """The case on as many instances of a type as it needs, for the busiest minute or to end in a day."""
    fewest = case.count if kind == "real-time" else 1
    case = replace(case, kind=kind, instance=instance, count=fewest, scaling=False)
    return replace(case, count=jobs_instances(case) if kind == "batch" else instances_needed(case))


def on_instances(case: Case, book: Book) -> Row:
    """A fitted case with its price."""
    if case.kind == "batch":
        load = float(case.traffic.rate) / (case.speed() * case.count)
        return row(case, book, load, "answers once a day")
    idle = f"answers by way of S3; the first after {case.idle:g} idle minutes waits {case.start:g}"
    return row(case, book, case.load(), idle if case.kind == "async" else "")


def serverless(case: Case, book: Book, provisioned: int = 0) -> Row:
    """Containers by need, up to 200 at a time."""
    case = replace(case, kind="serverless", provisioned=provisioned)
    return row(case, book, case.load())


def row(case: Case, book: Book, load: float, note: str = "") -> Row:
    """A Row with its price."""
    basis = case.speeds.basis_of(case.instance) if case.kind != "serverless" else "assumed"
    return Row(case, total(bill(case, book)), load, basis, note)


# --- the report


def report(case: Case, book: Book) -> dict:
    """All ways, cheapest first; what cannot be ranked; the break-even; lines for a plot."""
    found, left = rows(case, book)
    for other in left:
        if other["per_hour"]:
            other["pays_from"] = pays_from(other["per_hour"], found, book)
    if not any(row.case.kind == "real-time" for row in found):
        raise CostError(f"no instance type has a price in {book.region}: --refresh reads AWS's list")
    prices = [line.price for row in found for line in bill(row.case, book)]
    return {
        "kinds": [as_json(row) for row in found],
        "unranked": left,
        "break_even": {"requests_a_day": break_even(case, book), "least_instances": case.count},
        "plot": curves(case, book),
        "as_of": as_of(prices),
        "notes": ["real-time here is a fixed number of instances; --simulate has it with scaling too"],
    }


def as_json(row: Row) -> dict:
    """One row as JSON has it."""
    return {
        "kind": row.case.kind,
        "on": where(row.case),
        "instances": None if row.case.kind == "serverless" else row.case.count,
        "load": round(row.load, 6),
        "monthly": row.monthly,
        "per_1000": row.monthly / row.case.requests * 1000,
        "speed": round(row.case.speed(), 3),
        "basis": row.basis,
        "note": row.note,
    }


# --- break-even


def at(case: Case, per_day: float) -> Case:
    """The same case with so many requests a day, spread in the same way; real times give but their shares."""
    curve = replace(case.traffic.curve, times=None)
    return replace(case, traffic=Traffic(Fraction(per_day) / DAY, curve))


def cheapest(case: Case, book: Book, kind: str) -> Decimal:
    """The lowest monthly price of a kind, over every type that can be ranked."""
    fitted = [fit(case, kind, name) for name in ranked(case, book)]
    on_them = min(total(hosting(one, book, hours_paid(one))) for one in fitted)
    return on_them + total(by_traffic(fitted[0], book))


def ranked(case: Case, book: Book) -> list[str]:
    """The types that have a price and a speed."""
    return [instance.name for instance in instances().values() if not unranked(instance, case, book)]


def break_even(case: Case, book: Book) -> int | None:
    """Requests a day at which serverless stops being cheaper than real-time; None if it never is.

    Real-time rises in steps, so close to this number the two can change places more than once.
    """

    def cheaper(per_day: int) -> bool:
        now = at(case, per_day)
        one = serverless(now, book)
        return not impossible(one) and one.monthly < cheapest(now, book, "real-time")

    if not cheaper(1):
        return None
    low, high = 1, 2
    while high < MOST and cheaper(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cheaper(middle) else (low, middle)
    return high


def curves(case: Case, book: Book, points: int = 19) -> dict[str, list[tuple[float, float]]]:
    """For a plot: (requests a day, USD a month) of serverless and the cheapest of each other kind."""
    lines: dict[str, list] = {"serverless": [], **{kind: [] for kind in KINDS}}
    for step in range(points):
        per_day = round(10 ** (1 + 6 * step / (points - 1)))
        now = at(case, per_day)
        one = serverless(now, book)
        if not impossible(one):
            lines["serverless"].append((per_day, float(one.monthly)))
        for kind in KINDS:
            lines[kind].append((per_day, float(cheapest(now, book, kind))))
    return lines
