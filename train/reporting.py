"""Print the progress of a training run and write the files that later stages read."""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import handover
import pictures
from handover import versions

if TYPE_CHECKING:
    from fastai.vision.all import DataLoaders, Learner


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
    """Return the scores and counts of metrics.json, measured on all validation pictures.

    Raises LearnerError if the loss is not a finite number.
    """
    scores = handover.measure(learn, "give a lower --lr")
    if "accuracy_multi" in scores:
        scores = {"accuracy": scores.pop("accuracy_multi")} | scores
    return scores | {
        "train_pictures": len(learn.dls.train_ds),
        "valid_pictures": len(learn.dls.valid_ds),
        "device": str(learn.dls.device),
        "versions": versions(),
        "arguments": vars(args) | {"out": str(args.out)},
    }


def save(learn: Learner, rows: list[dict], args: argparse.Namespace) -> dict:
    """Write all files but metrics.json into the Learner's folder; return its task and classes."""
    import cloudpickle

    # A pickle holds functions by name, and package/ loads export.pkl without train/ on its path: put the
    # code of `upright` itself into the pickle.
    cloudpickle.register_pickle_by_value(pictures)
    with (learn.path / "history.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "train_loss", "valid_loss", learn.metrics[0].name, "time"])
        table.writeheader()
        table.writerows(rows)
    with handover.untouched(learn):
        return handover.write_learner(learn, learn.path, args.arch, args.seed)


def print_result(metrics: dict, args: argparse.Namespace) -> None:
    """Print the score, where the result is and the next command."""
    multi = metrics["task"] == "multi"
    score = f"accuracy {metrics['accuracy']:.1%}" if multi else f"error rate {metrics['error_rate']:.1%}"
    print(
        f"{score} on {metrics['valid_pictures']} validation pictures, after {metrics['seconds']:.0f} seconds"
    )
    print(f"the Learner and its metrics are in {args.out}; the next task is package")
