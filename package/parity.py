"""The parity gate of package/export.py: the packaged handlers must answer as `learn.predict` does."""

import importlib
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gates import decide
from learner import LearnerError, as_item, place, predict

if TYPE_CHECKING:
    import numpy as np
    from fastai.learner import Learner

TOLERANCE = 1e-3  # of a probability; of a value absolutely up to 1, and relatively above
POINT_TOLERANCE = 0.1  # pixels of the model's input
MASK_TOLERANCE = 1e-4  # share of a mask's pixels that may have another class
PLACE_TOLERANCE = 0.1  # pixels of the picture, for where the corners of the model's input are
ORIENTATION = 0x0112  # EXIF's; 1 is upright


class DifferentError(Exception):
    """The handlers differ from the Learner; the message names the picture with the largest difference.

    `advice` is what to do.
    """

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def check_parity(learn: "Learner", folder: Path, spec: dict, pictures: list[Path]) -> dict:
    """Compare learn.predict with the handlers in the model folder `folder` on every picture.

    `spec` is model.json's content. Returns its `parity`. Raises DifferentError, or LearnerError if
    learn.predict fails.
    """
    compare, tolerance, unit = {
        "regression": (compare_values, TOLERANCE, ""),
        "points": (compare_points, POINT_TOLERANCE, " pixels of the model's input"),
        "segmentation": (compare_masks, MASK_TOLERANCE, " of a mask's pixels"),
    }.get(spec["task"], (compare_classes, TOLERANCE, ""))
    with handlers(folder / "code") as inference:
        model = inference.model_fn(folder)
        compared = [
            (*answer(compare, learn, inference, model, picture), picture)
            for picture in progress(pictures, "comparing with learn.predict", len(pictures))
        ]
        difference, sentence, picture = max(compared)
        if difference > tolerance:
            raise DifferentError(sentence, advise(learn, spec, picture))
    result = {"pictures": len(pictures), "max_difference": difference, "tolerance": tolerance}
    return result | ({"unit": unit} if unit else {})


def advise(learn: "Learner", spec: dict, picture: Path) -> str:
    """What to do about a picture on which the handlers differ."""
    from PIL import Image

    ignored = spec["input"].get("exif") == "ignore"
    try:
        with Image.open(picture) as stored:
            rotated = stored.getexif().get(ORIENTATION, 1) > 1
            unrotated = stored.convert(spec["input"]["mode"])
    except OSError:  # an array, or a format that only the Learner's own function reads
        return (
            "save the pictures as PNG or JPEG and train on these, because the endpoint reads no other files"
        )
    opened = as_item(learn, picture)[1]
    same = opened.size == unrotated.size and opened.tobytes() == unrotated.tobytes()
    if rotated and same and not ignored:
        return (
            "the Learner opens pictures as they are stored, without the rotation in their EXIF, but the "
            "endpoint rotates them: train on upright pictures (as `upright` in train/pictures.py opens), "
            "or package with --exif ignore, for an endpoint that does not rotate them either"
        )
    if rotated and not same and ignored:
        return "the Learner rotates pictures by their EXIF: leave out --exif ignore"
    return "compare how the Learner opens and transforms pictures with serve/pixels.py"


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


def answer(
    compare: Callable, learn: "Learner", inference: ModuleType, model: Any, picture: Path
) -> tuple[float, str]:
    """What `compare` says of the Learner's and the handlers' answers to one picture.

    `model` is an inference.Model. Infinite if the handlers reject the picture.
    """
    import numpy as np

    decoded, raw = predict(learn, picture)
    box = place(learn, as_item(learn, picture)[1]) if model.task in ("points", "segmentation") else ()
    try:
        prediction = inference.predict_fn(inference.input_fn(picture.read_bytes()), model)
    except inference.RequestError as error:
        return math.inf, f"learn.predict answers {picture}, but the handlers do not ({error})"
    output, found = np.asarray(prediction.outputs[0]), prediction.places[0].box
    away = max((abs(a - b) for a, b in zip(box, found, strict=False)), default=0)
    if away > PLACE_TOLERANCE:
        return math.inf, f"{picture}: the model sees a part of it that lies {away:.1f} pixels away"
    difference, sentence = compare(decoded, raw.numpy(), output, model)
    return difference, f"{picture}: {sentence}"


def compare_classes(_: Any, expected: "np.ndarray", actual: "np.ndarray", model: Any) -> tuple[float, str]:
    """The largest difference of a probability, and a sentence about it; 1 is added if the answers differ."""
    import numpy as np

    differences = np.nan_to_num(abs(expected - actual), nan=1)
    worst = int(differences.argmax())
    sentence = (
        f"learn.predict gives {model.labels[worst]} {expected[worst]:.4f}, "
        f"but the handlers {actual[worst]:.4f}"
    )
    before, after = (decide(probabilities, model.threshold) for probabilities in (expected, actual))
    return float(differences[worst]) + bool((before != after).any()), sentence


def compare_values(decoded: Any, expected: "np.ndarray", actual: "np.ndarray", _: Any) -> tuple[float, str]:
    """The largest difference of a number (of its share, if it is over 1), and a sentence about it."""
    import numpy as np
    import torch

    expected = np.atleast_1d(expected)
    answered = torch.as_tensor(decoded, dtype=torch.float64).flatten().numpy()
    if answered.shape != expected.shape or not np.allclose(answered, expected, rtol=1e-5, atol=1e-6):
        raise LearnerError(
            "learn.predict changes the model's numbers (a transform of the labels has `decodes`), which the "
            "endpoint cannot do: train without it, or undo it in your application"
        )
    differences = np.nan_to_num(abs(expected - actual) / np.maximum(1, abs(expected)), nan=np.inf)
    worst = int(differences.argmax())
    text = f"learn.predict gives {expected[worst]:.6g}, but the handlers {actual[worst]:.6g}"
    return float(differences[worst]), text


def compare_points(_: Any, expected: "np.ndarray", actual: "np.ndarray", model: Any) -> tuple[float, str]:
    """The largest distance in pixels of the model's input, and a sentence about it."""
    import numpy as np

    height, width = model.input["shape"][1:3]
    expected, actual = (
        np.reshape(points, (-1, 2)) * (width / 2, height / 2) for points in (expected, actual)
    )
    differences = np.nan_to_num(np.hypot(*(expected - actual).T), nan=np.inf)
    worst = int(differences.argmax())
    text = f"point {worst + 1} is {differences[worst]:.3f} pixels of the model's input from learn.predict's"
    return float(differences[worst]), text


def compare_masks(decoded: Any, _: "np.ndarray", actual: "np.ndarray", __: Any) -> tuple[float, str]:
    """The share of the pixels that have another class than learn.predict's mask, and a sentence about it."""
    import numpy as np

    expected = np.asarray(decoded).reshape(actual.shape)
    share = float((expected != actual).mean())
    return share, f"{share:.2%} of the mask's pixels have another class than learn.predict's"
