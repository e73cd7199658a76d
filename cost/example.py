"""The case of fast.ai's guide of 2019, with its prices and with today's: `estimate.py --example guide`."""

from decimal import Decimal

from bill import Case, Line, bill, total
from prices import Book, Price, document
from speed import assumed
from traffic import make

# What the guide printed, and the amount that it reckoned with, where that was wrong.
SAID = {"Hosting": "96.72", "Data in": "0.0714", "Data out": "0.000007", "Model in S3": "0.00805"}
SAID_TOTAL = Decimal("96.80")
NOTE = (
    "The guide has 0.00044 GB out for 100 bytes x 44,640 requests, a tenth of the 0.004464 GB that they are; "
    "its total is right to the cent all the same."
)
NEW = "The volume is charged besides; the guide does not have it, and its total is the line above it."


def guide_case() -> Case:
    """Two ml.t2.medium, one request a minute, pictures of 100 KB, answers of 100 bytes, a model of 350 MB."""
    return Case(
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
        busy=0.7,
        start=5,
        idle=10,
        speeds=assumed(),
    )


def guide(book: Book) -> dict:
    """The guide's table, corrected, and beside it the same case at the prices of `book`."""
    then = {item["name"]: Price(**item) for item in document()["guide"]}
    case = guide_case()
    today = {line.item: line for line in bill(case, book) if line.price.price}
    rows = [compare(item, today[item], then) for item in SAID]
    same = total(today[item] for item in SAID)
    corrected = sum((row["monthly_2019"] for row in rows), Decimal(0))
    rows.append(
        {
            "item": "Volume",
            "amount": today["Volume"].amount,
            "unit": today["Volume"].price.unit,
            "unit_price": today["Volume"].price.price,
            "monthly": today["Volume"].monthly,
            "as_of": today["Volume"].price.date,
        }
    )
    return {
        "example": "guide",
        "region": book.region,
        "rows": rows,
        "total": {"guide": SAID_TOTAL, "2019": corrected, "same_lines": same, "today": total(today.values())},
        "notes": [NOTE, NEW],
        "age": book.age(),
    }


def compare(item: str, line: Line, then: dict[str, Price]) -> dict:
    """One row: what the guide printed, what it should have, and today."""
    old = then[line.price.name]
    return {
        "item": item,
        "amount": line.amount,
        "unit": line.price.unit,
        "unit_price_2019": old.price,
        "guide": Decimal(SAID[item]),
        "monthly_2019": line.amount * old.price,
        "unit_price": line.price.price,
        "monthly": line.monthly,
        "as_of": line.price.date,
    }
