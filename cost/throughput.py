"""Pictures per second of an instance or container: measured, scaled from a measurement, given, or assumed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prices import CostError, Instance, find_instance

# resnet50 at 299 pixels, fp32, JPEGs of 100 KB over HTTP: 24 pictures/s on 2 vCPU of an AMD EPYC.
PER_VCPU = 12.0
# MB of memory per vCPU. Lambda's documentation has this number; SageMaker's only says "in proportion".
SERVERLESS_MB_PER_VCPU = 1769


@dataclass(frozen=True)
class Throughput:
    """Pictures per second of one vCPU and of whole types that were measured, with their source.

    Rule: in proportion to vCPUs, whatever their generation; T2 counts with its baseline, because it runs out
    of CPU credits under constant load.
    """

    per_vcpu: float
    types: dict[str, float]
    basis: str
    source: str
    others: str = "scaled"  # the basis of the other types

    def of(self, name: str) -> float | None:
        """Pictures per second of an instance type; None if unknown: GPUs and ARM, unless measured."""
        instance = find_instance(name)
        if name in self.types:
            return self.types[name]
        return None if instance.accelerator or instance.arm else self.per_vcpu * sustained_vcpus(instance)

    def basis_of(self, name: str) -> str:
        """Where the figure for this type comes from: measured, scaled, given or assumed."""
        return self.basis if name in self.types else self.others

    def serverless(self, memory: int) -> float:
        """Pictures per second of one serverless container with this many GB."""
        return self.per_vcpu * memory * 1024 / SERVERLESS_MB_PER_VCPU


def sustained_vcpus(instance: Instance) -> float:
    """The vCPUs that an instance can use all the time."""
    return instance.vcpu * float(instance.baseline)


def assumed() -> Throughput:
    """The default where this project's model has not been measured."""
    text = f"assumed: {PER_VCPU:.0f} pictures/s per vCPU, as resnet50 at 299 pixels on an AMD EPYC"
    return Throughput(PER_VCPU, {}, "assumed", text, "assumed")


def given(instance: str, per_second: float) -> Throughput:
    """What the user says that one `instance` can do."""
    return scaled(instance, per_second, "given", f"given: {per_second:g} pictures/s on one {instance}")


def scaled(name: str, per_second: float, basis: str, source: str) -> Throughput:
    """Scale one type's throughput to the others; types with a GPU or ARM tell nothing about the others."""
    instance = find_instance(name)
    if instance.accelerator or instance.arm:
        others = f"; other types {assumed().source}"
        return Throughput(PER_VCPU, {name: per_second}, basis, source + others, "assumed")
    return Throughput(per_second / sustained_vcpus(instance), {name: per_second}, basis, source)


def measured(file: Path, instance: str | None, count: int) -> Throughput | None:
    """Read what bench/load.py measured: None without a result, CostError if the file is of another kind.

    `instance` and `count` in the file describe the machine, if present. Otherwise a local address is this
    machine, an endpoint's name is the configured instance, and the machine of any other address is unknown.
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
        return Throughput(rate / cores, {}, "scaled", text)
    name = bench.get("instance") or instance
    if name is None:
        return None
    rate /= bench.get("count") or count
    text = f"measured on {day} at {endpoint}: {rate:g} pictures/s on one {name}"
    return scaled(name, rate, "measured", text)
