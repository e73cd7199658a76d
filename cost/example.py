"""The example of fast.ai's guide of 2019, at its prices and at today's: `estimate.py --example guide`."""

from decimal import Decimal

from bill import Line, Scenario, bill, total
from prices import Price, PriceBook, document
from throughput import assumed
from traffic import make

# What the guide printed: docs/deployment_amzn_sagemaker.md of fastai/course-v3.
GUIDE_MONTHLY = {"Hosting": "96.72", "Data in": "0.0714", "Data out": "0.000007", "Model in S3": "0.00805"}
GUIDE_TOTAL = Decimal("96.80")
CORRECTION = (
    "The guide has 0.00044 GB out for 100 bytes x 44,640 requests, a tenth of the correct 0.004464 GB; "
    "its total is still right to the cent."
)
VOLUME = "The volume is charged as well; the guide leaves it out, so the total without it is comparable."


def guide_scenario() -> Scenario:
    """Two ml.t2.medium, one request per minute, pictures of 100 KB, answers of 100 bytes, a 350 MB model."""
    return Scenario(
        kind="real-time",
        instance="ml.t2.medium",
        count=2,
        memory=4,
        provisioned=0,
        hours=Decimal(24 * 31),
        traffic=make("1/min", "constant"),
        picture=Decimal(100),
        answer=Decimal(100),
        model=Decimal(350),
        logs=Decimal(0),
        volume=None,
        scaling=False,
        target_utilization=0.7,
        start_minutes=5,
        idle_minutes=10,
        throughput=assumed(),
    )


def guide(book: PriceBook) -> dict:
    """The guide's table, corrected, and beside it the same scenario at the prices of `book`."""
    old_prices = {item["name"]: Price(**item) for item in document()["guide"]}
    today = {line.item: line for line in bill(guide_scenario(), book) if line.price.price}
    rows = [compare(item, today[item], old_prices) for item in GUIDE_MONTHLY]
    same_lines = total(today[item] for item in GUIDE_MONTHLY)
    corrected = sum((row["monthly_2019"] for row in rows), Decimal(0))
    volume = today["Volume"]
    rows.append(
        {
            "item": "Volume",
            "amount": volume.amount,
            "unit": volume.price.unit,
            "unit_price": volume.price.price,
            "monthly": volume.monthly,
            "as_of": volume.price.date,
        }
    )
    return {
        "example": "guide",
        "region": book.region,
        "rows": rows,
        "total": {
            "guide": GUIDE_TOTAL,
            "2019": corrected,
            "same_lines": same_lines,
            "today": total(today.values()),
        },
        "notes": [CORRECTION, VOLUME],
        "age": book.age(),
    }


def compare(item: str, line: Line, old_prices: dict[str, Price]) -> dict:
    """One row: what the guide printed, the correct figure of 2019, and today's."""
    old = old_prices[line.price.name]
    return {
        "item": item,
        "amount": line.amount,
        "unit": line.price.unit,
        "unit_price_2019": old.price,
        "guide": Decimal(GUIDE_MONTHLY[item]),
        "monthly_2019": line.amount * old.price,
        "unit_price": line.price.price,
        "monthly": line.monthly,
        "as_of": line.price.date,
    }
