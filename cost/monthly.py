"""The monthly bill as a report, and `--hourly`: the fixed cost without traffic."""

from collections.abc import Iterable
from decimal import Decimal

from bill import SERVERLESS_LIMIT, Line, Scenario, bill, hosting, total
from formatting import money
from prices import CostError, Price, PriceBook, find_instance

DERIVED = ("derived", "third-party")  # never seen in AWS's own list
FIXED = (  # the bill's lines that do not come from requests to an endpoint
    "Hosting",
    "Volume",
    "Provisioned",
    "Model in S3",
    "Model and data in S3",
    "Requests",
    "Scaling alarms",
)


def report(scenario: Scenario, book: PriceBook) -> dict:
    """The bill's lines in the guide's order, totals per month, year and 1,000 predictions."""
    lines = bill(scenario, book)
    return {
        "kind": scenario.kind,
        "on": describe_target(scenario),
        "hours": scenario.hours,
        "lines": [row(line) for line in lines],
        "total": totals(total(lines), scenario),
        "as_of": as_of(line.price for line in lines),
        "notes": [load_note(scenario)],
    }


def hourly_report(scenario: Scenario, book: PriceBook) -> dict:
    """The fixed cost without traffic, per hour and month, and what 1,000 requests add. USD.

    "without" names what has no price in this Region; "vcpu" and "memory" (GiB) are one instance's. Raises
    CostError.
    """
    fixed, no_fixed_price = fixed_lines(scenario, book)
    usage, no_usage_price = usage_lines(scenario, book)
    month = total(fixed)
    found = {
        "kind": scenario.kind,
        "on": describe_target(scenario),
        "region": book.region,
        "currency": "USD",
        "per_hour": month / scenario.hours,
        "per_month": month,
        "hours": scenario.hours,
        "per_1000_requests": total(usage) / scenario.requests * 1000 if usage else None,
        "without": no_fixed_price + no_usage_price,
        "as_of": as_of(line.price for line in [*fixed, *usage]),
        "age": book.age(),
    }
    if scenario.kind != "serverless":
        machine = find_instance(scenario.instance)
        found |= {"vcpu": machine.vcpu, "memory": machine.memory}  # GiB
    return found | {"sentence": hourly_sentence(found)}


def hourly_sentence(found: dict) -> str:
    """The hourly report as one sentence."""
    hour, month = (f"${money(found[key])}" for key in ("per_hour", "per_month"))
    price = f"{hour} an hour, {month} a month" if found["per_hour"] else "no fixed cost"
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


def fixed_lines(scenario: Scenario, book: PriceBook) -> tuple[list[Line], list[str]]:
    """The lines of a month without a request, and what has no price."""
    hours = scenario.count * scenario.hours
    if scenario.kind == "training":
        return [Line("Training", hours, book.find(f"training:{scenario.instance}"))], []
    if scenario.kind == "serverless":
        usage = book.find(f"serverless:provisioned-concurrency-usage:{scenario.memory}GB")
        return [Line("Provisioned", scenario.provisioned * scenario.hours * 3600, usage)], []
    try:
        return hosting(scenario, book, hours), []
    except CostError:
        return [Line("Hosting", hours, book.find(f"hosting:{scenario.instance}"))], ["the volume"]


def usage_lines(scenario: Scenario, book: PriceBook) -> tuple[list[Line], list[str]]:
    """The lines that requests to an endpoint add, and what has no price."""
    if scenario.kind in ("training", "batch"):
        return [], []
    try:
        return [line for line in bill(scenario, book, Decimal(1)) if line.item not in FIXED], []
    except CostError:
        return [], ["requests"]


def totals(month: Decimal, scenario: Scenario) -> dict:
    """USD per month, per year of twelve months, and per 1,000 predictions."""
    return {"month": month, "year": 12 * month, "per_1000": month / scenario.requests * 1000}


def row(line: Line) -> dict:
    """One line of the bill as JSON."""
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


def describe_traffic(scenario: Scenario) -> dict:
    """The traffic as JSON."""
    traffic = scenario.traffic
    return {
        "curve": traffic.curve.name,
        "per_second": float(traffic.rate),
        "busiest_per_second": traffic.peak,
        "per_month": scenario.requests,
    }


def describe_target(scenario: Scenario) -> str:
    """What a scenario runs on, such as "2 x ml.c7i.large"."""
    if scenario.kind != "serverless":
        return f"{scenario.count:,} x {scenario.instance}"
    provisioned = f", {scenario.provisioned} provisioned" if scenario.provisioned else ""
    return f"serverless, {scenario.memory} GB{provisioned}"


def load_note(scenario: Scenario) -> str:
    """The utilization in the busiest minute, and whether that is too much."""
    try:
        load = scenario.load()
    except CostError as error:
        return f"utilization: {error}"
    servers = f"{SERVERLESS_LIMIT} containers" if scenario.kind == "serverless" else describe_target(scenario)
    peak = f"busiest minute: {scenario.traffic.peak:.3g} requests/s"
    text = f"{peak}, {100 * load:.3g} % of the capacity of {servers}"
    if scenario.kind == "batch" or load <= 1:
        return text
    return f"{text}: TOO MUCH; `--compare` lists how many are enough"
