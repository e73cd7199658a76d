"""Other graphs out of model.onnx, for arithmetic quicker than fp32's: int8 on CPUs, fp16 on GPUs.

Each stands beside model.onnx and takes and gives the same: uint8 pixels in, float32 probabilities out.
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
    """Write model.int8.onnx, its ranges measured on `pictures`, each uint8 (height, width, 3).

    Unsigned activations and signed weights, because that is the pair that x86 chips multiply quickly.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    feeds = iter({"pictures": picture[None]} for picture in pictures)
    reader = SimpleNamespace(get_next=lambda: next(feeds, None))
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


def rounding(file: Path) -> "onnx.ModelProto":
    """The graph in fp16 as a CPU needs it to compute what a GPU does.

    For CPUs ONNX Runtime has most operators in fp32 only. Between them it rounds, or overflows, where others
    stand in a row that it has in fp16: so two Identity follow every node.
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
            for one, other in ((f"{name}/1", f"{name}/2"), (f"{name}/2", name)):
                model.graph.node.append(onnx.helper.make_node("Identity", [one], [other]))
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' advice, on which no user can act."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
