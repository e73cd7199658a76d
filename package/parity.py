"""The gate of package/export.py: do the packaged handlers answer as `learn.predict` does?"""

import importlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from fastai.learner import Learner

TOLERANCE = 1e-3  # largest difference of any probability


class DifferentError(Exception):
    """The handlers answer otherwise; the message names the picture where they are furthest apart."""


def check_parity(learn: "Learner", folder: Path, pictures: list[Path]) -> dict:
    """Ask learn.predict and the handlers in the model folder `folder` about every picture.

    Returns model.json's `parity`. Raises DifferentError.
    """
    with handlers(folder / "code") as inference:
        model = inference.model_fn(folder)
        compared = [
            compare(learn, inference, model, picture)
            for picture in progress(pictures, "comparing with learn.predict", len(pictures))
        ]
    difference, sentence = max(compared)
    if difference > TOLERANCE:
        raise DifferentError(sentence)
    return {"pictures": len(pictures), "max_difference": difference, "tolerance": TOLERANCE}


def progress(items: Iterable, what: str, count: int) -> Iterator:
    """Pass `items` on, under a progress bar if this is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    return track(items, what, count, console=Console(stderr=True), transient=True, disable=hidden)


@contextmanager
def handlers(code: Path) -> Iterator[ModuleType]:
    """The module `inference` from the folder `code`, whatever has been imported under its names before."""
    names = [file.stem for file in code.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(code))
    try:
        yield importlib.import_module("inference")
    finally:
        sys.path.remove(str(code))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)
        shutil.rmtree(code / "__pycache__", ignore_errors=True)  # the archive is to be this folder exactly


def compare(learn: "Learner", inference: ModuleType, model: object, picture: Path) -> tuple[float, str]:
    """How far apart the two are on one picture, and in words; more than 1 if their answers differ."""
    import numpy as np

    expected = learn.predict(picture)[2].numpy()
    try:
        batch = inference.input_fn(picture.read_bytes())
        actual = inference.predict_fn(batch, model).probabilities[0]
    except inference.RequestError as error:
        return 2.0, f"learn.predict answers {picture}, but the handlers do not ({error})"
    apart = np.nan_to_num(abs(expected - actual), nan=1)
    worst = int(apart.argmax())
    sentence = (
        f"{picture}: learn.predict gives {model.labels[worst]} {expected[worst]:.4f}, "
        f"but the handlers {actual[worst]:.4f}"
    )
    before, after = (decide(probabilities, model.threshold) for probabilities in (expected, actual))
    return float(apart[worst]) + bool((before != after).any()), sentence


def decide(probabilities: "np.ndarray", threshold: float | None) -> "np.ndarray":
    """The answers for probabilities (..., labels), in bool: the best label, or all over the threshold."""
    import numpy as np

    if threshold is None:
        return np.eye(probabilities.shape[-1], dtype=bool)[probabilities.argmax(-1)]
    return probabilities > threshold


def brief(error: BaseException) -> str:
    """An exception from a library in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
