"""What a deployment costs, as cost/estimate.py says it; where it cannot, why not."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ESTIMATE = Path(__file__).resolve().parents[1] / "cost" / "estimate.py"
SECONDS = 20


@dataclass(frozen=True)
class Price:
    """In dollars, None where unknown, and one sentence for the user."""

    per_hour: float | None
    per_month: float | None
    sentence: str


def of_variant(region: str, kind: str, variant: dict, count: int | None = None) -> Price:
    """The price of a configuration's variant, with as many instances as run now (or as it says)."""
    if size := variant.get("ServerlessConfig"):
        warm = size.get("ProvisionedConcurrency", 0)
        return price(region, kind, memory=size["MemorySizeInMB"], provisioned=warm)
    count = variant["InitialInstanceCount"] if count is None else count
    return price(region, kind, instance=variant["InstanceType"], count=count)


def price(region: str, kind: str, **options: object) -> Price:
    """The price of a kind of endpoint (or of "batch"): instance=, count=, or memory= (MB), provisioned=."""
    words = [f"--{key}={value}" for key, value in ({"kind": kind, "region": region} | options).items()]
    command = [sys.executable, str(ESTIMATE), "--hourly", "--json", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        return Price(float(found["per_hour"]), float(found["per_month"]), str(found["sentence"]))
    except KeyError:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        reason = str(error)
    return Price(None, None, f"price unknown ({reason})")
