"""Label and check the pictures that train.py learns from.

`label` turns a folder and --labels into {path: label}; `check` opens every picture once and leaves out what
cannot be read; `upright` is how a picture is opened, here and by the exported Learner.
"""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

# What the server reads: nothing else is worth learning from. (Phones' MPO files open as JPEG.)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000

Labels = dict[Path, str | list[str] | None]


class UsageError(Exception):
    """The command line or the data cannot work as given; the message is one sentence for the user."""


def upright(picture: Path | str | bytes):  # noqa: ANN201  (fastai would take the annotation for a conversion)
    """Open a picture (a path, or a file's bytes) as an RGB PILImage, turned as its EXIF orientation says.

    Raises OSError or ValueError if it is no picture, is damaged or has more than 50 megapixels.
    """
    from fastai.vision.core import PILImage
    from PIL import Image, ImageOps

    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    with Image.open(file, formats=FORMATS) as im:
        if im.width * im.height > MAX_PIXELS:
            raise ValueError(f"{im.width} x {im.height} is more than {MAX_PIXELS / 1e6:.0f} megapixels")
        im.load()
        try:
            turned = ImageOps.exif_transpose(im)
        except Exception:  # damaged EXIF: as it lies, like the server and browsers
            turned = im
        return PILImage(turned.convert("RGB"))


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """Pass `items` on, under a progress bar if this is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    return track(items, what, total, console=Console(stderr=True), transient=True, disable=hidden)


def find(*folders: Path) -> list[Path]:
    """Return the files in `folders` and below whose name says picture, in order, without the hidden ones."""
    from fastai.data.transforms import get_files, image_extensions

    extensions = image_extensions | {".webp", ".heic"}  # unknown to some systems
    return sorted(path for folder in folders for path in get_files(folder, extensions))


def label(folder: Path, labels: str) -> Labels:
    """Return what --labels says about each picture in `folder`: its class, its classes, or None.

    Raises UsageError if that gives fewer than two classes, naming an example.
    """
    if labels == "folder":
        found = by_folder(folder)
    elif labels.lower().endswith(".csv"):
        found = by_csv(folder, Path(labels))
    else:
        found = by_name(folder, labels)
    if not found:
        raise UsageError(f"there are no pictures in {folder}")
    if not any(found.values()):
        raise UsageError(f"--labels '{labels}' gives no picture a label: for example {next(iter(found))}")
    if len(names := classes(found)) < 2:
        raise UsageError(
            f"--labels '{labels}' finds only the class {names[0]}; a classifier needs two or more"
        )
    return found


def classes(labelled: Labels) -> list[str]:
    """Return the names of all classes, in order."""
    return sorted(
        {name for said in labelled.values() for name in ([said] if isinstance(said, str) else said or [])}
    )


def by_name(folder: Path, expression: str) -> Labels:
    """Label each picture by the first group of a regular expression found in its file name."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(f"--labels '{expression}' is no regular expression ({error})") from error
    if not pattern.groups:
        raise UsageError(f"--labels '{expression}' has no (group) to say which part of the name is the label")
    matches = {path: pattern.search(path.name) for path in find(folder)}
    return {path: (match[1] or None) if match else None for path, match in matches.items()}


def valid_folder(folder: Path) -> Path | None:
    """Return the validation folder if `folder` is split like ImageNet, into train/ and valid/ or val/."""
    both = [folder / name for name in ("valid", "val") if (folder / "train").is_dir()]
    return next(filter(Path.is_dir, both), None)


def by_folder(folder: Path) -> Labels:
    """Label each picture by the name of the folder it lies in."""
    valid = valid_folder(folder)
    roots = [folder / "train", valid] if valid else [folder]
    return {path: None if path.parent in roots else path.parent.name for path in find(*roots)}


def by_csv(folder: Path, file: Path) -> Labels:
    """Label pictures by a CSV file with the header name,label or name,labels (several, between spaces)."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {file}: cannot be read ({error})") from error
    header = set(rows[0]) if rows else set()
    if "name" not in header or not header & {"label", "labels"}:
        raise UsageError(f"--labels {file}: the first line must be name,label or name,labels")
    several = "labels" in header
    return {
        folder / (row["name"] or ""): (row["labels"] or "").split() if several else row["label"] or None
        for row in rows
    }


def check(found: Labels, folder: Path) -> tuple[list[tuple[Path, str | list[str]]], list[dict]]:
    """Open every labelled picture; return those that can be used, and [{"file", "reason"}] for the others."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        reasons = list(progress(pool.imap(trouble, found.items()), len(found), "checking pictures"))
    checked = list(zip(found.items(), reasons, strict=True))
    good = [item for item, reason in checked if not reason]
    left_out = [
        {"file": os.path.relpath(path, folder), "reason": reason} for (path, _), reason in checked if reason
    ]
    if len(classes(dict(good))) < 2:
        example = f"{left_out[0]['file']}: {left_out[0]['reason']}"
        raise UsageError(
            f"only {len(good)} of {len(found)} pictures can be used, too few classes ({example})"
        )
    return good, left_out


def trouble(item: tuple[Path, str | list[str] | None]) -> str | None:
    """Return why a labelled picture cannot be used, or None if it can."""
    from PIL import UnidentifiedImageError

    path, said = item
    if said is None:
        return "no label"
    try:
        upright(path)
    except UnidentifiedImageError:
        return f"not a picture ({', '.join(FORMATS)})"
    except Exception as error:  # decoders raise whatever they like on damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None
