"""AWS's prices: the dated ones in prices.json, overridden by those that `--refresh` read from AWS's list."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("prices.json")
MAX_AGE = 30  # days, after which a price list is reported as old


class CostError(Exception):
    """One sentence for the user, and the exit code: 2 usage or configuration, 3 external failure."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Price:
    """One price in USD per unit, with the day and the kind of source where it was seen."""

    name: str
    unit: str
    price: Decimal
    date: str  # 2026-08-01
    basis: str  # price-list-api, derived, ...; prices.json explains
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Instance:
    """One instance type. Memory in GiB; EBS volume in GB, 0 for types with a local NVMe disk."""

    name: str
    vcpu: int
    memory: int
    volume: int
    baseline: Decimal = Decimal(1)  # the share of each vCPU that can be used all the time; below 1 for T2
    accelerator: str = ""
    arm: bool = False


@dataclass(frozen=True)
class PriceBook:
    """The prices of one Region by name; `read` is the day of the user's own list, None without one."""

    region: str
    prices: dict[str, Price]
    read: date | None = None
    without: tuple[str, ...] = ()

    def find(self, name: str) -> Price:
        """The price called `name`. Raises CostError with the nearest names."""
        if name in self.prices:
            return self.prices[name]
        advice = f"`--refresh --region {self.region}` reads AWS's list"
        if name in self.without:
            advice = f"the list was read without it on {self.read}; {advice}"
        near = nearest(name, self.prices)
        near = f"; similar: {near}" if near else ""
        raise CostError(f"there is no price for {name} in {self.region}: {advice}{near}")

    def age(self, today: date | None = None) -> str:
        """A sentence if the user's list is too old, else an empty one."""
        days = ((today or date.today()) - self.read).days if self.read else 0
        if days <= MAX_AGE:
            return ""
        advice = f"`--refresh --region {self.region}` reads it again"
        return f"AWS's list of {self.region} was read {days} days ago: {advice}"


def load(region: str) -> PriceBook:
    """The Region's prices. Raises CostError if there are none, or if the user's list cannot be read."""
    regions = document()["regions"]
    known = {item["name"]: Price(**item) for item in regions.get(region, [])}
    own = read_list(region)
    if own is None:
        if known:
            return PriceBook(region, known)
        near = nearest(region, regions) or ", ".join(regions)
        text = f"there are no prices for Region {region!r}: `--refresh --region {region}` reads AWS's list"
        raise CostError(f"{text}; there are prices for {near}")
    kept = {name: price for name, price in known.items() if name not in own.without}
    return replace(own, prices=kept | own.prices)


@cache
def document() -> dict:
    """prices.json; numbers become Decimal."""
    return json.loads(FILE.read_text(), parse_float=Decimal)


@cache
def instances() -> dict[str, Instance]:
    """Every instance type by name."""
    return {name: Instance(name, **entry) for name, entry in document()["instances"].items()}


def find_instance(name: str) -> Instance:
    """The instance type called `name`. Raises CostError with the nearest names."""
    if name in instances():
        return instances()[name]
    near = nearest(name, instances()) or ", ".join(list(instances())[:5])
    raise CostError(f"there is no instance type {name!r} in prices.json: did you mean {near}?")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most similar to this one, the most similar first."""
    return ", ".join(get_close_matches(name, list(known), n=3, cutoff=0.6))


# --- the user's own list, which --refresh writes


def list_file(region: str) -> Path:
    """The path of the user's list of a Region, whether it exists or not."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastai-sagemaker" / f"prices-{region}.json"


def read_list(region: str) -> PriceBook | None:
    """What `--refresh` wrote for the Region, None if it never did. Raises CostError if the file is broken."""
    file = list_file(region)
    try:
        content = json.loads(file.read_text(), parse_float=Decimal, parse_int=Decimal)
        prices = {item["name"]: Price(**item) for item in content["items"]}
        if any(not price.price > 0 for price in prices.values()):
            raise ValueError("a price is not above 0")
        return PriceBook(region, prices, date.fromisoformat(content["read"]), tuple(content["without"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CostError(f"{file} cannot be read: {error.strerror}", 3) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CostError(f"{file} is broken ({error}): delete it, or run --refresh again") from None
