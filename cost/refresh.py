"""Reads AWS's public price list of one region into the user's own list: all items, or none.

The offer files need no account. Their nesting: products{sku: {productFamily, attributes}} and
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

SECONDS = 60  # without a byte
PATH = "/offers/v1.0/aws/{service}/current/{region}/index.json"


@dataclass(frozen=True)
class Wanted:
    """The product that has one price of ours: its attributes as regular expressions, and our unit.

    `tier` is the start of the range that is meant, `times` what one of our units has of AWS's.
    """

    service: str
    attributes: dict[str, str]
    units: tuple[str, ...]
    unit: str
    tier: Decimal = Decimal(0)
    tiers: int = 1
    times: int = 1


class NoPriceError(Exception):
    """Why one item has no price in the list."""


def refresh(region: str, offers: str, without: list[str]) -> dict:
    """Read the offer files and write the user's list. Raises CostError; then the list is as it was."""
    items = wanted()
    unknown = [name for name in without if name not in items]
    if unknown:
        near = nearest(unknown[0], items)
        raise CostError(f"--without {unknown[0]!r} is no item{near and ': is it ' + near + '?'}")
    items = {name: item for name, item in items.items() if name not in without}
    files = {
        service: fetch(offers + PATH.format(service=service, region=region))
        for service in sorted({item.service for item in items.values()})
    }
    found, failed = {}, []
    for name, item in items.items():
        try:
            found[name] = price(files[item.service], item, region)
        except NoPriceError as error:
            failed.append(f"{name}: {error}")
    if failed:
        text = f"{len(failed)} of {len(items)} items failed, and nothing was written: {'; '.join(failed)}"
        raise CostError(f"{text}. `--without NAME` leaves one out", 3)
    published = min(str(file.get("publicationDate", "unknown"))[:10] for file in files.values())
    rows = [row(name, items[name], found[name], published) for name in items]
    file = write(region, rows, without)
    sentence = f"{file}: {len(rows)} prices of {region}, which AWS published on {published}"
    return {"sentence": sentence, "file": str(file), "region": region, "items": rows}


def wanted() -> dict[str, Wanted]:
    """Every price that a bill can need, and how AWS's list calls it."""
    hosting = [
        item["name"] for item in document()["regions"]["us-east-1"] if item["name"].startswith("hosting:ml.")
    ]
    invoke = {"operation": "Invoke-Endpoint"}
    log = {"productFamily": "Data Payload", "usagetype": r"(.+-)?DataProcessing-Bytes"}
    kept = {"productFamily": "Storage Snapshot", "usagetype": r"(.+-)?TimedStorage-ByteHrs"}
    volume = {"productFamily": "Storage", "volumeType": "General Purpose-Hosting"}
    alarm = {"productFamily": "Alarm", "alarmType": "Standard", "usagetype": r"(.+-)?CW:AlarmMonitorUsage"}
    return {
        **{name: instance(name.partition(":")[2]) for name in hosting},
        "hosting:ebs-gp2": Wanted("AmazonSageMaker", volume, ("gb-mo",), "GB-month"),
        "hosting:data-in": Wanted("AmazonSageMaker", invoke | {"group": "Hosting:IN"}, ("gb",), "GB"),
        "hosting:data-out": Wanted("AmazonSageMaker", invoke | {"group": "Hosting:OUT"}, ("gb",), "GB"),
        **serverless(),
        **s3(),
        "cloudwatch-logs:ingest": Wanted("AmazonCloudWatch", log, ("gb",), "GB"),
        "cloudwatch-logs:storage": Wanted("AmazonCloudWatch", kept, ("gb-mo",), "GB-month"),
        "cloudwatch:alarm": Wanted("AmazonCloudWatch", alarm, ("alarms",), "alarm-month"),
    }


def instance(name: str) -> Wanted:
    """An instance type's hour."""
    attributes = {"productFamily": "ML Instance", "instanceName": re.escape(name), "component": "Hosting"}
    return Wanted("AmazonSageMaker", attributes, ("hrs",), "instance-hour")


def serverless() -> dict[str, Wanted]:
    """A second of each memory size: by need, kept ready, and running while kept ready."""
    found = {}
    for size in range(1, 7):
        for name, usage in (
            ("serverless:{}GB", r".*ServerlessInf:Mem-{}GB"),
            ("serverless:provisioned-concurrency-usage:{}GB", r".*ProvisionedConcurrency:Usage-{}GB"),
            ("serverless:provisioned-concurrency-duration:{}GB", r".*ProvisionedConcurrency:Mem-{}GB"),
        ):
            attributes = {"productFamily": "ML Serverless", "usagetype": usage.format(size)}
            found[name.format(size)] = Wanted("AmazonSageMaker", attributes, ("second", "seconds"), "second")
    return found


def s3() -> dict[str, Wanted]:
    """The tiers of storage, and requests by the thousand."""
    stored = {
        "productFamily": "Storage",
        "volumeType": "Standard",
        "usagetype": r"(.+-)?TimedStorage-ByteHrs",
    }
    found, start = {}, Decimal(0)
    for name, width in S3_TIERS:
        found[f"s3:standard:{name}"] = Wanted(
            "AmazonS3", stored, ("gb-mo",), "GB-month", start, len(S3_TIERS)
        )
        start += width or 0
    for name, number in (("s3:put-copy-post-list", 1), ("s3:get-select", 2)):
        usage = {"productFamily": "API Request", "usagetype": rf"(.+-)?Requests-Tier{number}"}
        usage["group"] = f"S3-API-Tier{number}"
        found[name] = Wanted("AmazonS3", usage, ("requests",), "1000 requests", times=1000)
    return found


# --- one offer file


def fetch(url: str) -> dict:
    """The offer file at an address. Raises CostError."""
    try:
        answer = requests.get(url, timeout=SECONDS)
    except requests.RequestException as error:
        reason = re.sub(r"^.*?(\w+Error)\b.*$", r"\1", str(error), flags=re.DOTALL)
        raise CostError(f"{url} was not read ({reason}); your list is as it was: try again", 3) from None
    if answer.status_code in (403, 404):
        text = f"{url} does not exist ({answer.status_code}): AWS has no such region or address"
        raise CostError(text, 3)
    if not answer.ok:
        raise CostError(f"{url} answered {answer.status_code}; your list is as it was: try again later", 3)
    try:
        offer = json.loads(answer.content)
        whole = offer["products"] and offer["terms"]["OnDemand"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        text = f"{url} is not a whole offer file; your list is as it was: try again"
        raise CostError(text, 3)
    return offer


def price(offer: dict, item: Wanted, region: str) -> Decimal:
    """The item's price in our unit. Raises NoPriceError unless one product has exactly one price above 0."""
    skus = [sku for sku, product in offer["products"].items() if matches(product, item, region)]
    if len(skus) != 1:
        raise NoPriceError(f"{len(skus) or 'no'} products match" + (f" ({', '.join(skus)})" if skus else ""))
    offers = offer["terms"]["OnDemand"].get(skus[0], {})
    rates = [rate for term in offers.values() for rate in term.get("priceDimensions", {}).values()]
    if len(rates) != item.tiers:
        raise NoPriceError(f"{skus[0]} has {len(rates)} prices where {item.tiers} belong")
    rate = next((rate for rate in rates if begins(rate) == item.tier), None)
    if rate is None:
        raise NoPriceError(f"{skus[0]} has no price from {item.tier} on")
    return amount(rate, item, skus[0]) * item.times


def matches(product: dict, item: Wanted, region: str) -> bool:
    """Whether a product has all the attributes, in this region; some are variants for the free tier."""
    has = {"productFamily": product.get("productFamily", ""), **product.get("attributes", {})}
    if "Free" in has.get("platoinstancetype", "") or has.get("regionCode", region) != region:
        return False
    return all(re.fullmatch(pattern, has.get(key, "")) for key, pattern in item.attributes.items())


def begins(rate: dict) -> Decimal:
    """Where the range of a rate begins; all of it begins at 0."""
    return Decimal(rate.get("beginRange") or 0)


def amount(rate: dict, item: Wanted, sku: str) -> Decimal:
    """USD of one of AWS's units. Raises NoPriceError."""
    if rate.get("unit", "").lower() not in item.units:
        raise NoPriceError(f"{sku} is priced per {rate.get('unit')}, not per {item.units[0]}")
    currencies = rate.get("pricePerUnit", {})
    if "USD" not in currencies:
        raise NoPriceError(f"{sku} is priced in {', '.join(currencies) or 'nothing'}, not in USD")
    try:
        usd = Decimal(currencies["USD"])
    except (InvalidOperation, TypeError):
        raise NoPriceError(f"{sku} costs {currencies['USD']!r}, which is no number") from None
    if not usd.is_finite() or usd <= 0:
        raise NoPriceError(f"{sku} costs {usd}, which is not above 0")
    return usd


# --- the user's list


def row(name: str, item: Wanted, usd: Decimal, published: str) -> dict:
    """One price as the list has it."""
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
    """Write the list beside and rename it. Raises CostError."""
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
