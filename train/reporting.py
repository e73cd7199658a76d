"""Print the progress of a training run and write the files that later stages read."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import platform
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import pictures
from pictures import UsageError

if TYPE_CHECKING:
    from fastai.vision.all import DataLoaders, Learner
    from torch import Tensor

SAVED_PICTURES = 64  # copied beside the Learner, for the checks of the stages after this one


def multi_label(items: list) -> bool:
    """Return whether the (path, label) pairs are (path, [label, ...]) pairs."""
    return isinstance(items[0][1], list)


def print_plan(dls: DataLoaders, left_out: list[dict], args: argparse.Namespace) -> None:
    """Print the pictures, the classes and the model before training starts."""
    names = ", ".join(dls.vocab[:6]) + (", ..." if len(dls.vocab) > 6 else "")
    print(f"pictures  {len(dls.train_ds)} to train on, {len(dls.valid_ds)} to validate with")
    print(f"classes   {len(dls.vocab)}: {names}")
    for picture in left_out[:3]:
        print(f"left out  {picture['file']}: {picture['reason']}")
    if len(left_out) > 3:
        print(f"left out  {len(left_out) - 3} more, all named in metrics.json")
    start = "from scratch" if args.weights == "none" else "from ImageNet weights"
    print(f"model     {args.arch} at {args.size} pixels, {start}, on {dls.device}", flush=True)


@contextlib.contextmanager
def progress_shown(learn: Learner, epochs: int) -> Iterator[list[dict]]:
    """Print a line per epoch and, on a terminal, a progress bar; yield the list that gets a row per epoch."""
    from fastai.vision.all import Callback
    from rich.console import Console
    from rich.progress import Progress

    rows: list[dict] = []

    def log(values: list) -> None:
        row = dict(zip(learn.recorder.metric_names, values, strict=True)) | {"epoch": len(rows) + 1}
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if isinstance(value, float))
        print(f"epoch {row['epoch']}/{epochs}  {numbers}  {row['time']}", flush=True)
        rows.append(row)

    class Batches(Callback):
        def after_batch(self) -> None:
            bar.advance(task)

    hidden = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("training", total=epochs * (len(learn.dls.train) + len(learn.dls.valid)))
        learn.logger = log
        with learn.added_cbs(Batches()):
            yield rows
        learn.logger = print


def measure(learn: Learner, args: argparse.Namespace) -> dict:
    """Return the content of metrics.json, measured on all validation pictures.

    Raises UsageError if the loss is not a finite number.
    """
    loss, score = map(float, learn.validate())
    if not math.isfinite(loss):
        raise UsageError(f"the loss is {loss}, so training diverged; give a lower --lr")
    multi = multi_label(learn.dls.train_ds.items)
    return {
        "task": "multi" if multi else "single",
        "classes": list(learn.dls.vocab),
        "accuracy" if multi else "error_rate": score,
        "valid_loss": loss,
        "train_pictures": len(learn.dls.train_ds),
        "valid_pictures": len(learn.dls.valid_ds),
        "device": str(learn.dls.device),
        "versions": versions(),
        "arguments": vars(args) | {"out": str(args.out)},
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that export.pkl depends on."""
    import fastai
    import PIL
    import torch
    import torchvision

    modules = {"fastai": fastai, "torch": torch, "torchvision": torchvision, "pillow": PIL}
    return {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()}


def save(learn: Learner, rows: list[dict], args: argparse.Namespace) -> None:
    """Write all files but metrics.json into the Learner's folder."""
    import cloudpickle

    learn.save(args.arch, with_opt=False)
    # A pickle holds functions by name, and package/ loads export.pkl without train/ on its path: put the
    # code of `upright` itself into the pickle.
    cloudpickle.register_pickle_by_value(pictures)
    learn.export()
    with (learn.path / "history.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "train_loss", "valid_loss", learn.metrics[0].name, "time"])
        table.writeheader()
        table.writerows(rows)
    (learn.path / "pictures").mkdir()
    items = stratified_sample(list(learn.dls.valid_ds.items), SAVED_PICTURES, args.seed)
    write_json(learn.path / "validation.json", predictions(learn, items))
    write_json(learn.path / "split.json", split(learn))


def split(learn: Learner) -> dict[str, list[dict]]:
    """Return the content of split.json: the training pictures and the validation pictures."""
    parts = {"train": learn.dls.train_ds, "valid": learn.dls.valid_ds}
    return {part: [entry(path, label, learn.path) for path, label in ds.items] for part, ds in parts.items()}


def entry(path: Path, label: str | list[str], out: Path) -> dict:
    """Return a picture's path and labels; the path is relative to `out`, which is renamed later, if in it."""
    path = path.absolute()
    inside = path.is_relative_to(out)
    file = path.relative_to(out).as_posix() if inside else str(path)
    return {"file": file, "labels": label if isinstance(label, list) else [label]}


def write_json(file: Path, content: dict | list) -> None:
    """Write `content` as JSON."""
    file.write_text(json.dumps(content, indent=1) + "\n")


def stratified_sample(items: list, count: int, seed: int) -> list:
    """Return up to `count` of the (path, label) pairs at random, as evenly over the labels as they allow."""
    counts: Counter = Counter()
    ranked = []  # the first picture of every label, then the second of every label, ...
    for path, label in random.Random(seed).sample(items, len(items)):  # noqa: S311
        counts[str(label)] += 1
        ranked.append((counts[str(label)], path, label))
    return [(path, label) for _, path, label in sorted(ranked, key=itemgetter(0))[:count]]


def predictions(learn: Learner, items: list) -> list[dict]:
    """Copy pictures beside the Learner; return their files, labels and the Learner's predictions."""
    dl = learn.dls.test_dl([path for path, _ in items], num_workers=0)
    probs, _, decoded = learn.get_preds(dl=dl, with_decoded=True)
    vocab, multi, entries = learn.dls.vocab, multi_label(items), []
    for i, (path, label) in enumerate(items):
        file = f"pictures/{i:03d}_{path.name}"
        shutil.copyfile(path, learn.path / file)
        predicted = [vocab[c] for c in decoded[i].nonzero()[:, 0]] if multi else [vocab[decoded[i]]]
        prediction = {
            "predicted": predicted,
            "confidence": float(probs[i].max()),
            "margin": margin(learn, probs[i]),
        }
        entries.append(entry(learn.path / file, label, learn.path) | prediction)
    return entries


def margin(learn: Learner, probs: Tensor) -> float:
    """Return how far the answer is from another one, 0 to 1.

    With one label, the probability of the best class minus that of the second; with several, twice the
    smallest distance of a probability from the threshold. `margins` in package/precision.py is the same.
    """
    if multi_label(learn.dls.train_ds.items):
        return 2 * float((probs - getattr(learn.loss_func, "thresh", 0.5)).abs().min())
    best, second = probs.topk(2).values
    return float(best - second)


def print_result(metrics: dict, args: argparse.Namespace) -> None:
    """Print the score, where the result is and the next command."""
    multi = metrics["task"] == "multi"
    score = f"accuracy {metrics['accuracy']:.1%}" if multi else f"error rate {metrics['error_rate']:.1%}"
    print(
        f"{score} on {metrics['valid_pictures']} validation pictures, after {metrics['seconds']:.0f} seconds"
    )
    print(f"the Learner and its metrics are in {args.out}; the next task is package")
