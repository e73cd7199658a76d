"""Photographs as phones send them, made out of the pictures at hand: to try what is done to large ones."""

import io
from types import ModuleType

from PIL import Image, ImageOps

SIDE = 4000  # pixels, of a photograph with 12 megapixels
SHRINK = 1280  # pixels, the default of client/predictor.py


def enlarge(inference: ModuleType, data: bytes) -> bytes:
    """The picture as a JPEG of 12 megapixels, or itself if it is one that large."""
    picture = inference.open_picture(data)
    if picture.format == "JPEG" and max(picture.size) >= SIDE:
        return data
    upright = Image.fromarray(inference.to_pixels(picture, []))
    size = scaled(upright.size, SIDE / max(upright.size))
    return to_jpeg(upright.resize(size, Image.Resampling.LANCZOS), quality=92)


def shrink(data: bytes) -> bytes:
    """The JPEG as client/predictor.py sends it."""
    picture = Image.open(io.BytesIO(data))
    picture.draft(None, sent(picture.size))
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    return to_jpeg(upright.resize(sent(upright.size)), quality=90)


def sent(size: tuple[int, int]) -> tuple[int, int]:
    """The size to which the client shrinks a picture: no side counts more than double the other."""
    return scaled(size, min(1, SHRINK / min(max(size), 2 * min(size))))


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` in pixels, times `scale`."""
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height


def to_jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG's bytes."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
