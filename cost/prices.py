"""What AWS charges: the dated prices in prices.json, and over them what `--refresh` read from AWS's list."""

import json
import os
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("prices.json")
OLD = 30  # days, after which a list that was read is said to be old


class CostError(Exception):
    """One sentence for the user, and the exit code: 2 usage or configuration, 3 the world failed."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Price:
    """One price in USD per unit, with the day and the kind of place where it was seen."""

    name: str
    unit: str
    price: Decimal
    date: str  # 2026-08-01
    basis: str  # price-list-api, derived, ...; prices.json explains
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Instance:
    """One instance type. Memory in GiB; volume in GB, 0 where the disk is the machine's own."""

    name: str
    vcpu: int
    memory: int
    volume: int
    baseline: Decimal = Decimal(1)  # the share of each vCPU that may be used for ever; T2 has less than one
    accelerator: str = ""
    arm: bool = False


@dataclass(frozen=True)
class Book:
    """The prices of one region by name; `read` is the day of the user's own list, None without one."""

    region: str
    prices: dict[str, Price]
    read: date | None = None
    without: tuple[str, ...] = ()

    def find(self, name: str) -> Price:
        """The price called `name`; CostError naming the nearest that there are."""
        if name in self.prices:
            return self.prices[name]
        way = f"`--refresh --region {self.region}` reads AWS's list"
        if name in self.without:
            way = f"the list was read without it on {self.read}; {way}"
        near = nearest(name, self.prices)
        near = f"; near it: {near}" if near else ""
        raise CostError(f"there is no price for {name} in {self.region}: {way}{near}")

    def age(self, today: date | None = None) -> str:
        """A sentence when the user's list has grown old, else nothing."""
        days = ((today or date.today()) - self.read).days if self.read else 0
        if days <= OLD:
            return ""
        again = f"`--refresh --region {self.region}` reads it anew"
        return f"AWS's list of {self.region} was read {days} days ago: {again}"


def load(region: str) -> Book:
    """The region's prices. CostError when there are none, or when the user's list cannot be read."""
    regions = document()["regions"]
    known = {item["name"]: Price(**item) for item in regions.get(region, [])}
    mine = read_list(region)
    if not known and not mine:
        near = nearest(region, regions) or ", ".join(regions)
        text = f"there are no prices for region {region!r}: `--refresh --region {region}` reads AWS's list"
        raise CostError(f"{text}; here are {near}")
    if not mine:
        return Book(region, known)
    kept = {name: price for name, price in known.items() if name not in mine.without}
    return replace(mine, prices=kept | mine.prices)


@cache
def document() -> dict:
    """prices.json; numbers become Decimal."""
    return json.loads(FILE.read_text(), parse_float=Decimal)


@cache
def instances() -> dict[str, Instance]:
    """Every instance type by name."""
    return {name: Instance(name, **entry) for name, entry in document()["instances"].items()}


def find_instance(name: str) -> Instance:
    """The instance type called `name`; CostError naming the nearest."""
    if name in instances():
        return instances()[name]
    near = nearest(name, instances()) or ", ".join(list(instances())[:5])
    raise CostError(f"there is no instance type {name!r} here: is it {near}?")


def nearest(word: str, known: object) -> str:
    """The known words most like this one, nearest first."""
    return ", ".join(get_close_matches(str(word), [str(name) for name in known], n=3, cutoff=0.6))


# --- the user's own list, which --refresh writes


def list_file(region: str) -> Path:
    """Where the user's list of a region is, written or not."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastai-sagemaker" / f"prices-{region}.json"


def read_list(region: str) -> Book | None:
    """What `--refresh` wrote for the region, None if it never did. CostError when the file is broken."""
    file = list_file(region)
    try:
        mine = json.loads(file.read_text(), parse_float=Decimal, parse_int=Decimal)
        found = {item["name"]: Price(**item) for item in mine["items"]}
        if any(not price.price > 0 for price in found.values()):
            raise ValueError("a price is not above 0")
        return Book(region, found, date.fromisoformat(mine["read"]), tuple(mine["without"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CostError(f"{file} cannot be read: {error.strerror}", 3) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CostError(f"{file} is broken ({error}): delete it, or read AWS's list anew") from None
