"""The month's bill as a report; and `hourly`, what is paid before anyone asks."""

from collections.abc import Iterable
from decimal import Decimal

from bill import SERVERLESS_LIMIT, Case, Line, bill, hosting, total
from prices import Book, CostError, Price, find_instance
from wording import money

DERIVED = ("derived", "third-party")  # never seen in AWS's own list


def report(case: Case, book: Book) -> dict:
    """Lines in the guide's order, totals per month, year and 1,000 predictions."""
    lines = bill(case, book)
    return {
        "kind": case.kind,
        "on": where(case),
        "hours": case.hours,
        "lines": [row(line) for line in lines],
        "total": totals(total(lines), case),
        "as_of": as_of(line.price for line in lines),
        "notes": [load_note(case)],
    }


def hourly(case: Case, book: Book) -> dict:
    """What is paid before anyone asks, an hour and a month, and what 1,000 requests add. USD.

    What besides the instances has no price in this region is named under "without"; "vcpu" and "memory" (GiB)
    are one instance's. Raises CostError.
    """
    fixed, missing = standing(case, book)
    used, absent = by_use(case, book)
    month = total(fixed)
    per_1000 = total(used) / case.requests * 1000 if used else None
    dates = as_of(line.price for line in [*fixed, *used])
    found = {
        "kind": case.kind,
        "on": where(case),
        "region": book.region,
        "currency": "USD",
        "per_hour": month / case.hours,
        "per_month": month,
        "hours": case.hours,
        "per_1000_requests": per_1000,
        "without": missing + absent,
        "as_of": dates,
        "age": book.age(),
    }
    if case.kind != "serverless":
        machine = find_instance(case.instance)
        found |= {"vcpu": machine.vcpu, "memory": machine.memory}  # GiB
    return found | {"sentence": hourly_sentence(found)}


def hourly_sentence(found: dict) -> str:
    """The same in words."""
    hour, month = (f"${money(found[key])}" for key in ("per_hour", "per_month"))
    price = f"{hour} an hour, {month} a month" if found["per_hour"] else "nothing while nobody asks"
    text = f"{found['on']} in {found['region']}: {price}"
    if found["kind"] in ("async", "batch"):
        text += " for as long as it runs"
    if found["per_1000_requests"] is not None:
        text += f", ${money(found['per_1000_requests'])} for 1,000 requests"
    if found["without"]:
        text += f"; there is no price here for {' and '.join(found['without'])}"
    dates = found["as_of"]
    derived = ", derived in part" if dates["derived"] else ""
    return f"{text} (USD, as of {dates['oldest']} to {dates['newest']}{derived})"


def standing(case: Case, book: Book) -> tuple[list[Line], list[str]]:
    """The lines of a month without a request, and what has no price."""
    if case.kind == "training":
        return [Line("Training", case.count * case.hours, book.find(f"training:{case.instance}"))], []
    if case.kind == "serverless":
        ready = book.find(f"serverless:provisioned-concurrency-usage:{case.memory}GB")
        return [Line("Kept ready", case.provisioned * case.hours * 3600, ready)], []
    hours = case.count * case.hours
    try:
        return hosting(case, book, hours), []
    except CostError:
        return [Line("Hosting", hours, book.find(f"hosting:{case.instance}"))], ["the volume"]


def by_use(case: Case, book: Book) -> tuple[list[Line], list[str]]:
    """The lines that requests add to an endpoint, and what has no price."""
    if case.kind in ("training", "batch"):
        return [], []
    fixed = (
        "Hosting",
        "Volume",
        "Kept ready",
        "Model in S3",
        "Model and data in S3",
        "Requests",
        "Scaling alarms",
    )
    try:
        return [line for line in bill(case, book, Decimal(1)) if line.item not in fixed], []
    except CostError:
        return [], ["what requests cost"]


def totals(month: Decimal, case: Case) -> dict:
    """USD a month, a year of twelve, and 1,000 predictions."""
    return {"month": month, "year": 12 * month, "per_1000": month / case.requests * 1000}


def row(line: Line) -> dict:
    """One line of the bill as JSON has it."""
    return {
        "item": line.item,
        "amount": line.amount,
        "unit": line.price.unit,
        "unit_price": line.price.price,
        "monthly": line.monthly,
        "as_of": line.price.date,
        "basis": line.price.basis,
        "source": line.price.source,
    }


def as_of(prices: Iterable[Price]) -> dict:
    """The oldest and the newest date of the prices, and the names of those not seen in AWS's list."""
    used = {price.name: price for price in prices}.values()
    dates = sorted(price.date for price in used)
    derived = sorted(price.name for price in used if price.basis in DERIVED)
    return {"oldest": dates[0], "newest": dates[-1], "derived": derived}


def about(case: Case) -> dict:
    """The traffic in numbers."""
    traffic = case.traffic
    return {
        "curve": traffic.curve.name,
        "per_second": float(traffic.rate),
        "busiest_per_second": traffic.peak,
        "per_month": case.requests,
    }


def where(case: Case) -> str:
    """What a case runs on, in words."""
    if case.kind != "serverless":
        return f"{case.count:,} x {case.instance}"
    return f"serverless, {case.memory} GB" + (f", {case.provisioned} kept ready" if case.provisioned else "")


def load_note(case: Case) -> str:
    """How busy it is in the busiest minute, and whether that is too much."""
    try:
        load = case.load()
    except CostError as error:
        return f"load: {error}"
    servers = f"{SERVERLESS_LIMIT} containers" if case.kind == "serverless" else where(case)
    text = f"busiest minute: {case.traffic.peak:.3g} requests/s, {100 * load:.3g} % of what {servers} can do"
    if case.kind == "batch" or load <= 1:
        return text
    return f"{text}: TOO MUCH; `--compare` says how many are enough"
