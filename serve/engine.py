"""The inference engine behind the handlers: from pixels to the graph's output, on every core of a container.

On a CPU it is OpenVINO, which had the fastest kernels of those measured (bench/serving.py), one picture at a
time: batches gain nothing there. On a CUDA GPU it is ONNX Runtime, if the archive was packaged for one.
"""

import functools
import hashlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# What model.json's `use` may name: the graph file, and OpenVINO's INFERENCE_PRECISION_HINT; None on a GPU.
MODES: dict[str, tuple[str, str | None]] = {
    "fp32": ("model.onnx", "f32"),
    "bf16": ("model.onnx", "bf16"),
    "int8": ("model.int8.onnx", "f32"),  # the graph itself says which operators are int8
    "cuda-fp32": ("model.onnx", None),
    "cuda-fp16": ("model.fp16.onnx", None),
}
# Without these instructions int8 is no faster than fp32, and its sums may overflow on older chips.
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}

log = logging.getLogger("engine")
# OpenVINO works without this package, and then does not report to Google Analytics that it was imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None blocks an import (sys.modules)


class Engine(NamedTuple):
    """`run` takes pictures, each uint8 (height, width, channels), and returns float32 (pictures, ...)."""

    mode: str
    run: Callable[[list[np.ndarray]], np.ndarray]


def load(model_dir: Path, spec: dict, mode: str | None = None) -> Engine:
    """Load the first mode of model.json's `use` that this machine supports, or `mode` and no other.

    Raises ValueError if a graph is not the file that model.json describes, RuntimeError if none is supported.
    """
    for name in [mode] if mode else spec["precision"]["use"]:
        graph, precision = MODES[name]
        file = model_dir / graph
        if precision is None:
            try:
                check(file, spec)
                return Engine(name, on_cuda(file))
            except (ImportError, RuntimeError) as error:
                log.warning("no %s here, so the CPU takes over: %s", name, error)
        elif can(name):
            check(file, spec)
            return Engine(name, on_cpu(file, precision))
    raise RuntimeError(f"this machine does not support {mode or ' or '.join(spec['precision']['use'])}")


def check(file: Path, spec: dict) -> None:
    """Raise ValueError unless the graph is the one that was packaged and tested."""
    with open(file, "rb") as graph:
        if hashlib.file_digest(graph, "sha256").hexdigest() != spec["sha256"].get(file.name):
            raise ValueError(f"{file} is not the file that model.json describes: package it again")


def can(mode: str) -> bool:
    """Whether this machine's processor is made for a CPU mode: fp32 (each is), bf16 or int8.

    SERVE_MODES in the environment names the modes that it is taken to be made for, whatever it reports: for
    tests, and to compare with another machine ("fp32", or "fp32 bf16 int8"; blank is not set). A mode that it
    lacks still runs, but OpenVINO computes bf16 as fp32 without AVX-512, and int8 overflows without VNNI.
    Raises ValueError if SERVE_MODES names anything else.
    """
    given = os.environ.get("SERVE_MODES", "").split()
    if unknown := sorted(set(given) - {"fp32", "bf16", "int8"}):
        raise ValueError(f"SERVE_MODES may name fp32, bf16 and int8, not {unknown[0]!r}: correct or unset it")
    if mode == "fp32" or given:
        return mode == "fp32" or mode in given
    if mode == "bf16":
        return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return mode == "int8" and bool(VNNI & chip())


def chip(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets that Linux lists for an x86 processor; an empty set on other systems."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this container may use: the host may have more, and threads beyond the quota only wait."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):  # cgroup v2 writes "max" for no quota
        if (cgroup / "cpu.max").exists():
            quota, period = map(int, (cgroup / "cpu.max").read_text().split())
        else:  # cgroup v1, where -1 means no quota
            quota, period = (
                int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
            )
        if quota > 0:
            return max(1, min(count, math.ceil(quota / period)))
    return count


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this container may use: the machine's, without a limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((cgroup / file).read_text()))
    return min(limits)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO, one for the whole process, which is never destroyed.

    Its CPU plugin gives the thread that creates it an alternate signal stack. If another thread destroys it,
    the garbage collector's for example, that memory is unmapped but still registered (2026.4), and the next
    signal that Python handles, such as Ctrl-C, ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def on_cpu(file: Path, precision: str) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Engine.run on OpenVINO."""
    core = openvino_core()
    model = core.read_model(file)
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])  # a static shape compiles to faster kernels
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,  # without it OpenVINO uses bf16 on every chip that has it
        "INFERENCE_NUM_THREADS": cpus(),
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    lock = threading.Lock()  # a call uses all cores: two at once only slow each other down

    def run(pictures: list[np.ndarray]) -> np.ndarray:
        rows = []
        for picture in pictures:
            with lock:
                request.infer({0: picture[None]}, share_inputs=True)
                rows.append(request.get_output_tensor(0).data[0].copy())
        return np.stack(rows)

    return run


def on_cuda(file: Path) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Engine.run on ONNX Runtime's CUDA provider. Raises ImportError or RuntimeError if that is missing."""
    import onnxruntime

    cuda = "CUDAExecutionProvider"
    if cuda not in onnxruntime.get_available_providers():
        raise RuntimeError("this ONNX Runtime was built without CUDA")
    onnxruntime.preload_dlls()  # finds CUDA's libraries where pip installs them
    session = onnxruntime.InferenceSession(file, providers=[(cuda, {"use_tf32": "0"})])  # TF32 is not fp32
    if session.get_providers()[0] != cuda:
        raise RuntimeError("ONNX Runtime found no GPU, or not CUDA's libraries")
    name = session.get_inputs()[0].name
    return lambda pictures: session.run(None, {name: np.stack(pictures)})[0]
