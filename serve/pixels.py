"""From a picture's bytes to the pixels that the model was validated on, with only Pillow and numpy.

The steps are fastai's item transforms at validation, as package/export.py wrote them into model.json. The
result is equal to the pixel (fastai 2.8, vision/augment.py: `Resize`, `RatioResize`, `CropPad`,
`_do_crop_pad`).
"""

import io
import warnings
from contextlib import closing
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50 * 10**6
MAX_SIDE = 65_535  # pixels, JPEG's own limit. Some decoders allocate whole rows before they read any pixel
MAX_SCANS = 200  # of a progressive JPEG: each takes a few bytes, and a pass over all pixels
# Not EPS: Pillow would run Ghostscript. Not HEIC: Pillow has no decoder. Not AVIF: its decoder takes 620 MB
# for 50 megapixels, and does not hold a file to the size in its header: one of 6 kB took 1.3 GB.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis"}  # brands, ISO/IEC 23008-12
# How files of FORMATS start. No JSON starts like that.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PadMode = Literal["constant", "edge", "reflect"]
# fastai's names to numpy's
PAD_MODES: dict[str, PadMode] = {"zeros": "constant", "border": "edge", "reflection": "reflect"}
TIFF_TILE = 322, 323  # TIFF 6.0's TileWidth and TileLength
ORIENTATION = 0x0112  # EXIF's; 1 is upright
SWAPPED = (5, 6, 7, 8)  # the values of ORIENTATION that exchange width and height
DRAFT_MARGIN = 3  # a JPEG decoded at a fraction keeps at least this many times the target size
LEVELS_STRIP = 2**20  # pixels that scale_levels computes at a time

# Pillow warns above its limit and refuses above twice that, before it allocates memory for a frame.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class NotAPictureError(ValueError):
    """Bytes that no decoder reads, or a truncated picture."""


class TooLargeError(ValueError):
    """More pixels than MAX_PIXELS, or a file that is far more expensive to decode than its size."""


class Place(NamedTuple):
    """Where in a picture the graph's input lies."""

    size: tuple[int, int]  # the picture's width and height, upright
    box: tuple[float, float, float, float]  # left, top, right, bottom in its pixels; padding is outside of it


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
        if is_heif(data):
            raise NotAPictureError("HEIC and AVIF pictures cannot be read: convert them to JPEG") from None
        text = "this is not a picture that can be read; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise NotAPictureError(text) from error
    if excessive or (picture.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS):
        raise TooLargeError("the picture needs too much memory or time to decode: re-save it")
    return picture


def starts_like_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a picture's format, HEIC and AVIF among them."""
    return data.startswith(SIGNATURES) or is_heif(data)


def is_heif(data: bytes) -> bool:
    """Whether these are the bytes of an HEIC file, as iPhones write them, or of an AVIF file."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
    return data[4:8] == b"ftyp" and not HEIF.isdisjoint(brands)


def to_pixels(picture: Image.Image, how: dict, *, draft: bool = False) -> np.ndarray:
    """The pixels of `to_input` alone."""
    return to_input(picture, how, draft=draft)[0]


def to_input(picture: Image.Image, how: dict, *, draft: bool = False) -> tuple[np.ndarray, Place]:
    """Decode as model.json's `input` says: uint8 (height, width, channels), and where it lies in the picture.

    Closes the picture. `draft` lets libjpeg decode at 1/2, 1/4 or 1/8, as long as DRAFT_MARGIN times the
    target size is left: faster, with slightly different pixels. Raises NotAPictureError, or TooLargeError if
    padding would exceed MAX_PIXELS.
    """
    steps = how["steps"]
    scalable = draft and steps[0]["op"] == "resize"  # a crop would cut out another part of a smaller picture
    min_side = DRAFT_MARGIN * max(steps[0]["size"]) if scalable else None
    size = picture.size
    with closing(picture):
        decoded, swapped = decode(picture, how, min_side)
        size = size[::-1] if swapped else size
        left, top, right, bottom = placement(decoded.size, steps)
        across, down = size[0] / decoded.size[0], size[1] / decoded.size[1]  # 1 without `draft`
        for step in steps:
            decoded = apply_step(decoded, step)
        pixels = np.asarray(decoded)
    place = Place(size, (left * across, top * down, right * across, bottom * down))
    return pixels[..., None] if pixels.ndim == 2 else pixels, place


def decode(picture: Image.Image, how: dict, min_side: int | None) -> tuple[Image.Image, bool]:
    """Decode upright in the mode of `how`; a JPEG at the smallest scale of at least `min_side`.

    Also returns whether width and height were exchanged. Raises NotAPictureError.
    """
    try:
        if min_side:
            picture.draft(None, (min_side, min_side))  # no effect on other formats than JPEG
        picture.load()
        turned, swapped = (picture, False) if how.get("exif") == "ignore" else upright(picture)
        if "levels" in how and (turned.mode in ("I", "F") or turned.mode.startswith("I;16")):
            turned = scale_levels(turned, how["levels"])
        # convert always copies
        return (turned if turned.mode == how["mode"] else turned.convert(how["mode"])), swapped
    except Exception as error:
        raise NotAPictureError("the picture is broken or truncated") from error


def upright(picture: Image.Image) -> tuple[Image.Image, bool]:
    """Rotate by the EXIF orientation; unrotated if EXIF is damaged, like browsers.

    Also returns whether width and height were exchanged. To be called after `load`: a PNG may have its EXIF
    after the pixels, and Pillow itself rotates a TIFF.
    """
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
        if orientation == 1:
            return picture, False
        return ImageOps.exif_transpose(picture), orientation in SWAPPED  # exif_transpose always copies
    except Exception:  # Pillow's EXIF reader raises many types, too
        return picture, False


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


def apply_step(picture: Image.Image, step: dict) -> Image.Image:
    """Apply one item transform: `{"op": "resize" | "ratio_resize" | "crop_pad", ...}`."""
    step = with_size(step, picture.size)
    picture = crop_pad(picture, *cut(picture.size, step), step["pad"])
    if step["op"] == "crop_pad":
        return picture
    height, width = step["size"]
    return picture.resize((width, height), Image.Resampling[step["resample"]])


def with_size(step: dict, size: tuple[int, int]) -> dict:
    """A ratio_resize as the resize that it is for a picture of `size`; other steps as they are.

    Raises NotAPictureError if a side would have no pixel.
    """
    if step["op"] != "ratio_resize":
        return step
    (w, h), side = size, step["side"]
    height, width = (int(h * side / w), side) if w >= h else (side, int(w * side / h))
    if not (height and width):
        raise NotAPictureError("the picture is so long and narrow that nothing is left of it: crop it")
    resize = {"op": "resize", "method": "crop", "size": [height, width], "pad": "reflection"}
    return {**resize, "resample": step["resample"]}


def cut(size: tuple[int, int], step: dict) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a step cuts out: its corner (x, y), and its width and height. Raises TooLargeError."""
    w, h = size
    height, width = step["size"]
    if step["op"] == "crop_pad":
        return ((w - width) // 2, (h - height) // 2), (width, height)
    if step["method"] == "squish":
        return (0, 0), size
    fit = max if step["method"] == "pad" else min
    scale = fit(w / width, h / height)
    box = int(scale * width), int(scale * height)
    if box[0] * box[1] > MAX_PIXELS:
        raise TooLargeError("the picture is so long and narrow that padding would exceed the memory")
    # fastai rounds towards zero here, and down in crop_pad above.
    return (int((w - box[0]) / 2), int((h - box[1]) / 2)), box


def placement(size: tuple[int, int], steps: list[dict]) -> tuple[float, float, float, float]:
    """The part of a picture of `size` that `steps` keep: left, top, right, bottom in its pixels.

    Larger than the picture where they pad. Raises as `apply_step` does.
    """
    left, top, across, down = 0.0, 0.0, 1.0, 1.0  # across, down: the picture's pixels for one after the steps
    for step in steps:
        step = with_size(step, size)
        (x, y), box = cut(size, step)
        left, top = left + across * x, top + down * y
        height, width = step["size"]
        if step["op"] != "crop_pad":
            across, down = across * box[0] / width, down * box[1] / height
        size = width, height
    return left, top, left + across * size[0], top + down * size[1]


def crop_pad(picture: Image.Image, corner: tuple[int, int], box: tuple[int, int], pad: str) -> Image.Image:
    """Cut out `box` (width, height) from `corner` (x, y), padded where it is outside of the picture."""
    (x, y), (bw, bh), (w, h) = corner, box, picture.size
    if (x, y, bw, bh) == (0, 0, w, h):
        return picture
    picture = picture.crop((max(x, 0), max(y, 0), min(x + bw, w), min(y + bh, h)))
    left, top, right, bottom = max(-x, 0), max(-y, 0), max(x + bw - w, 0), max(y + bh - h, 0)
    if not any((left, top, right, bottom)):
        return picture
    pixels = np.asarray(picture)
    widths = ((top, bottom), (left, right), (0, 0))[: pixels.ndim]
    return Image.fromarray(np.pad(pixels, widths, PAD_MODES[pad]))
