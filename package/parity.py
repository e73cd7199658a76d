"""The parity gate of package/export.py: the packaged handlers must answer as `learn.predict` does."""

import importlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from fastai.learner import Learner

TOLERANCE = 1e-3  # largest allowed difference of any probability


class DifferentError(Exception):
    """The handlers differ from the Learner; the message names the picture with the largest difference."""


def check_parity(learn: "Learner", folder: Path, pictures: list[Path]) -> dict:
    """Compare learn.predict with the handlers in the model folder `folder` on every picture.

    Returns the `parity` of model.json. Raises DifferentError.
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
    """Yield `items`, with a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    yield from track(items, what, count, console=Console(stderr=True), transient=True, disable=hidden)


@contextmanager
def handlers(code: Path) -> Iterator[ModuleType]:
    """The module `inference` from the folder `code`, even if modules of the same names are imported."""
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
        shutil.rmtree(code / "__pycache__", ignore_errors=True)  # the archive is exactly this folder


def compare(learn: "Learner", inference: ModuleType, model: Any, picture: Path) -> tuple[float, str]:
    """The largest difference of a probability on one picture, and a sentence about it.

    `model` is an inference.Model. The difference has 1 added if the answers differ, and is 2 if the handlers
    reject the picture.
    """
    import numpy as np

    expected = learn.predict(picture)[2].numpy()
    try:
        batch = inference.input_fn(picture.read_bytes())
        actual = inference.predict_fn(batch, model).probabilities[0]
    except inference.RequestError as error:
        return 2.0, f"learn.predict answers {picture}, but the handlers do not ({error})"
    differences = np.nan_to_num(abs(expected - actual), nan=1)
    worst = int(differences.argmax())
    sentence = (
        f"{picture}: learn.predict gives {model.labels[worst]} {expected[worst]:.4f}, "
        f"but the handlers {actual[worst]:.4f}"
    )
    before, after = (decide(probabilities, model.threshold) for probabilities in (expected, actual))
    return float(differences[worst]) + bool((before != after).any()), sentence


def decide(probabilities: "np.ndarray", threshold: float | None) -> "np.ndarray":
    """The answers for probabilities (..., labels) as bool: the best label, or all above the threshold."""
    import numpy as np

    if threshold is None:
        return np.eye(probabilities.shape[-1], dtype=bool)[probabilities.argmax(-1)]
    return probabilities > threshold


def brief(error: BaseException) -> str:
    """A library's exception as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
