"""Label and check the pictures that train.py trains on.

`label` turns a folder and --labels into {path: label}; `check` opens every picture once and leaves out those
that cannot be read; `upright` opens a picture, here and in the exported Learner.
"""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path

# The formats and the size that serve/pixels.py accepts: a model should not be trained on pictures that its
# endpoint rejects. Pillow opens the MPO files of phones as JPEG.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000

Labels = dict[Path, str | list[str] | None]
Item = tuple[Path, str | list[str]]


class UsageError(Exception):
    """A command line or data that cannot work; the message is one sentence for the user."""


def upright(picture: Path | str | bytes):  # noqa: ANN201 - fastai would use an annotation as a conversion
    """Open a picture (a path, or a file's bytes) as an RGB PILImage, rotated by its EXIF orientation.

    Raises OSError or ValueError if it is not a picture, is damaged or has more than 50 megapixels.
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
        except Exception:  # unrotated if EXIF is damaged, like the server and browsers
            turned = im
        return PILImage(turned.convert("RGB"))


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """Yield `items`, with a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    yield from track(items, what, total, console=Console(stderr=True), transient=True, disable=hidden)


def find(*folders: Path) -> list[Path]:
    """Return the files in and below `folders` with a picture's suffix, sorted, without hidden ones."""
    from fastai.data.transforms import get_files, image_extensions

    # fastai takes its suffixes from the system's MIME types, which lack these two on some systems.
    extensions = image_extensions | {".webp", ".heic"}
    return sorted(path for folder in folders for path in get_files(folder, extensions))


def label(folder: Path, labels: str) -> Labels:
    """Return the label of each picture in `folder` by --labels: its class, its classes, or None.

    Raises UsageError, with an example, if there are fewer than two classes.
    """
    if labels == "folder":
        labelled = by_folder(folder)
    elif labels.lower().endswith(".csv"):
        labelled = by_csv(folder, Path(labels))
    else:
        labelled = by_name(folder, labels)
    if not labelled:
        raise UsageError(f"there are no pictures in {folder}")
    if not any(labelled.values()):
        raise UsageError(f"--labels '{labels}' gives no picture a label: for example {next(iter(labelled))}")
    if len(names := classes(labelled)) < 2:
        raise UsageError(
            f"--labels '{labels}' finds only the class {names[0]}; a classifier needs two or more"
        )
    return labelled


def classes(labelled: Mapping[Path, str | list[str] | None]) -> list[str]:
    """Return the names of all classes, sorted."""
    labels = (label if isinstance(label, list) else [label] for label in labelled.values() if label)
    return sorted({name for names in labels for name in names})


def by_name(folder: Path, expression: str) -> Labels:
    """Label each picture by the first group of a regular expression that is searched in its file name."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(f"--labels '{expression}' is no regular expression ({error})") from error
    if not pattern.groups:
        raise UsageError(f"--labels '{expression}' has no (group) for the part of the name that is the label")
    matches = {path: pattern.search(path.name) for path in find(folder)}
    return {path: (match[1] or None) if match else None for path, match in matches.items()}


def valid_folder(folder: Path) -> Path | None:
    """Return the validation folder if `folder` is split like ImageNet, into train/ and valid/ or val/."""
    candidates = [folder / name for name in ("valid", "val") if (folder / "train").is_dir()]
    return next(filter(Path.is_dir, candidates), None)


def by_folder(folder: Path) -> Labels:
    """Label each picture by the name of its folder."""
    valid = valid_folder(folder)
    roots = [folder / "train", valid] if valid else [folder]
    return {path: None if path.parent in roots else path.parent.name for path in find(*roots)}


def by_csv(folder: Path, file: Path) -> Labels:
    """Label pictures by a CSV file with the header name,label or name,labels (several, space-separated)."""
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


def check(labelled: Labels, folder: Path) -> tuple[list[Item], list[dict[str, str]]]:
    """Open every picture; return those that can be used, and [{"file", "reason"}] for the others.

    Raises UsageError if fewer than two classes are left.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        reasons = progress(pool.imap(why_unusable, labelled.items()), len(labelled), "checking pictures")
        usable, left_out = [], []
        for (path, label), reason in zip(labelled.items(), reasons, strict=True):
            if label is not None and reason is None:
                usable.append((path, label))
            else:
                left_out.append({"file": os.path.relpath(path, folder), "reason": reason or "no label"})
    if len(classes(dict(usable))) < 2:
        example = f"{left_out[0]['file']}: {left_out[0]['reason']}"
        raise UsageError(
            f"only {len(usable)} of {len(labelled)} pictures can be used, too few classes ({example})"
        )
    return usable, left_out


def why_unusable(item: tuple[Path, str | list[str] | None]) -> str | None:
    """Return why a labelled picture cannot be used, or None if it can."""
    from PIL import UnidentifiedImageError

    path, label = item
    if label is None:
        return "no label"
    try:
        upright(path)
    except UnidentifiedImageError:
        return f"not a picture ({', '.join(FORMATS)})"
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None
