"""Label and check the pictures that train.py trains on, and those that adopt.py takes.

`label` turns a folder and --labels into {path: label}; `check` opens every picture once and leaves out those
that cannot be read; `upright` opens a picture, here and in the exported Learner. A picture with more than 8
bits a pixel is scaled to 0..255 by two levels, black and white, that are the same for all pictures.
"""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image

# The formats and the size that serve/pixels.py accepts: a model should not be trained on pictures that its
# endpoint rejects. Pillow opens the MPO files of phones as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis"}  # brands, ISO/IEC 23008-12
LEVELS_STRIP = 2**20  # pixels that scale_levels computes at a time

Labels = dict[Path, str | list[str] | None]
Item = tuple[Path, str | list[str]]


class UsageError(Exception):
    """A command line or data that cannot work; the message is one sentence for the user."""


def upright(picture: Path | str | bytes):  # noqa: ANN201 - fastai would use an annotation as a conversion
    """Open a picture as `open_upright` does, without levels.

    A function of its own: with a second parameter, fastai takes other random numbers, and a seed gives
    another model than before.
    """
    return open_upright(picture)


class Upright:
    """`open_upright` with these levels, as a transform of fastai."""

    def __init__(self, levels: list[float]) -> None:
        self.levels = levels

    def __call__(self, picture: Path | str | bytes):  # noqa: ANN204 - as for `upright`
        """Open a picture."""
        return open_upright(picture, self.levels)


def open_upright(picture: Path | str | bytes, levels: list[float] | None = None) -> Image.Image:
    """Open a picture (a path, or a file's bytes) as an RGB PILImage, rotated by its EXIF orientation.

    `levels` are the values of black and white in pictures with more than 8 bits a pixel. Raises OSError or
    ValueError if it is not a picture, is damaged or has more than 50 megapixels.
    """
    from fastai.vision.core import PILImage
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        im = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if is_heif(picture if isinstance(picture, bytes) else read_head(picture)):
            raise ValueError("HEIC and AVIF pictures cannot be read: convert them to JPEG") from None
        raise
    with im:
        if im.width * im.height > MAX_PIXELS:
            raise ValueError(f"{im.width} x {im.height} is more than {MAX_PIXELS / 1e6:.0f} megapixels")
        im.load()
        try:
            turned = ImageOps.exif_transpose(im)
        except Exception:  # unrotated if EXIF is damaged, like the server and browsers
            turned = im
        if levels and is_deep(turned):
            turned = scale_levels(turned, levels)
        return PILImage(turned.convert("RGB"))


def is_heif(data: bytes) -> bool:
    """Whether these are the bytes of an HEIC file, as iPhones write them, or of an AVIF file."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
    return data[4:8] == b"ftyp" and not HEIF.isdisjoint(brands)


def read_head(file: Path | str) -> bytes:
    """Return as many bytes of a file as `is_heif` needs."""
    with open(file, "rb") as opened:
        return opened.read(256)


def is_deep(picture: Image.Image) -> bool:
    """Return whether a picture has more than 8 bits a pixel: 16, 32, or floats."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def scale_levels(picture: Image.Image, levels: list[float]) -> Image.Image:
    """Mode I, I;16 or F to L: `levels` (black, white) become 0 and 255, linearly, clipped; NaN becomes 0."""
    black, white = levels
    grey = Image.new("L", picture.size)
    rows = max(1, LEVELS_STRIP // picture.width)
    for top in range(0, picture.height, rows):  # in strips, because the floats take 8 bytes a pixel
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        scaled = (np.asarray(strip, np.float64) - black) * 255 / (white - black)
        whole = np.rint(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255))
        grey.paste(Image.fromarray(whole.astype(np.uint8)), (0, top))
    return grey


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """Yield `items`, with a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    yield from track(items, what, total, console=Console(stderr=True), transient=True, disable=hidden)


def find(*folders: Path) -> list[Path]:
    """Return the files in and below `folders` with a picture's suffix, sorted, without hidden ones."""
    from fastai.data.transforms import get_files, image_extensions

    # fastai takes its suffixes from the system's MIME types, which lack these on some systems.
    extensions = image_extensions | {".webp", ".avif", ".heic", ".heif"}
    return sorted(path for folder in folders for path in get_files(folder, extensions))


def label(folder: Path, labels: str, least: int = 2) -> Labels:
    """Return the label of each picture in `folder` by --labels: its class, its classes, or None.

    Raises UsageError, with an example, if there are fewer than `least` classes.
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
        advice = "; each class needs a folder of its own, with its name" if labels == "folder" else ""
        example = next(iter(labelled))
        raise UsageError(f"--labels '{labels}' gives no picture a label: for example {example}{advice}")
    if len(names := classes(labelled)) < least:
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


def check(labelled: Labels, folder: Path) -> tuple[list[Item], list[dict[str, str]], list[float] | None]:
    """Open every picture; return those that can be used, [{"file", "reason"}] for the others, and the levels.

    The levels are the smallest (0 or less) and the largest value of all pictures with more than 8 bits a
    pixel; None if there are none. Raises UsageError if fewer than two classes are left.
    """
    reasons, levels = check_files([path for path, label in labelled.items() if label is not None])
    usable, left_out = [], []
    for path, label in labelled.items():
        reason = "no label" if label is None else reasons[path]
        if label is not None and reason is None:
            usable.append((path, label))
        else:
            left_out.append({"file": os.path.relpath(path, folder), "reason": str(reason)})
    if len(classes(dict(usable))) < 2:
        example = f"{left_out[0]['file']}: {left_out[0]['reason']}"
        raise UsageError(
            f"only {len(usable)} of {len(labelled)} pictures can be used, too few classes ({example})"
        )
    return usable, left_out, levels


def check_files(paths: list[Path]) -> tuple[dict[Path, str | None], list[float] | None]:
    """Open every picture; return {path: why it cannot be used, or None}, and the levels as `check` does."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        results = list(progress(pool.imap(inspect, paths), len(paths), "checking pictures"))
    extremes = [extreme for _, extreme in results if extreme]
    levels = None
    if extremes:
        levels = [min(0.0, *(low for low, _ in extremes)), max(high for _, high in extremes)]
        levels[1] = max(levels[1], levels[0] + 1e-6)  # all are black
    return {path: reason for path, (reason, _) in zip(paths, results, strict=True)}, levels


def inspect(path: Path) -> tuple[str | None, tuple[float, float] | None]:
    """Return why a picture cannot be used, or None, and the extreme values of one with more than 8 bits."""
    from PIL import UnidentifiedImageError

    try:
        upright(path)
        with Image.open(path, formats=FORMATS) as im:
            if not is_deep(im):
                return None, None
            return None, extremes_of(im)
    except UnidentifiedImageError:
        return f"not a picture ({', '.join(FORMATS)})", None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__, None


def extremes_of(picture: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value. Raises ValueError if one is infinite or not a number."""
    values = np.asarray(picture)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite numbers")
    return float(values.min()), float(values.max())
