"""Read AWS's public price list of one Region into the user's own list: all items, or none.

The offer files (docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-the-aws-price-list-bulk-api.html)
need no account. Their structure: products{sku: {productFamily, attributes}} and
terms.OnDemand{sku: {offer: {priceDimensions: {rate: {unit, beginRange, pricePerUnit}}}}}.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

import requests

from bill import S3_TIERS
from prices import CostError, document, list_file, nearest

TIMEOUT = 60  # seconds without data
PATH = "/offers/v1.0/aws/{service}/current/{region}/index.json"


@dataclass(frozen=True)
class WantedPrice:
    """Identifies the product in AWS's list that has one price of ours.

    `attributes` are regular expressions, `units` AWS's names of its unit, `unit` ours. `tier` is the start of
    the range that is meant, `tiers` the number of the product's ranges, `times` AWS's units in one of ours.
    """

    service: str
    attributes: dict[str, str]
    units: tuple[str, ...]
    unit: str
    tier: Decimal = Decimal(0)
    tiers: int = 1
    times: int = 1


class NoPriceError(Exception):
    """The reason why one item has no price in AWS's list."""


def refresh(region: str, offers: str, without: list[str]) -> dict:
    """Read the offer files and write the user's list. Raises CostError; the old list is unchanged then."""
    items = wanted_prices()
    unknown = [name for name in without if name not in items]
    if unknown:
        near = nearest(unknown[0], items)
        raise CostError(f"--without {unknown[0]!r} is not an item{near and ': did you mean ' + near + '?'}")
    items = {name: item for name, item in items.items() if name not in without}
    files = {
        service: fetch(offers + PATH.format(service=service, region=region))
        for service in sorted({item.service for item in items.values()})
    }
    found, failed = {}, []
    for name, item in items.items():
        try:
            found[name] = find_price(files[item.service], item, region)
        except NoPriceError as error:
            failed.append(f"{name}: {error}")
    if failed:
        text = f"{len(failed)} of {len(items)} items failed, so nothing was written: {'; '.join(failed)}"
        raise CostError(f"{text}. `--without NAME` leaves one out", 3)
    published = min(str(file.get("publicationDate", "unknown"))[:10] for file in files.values())
    rows = [row(name, items[name], found[name], published) for name in items]
    file = write(region, rows, without)
    sentence = f"{file}: {len(rows)} prices of {region}, published by AWS on {published}"
    return {"sentence": sentence, "file": str(file), "region": region, "items": rows}


def wanted_prices() -> dict[str, WantedPrice]:
    """Every price that a bill can need, and how to find it in AWS's list."""
    hosting = [
        item["name"] for item in document()["regions"]["us-east-1"] if item["name"].startswith("hosting:ml.")
    ]
    invoke = {"operation": "Invoke-Endpoint"}
    log = {"productFamily": "Data Payload", "usagetype": r"(.+-)?DataProcessing-Bytes"}
    stored = {"productFamily": "Storage Snapshot", "usagetype": r"(.+-)?TimedStorage-ByteHrs"}
    volume = {"productFamily": "Storage", "volumeType": "General Purpose-Hosting"}
    alarm = {"productFamily": "Alarm", "alarmType": "Standard", "usagetype": r"(.+-)?CW:AlarmMonitorUsage"}
    return {
        **{name: instance(name.partition(":")[2]) for name in hosting},
        "hosting:ebs-gp2": WantedPrice("AmazonSageMaker", volume, ("gb-mo",), "GB-month"),
        "hosting:data-in": WantedPrice("AmazonSageMaker", invoke | {"group": "Hosting:IN"}, ("gb",), "GB"),
        "hosting:data-out": WantedPrice("AmazonSageMaker", invoke | {"group": "Hosting:OUT"}, ("gb",), "GB"),
        **serverless(),
        **s3(),
        "cloudwatch-logs:ingest": WantedPrice("AmazonCloudWatch", log, ("gb",), "GB"),
        "cloudwatch-logs:storage": WantedPrice("AmazonCloudWatch", stored, ("gb-mo",), "GB-month"),
        "cloudwatch:alarm": WantedPrice("AmazonCloudWatch", alarm, ("alarms",), "alarm-month"),
    }


def instance(name: str) -> WantedPrice:
    """One hour of an instance type."""
    attributes = {"productFamily": "ML Instance", "instanceName": re.escape(name), "component": "Hosting"}
    return WantedPrice("AmazonSageMaker", attributes, ("hrs",), "instance-hour")


def serverless() -> dict[str, WantedPrice]:
    """One second of each memory size: on demand, provisioned, and computing while provisioned."""
    found = {}
    for size in range(1, 7):
        for name, usage in (
            ("serverless:{}GB", r".*ServerlessInf:Mem-{}GB"),
            ("serverless:provisioned-concurrency-usage:{}GB", r".*ProvisionedConcurrency:Usage-{}GB"),
            ("serverless:provisioned-concurrency-duration:{}GB", r".*ProvisionedConcurrency:Mem-{}GB"),
        ):
            attributes = {"productFamily": "ML Serverless", "usagetype": usage.format(size)}
            found[name.format(size)] = WantedPrice(
                "AmazonSageMaker", attributes, ("second", "seconds"), "second"
            )
    return found


def s3() -> dict[str, WantedPrice]:
    """The storage tiers, and 1,000 requests."""
    stored = {
        "productFamily": "Storage",
        "volumeType": "Standard",
        "usagetype": r"(.+-)?TimedStorage-ByteHrs",
    }
    found, start = {}, Decimal(0)
    for name, width in S3_TIERS:
        found[f"s3:standard:{name}"] = WantedPrice(
            "AmazonS3", stored, ("gb-mo",), "GB-month", start, len(S3_TIERS)
        )
        start += width or 0
    for name, number in (("s3:put-copy-post-list", 1), ("s3:get-select", 2)):
        usage = {"productFamily": "API Request", "usagetype": rf"(.+-)?Requests-Tier{number}"}
        usage["group"] = f"S3-API-Tier{number}"
        found[name] = WantedPrice("AmazonS3", usage, ("requests",), "1000 requests", times=1000)
    return found


# --- one offer file


def fetch(url: str) -> dict:
    """Download an offer file. Raises CostError."""
    try:
        answer = requests.get(url, timeout=TIMEOUT)
    except requests.RequestException as error:
        reason = re.sub(r"^.*?(\w+Error)\b.*$", r"\1", str(error), flags=re.DOTALL)
        raise CostError(f"{url} was not read ({reason}); your list is unchanged: try again", 3) from None
    if answer.status_code in (403, 404):
        text = f"{url} does not exist ({answer.status_code}): AWS has no such Region or address"
        raise CostError(text, 3)
    if not answer.ok:
        raise CostError(f"{url} answered {answer.status_code}; your list is unchanged: try again later", 3)
    try:
        offer = json.loads(answer.content)
        complete = offer["products"] and offer["terms"]["OnDemand"]
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        text = f"{url} is not a complete offer file; your list is unchanged: try again"
        raise CostError(text, 3)
    return offer


def find_price(offer: dict, item: WantedPrice, region: str) -> Decimal:
    """The item's price in our unit. Raises NoPriceError unless one product matches and has one price."""
    skus = [sku for sku, product in offer["products"].items() if matches(product, item, region)]
    if len(skus) != 1:
        raise NoPriceError(f"{len(skus) or 'no'} products match" + (f" ({', '.join(skus)})" if skus else ""))
    offers = offer["terms"]["OnDemand"].get(skus[0], {})
    rates = [rate for term in offers.values() for rate in term.get("priceDimensions", {}).values()]
    if len(rates) != item.tiers:
        raise NoPriceError(f"{skus[0]} has {len(rates)} prices instead of {item.tiers}")
    rate = next((rate for rate in rates if range_start(rate) == item.tier), None)
    if rate is None:
        raise NoPriceError(f"{skus[0]} has no price for the range from {item.tier}")
    return unit_price(rate, item, skus[0]) * item.times


def matches(product: dict, item: WantedPrice, region: str) -> bool:
    """Whether a product has all the attributes, is in this Region and is not of the free tier."""
    has = {"productFamily": product.get("productFamily", ""), **product.get("attributes", {})}
    if "Free" in has.get("platoinstancetype", "") or has.get("regionCode", region) != region:
        return False
    return all(re.fullmatch(pattern, has.get(key, "")) for key, pattern in item.attributes.items())


def range_start(rate: dict) -> Decimal:
    """The start of a rate's range; 0 if it has none."""
    return Decimal(rate.get("beginRange") or 0)


def unit_price(rate: dict, item: WantedPrice, sku: str) -> Decimal:
    """USD per AWS's unit. Raises NoPriceError."""
    if rate.get("unit", "").lower() not in item.units:
        raise NoPriceError(f"{sku} is priced per {rate.get('unit')}, not per {item.units[0]}")
    currencies = rate.get("pricePerUnit", {})
    if "USD" not in currencies:
        raise NoPriceError(f"{sku} is priced in {', '.join(currencies) or 'nothing'}, not in USD")
    try:
        usd = Decimal(currencies["USD"])
    except (InvalidOperation, TypeError):
        raise NoPriceError(f"{sku} costs {currencies['USD']!r}, which is not a number") from None
    if not usd.is_finite() or usd <= 0:
        raise NoPriceError(f"{sku} costs {usd}, which is not above 0")
    return usd


# --- the user's list


def row(name: str, item: WantedPrice, usd: Decimal, published: str) -> dict:
    """One price in the format of prices.json."""
    source = f"{item.service}, AWS's public offer file"
    return {
        "name": name,
        "unit": item.unit,
        "price": usd,
        "date": published,
        "basis": "price-list",
        "source": source,
    }


def write(region: str, rows: list[dict], without: list[str]) -> Path:
    """Write the list to a temporary file and rename it, so that it is never incomplete. Raises CostError."""
    file = list_file(region)
    lines = ",\n".join(
        json.dumps(row | {"price": 0}).replace('"price": 0', f'"price": {row["price"]:f}') for row in rows
    )
    head = {"read": date.today().isoformat(), "region": region, "without": without}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".prices-", delete=False) as temp:
            temp.write(json.dumps(head)[:-1] + ', "items": [\n' + lines + "\n]}\n")
        os.replace(temp.name, file)
    except OSError as error:
        raise CostError(f"{file} was not written: {error.strerror}", 3) from None
    return file
