"""How many pictures a second an instance answers: measured, scaled from a measurement, or assumed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prices import CostError, Instance, find_instance

# resnet50 at 299 pixels, fp32, JPEGs of 100 KB over HTTP: 24 pictures/s on 2 vCPU of an AMD EPYC.
PER_VCPU = 12.0
SERVERLESS_MB = 1769  # of memory to a vCPU: what Lambda says; SageMaker only says that they are in proportion


@dataclass(frozen=True)
class Speeds:
    """Pictures per second of one vCPU, those of whole types that were measured, and where it all comes from.

    Rule: in proportion to vCPUs, whatever their generation; T2 at the share of them that it may use for ever.
    """

    per_vcpu: float
    types: dict[str, float]
    basis: str
    source: str
    others: str = "scaled"  # the basis of the other types

    def of(self, name: str) -> float | None:
        """Pictures per second of an instance type; None where nobody knows: GPUs and ARM, unless measured."""
        instance = find_instance(name)
        if name in self.types:
            return self.types[name]
        return None if instance.accelerator or instance.arm else self.per_vcpu * power(instance)

    def basis_of(self, name: str) -> str:
        """Where the figure for this type comes from, in a word."""
        return self.basis if name in self.types else self.others

    def serverless(self, memory: int) -> float:
        """Pictures per second of one serverless container with so many GB."""
        return self.per_vcpu * memory * 1024 / SERVERLESS_MB


def power(instance: Instance) -> float:
    """The vCPUs that an instance can use for ever."""
    return instance.vcpu * float(instance.baseline)


def assumed() -> Speeds:
    """What is taken without a measurement of this project's model."""
    text = f"assumed: {PER_VCPU:.0f} pictures/s a vCPU, as resnet50 at 299 pixels on an AMD EPYC"
    return Speeds(PER_VCPU, {}, "assumed", text, "assumed")


def given(instance: str, per_second: float) -> Speeds:
    """What the user says that one `instance` answers."""
    return scaled(instance, per_second, "given", f"given: {per_second:g} pictures/s on one {instance}")


def scaled(name: str, per_second: float, basis: str, source: str) -> Speeds:
    """Speeds from one type's; types with a GPU or ARM say nothing of the others."""
    instance = find_instance(name)
    if instance.accelerator or instance.arm:
        others = f"; other types {assumed().source}"
        return Speeds(PER_VCPU, {name: per_second}, basis, source + others, "assumed")
    return Speeds(per_second / power(instance), {name: per_second}, basis, source)


def measured(file: Path, instance: str | None, count: int) -> Speeds | None:
    """What bench/load.py measured, None when there is nothing. CostError when the file is not its.

    The file's own `instance` and `count` say on what, if it has them. Else a local address is this machine,
    an endpoint's name is the configured instance, and of another address nobody knows.
    """
    if not file.is_file():
        return None
    try:
        bench = json.loads(file.read_text())
        endpoint, day = str(bench["endpoint"]), str(bench["when"])[:10]
        if bench["best"] is None:
            return None
        rate = float(bench["best"]["pictures_per_second"])
        if not rate > 0:
            raise ValueError("no pictures per second")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CostError(f"{file} is not what `invoke bench` writes ({error}): measure again") from None
    if "instance" not in bench and urlsplit(endpoint).scheme:
        if urlsplit(endpoint).hostname not in ("127.0.0.1", "localhost", "::1"):
            return None
        cores = os.cpu_count() or 1
        text = f"measured on {day}: {rate:g} pictures/s on this machine's {cores} cores, scaled by vCPU"
        return Speeds(rate / cores, {}, "scaled", text)
    name = bench.get("instance") or instance
    if name is None:
        return None
    rate /= bench.get("count") or count
    text = f"measured on {day} at {endpoint}: {rate:g} pictures/s on one {name}"
    return scaled(name, rate, "measured", text)
