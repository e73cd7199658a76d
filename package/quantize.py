"""Derive graphs for faster arithmetic from model.onnx: int8 for CPUs, fp16 for GPUs.

Each is written beside model.onnx and has its input and output: uint8 pixels in, float32 probabilities out.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every graph in a model folder, by file name."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.onnx"))
    }


def to_int8(folder: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write model.int8.onnx, calibrated on `pictures`, each uint8 (height, width, 3)."""
    from onnxruntime.quantization import QuantType, quantize_static

    feeds = iter({"pictures": picture[None]} for picture in pictures)
    reader = SimpleNamespace(get_next=lambda: next(feeds, None))
    # The VNNI instructions of x86 multiply unsigned activations by signed weights.
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    with quiet():
        quantize_static(folder / "model.onnx", folder / "model.int8.onnx", reader, **types)


def to_fp16(folder: Path) -> None:
    """Write model.fp16.onnx."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        model = convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)
    onnx.save(model, folder / "model.fp16.onnx")


def emulate_fp16(file: Path) -> "onnx.ModelProto":
    """The fp16 graph, changed so that ONNX Runtime computes on a CPU what it computes on a GPU.

    Its CPU provider has most operators in fp32 only, and keeps fp32 between those. Only where consecutive
    operators exist in fp16 it rounds, or overflows, as a GPU does: so two Identity nodes follow every node.
    """
    import onnx

    model = onnx.load(file)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        names = list(node.output)
        node.output[:] = [f"{name}/1" for name in names]
        model.graph.node.append(node)
        for name in names:
            for source, target in ((f"{name}/1", f"{name}/2"), (f"{name}/2", name)):
                model.graph.node.append(onnx.helper.make_node("Identity", [source], [target]))
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' warnings, on which no user can act."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
