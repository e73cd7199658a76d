"""Hand a trained Learner over to this repository, from any notebook: copy this one file beside the notebook.

    from handover import hand_over

    hand_over(learn, "build/pets/train")

It needs fastai 2.8 and what fastai brings, or fastai 2.7 and cloudpickle. train.py and adopt.py write the
same files by it. package/learner.py has the same functions from LearnerError to one_line: tests/house/
compares them.
"""

import errno
import json
import os
import platform
import random
import re
import shutil
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import MethodType, ModuleType
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


SAVED_PICTURES = 64  # copied beside the Learner, for the checks of the stages after training
MAX_NAME = 255  # bytes of a file's name on most file systems


def hand_over(learn: "Learner", folder: "str | Path") -> Path:
    """Write what `invoke package` needs into build/<project>/train, and return this folder.

    The Learner stays as it is. The folder is replaced at the end, or not at all. Raises LearnerError, one
    sentence, for a Learner that cannot be handed over.
    """
    folder = Path(folder).expanduser().absolute()
    class_names(learn)  # refuses text, tables and masks without names before anything is written
    if not valid_size(learn):
        raise LearnerError(
            "the Learner has no validation pictures, so nothing could be proven: "
            "make its DataLoaders with some, such as valid_pct=0.2"
        )
    with written_to(folder), atomic_folder(folder) as new, untouched(learn):
        scores = measure(learn)
        facts = write_learner(learn, new, model_name(learn))
        sizes = {"train_pictures": len(learn.dls.train_ds), "valid_pictures": valid_size(learn)}
        scores.pop("levels", None)  # a metric must not replace what later stages read
        write_json(new / "metrics.json", facts | scores | facts | sizes | {"versions": versions()})
        notes = clipping_note(new)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float))
    print(f"{facts['task']}: {shown} on {sizes['valid_pictures']} validation pictures")
    print(*notes, f"the Learner and its validation pictures are in {folder}", sep="\n")
    print(next_command(folder))
    return folder


def next_command(folder: Path) -> str:
    """Say what to run after hand_over."""
    named = folder.name == "train" and folder.parent.parent.name == "build"
    name = folder.parent.name if named else "NAME"
    if named and (folder.parent.parent.parent / "package" / "export.py").is_file():
        return f"next, in the repository: INVOKE_PROJECT={name} invoke package"
    copy = f"next: copy this folder to build/{name}/train in the repository"
    return f"{copy}, and there: INVOKE_PROJECT={name} invoke package"


# --- the files


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a LearnerError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = ": free some space, or name a folder on another disk" if full else ""
        raise LearnerError(f"{folder} cannot be written ({error.strerror or error}){advice}") from None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` at the end, or is removed if anything fails.

    Raises LearnerError if `folder` holds files that are not a training result.
    """
    occupied = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if occupied and not (folder / "metrics.json").exists():
        raise LearnerError(f"{folder} holds something else than a training result: name another folder")
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_json(file: Path, content: "dict | list") -> None:
    """Write `content` as JSON."""
    file.write_text(json.dumps(content, indent=1) + "\n")


def write_learner(learn: "Learner", folder: Path, name: str, seed: int = 0) -> dict:
    """Write all files but metrics.json; return its task and classes.

    The answers are those of the exported Learner, read again: this proves that it can be loaded.
    """
    export(learn, folder / "export.pkl")
    copy = read_learner(folder / "export.pkl")
    save_weights(learn, folder, name)
    split = {part: read_part(learn, i) for i, part in enumerate(("train", "valid"))}
    valid = split["valid"]
    chosen = stratified_sample([labels for _, labels in valid], SAVED_PICTURES, seed)
    samples = [(valid[i][0] or opened(learn, i), valid[i][1]) for i in chosen]
    entries = save_answers(copy, samples, folder)
    write_json(folder / "validation.json", entries)
    for i, answer in zip(chosen, entries, strict=True):  # pictures that are no files: only their copies
        valid[i] = (valid[i][0] or folder / answer["file"], valid[i][1])
    lists = {
        part: [entry(file, labels, folder) for file, labels in pairs if file] for part, pairs in split.items()
    }
    write_json(folder / "split.json", lists)
    return {"task": find_task(copy)[0], "classes": class_names(copy)}


def save_weights(learn: "Learner", folder: Path, name: str) -> None:
    """Write models/<name>.pth, as learn.save does, without the optimizer."""
    from fastai.learner import save_model

    (folder / "models").mkdir()
    with saving():
        save_model(folder / "models" / f"{name}.pth", learn.model, None, with_opt=False)


def model_name(learn: "Learner") -> str:
    """Return the name of the architecture, or of the model's class, fit for a file."""
    arch = getattr(learn, "arch", None)
    name = arch if isinstance(arch, str) else getattr(arch, "__name__", type(learn.model).__name__)
    return re.sub(r"[^\w.-]", "_", name)[:100]


def entry(file: Path, labels: "list | None", folder: Path) -> dict:
    """Return a picture's path and labels; a path in `folder`, which is renamed later, is relative to it."""
    file = file.absolute()
    inside = file.is_relative_to(folder)
    return {"file": file.relative_to(folder).as_posix() if inside else str(file), "labels": labels}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that export.pkl depends on."""
    import fastai
    import PIL
    import torch
    import torchvision

    modules = {"fastai": fastai, "torch": torch, "torchvision": torchvision, "pillow": PIL}
    return {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()}


# --- the Learner


@contextmanager
def untouched(learn: "Learner") -> Iterator[None]:
    """Give the Learner and the random generators back as they were.

    Export and validation replace attributes: the optimizer, the Recorder's values, the device.
    """
    import numpy as np
    import torch

    loaders = list(learn.dls.loaders)
    kept = [(one, dict(vars(one))) for one in (learn, learn.dls, *loaders, *learn.cbs, *learn.metrics)]
    classes = [(one, dict(vars(one))) for one in own_classes(learn)]
    generators = [(dl.rng, dl.rng.getstate()) for dl in loaders if hasattr(dl, "rng")]
    model, cbs = learn.model, list(learn.cbs)
    modes = [(module, module.training) for module in model.modules()]
    device = next((weights.device for weights in model.parameters()), None)
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        for generator, before in generators:
            generator.setstate(before)
        for one, attributes in kept:
            vars(one).clear()
            vars(one).update(attributes)
        learn.cbs.items[:] = cbs  # the L of fastai 2.7's fastcore cannot set slices
        restore(classes)
        for module, mode in modes:
            module.training = mode
        if device is not None:
            model.to(device)


def own_classes(learn: "Learner") -> set[type]:
    """Return the classes that a notebook has defined; some of them are in the pickle."""
    pipelines = [
        getattr(dl, name, None)
        for dl in learn.dls.loaders
        for name in ("after_item", "before_batch", "after_batch")
    ]
    things = [*learn.cbs, *learn.metrics, *learn.model.modules(), learn.loss_func]
    things += [step for pipeline in pipelines for step in getattr(pipeline, "fs", ())]
    found = {kind for thing in things for kind in type(thing).__mro__}
    found |= {value for value in vars(sys.modules["__main__"]).values() if isinstance(value, type)}
    return {kind for kind in found if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__}


def restore(classes: "list[tuple[type, dict]]") -> None:
    """Restore classes after loading: cloudpickle finds the notebook's own and replaces their functions."""
    for kind, attributes in classes:
        for name, value in attributes.items():
            if vars(kind).get(name) is not value:
                with suppress(AttributeError, TypeError):  # __dict__ and the like
                    setattr(kind, name, value)


def valid_size(learn: "Learner") -> int:
    """Return how many validation pictures there are."""
    return len(learn.dls.valid_ds) if len(learn.dls.loaders) > 1 else 0


def measure(learn: "Learner", advice: str = "train with a lower learning rate") -> dict:
    """Return the Learner's metrics on all validation pictures by their names, and valid_loss.

    A metric is a number or a list of them; others are left out. Raises LearnerError, with the advice, if the
    loss is not a finite number.
    """
    from fastai.callback.core import Callback

    class GatherPreds(Callback):
        """By its name, callbacks that save, log or stop know that this is not training."""

    try:
        values = validate(learn, GatherPreds)
    except Exception as error:  # any kind, from a model, metric or callback of the user's own
        raise LearnerError(f"learn.validate() fails: {one_line(error)}") from None
    names = ["valid_loss", *(metric.name for metric in learn.metrics)]
    scores = {name: as_number(value) for name, value in zip(names, values or [], strict=False)}
    loss = scores.pop("valid_loss", None)
    if loss is None:
        value = float(values[0]) if values else "missing"
        if find_target(learn) == "number":
            advice = f"{advice}, and look for labels that are no numbers"
        raise LearnerError(f"the loss is {value}, so training diverged; {advice}")
    return {name: value for name, value in scores.items() if value is not None} | {"valid_loss": loss}


def validate(learn: "Learner", callback: type) -> Any:
    """Call learn.validate; with a copy of the model in float32 if its half-precision weights fail."""
    try:
        return learn.validate(cbs=callback())
    except Exception:
        if not any(weights.dtype.itemsize == 2 for weights in learn.model.parameters()):
            raise
    learn.model = deepcopy(learn.model).float()  # `untouched` puts the Learner's own back
    return learn.validate(cbs=callback())


def as_number(value: Any) -> "float | list[float] | None":
    """Return a metric's value as a number or a list of them; None if it is neither, or not finite."""
    import torch

    try:
        numbers = torch.as_tensor(value).double()
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers.tolist() if bool(numbers.isfinite().all()) else None


@contextmanager
def saving() -> Iterator[None]:
    """Turn torch's RuntimeError of a full disk into an OSError."""
    try:
        yield
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "the disk is full") from None


def export(learn: "Learner", file: Path) -> None:
    """Call learn.export, which changes the Learner: only inside `untouched`. Raises LearnerError, OSError."""
    from fastai.callback.progress import CSVLogger

    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, CSVLogger)])  # their open file has no pickle
    try:
        with saving():
            learn.export(file, pickle_module=pickler())
    except (OSError, LearnerError):
        raise
    except Exception as error:  # pickling raises many kinds
        culprit = unpicklable(learn, "learn", {id(learn)})
        if culprit:
            what = f"{culprit} cannot be pickled: remove it from the Learner and try again"
            raise LearnerError(f"{what} ({one_line(error)})") from None
        if not zipfile.is_zipfile(
            file
        ):  # else only what export does afterwards, to the optimizer, has failed
            raise LearnerError(f"learn.export() fails: {one_line(error)}") from None


def pickler() -> Any:
    """Return cloudpickle in a form that fits fastai 2.7, too. Raises LearnerError if it is not installed.

    fastai 2.8 itself uses cloudpickle. The pickle of 2.7 would lack a notebook's own functions. cloudpickle
    copies the code of methods of classes, such as PILImage.create, whose annotations fastcore 1.7 cannot
    resolve then: here they are named.
    """
    try:
        import cloudpickle
    except ImportError:
        raise LearnerError("fastai 2.7 does not bring cloudpickle: run `pip install cloudpickle`") from None

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, MethodType) and isinstance(thing.__self__, type):
                return getattr, (thing.__self__, thing.__name__)
            return super().reducer_override(thing)

    module = ModuleType("cloudpickle")
    vars(module)["Pickler"] = Pickler
    return module


def unpicklable(thing: Any, name: str, seen: "set[int]") -> "str | None":
    """Return the name and type of the innermost object in `thing` that cannot be pickled.

    None if it can be, or only what was seen before cannot.
    """
    try:
        import cloudpickle as pickler
    except ImportError:  # fastai 2.7 does not need it
        import pickle as pickler

    parts = list(thing.items()) if isinstance(thing, dict) else []
    if isinstance(thing, list | tuple):
        parts = list(enumerate(thing))
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        parts = [
            (key, part) for key, part in vars(thing).items() if key != "lock"
        ]  # which Learner leaves out
    innermost = True
    for key, part in parts:
        if id(part) not in seen:
            try:
                pickler.dumps(part)
                continue
            except Exception:
                seen.add(id(part))
                step = f".{key}" if hasattr(thing, "__dict__") else f"[{key!r}]"
                if found := unpicklable(part, name + step, seen):
                    return found
        innermost = False
    return (
        f"{name.replace('.items[', '[')} ({type(thing).__name__})" if innermost and name != "learn" else None
    )


# --- its pictures and labels


def read_part(learn: "Learner", part: int) -> "list[tuple[Path | None, list | None]]":
    """Return each picture's file, None if it has none, and its labels; training is part 0, validation 1."""
    dataset = learn.dls.loaders[part].dataset
    if not hasattr(dataset, "tls"):
        raise LearnerError(
            f"the pictures of a {type(dataset).__name__} are unknown: make a DataBlock's dataloaders"
        )
    find, read = file_finder(dataset.tls[0]), label_reader(learn, dataset.tls[-1])
    return [(find(i), read(i)) for i in range(len(dataset))]


def raw_item(items: Any, i: int) -> Any:
    """Return an item of a TfmdLists before its transforms: a path, a table's row, an array, ..."""
    from fastcore.foundation import L

    return L.__getitem__(items, i)


def file_finder(inputs: Any) -> "Callable[[int], Path | None]":
    """Return a function that finds the file of the i-th picture, without opening it.

    The first picture shows how many of the transforms lead from an item to a path.
    """
    depth: int | None = None

    def find(i: int) -> "Path | None":
        nonlocal depth
        if depth is not None:
            file, _ = walk(raw_item(inputs, i), inputs.tfms.fs[:depth])
            if file:
                return file
        file, depth = walk(raw_item(inputs, i), inputs.tfms.fs)
        return file

    return find


def walk(value: Any, steps: Any) -> "tuple[Path | None, int]":
    """Apply transforms to an item; return the last path of a file on the way, and after how many steps."""
    from fastai.data.core import compose_tfms
    from PIL import Image
    from torch import Tensor

    file, depth = as_file(value), 0
    for number, step in enumerate(steps, 1):
        try:
            value = compose_tfms(value, [step], split_idx=1)
        except Exception as error:  # from a function of the user's own, or a damaged picture
            raise LearnerError(f"the Learner cannot open its picture {value}: {one_line(error)}") from None
        if isinstance(value, Image.Image | Tensor):
            break
        if found := as_file(value):
            file, depth = found, number
    return file, depth


def as_file(value: Any) -> "Path | None":
    """Return a path or text as a path if there is such a file."""
    with suppress(OSError, ValueError):  # text that is no path
        if isinstance(value, str | os.PathLike) and os.path.isfile(value):
            return Path(value)
    return None


def opened(learn: "Learner", i: int) -> "Image.Image":
    """Return the i-th validation picture as the Learner opens it."""
    from PIL import Image

    picture = learn.dls.valid_ds.tls[0][i]
    if not isinstance(picture, Image.Image):
        raise LearnerError(f"the Learner opens pictures as {type(picture).__name__}: use an ImageBlock")
    return picture


def label_reader(learn: "Learner", targets: Any) -> "Callable[[int], list | None]":
    """Return a function that reads the labels of the i-th picture: class names, numbers, or points in pixels.

    None for masks. Raises LearnerError.
    """
    target = find_target(learn)
    names = class_names(learn)
    scaler = find_scaler(learn)

    def decode(value: Any) -> "list | None":
        import torch

        if target == "category":
            return [names[int(value)]]
        if target == "categories":
            return [names[c] for c in torch.as_tensor(value).flatten().nonzero()[:, 0].tolist()]
        if target == "number":
            return torch.as_tensor(value).double().flatten().tolist()
        if scaler is not None and not scaler.do_scale:
            return None  # not in pixels
        points = torch.as_tensor(value).double().view(-1, 2)
        return (points.flip(1) if scaler is not None and scaler.y_first else points).tolist()

    def read(i: int) -> "list | None":
        if target == "mask":
            return None
        try:
            return decode(targets[i])
        except Exception as error:  # any kind, from a function of the user's own
            raise LearnerError(
                f"the label of {raw_item(targets, i)} cannot be read: {one_line(error)}"
            ) from None

    return read


def find_scaler(learn: "Learner") -> Any:
    """Return the transform that scales points to -1..1; None if there is none."""
    from fastai.vision.core import PointScaler

    return next((step for step in learn.dls.valid.after_item.fs if isinstance(step, PointScaler)), None)


def stratified_sample(labels: list, count: int, seed: int) -> list[int]:
    """Return the places of up to `count` pictures at random, as evenly over the labels as they allow."""
    counts: Counter = Counter()
    ranked = []  # the first picture of every label, then the second of every label, ...
    for i in random.Random(seed).sample(range(len(labels)), len(labels)):  # noqa: S311
        counts[str(labels[i])] += 1
        ranked.append((counts[str(labels[i])], i))
    return [i for _, i in sorted(ranked, key=itemgetter(0))[:count]]


# --- its answers


def save_answers(
    learn: "Learner", samples: "Sequence[tuple[Path | Image.Image, list | None]]", folder: Path
) -> list[dict]:
    """Copy pictures into `folder`; return the content of validation.json: the Learner's answers."""
    (folder / "pictures").mkdir()
    task, threshold = find_task(learn)
    if task == "segmentation":
        (folder / "masks").mkdir()
    entries = []
    for i, (picture, labels) in enumerate(samples):
        file = save_picture(picture, folder / "pictures", i)
        mask = folder / "masks" / f"{i:03d}.png" if task == "segmentation" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metrics, which have no labels here
            try:
                answer = ask(learn, task, threshold, file, mask)
            except LearnerError as error:  # not with the copy's path, which is removed now
                name = str(picture) if isinstance(picture, Path) else file.name
                raise LearnerError(str(error).replace(str(file), name)) from None
        entries.append(entry(file, labels, folder) | answer)
    return entries


def save_picture(picture: "Path | Image.Image", folder: Path, i: int) -> Path:
    """Copy a file, or save an opened picture without loss; return the new file."""
    if isinstance(picture, Path):
        file = folder / copy_name(i, picture.name)
        shutil.copyfile(picture, file)
        return file
    png = picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    file = folder / copy_name(i, "picture.png" if png else "picture.tiff")
    picture.save(file)
    return file


def copy_name(i: int, name: str) -> str:
    """Return the name of a picture's copy: `name` after a number, at most MAX_NAME bytes, its suffix kept."""
    number = f"{i:03d}_"
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\ufffd", "_")
    suffix = Path(name).suffix if len(Path(name).suffix.encode()) < 32 else ""
    stem = name[: len(name) - len(suffix)].encode()[: MAX_NAME - len(number) - len(suffix.encode())]
    return number + stem.decode("utf-8", "ignore") + suffix


def ask(
    learn: "Learner", task: str, threshold: "float | None", file: Path, mask: "Path | None" = None
) -> dict:
    """Return what learn.predict answers for a file, as in validation.json; write a mask to `mask`."""
    decoded, raw = predict(learn, file)
    if task in CLASSIFIERS:
        names = [str(name) for name in decoded] if task == "multi" else [str(decoded)]
        return {"predicted": names, "confidence": float(raw.max()), "margin": margin(raw, threshold)}
    if task == "regression":
        return {"predicted": raw.flatten().tolist()}
    _, picture = as_item(learn, file)
    left, top, right, bottom = box = find_box(learn, picture)
    if task == "points":
        start, extent = raw.new_tensor([left, top]), raw.new_tensor([right - left, bottom - top])
        points = start + (raw.view(-1, 2) + 1) / 2 * extent
        return {"predicted": points.tolist(), "size": list(picture.size)}
    classes = decoded.reshape(raw.shape[-2:]).numpy()  # also of a model with one number for each pixel
    return save_mask(learn, classes, box, picture.size, mask)


def margin(probs: "Tensor", threshold: "float | None") -> float:
    """Return how far the answer is from another one, 0 to 1.

    With one label, the probability of the best class minus that of the second; with several, twice the
    smallest distance of a probability from the threshold. `margins` in package/precision.py is the same.
    """
    if threshold is not None:
        return 2 * float((probs - threshold).abs().min())
    if len(probs) < 2:
        return 1.0
    best, second = probs.topk(2).values
    return float(best - second)


def find_box(learn: "Learner", picture: "Image.Image") -> "tuple[float, float, float, float]":
    """Call `place`. Raises LearnerError where a transform of the user's own does not know points."""
    try:
        return place(learn, picture)
    except Exception as error:
        raise LearnerError(f"the Learner's transforms do not take points along: {one_line(error)}") from None


def save_mask(
    learn: "Learner",
    classes: Any,
    box: "tuple[float, float, float, float]",
    size: "tuple[int, int]",
    file: "Path | None",
) -> dict:
    """Scale a mask (height, width), which covers `box` of a picture (width, height), to the picture's size.

    Returns its file and each class's share of the pixels that the model sees, and writes it. LearnerError.
    """
    import numpy as np
    from PIL import Image

    names = class_names(learn)
    if classes.max() >= UNSEEN:
        raise LearnerError(f"the mask has more than {UNSEEN} classes: only that many can be packaged")
    if classes.max() >= len(names):
        text = (
            f"the model predicts class number {classes.max()}, but MaskBlock's codes have {len(names)} names"
        )
        raise LearnerError(f"{text}: name every class of the model")

    def nearest(start: float, end: float, pixels: int, cells: int) -> Any:
        return np.floor((np.arange(pixels) + 0.5 - start) / (end - start) * cells).astype(int)

    left, top, right, bottom = box
    rows = nearest(top, bottom, size[1], len(classes))
    columns = nearest(left, right, size[0], len(classes[0]))
    seen_rows = (rows >= 0) & (rows < len(classes))
    seen_columns = (columns >= 0) & (columns < len(classes[0]))
    mask = np.full((size[1], size[0]), UNSEEN, np.uint8)
    mask[np.ix_(seen_rows, seen_columns)] = classes[np.ix_(rows[seen_rows], columns[seen_columns])]
    numbers, counts = np.unique(mask[mask != UNSEEN], return_counts=True)
    largest_first = sorted(zip(counts.tolist(), numbers.tolist(), strict=True), key=lambda pair: -pair[0])
    shares = {names[number]: round(count / counts.sum(), 6) for count, number in largest_first}
    if file is None:
        return {"predicted": shares}
    Image.fromarray(mask).save(file)
    return {"predicted": shares, "mask": f"{file.parent.name}/{file.name}"}


def clipping_note(folder: Path) -> list[str]:
    """Return a sentence if fastai clips pictures, which have more than 8 bits a pixel; else nothing."""
    from PIL import Image

    deep = 0
    for file in (folder / "pictures").iterdir():
        with suppress(Exception), Image.open(file) as picture:  # what only the Learner can open
            deep += picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    if not deep:
        return []
    return [
        f"note: {deep} of the validation pictures have more than 8 bits a pixel; fastai does not scale them, "
        "values above 255 become white"
    ]
