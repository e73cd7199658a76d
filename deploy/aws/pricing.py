"""What a deployment costs, as cost/estimate.py says it; where it cannot, why not."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import CommandError

ESTIMATE = Path(__file__).resolve().parents[2] / "cost" / "estimate.py"
TIMEOUT_SECONDS = 20
REFERENCE_REGION = "us-east-1"  # the Region that cost/prices.json knows best
PRICING_PAGE = "https://aws.amazon.com/sagemaker/pricing/"


@dataclass(frozen=True)
class Price:
    """In dollars, None where unknown, and one sentence for the user; `guide` is a month of it in GUIDE."""

    per_hour: float | None
    per_month: float | None
    sentence: str
    guide: float | None = None


def price_of_variant(region: str, kind: str, variant: dict, count: int | None = None) -> Price:
    """The price of a configuration's variant, with as many instances as run now (or as it says)."""
    if size := variant.get("ServerlessConfig"):
        warm = size.get("ProvisionedConcurrency", 0)
        return estimate_price(region, kind, memory=size["MemorySizeInMB"], provisioned=warm)
    count = variant["InitialInstanceCount"] if count is None else count
    return estimate_price(region, kind, instance=variant["InstanceType"], count=count)


def estimate_price(region: str, kind: str, **options: object) -> Price:
    """The price of a kind of endpoint (or of "batch"): instance=, count=, or memory= (MB), provisioned=."""
    try:
        found = run_estimate({"kind": kind, "region": region} | options)
        return Price(float(found["per_hour"]), float(found["per_month"]), str(found["sentence"]))
    except CommandError as stop:
        reason = str(stop).partition("; ")[0].replace("`--refresh", "`invoke cost --refresh")
    try:
        there = (
            run_estimate({"kind": kind, "region": REFERENCE_REGION} | options)
            if region != REFERENCE_REGION
            else None
        )
    except CommandError:
        there = None
    if there is None:
        way = "" if "invoke cost" in reason else f"; AWS's is at {PRICING_PAGE}"
        return Price(None, None, f"price unknown: {reason}{way}")
    return Price(None, None, f"price unknown: {reason}\nas a guide, {there['sentence']}", there["per_month"])


def price_range(price: Price, count: int, least: int, most: int) -> str:
    """What autoscaling makes of the price of `count` instances: the fewest and the most, in words."""
    text = f"autoscaling: {least} to {most} instances"
    month = price.guide if price.per_month is None else price.per_month
    if month is None or not count:
        return text
    low, high = (f"${month * instances / count:,.2f}" for instances in (least, most))
    return f"{text}, {low} to {high} a month" + (f" in {REFERENCE_REGION}" if price.per_month is None else "")


def instance_size(instance: str) -> tuple[int, int]:
    """An instance type's virtual processors and GiB of memory. Raises Stop."""
    found = run_estimate({"instance": instance})
    return found["vcpu"], found["memory"]


def run_estimate(options: dict[str, object]) -> dict:
    """What cost/estimate.py says. Raises Stop with its reason."""
    words = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, str(ESTIMATE), "--hourly", "--json", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = str(error)
    raise CommandError(2, reason)
