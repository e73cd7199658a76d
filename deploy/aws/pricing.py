"""Price of a deployment, from cost/estimate.py (subprocess); without a price, the reason."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import CommandError

ESTIMATE = Path(__file__).resolve().parents[2] / "cost" / "estimate.py"
TIMEOUT_SECONDS = 20
REFERENCE_REGION = "us-east-1"  # cost/prices.json has most prices of this Region
PRICING_PAGE = "https://aws.amazon.com/sagemaker/pricing/"
NOT_HERE = "price not estimated: cost/ is not here"  # somebody may keep this repository without that folder


@dataclass(frozen=True)
class Price:
    """A price in USD, None if unknown, and one sentence for the user.

    `reference` is the monthly price in REFERENCE_REGION, if the endpoint's own Region's is unknown.
    """

    per_hour: float | None
    per_month: float | None
    sentence: str
    reference: float | None = None


def can_estimate() -> bool:
    """Whether the folder cost/ is here."""
    return Path(ESTIMATE).exists()


def price_of_variant(region: str, kind: str, variant: dict, count: int | None = None) -> Price:
    """The price of a configuration's variant, with `count` instances (default: as configured)."""
    if size := variant.get("ServerlessConfig"):
        provisioned = size.get("ProvisionedConcurrency", 0)
        return estimate_price(region, kind, memory=size["MemorySizeInMB"], provisioned=provisioned)
    count = variant["InitialInstanceCount"] if count is None else count
    return estimate_price(region, kind, instance=variant["InstanceType"], count=count)


def estimate_price(region: str, kind: str, **options: object) -> Price:
    """The price of a kind of endpoint (or of "batch"): instance=, count=, or memory= (MB), provisioned=."""
    if not can_estimate():
        return Price(None, None, NOT_HERE)
    try:
        found = run_estimate({"kind": kind, "region": region} | options)
        return Price(float(found["per_hour"]), float(found["per_month"]), str(found["sentence"]))
    except CommandError as error:
        reason = str(error).partition("; ")[0].replace("`--refresh", "`invoke cost --refresh")
    reference = reference_price(region, kind, options)
    if reference is None:
        link = "" if "invoke cost" in reason else f"; AWS's is at {PRICING_PAGE}"
        return Price(None, None, f"price unknown: {reason}{link}")
    sentence = f"price unknown: {reason}\nfor comparison, {reference['sentence']}"
    return Price(None, None, sentence, reference["per_month"])


def reference_price(region: str, kind: str, options: dict[str, object]) -> dict | None:
    """cost/estimate.py's answer for REFERENCE_REGION; None if `region` is that one or it is unknown, too."""
    if region == REFERENCE_REGION:
        return None
    try:
        return run_estimate({"kind": kind, "region": REFERENCE_REGION} | options)
    except CommandError:
        return None


def price_range(price: Price, count: int, least: int, most: int) -> str:
    """What autoscaling does to the price of `count` instances: its minimum and maximum, as a sentence."""
    text = f"autoscaling: {least} to {most} instances"
    month = price.reference if price.per_month is None else price.per_month
    if month is None or not count:
        return text
    low, high = (f"${month * instances / count:,.2f}" for instances in (least, most))
    return f"{text}, {low} to {high} a month" + (f" in {REFERENCE_REGION}" if price.per_month is None else "")


def instance_size(instance: str) -> tuple[int, int]:
    """An instance type's virtual CPUs and GiB of memory. Raises CommandError."""
    found = run_estimate({"instance": instance})
    return found["vcpu"], found["memory"]


def run_estimate(options: dict[str, object]) -> dict:
    """The JSON of cost/estimate.py --hourly. Raises CommandError with its error message."""
    flags = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, str(ESTIMATE), "--hourly", "--json", *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = str(error)
    raise CommandError(2, reason)
