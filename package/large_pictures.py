"""Photographs of 12 megapixels out of smaller pictures, to test how large ones are decoded and sent."""

import io
from types import ModuleType

from PIL import Image, ImageOps

SIDE = 4000  # pixels; the long side of a photograph of 12 megapixels
SHRINK = 1280  # pixels; the default of client/predictor.py


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
    """The JPEG as client/predictor.py sends it by default."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft(None, shrunk_size(picture.size))
        try:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        except Exception:  # unrotated if EXIF is damaged, like the client
            upright = picture.convert("RGB")
    return to_jpeg(upright.resize(shrunk_size(upright.size)), quality=90)


def shrunk_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) that the client scales a picture to.

    A long side counts as at most twice the short one, so that a panorama keeps enough pixels across.
    """
    return scaled(size, min(1, SHRINK / min(max(size), 2 * min(size))))


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) in pixels, times `scale`."""
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height


def to_jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG's bytes."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
