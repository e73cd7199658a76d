"""From a picture's bytes to the pixels that the model was validated on, with Pillow and numpy alone.

The steps are fastai's item transforms at validation, as package/export.py wrote them into model.json. They
are followed to the pixel (fastai 2.8, vision/augment.py: `Resize`, `CropPad`, `_do_crop_pad`).
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50 * 10**6
MAX_SIDE = 65_535  # pixels; what JPEG can say. Some decoders reserve memory by rows, however few there are
MAX_SCANS = 200  # of a progressive JPEG: each costs a pass over all pixels, and a few bytes
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # not EPS: Pillow starts Ghostscript for it
PAD_MODES = {"zeros": "constant", "border": "edge", "reflection": "reflect"}  # fastai's names to numpy's
TIFF_TILE = 322, 323  # TIFF 6.0's TileWidth and TileLength
ORIENTATION = 0x0112  # EXIF's; 1 is upright
MARGIN = 3  # times the size wanted, that a JPEG keeps when it is decoded at a fraction

# Pillow warns above its limit and refuses above twice of it, before it reserves memory for a single frame.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class NotAPictureError(ValueError):
    """Bytes that no reader understands, or that break off."""


class TooLargeError(ValueError):
    """More pixels than MAX_PIXELS, or more work than a picture of that size should be."""


def open_picture(data: bytes) -> Image.Image:
    """Read a picture's header; its pixels stay encoded until `to_pixels`.

    Raises NotAPictureError or TooLargeError.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        tile = [getattr(picture, "tag_v2", {}).get(tag, 0) for tag in TIFF_TILE]
        excessive = max(picture.size) > MAX_SIDE or tile[0] * tile[1] > MAX_PIXELS
    except Image.DecompressionBombError:
        raise TooLargeError(f"the picture has more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:  # Pillow's readers raise many kinds, SyntaxError and struct.error among them
        text = "this is not a picture that can be read; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise NotAPictureError(text) from error
    if excessive or (picture.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS):
        raise TooLargeError("the picture takes more memory or time than its size allows: save it anew")
    return picture


def to_pixels(picture: Image.Image, steps: list[dict], draft: bool = False) -> np.ndarray:
    """Decode, turn upright by EXIF and apply `steps`: uint8 (height, width, 3). Closes the picture.

    `draft` lets libjpeg decode at 1/2, 1/4 or 1/8, as long as MARGIN times the size wanted is left: quicker,
    and not quite the same pixels. Raises NotAPictureError, or TooLargeError for a picture that padding would
    make so.
    """
    try:
        rgb = decode(
            picture, MARGIN * max(steps[0]["size"]) if draft and steps[0]["op"] == "resize" else None
        )
        for step in steps:
            rgb = apply_step(rgb, step)
        return np.asarray(rgb)
    finally:
        picture.close()  # or 32 decoded photographs would stay in memory until their request is answered


def decode(picture: Image.Image, least: int | None) -> Image.Image:
    """Upright RGB; a JPEG at the smallest scale that leaves `least` pixels. Raises NotAPictureError."""
    try:
        if least:
            picture.draft(None, (least, least))  # does nothing to other formats
        picture.load()
        rgb = upright(picture)
        return rgb if rgb.mode == "RGB" else rgb.convert("RGB")  # which would copy it
    except Exception as error:
        raise NotAPictureError("the picture is broken or truncated") from error


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; as it lies if the EXIF block is damaged, as browsers do."""
    try:
        turned = picture.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture  # which would copy it
    except Exception:  # Pillow's EXIF reader raises many kinds, too
        return picture


def apply_step(picture: Image.Image, step: dict) -> Image.Image:
    """One item transform: `{"op": "resize" | "crop_pad", "size": [height, width], ...}`."""
    w, h = picture.size
    height, width = step["size"]
    if step["op"] == "crop_pad":
        return crop_pad(picture, ((w - width) // 2, (h - height) // 2), (width, height), step["pad"])
    if step["method"] != "squish":
        fit = max if step["method"] == "pad" else min
        scale = fit(w / width, h / height)
        box = int(scale * width), int(scale * height)
        if box[0] * box[1] > MAX_PIXELS:
            raise TooLargeError("the picture is so long and narrow that padding would fill the memory")
        corner = int((w - box[0]) / 2), int((h - box[1]) / 2)  # towards zero, unlike the // of crop_pad above
        picture = crop_pad(picture, corner, box, step["pad"])
    return picture.resize((width, height), Image.Resampling[step["resample"]])


def crop_pad(picture: Image.Image, corner: tuple[int, int], box: tuple[int, int], pad: str) -> Image.Image:
    """The part of the picture from `corner`, `box` in size, padded where it lies outside."""
    (x, y), (bw, bh), (w, h) = corner, box, picture.size
    if (x, y, bw, bh) == (0, 0, w, h):
        return picture
    picture = picture.crop((max(x, 0), max(y, 0), min(x + bw, w), min(y + bh, h)))
    left, top, right, bottom = max(-x, 0), max(-y, 0), max(x + bw - w, 0), max(y + bh - h, 0)
    if not any((left, top, right, bottom)):
        return picture
    widths = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), widths, PAD_MODES[pad]))
