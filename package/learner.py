"""Read an exported Learner: its task, and what `learn.predict` answers.

train/handover.py has the same functions, which must not differ: tests/house/test_copies.py compares them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastai.learner import Learner
    from PIL import Image
    from torch import Tensor

CLASSIFIERS = ("single", "multi")  # one label for each picture; any number of them
UNSEEN = 255  # in a mask: the model does not see this pixel; so its classes are 0 to 254


class LearnerError(ValueError):
    """A Learner that cannot be read or packaged; the message is one sentence for the user."""


def read_learner(pkl: Path) -> "Learner":
    """Load an export.pkl for its answers: on the CPU, in fp32, with a loss that turns scores into answers.

    Raises LearnerError if it cannot be loaded here, or is not a vision Learner. A pickle runs code.
    """
    import torch
    from fastai.learner import load_learner

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "load_learner")  # of untrusted pickles: this is our own file
            learn = load_learner(pkl, cpu=True)
    except UnboundLocalError:  # load_learner loses the ImportError (fastai issue 4115)
        try:
            torch.load(pkl, map_location="cpu", weights_only=False)
        except ImportError as error:
            text = f"{pkl} needs the module {error.name}, which was not found: put its folder on PYTHONPATH"
            raise LearnerError(text) from None
        raise LearnerError(f"{pkl} cannot be loaded: run this again") from None
    except Exception as error:  # a broken pickle can raise any kind
        raise LearnerError(f"{pkl} cannot be loaded: {one_line(error)}") from None
    if not hasattr(learn, "dls") or not hasattr(learn, "predict"):
        raise LearnerError(
            f"{pkl} holds a {type(learn).__name__}, not a Learner: write it with learn.export()"
        )
    learn.model.float().eval()  # half-precision weights do not fit the pictures, which are float32
    learn.loss_func = answering_loss(learn.loss_func, find_target(learn))
    return learn


def find_target(learn: "Learner") -> str:
    """Return what a vision Learner predicts: category, categories, number, points or mask.

    Decided by the types of a batch, which fastai keeps to decode predictions. Raises LearnerError for others.
    """
    from fastai.vision import core

    if len(getattr(learn.dls, "loaders", ())) < 2:
        raise LearnerError(
            "the Learner has no validation pictures, so nothing could be proven: "
            "make its DataLoaders with some, such as valid_pct=0.2"
        )
    types = getattr(learn.dls.valid, "_types", None)
    types = next(iter(types.values())) if isinstance(types, dict) else []
    count = getattr(learn.dls, "n_inp", 1)
    inputs, targets = types[:count], types[count:]
    names = ", ".join(getattr(kind, "__name__", str(kind)) for kind in inputs) or "batches of an unknown kind"
    if not all(isinstance(kind, type) and issubclass(kind, core.TensorImage) for kind in inputs or [None]):
        raise LearnerError(f"only vision Learners can be packaged: this one takes {names}, not pictures")
    if len(inputs) > 1:
        raise LearnerError(f"the Learner takes {len(inputs)} pictures at a time: only one can be packaged")
    if any(isinstance(kind, type) and issubclass(kind, core.TensorBBox) for kind in targets):
        raise LearnerError("the Learner predicts bounding boxes: object detection cannot be packaged")
    if len(targets) != 1:
        what = f"{len(targets)} sets of labels" if targets else "no labels"
        raise LearnerError(f"the Learner predicts {what} for a picture: it must have one to be packaged")
    kinds = {
        "TensorCategory": "category",
        "TensorMultiCategory": "categories",
        "TensorPoint": "points",
        "TensorMask": "mask",
        "Tensor": "number",
        "TensorBase": "number",
    }
    name = getattr(targets[0], "__name__", "list")
    if name not in kinds:
        raise LearnerError(
            f"the Learner predicts {name}, which is neither classes, numbers, points nor a mask"
        )
    return kinds[name]


def answering_loss(loss: Any, target: str) -> Any:
    """Return the loss, or fastai's own in place of torch's, which says nothing about answers.

    learn.predict uses the `activation` and `decodes` of the loss. Without them it returns raw scores, and
    nonsense for their class.
    """
    import torch
    from fastai import losses
    from torch import nn
    from torch.nn import functional as F

    while isinstance(loss, partial):
        loss = loss.func
    plain = loss.func if type(loss) is losses.BaseLoss else loss  # BCELossFlat has no activation either
    if isinstance(plain, nn.CrossEntropyLoss | nn.NLLLoss) or plain in (F.cross_entropy, F.nll_loss):
        # After LogSoftmax, as NLLLoss wants it, softmax is the same as exp.
        return losses.CrossEntropyLossFlat(axis=1 if target == "mask" else -1)
    if isinstance(plain, nn.BCEWithLogitsLoss) or plain is F.binary_cross_entropy_with_logits:
        return losses.BCEWithLogitsLossFlat()
    if isinstance(plain, nn.BCELoss) or plain is F.binary_cross_entropy:
        loss = losses.BCEWithLogitsLossFlat()
        loss.activation = torch.nn.Identity()  # the model's last layer is the sigmoid
    return loss


def find_task(learn: "Learner") -> tuple[str, float | None]:
    """Return the task, and with several labels the threshold from which on a label counts.

    The task is single, multi, regression, points or segmentation. Raises LearnerError for a loss that does
    not say which label wins.
    """
    import torch

    target, loss = find_target(learn), learn.loss_func
    if target == "points":
        return "points", None
    if target == "mask" and hasattr(loss, "decodes"):
        return "segmentation", None
    scores = torch.tensor([[0.0, 1.0, 0.0]])
    with suppress(Exception):  # any kind, from a loss of the user's own
        decoded = loss.decodes(loss.activation(scores))
        if target == "number" and decoded.dtype == scores.dtype and torch.equal(decoded, scores):
            return "regression", None
        if target != "number" and decoded.dtype == torch.bool:
            return "multi", float(loss.thresh)
        if target != "number" and decoded.tolist() == [1]:
            return "single", None
    if target == "number" and not hasattr(loss, "decodes"):
        return "regression", None
    name = getattr(loss, "__name__", type(loss).__name__)
    if target == "number":
        blocks = "CategoryBlock or MultiCategoryBlock"
        raise LearnerError(f"the loss {name} is for classes, but the labels are numbers: use a {blocks}")
    raise LearnerError(
        f"the loss {name} does not define which label wins: train with one for classes, "
        "such as fastai's CrossEntropyLossFlat or BCEWithLogitsLossFlat"
    )


def class_names(learn: "Learner") -> list[str]:
    """Return the names of the classes; of a mask, by their numbers. Empty for numbers and points.

    Raises LearnerError if there are none, or too many for a mask.
    """
    target = find_target(learn)
    if target in ("number", "points"):
        return []
    names = getattr(learn.dls, "vocab", None)
    if target == "mask":
        codes = [getattr(step, "codes", None) for step in learn.dls.valid.after_item.fs]
        names = next((code for code in codes if code is not None), None)
        if names is None:
            raise LearnerError("the Learner's classes have no names: give them to MaskBlock(codes=[...])")
        if len(names) > UNSEEN:
            raise LearnerError(f"{len(names)} classes are too many for a mask: at most {UNSEEN}")
    if names is None or not len(names):
        text = "the Learner has no names of classes: use a CategoryBlock, or MultiCategoryBlock(vocab=...)"
        raise LearnerError(text)
    return [str(name) for name in names]


@contextmanager
def quiet(learn: "Learner") -> Iterator[None]:
    """Keep a Learner from printing progress bars and tables."""
    import fastai.callback.progress  # noqa: F401 - gives Learners no_bar

    with learn.no_bar(), learn.no_logging():
        yield


@contextmanager
def centred(learn: "Learner") -> Iterator[None]:
    """Make RatioResize crop in the middle, as the endpoint does.

    fastai 2.8 lets it crop at random at validation as well, by the few pixels that rounding leaves.
    """
    import random

    from fastai.vision.augment import RatioResize

    before = random.random
    if any(isinstance(tfm, RatioResize) for tfm in learn.dls.valid.after_item):
        random.random = lambda: 0.5
    try:
        yield
    finally:
        random.random = before


def predict(learn: "Learner", file: Path) -> "tuple[Any, Tensor]":
    """Return learn.predict's decoded answer for a picture's file, and its raw one. Raises LearnerError."""
    item, _ = as_item(learn, file)
    try:
        with quiet(learn), centred(learn):
            decoded, _, raw = learn.predict(item)
    except Exception as error:  # a Learner can raise any kind
        raise LearnerError(f"learn.predict fails on {file}: {one_line(error)}") from None
    return decoded, raw.float()


def as_item(learn: "Learner", file: Path) -> "tuple[Any, Image.Image]":
    """Return what to give to learn.predict for a picture's file, and the picture as the Learner opens it.

    A Learner of a table's rows takes a name or an opened picture in place of a path. Raises LearnerError.
    """
    from fastai.data.core import compose_tfms
    from PIL import Image

    inputs = learn.dls.valid_ds.tls[0]
    reason: Exception | None = None
    for item in (file, str(file)):
        try:
            opened = inputs.infer(item)
            if isinstance(opened, Image.Image):
                return item, opened
        except Exception as error:  # from a function of the user's own
            reason = error
    for start in range(1, len(inputs.tfms.fs)):  # without the functions that find a row's picture
        for item in (file, str(file)):
            with suppress(Exception):
                opened = compose_tfms(item, inputs.tfms.fs[start:], split_idx=1)
                if isinstance(opened, Image.Image):
                    return opened, opened
    why = one_line(reason) if reason else "it does not become a picture"
    raise LearnerError(f"the Learner cannot open {file}: {why}")


def place(learn: "Learner", picture: "Image.Image") -> tuple[float, float, float, float]:
    """Return the rectangle of a picture that the model's input shows: left, top, right, bottom in pixels.

    fastai itself says it: its item transforms move the picture's corners like any points, as -1 to 1 across
    the picture. With padding, the rectangle is larger than the picture.
    """
    from fastai.data.core import compose_tfms
    from fastai.data.transforms import ToTensor
    from fastai.vision.core import PILImage, PointScaler, TensorPoint

    shown, corners = PILImage(picture), [[-1.0, -1.0], [1.0, 1.0]]
    for tfm in learn.dls.valid.after_item:
        if not isinstance(tfm, ToTensor | PointScaler) and tfm.split_idx != 0:
            points = TensorPoint(corners, sz=shown.size)  # sz, because fastai does not update img_size
            with centred(learn):
                shown, points = compose_tfms((shown, points), [tfm], split_idx=1)
            corners = points.tolist()
    (x0, y0), (x1, y1) = corners
    zoom_x, zoom_y = (x1 - x0) / picture.width, (y1 - y0) / picture.height
    return (-1 - x0) / zoom_x, (-1 - y0) / zoom_y, (1 - x0) / zoom_x, (1 - y0) / zoom_y


def one_line(error: BaseException) -> str:
    """Return a library's exception as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
