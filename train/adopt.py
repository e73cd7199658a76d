"""Adopt a Learner that was exported elsewhere: an export.pkl and pictures in, build/<project>/train out.

    python train/adopt.py --learner export.pkl --pictures photos/ --labels folder --out build/mine/train

The Learner answers for the pictures, and later stages compare their answers with these. With --labels (as
for train.py) its accuracy is measured, too. It is loaded in a process of its own: a pickle of another
Python or torch can end a process without a message.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import warnings
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import handover
import pictures
from handover import CLASSIFIERS, LearnerError, atomic_folder, find_task, write_json
from learner_file import REMEDY, check_file
from pictures import UsageError, progress

if TYPE_CHECKING:
    from fastai.learner import Learner

WARNING = "a pickle runs code when it is loaded: adopt only Learners of your own"
UNLABELLED = "no labels: accuracy is unknown, and later checks only compare answers with the Learner's"
Labels = dict[Path, list | None]  # class names or numbers


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


# --- labels


def read_labels(folder: Path, rule: str | None, task: str) -> dict[Path, str | list[str] | None]:
    """Return the label of each picture by --labels; None for all without. Raises UsageError."""
    if not rule:
        return dict.fromkeys(pictures.find(folder))
    if task not in (*CLASSIFIERS, "regression"):
        raise UsageError(f"--labels: {task} cannot be compared with labels here: leave --labels out")
    return pictures.label(folder, rule, least=1)


def convert(path: Path, label: str | list[str], task: str, names: list[str]) -> list:
    """Return a picture's label as in validation.json. Raises UsageError if the Learner cannot give it."""
    labels = label if isinstance(label, list) else [label]
    if task == "regression":
        try:
            return [float(text) for text in labels]
        except ValueError:
            text = f"--labels: {path.name} has the label {label}, but the Learner predicts numbers"
            raise UsageError(text) from None
    if task == "single" and len(labels) != 1:
        raise UsageError(f"--labels: {path.name} has {len(labels)} labels, but the Learner predicts one")
    for name in labels:
        if name not in names:
            raise UsageError(f"--labels: {path.name} has the label {name}, {unknown_class(name, names)}")
    return labels


def listed(names: list[str]) -> str:
    """Return the first names, without control characters, which a terminal would obey."""
    text = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return "".join(character if character.isprintable() else "?" for character in text)


def unknown_class(name: str, names: list[str]) -> str:
    """Say that the Learner has no such class, and which ones are near."""
    by_lower = {known.lower(): known for known in names}
    near = [by_lower[known] for known in get_close_matches(name.lower(), by_lower)]
    hint = f"did you mean {' or '.join(near)}?" if near else listed(names)
    return f"which is none of the Learner's {len(names)} classes ({hint})"


def usable_pictures(args: argparse.Namespace, task: str, names: list[str]) -> tuple[Labels, list[dict]]:
    """Return the labels of the pictures that can be read, and [{"file", "reason"}] for the others.

    Raises UsageError if there is none.
    """
    folder = args.pictures
    labelled = read_labels(folder, args.labels, task)
    wanted = {path: label for path, label in labelled.items() if label is not None or not args.labels}
    reasons, _ = pictures.check_files(list(wanted))
    usable = {
        path: None if label is None else convert(path, label, task, names)
        for path, label in wanted.items()
        if reasons[path] is None
    }
    left_out = [
        {"file": os.path.relpath(path, folder), "reason": str(reasons.get(path) or "no label")}
        for path in labelled
        if path not in usable
    ]
    if not usable:
        example = f" ({left_out[0]['file']}: {left_out[0]['reason']})" if left_out else ""
        text = f"there are no pictures in {folder} that can be used{example}: nothing could be proven"
        raise UsageError(text)
    return usable, left_out


# --- the Learner


def load(file: Path) -> Learner:
    """Load an export.pkl. Raises LearnerError, also for functions that only a notebook had."""
    import fastai.vision.all  # noqa: F401 - adds methods to Learner, also those that this one was saved without

    try:
        return handover.read_learner(file)
    except LearnerError as error:
        missing = re.search(r"Can't get attribute '([\w.<>]+)' on <module '([\w.]+)'", str(error))
        if not missing:
            raise
        name, module = missing.groups()
        if module in ("__main__", "__mp_main__"):
            text = f"{file} needs {name}, which was defined in the notebook: call hand_over in that notebook"
            raise LearnerError(text) from None
        text = f"{file} needs {name} of {module}, which the installed version does not have: {REMEDY}"
        raise LearnerError(text) from None


def score(learn: Learner, labelled: Labels, names: list[str]) -> dict[str, float]:
    """Return error_rate, accuracy or mean_absolute_error on all labelled pictures. Raises LearnerError."""
    task, threshold = find_task(learn)
    errors: list[float] = []
    for path in progress(labelled, len(labelled), "predicting"):
        answer, labels = handover.ask(learn, task, threshold, path)["predicted"], labelled[path] or []
        if task == "regression":
            if len(answer) != len(labels):
                text = (
                    f"--labels: {path.name} has {len(labels)} numbers, but the Learner predicts {len(answer)}"
                )
                raise UsageError(text)
            errors.append(sum(abs(a - b) for a, b in zip(answer, labels, strict=True)) / len(labels))
        elif task == "multi":  # as fastai's accuracy_multi: the share of wrong yes or no
            errors.append(len(set(answer) ^ set(labels)) / len(names))
        else:
            errors.append(answer != labels)
    mean = sum(errors) / len(errors)
    if task == "multi":
        return {"accuracy": 1 - mean}
    return {"mean_absolute_error" if task == "regression" else "error_rate": mean}


def adopt(args: argparse.Namespace, out: Path) -> None:
    """Write all files of the result into `out`, and print what was found. Raises LearnerError, UsageError."""
    learn = load(args.learner)
    task, _ = find_task(learn)
    names = handover.class_names(learn)
    shown = f", {len(names)} classes: {listed(names)}" if names else ""
    print(f"Learner   {task}{shown}", flush=True)
    usable, left_out = usable_pictures(args, task, names)
    print(f"pictures  {len(usable)} in {args.pictures}")
    for picture in left_out[:3]:
        print(f"left out  {picture['file']}: {picture['reason']}")
    if len(left_out) > 3:
        print(f"left out  {len(left_out) - 3} more, all named in metrics.json")
    scores = score(learn, usable, names) if args.labels else {}
    write(learn, usable, out, args)
    facts = {"task": task, "classes": names, **scores, "train_pictures": None, "valid_pictures": len(usable)}
    more = {"versions": handover.versions(), "left_out": left_out, "learner": str(args.learner)}
    write_json(out / "metrics.json", facts | more)
    print_result(scores, len(usable), out, args)


def write(learn: Learner, labelled: Labels, out: Path, args: argparse.Namespace) -> None:
    """Write all files but metrics.json."""
    shutil.copyfile(args.learner, out / "export.pkl")
    handover.save_weights(learn, out, handover.model_name(learn))
    pairs = list(labelled.items())
    chosen = handover.stratified_sample([labels for _, labels in pairs], handover.SAVED_PICTURES, 0)
    samples = [pairs[i] for i in chosen]
    write_json(out / "validation.json", handover.save_answers(learn, samples, out))
    valid = [handover.entry(path, labels, out) for path, labels in pairs]
    write_json(out / "split.json", {"train": [], "valid": valid})


def print_result(scores: dict[str, float], count: int, out: Path, args: argparse.Namespace) -> None:
    """Print the score, notes, where the result is and the next command."""
    for name, value in scores.items():
        number = f"{value:.4g}" if name == "mean_absolute_error" else f"{value:.1%}"
        print(f"{name.replace('_', ' ')} {number} on {count} labelled pictures")
    if not scores:
        print(f"note: {UNLABELLED}")
    for note in handover.clipping_note(out):
        print(note)
    copied = min(count, handover.SAVED_PICTURES)
    print(f"the Learner and {copied} of the pictures are in {args.out}; the next task is package", flush=True)


# --- the command line


def work(args: argparse.Namespace, out: Path) -> NoReturn:
    """Adopt, in a process of its own; exit as main does."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file
    warnings.filterwarnings("ignore")  # of fastai and torch about old pickles, which no user can act on
    try:
        adopt(args, out)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UsageError, LearnerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, OSError) else 2)
    sys.exit(0)


def run_apart(args: argparse.Namespace, out: Path) -> int:
    """Run `work` in another process; return its exit code. Raises LearnerError if it crashes."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(args, out))
    process.start()
    process.join()
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        raise LearnerError(f"{args.learner} needs more memory than there is: use a larger machine")
    if code < 0:
        here = f"Python {platform.python_version()}, torch {version('torch')}, fastai {version('fastai')}"
        how = f"crashes here ({signal.Signals(-code).name})"
        raise LearnerError(f"{args.learner} {how}, so other versions wrote it than {here}: {REMEDY}")
    return code


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--learner", help="the file that learn.export() wrote")
    add("--pictures", help="folder of pictures to check it with")
    add("--labels", help="regex on the file name, 'folder', or a .csv file; without, accuracy is unknown")
    add("--out", type=Path, required=True, help="folder for the result; an older result is replaced")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Check the files and folders that are named, before anything is loaded. UsageError, LearnerError."""
    if not args.learner:
        raise UsageError("--learner is missing: name the file that learn.export() wrote")
    if not args.pictures:
        raise UsageError("--pictures is missing: without them nothing could be proven; name their folder")
    args.learner, args.pictures = Path(args.learner).expanduser(), Path(args.pictures).expanduser()
    check_file(args.learner)
    if not args.pictures.is_dir():
        raise UsageError(f"--pictures {args.pictures}: there is no such folder")
    if not pictures.find(args.pictures):
        raise UsageError(f"there are no pictures in {args.pictures}: nothing could be proven")
    if is_trained(args.out):
        text = "holds what `invoke train` trained: name another project, such as INVOKE_PROJECT=mine"
        raise UsageError(f"--out {args.out} {text}, or remove that folder")


def is_trained(folder: Path) -> bool:
    """Return whether train.py wrote this folder, whose hours a forgotten project name should not delete."""
    try:
        return "arguments" in json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = arguments(argv)
    print(f"note: {WARNING}", flush=True)
    try:
        check_arguments(args)
        with atomic_folder(args.out.absolute()) as out:
            code = run_apart(args, out)
            if code:
                raise SystemExit(code)
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} is as it was", file=sys.stderr)
        return 130
    except (UsageError, LearnerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, OSError) else 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
