"""Photographs of 12 megapixels out of smaller pictures, to test how large ones are decoded and sent."""

import io
from types import ModuleType

from PIL import Image

SIDE = 4000  # pixels; the long side of a photograph of 12 megapixels
SHRINK = 1280  # pixels; the default of client/predictor.py
ORIENTATION = 0x0112  # EXIF's; 1 is upright


def enlarge(inference: ModuleType, how: dict, data: bytes) -> bytes:
    """The picture as a JPEG of 12 megapixels, or unchanged if it is a JPEG of that size already.

    `how` is model.json's `input`.
    """
    picture = inference.open_picture(data)
    if picture.format == "JPEG" and max(picture.size) >= SIDE:
        return data
    upright = Image.fromarray(inference.to_pixels(picture, how | {"mode": "RGB", "steps": []}))
    size = scaled(upright.size, SIDE / max(upright.size))
    return to_jpeg(upright.resize(size, Image.Resampling.LANCZOS), quality=92)


def shrink(data: bytes) -> bytes:
    """The JPEG as client/predictor.py sends it by default: not rotated, with EXIF's orientation."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft(None, shrunk_size(picture.size))
        picture.load()
        exif = orientation_only(picture)
        image = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return to_jpeg(image.resize(shrunk_size(image.size)), quality=90, exif=exif)


def orientation_only(picture: Image.Image) -> Image.Exif:
    """EXIF with the picture's orientation, or empty if it is upright or its EXIF is damaged."""
    exif = Image.Exif()
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's EXIF reader raises many types
        return exif
    if value in range(2, 9):
        exif[ORIENTATION] = value
    return exif


def shrunk_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) that the client scales a picture to.

    A long side counts as at most twice the short one, so that a panorama keeps enough pixels across.
    """
    return scaled(size, min(1, SHRINK / min(max(size), 2 * min(size))))


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) in pixels, times `scale`."""
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height


def to_jpeg(picture: Image.Image, quality: int, exif: Image.Exif | None = None) -> bytes:
    """The picture as a JPEG's bytes."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, exif=exif or b"")
    return file.getvalue()
