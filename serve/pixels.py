"""From a picture's bytes to the pixels that the model was validated on, with only Pillow and numpy.

The steps are fastai's item transforms at validation, as package/export.py wrote them into model.json. The
result is equal to the pixel (fastai 2.8, vision/augment.py: `Resize`, `CropPad`, `_do_crop_pad`).
"""

import io
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50 * 10**6
MAX_SIDE = 65_535  # pixels, JPEG's own limit. Some decoders allocate whole rows before they read any pixel
MAX_SCANS = 200  # of a progressive JPEG: each takes a few bytes, and a pass over all pixels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # not EPS: Pillow would run Ghostscript
PadMode = Literal["constant", "edge", "reflect"]
# fastai's names to numpy's
PAD_MODES: dict[str, PadMode] = {"zeros": "constant", "border": "edge", "reflection": "reflect"}
TIFF_TILE = 322, 323  # TIFF 6.0's TileWidth and TileLength
ORIENTATION = 0x0112  # EXIF's; 1 is upright
DRAFT_MARGIN = 3  # a JPEG decoded at a fraction keeps at least this many times the target size

# Pillow warns above its limit and refuses above twice that, before it allocates memory for a frame.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class NotAPictureError(ValueError):
    """Bytes that no decoder reads, or a truncated picture."""


class TooLargeError(ValueError):
    """More pixels than MAX_PIXELS, or a file that is far more expensive to decode than its size."""


def open_picture(data: bytes) -> Image.Image:
    """Read a picture's header; `to_pixels` decodes it.

    Raises NotAPictureError or TooLargeError.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        tile = [getattr(picture, "tag_v2", {}).get(tag, 0) for tag in TIFF_TILE]
        excessive = max(picture.size) > MAX_SIDE or tile[0] * tile[1] > MAX_PIXELS
    except Image.DecompressionBombError:
        raise TooLargeError(f"the picture has more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:  # Pillow's decoders raise many types, SyntaxError and struct.error among them
        text = "this is not a picture that can be read; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise NotAPictureError(text) from error
    if excessive or (picture.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS):
        raise TooLargeError("the picture needs too much memory or time to decode: re-save it")
    return picture


def to_pixels(picture: Image.Image, steps: list[dict], *, draft: bool = False) -> np.ndarray:
    """Decode, rotate upright by EXIF and apply `steps`: uint8 (height, width, 3). Closes the picture.

    `draft` lets libjpeg decode at 1/2, 1/4 or 1/8, as long as DRAFT_MARGIN times the target size is left:
    faster, with slightly different pixels. Raises NotAPictureError, or TooLargeError if padding would exceed
    MAX_PIXELS.
    """
    scalable = draft and steps[0]["op"] == "resize"  # a crop would cut out another part of a smaller picture
    try:
        rgb = decode(picture, DRAFT_MARGIN * max(steps[0]["size"]) if scalable else None)
        for step in steps:
            rgb = apply_step(rgb, step)
        return np.asarray(rgb)
    finally:
        picture.close()  # else up to 32 decoded photographs stay in memory until the response is sent


def decode(picture: Image.Image, min_side: int | None) -> Image.Image:
    """Decode to upright RGB; a JPEG at the smallest scale of at least `min_side`. Raises NotAPictureError."""
    try:
        if min_side:
            picture.draft(None, (min_side, min_side))  # no effect on other formats than JPEG
        picture.load()
        rgb = upright(picture)
        return rgb if rgb.mode == "RGB" else rgb.convert("RGB")  # convert always copies
    except Exception as error:
        raise NotAPictureError("the picture is broken or truncated") from error


def upright(picture: Image.Image) -> Image.Image:
    """Rotate by the EXIF orientation; unrotated if EXIF is damaged, like browsers."""
    try:
        rotated = picture.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(picture) if rotated else picture  # exif_transpose always copies
    except Exception:  # Pillow's EXIF reader raises many types, too
        return picture


def apply_step(picture: Image.Image, step: dict) -> Image.Image:
    """Apply one item transform: `{"op": "resize" | "crop_pad", "size": [height, width], ...}`."""
    w, h = picture.size
    height, width = step["size"]
    if step["op"] == "crop_pad":
        return crop_pad(picture, ((w - width) // 2, (h - height) // 2), (width, height), step["pad"])
    if step["method"] != "squish":
        fit = max if step["method"] == "pad" else min
        scale = fit(w / width, h / height)
        box = int(scale * width), int(scale * height)
        if box[0] * box[1] > MAX_PIXELS:
            raise TooLargeError("the picture is so long and narrow that padding would exceed the memory")
        # fastai rounds towards zero here, and down in crop_pad above.
        corner = int((w - box[0]) / 2), int((h - box[1]) / 2)
        picture = crop_pad(picture, corner, box, step["pad"])
    return picture.resize((width, height), Image.Resampling[step["resample"]])


def crop_pad(picture: Image.Image, corner: tuple[int, int], box: tuple[int, int], pad: str) -> Image.Image:
    """Cut out `box` (width, height) from `corner` (x, y), padded where it is outside of the picture."""
    (x, y), (bw, bh), (w, h) = corner, box, picture.size
    if (x, y, bw, bh) == (0, 0, w, h):
        return picture
    picture = picture.crop((max(x, 0), max(y, 0), min(x + bw, w), min(y + bh, h)))
    left, top, right, bottom = max(-x, 0), max(-y, 0), max(x + bw - w, 0), max(y + bh - h, 0)
    if not any((left, top, right, bottom)):
        return picture
    widths = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), widths, PAD_MODES[pad]))
