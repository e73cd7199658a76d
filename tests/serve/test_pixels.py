"""serve/pixels.py gives, byte for byte, the pixels with which fastai validates; and what it refuses."""

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from pictures import upright
from pixels import (
    MAX_PIXELS,
    NotAPictureError,
    TooLargeError,
    open_picture,
    scale_levels,
    to_input,
    to_pixels,
)
from synthetic_pets import draw


class Transform(NamedTuple):
    """A transform of fastai by name: fastai is imported only when a test uses it."""

    name: str
    args: tuple
    options: dict

    def build(self) -> Any:
        """The transform itself."""
        from fastai.vision import augment

        return getattr(augment, self.name)(*self.args, **self.options)


def tfm(name: str, *args: Any, **options: Any) -> Transform:
    return Transform(name, args, options)


def pipeline_of(*tfms: Transform) -> Any:
    """fastai's validation pipeline of these transforms."""
    from fastai.vision.all import Pipeline

    return Pipeline([transform.build() for transform in tfms], split_idx=1)


def steps_of(*tfms: Transform) -> list[dict]:
    """model.json's steps for these transforms."""
    from pipeline import item_steps

    return item_steps(pipeline_of(*tfms))


def rgb(steps: list[dict]) -> dict:
    """model.json's `input` with these steps."""
    return {"mode": "RGB", "steps": steps}


BOX, NEAREST = Image.Resampling.BOX, Image.Resampling.NEAREST
SIDES = st.integers(1, 90)
SIZES = SIDES | st.tuples(SIDES, SIDES)
RESAMPLES = st.sampled_from(Image.Resampling).map(lambda resample: (resample, NEAREST))
PADS = st.sampled_from(["zeros", "border", "reflection"])
METHODS = st.sampled_from(["squish", "crop", "pad"])
RESIZES = st.builds(tfm, st.just("Resize"), SIZES, METHODS, PADS, RESAMPLES)
CROPS = st.builds(tfm, st.just("CropPad"), SIZES, PADS) | st.builds(tfm, st.just("RandomCrop"), SIZES)
RANDOM_CROPS = st.builds(
    tfm, st.just("RandomResizedCrop"), SIZES, resamples=RESAMPLES, val_xtra=st.floats(0, 0.6)
)


def noise(width: int, height: int) -> Image.Image:
    """A picture of which no two parts are alike."""
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def encode(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def pixels(data: bytes) -> list:
    """The pixels of a file, upright, as lists."""
    return to_pixels(open_picture(data), rgb([])).tolist()


# --- fastai's item transforms


def assert_as_fastai(picture: Image.Image, tfms: list[Transform]) -> None:
    """Every row, column and channel is equal."""
    from fastai.vision.core import PILImage

    expected = np.asarray(pipeline_of(*tfms)(PILImage(picture.copy())))
    actual = to_pixels(picture, rgb(steps_of(*tfms)))
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 120), st.integers(1, 120), st.lists(RESIZES | CROPS | RANDOM_CROPS, min_size=1, max_size=3)
)
@example(1, 1, [tfm("Resize", 64)])
@example(1, 1, [tfm("Resize", (9, 5), "pad", "zeros")])
@example(1, 1, [tfm("RandomResizedCrop", 64)])
@example(500, 333, [tfm("Resize", 460), tfm("RandomCrop", 224)])
@example(500, 333, [tfm("Resize", 460), tfm("RandomCrop", 224), tfm("Resize", 64)])
@example(500, 333, [tfm("CropPad", 400), tfm("Resize", 64)])
@example(500, 333, [tfm("CropPad", 400, "border"), tfm("Resize", 64, "squish")])
@example(333, 500, [tfm("RandomResizedCrop", (96, 64), min_scale=0.35, val_xtra=0.3)])
@example(40, 30, [tfm("RandomResizedCrop", 224)])
@example(1, 120, [tfm("Resize", 49)])
@example(120, 1, [tfm("Resize", (49, 98), "pad")])
def test_each_chain_of_item_transforms_gives_fastais_pixels(width, height, tfms):
    assert_as_fastai(noise(width, height), tfms)


@pytest.mark.parametrize("pad", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(1, 900), (900, 1), (3, 1000), (1000, 3), (61, 64), (64, 61)], ids=str)
def test_long_and_narrow_pictures_give_fastais_pixels(size, pad):
    for transform in (
        tfm("Resize", 48, "crop"),
        tfm("Resize", (48, 36), "pad", pad),
        tfm("CropPad", (40, 80), pad),
        tfm("RandomResizedCrop", 48),
    ):
        assert_as_fastai(noise(*size), [transform])


def test_training_augmentation_becomes_no_step():
    from fastai.vision.all import Pipeline

    from pipeline import item_steps

    flip, resize = tfm("Resize", 32).build(), tfm("Resize", (48, 64), "squish", resamples=(BOX, NEAREST))
    flip.split_idx = 0
    assert item_steps(Pipeline([flip, resize.build()])) == [
        {"op": "resize", "method": "squish", "size": [48, 64], "pad": "reflection", "resample": "BOX"}
    ]


def test_a_picture_that_padding_makes_too_large_is_refused():
    how = rgb(steps_of(tfm("Resize", 64, "pad")))
    with pytest.raises(TooLargeError, match="long and narrow"):
        to_pixels(open_picture(encode(Image.new("1", (60_000, 1)))), how)


# --- how files are opened


STORED = ["abc", "def"]  # the rows in the file; below, how a viewer shows them by EXIF orientation
UPRIGHT = {
    1: ["abc", "def"],
    2: ["cba", "fed"],
    3: ["fed", "cba"],
    4: ["def", "abc"],
    5: ["ad", "be", "cf"],
    6: ["da", "eb", "fc"],
    7: ["fc", "eb", "da"],
    8: ["cf", "be", "ad"],
}


def rotated(orientation: int) -> Image.Exif:
    """EXIF with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


HEIF_REFUSED = "HEIC and AVIF pictures cannot be read: convert them to JPEG"
LOSSLESS = {"WEBP": {"lossless": True}}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_rotates_the_picture_upright(orientation, form):
    letters = Image.fromarray(np.array([[ord(c) for c in row] for row in STORED], np.uint8)).convert("RGB")
    data = encode(letters, form, exif=rotated(orientation), **LOSSLESS.get(form, {}))
    assert ["".join(chr(pixel[0]) for pixel in row) for row in pixels(data)] == UPRIGHT[orientation]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_size_is_that_of_the_upright_picture(orientation, form):
    data = encode(noise(600, 400), form, exif=rotated(orientation))
    for draft in (False, True):
        _, place = to_input(open_picture(data), rgb(steps_of(tfm("Resize", 32, "squish"))), draft=draft)
        assert place.size == ((400, 600) if orientation > 4 else (600, 400))
        assert place.box == pytest.approx((0, 0, *place.size))


def test_the_exif_of_a_png_may_come_after_the_pixels():
    data = encode(noise(30, 20), exif=rotated(6))
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert "exif" not in open_picture(late).info
    (expected, place), (actual, same) = (to_input(open_picture(file), rgb([])) for file in (data, late))
    np.testing.assert_array_equal(actual, expected)
    assert place == same == ((20, 30), (0, 0, 20, 30))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_can_be_ignored(form):
    picture = noise(30, 20)
    exif = {} if form == "JPEG" else LOSSLESS.get(form, {})
    how = rgb([]) | {"exif": "ignore"}
    plain, place = to_input(open_picture(encode(picture, form, **exif)), how)
    ignored, same = to_input(open_picture(encode(picture, form, exif=rotated(6), **exif)), how)
    np.testing.assert_array_equal(ignored, plain)
    assert place == same == ((30, 20), (0, 0, 30, 20))


def test_the_place_of_the_input_is_the_same_at_a_fraction_of_a_jpeg():
    for chain in ([tfm("Resize", 64)], [tfm("Resize", (40, 64), "pad")], [tfm("RandomResizedCrop", 32)]):
        how, data = rgb(steps_of(*chain)), photo(1001, 803, exif=rotated(6))
        (_, full), (_, draft) = (to_input(open_picture(data), how, draft=draft) for draft in (False, True))
        assert draft.size == full.size == (803, 1001)
        assert draft.box == pytest.approx(full.box, abs=8)  # one pixel of the fraction


# --- grey pictures, and those of more than 8 bits


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 120), st.integers(1, 120), st.lists(RESIZES | CROPS, min_size=1, max_size=2))
def test_a_grey_models_input_has_fastais_pixels(width, height, tfms):
    from fastai.vision.core import PILImageBW

    data = encode(noise(width, height))
    expected = np.asarray(pipeline_of(*tfms)(PILImageBW.create(io.BytesIO(data))))
    actual = to_pixels(open_picture(data), {"mode": "L", "steps": steps_of(*tfms)})
    np.testing.assert_array_equal(actual, expected[..., None])


DEEP = np.array([[0, 1000, 1500, 2000, 65535]])  # scaled from 1000..2000
FILES = {"I;16": ("<u2", "PNG"), "I;16B": (">u2", "TIFF"), "I": ("<i4", "TIFF"), "F": ("<f4", "TIFF")}


@pytest.mark.parametrize("mode", FILES)
def test_levels_scale_a_picture_of_more_than_8_bits(mode):
    dtype, form = FILES[mode]
    data = encode(Image.frombytes(mode, (5, 1), DEEP.astype(dtype).tobytes()), form)
    assert open_picture(data).mode == mode
    how = {"mode": "L", "steps": [], "levels": [1000, 2000]}
    assert to_pixels(open_picture(data), how)[..., 0].tolist() == [[0, 0, 128, 255, 255]]
    assert to_pixels(open_picture(data), how | {"mode": "RGB"})[0, 2].tolist() == [128] * 3
    unscaled = to_pixels(open_picture(data), {"mode": "L", "steps": []})
    assert unscaled[..., 0].tolist() == [[0, 255, 255, 255, 255]]  # Pillow's own, as in fastai


def test_levels_leave_a_picture_of_8_bits_as_it_is():
    data = encode(noise(20, 10))
    np.testing.assert_array_equal(
        to_pixels(open_picture(data), rgb([]) | {"levels": [100, 200]}), pixels(data)
    )


def test_levels_of_floats_that_are_not_numbers():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, 3e38, -3e38]], np.float32)
    assert np.asarray(scale_levels(Image.fromarray(values), [0, 1])).tolist() == [[0, 255, 0, 128, 255, 0]]
    assert np.asarray(scale_levels(Image.fromarray(values), [1, 0])).tolist() == [[0, 0, 255, 128, 0, 255]]


def test_levels_are_the_same_in_every_strip(monkeypatch):
    picture = Image.fromarray(np.arange(700, dtype=np.uint16).reshape(70, 10))
    whole = np.asarray(scale_levels(picture, [0, 700]))
    monkeypatch.setattr("pixels.LEVELS_STRIP", 30)
    np.testing.assert_array_equal(scale_levels(picture, [0, 700]), whole)


def palette(transparency: object) -> bytes:
    """Two pixels with a palette."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    return encode(picture, transparency=transparency)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("1", (1, 1), 1)), [255, 255, 255]),
        (encode(Image.new("L", (1, 1), 100)), [100, 100, 100]),
        (encode(Image.new("LA", (1, 1), (100, 0))), [100, 100, 100]),
        (encode(Image.new("RGBA", (1, 1), (10, 20, 30, 0))), [10, 20, 30]),
        (encode(Image.new("I;16", (1, 1), 200)), [200, 200, 200]),
        (encode(Image.new("I;16", (1, 1), 60_000)), [255, 255, 255]),
        (encode(Image.new("CMYK", (1, 1), (0, 255, 0, 0)), "TIFF"), [255, 0, 255]),
        (encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), [255, 255, 255]),
        (palette(transparency=0), [10, 20, 30]),
        (palette(transparency=b"\x00\x80"), [10, 20, 30]),
    ],
    ids=["1", "L", "LA", "RGBA", "I;16", "I;16 bright", "CMYK", "CMYK JPEG", "P, one clear", "P, many clear"],
)
def test_every_mode_becomes_rgb_and_loses_its_transparency(data, expected):
    assert pixels(data)[0][0] == expected


def test_an_animated_gif_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#102030", "#c0d0e0", "#ffffff")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert pixels(data)[0][0] == [0x10, 0x20, 0x30]


def test_an_mpo_file_is_its_first_picture():
    data = encode(
        Image.new("RGB", (8, 8), "white"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    assert open_picture(data).format == "MPO"
    assert pixels(data)[0][0] == [255, 255, 255]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_serving_opens_files_like_training(tmp_path):
    files = [path.read_bytes() for path in sorted(draw(tmp_path, 40).iterdir())]
    readable = 0
    for data in files:
        try:
            expected = np.asarray(upright(data))
        except OSError:  # the truncated one
            with pytest.raises(NotAPictureError):
                pixels(data)
            continue
        np.testing.assert_array_equal(to_pixels(open_picture(data), rgb([])), expected)
        readable += 1
    assert readable == 40


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_photographs_give_fastais_pixels(pets):
    for path in pets[::8]:
        resize = tfm("Resize", 224)
        actual = to_pixels(open_picture(path.read_bytes()), rgb(steps_of(resize)))
        np.testing.assert_array_equal(actual, np.asarray(pipeline_of(resize)(upright(path))))


# --- a JPEG at a fraction of its size


def photo(width: int, height: int, **options: object) -> bytes:
    """A JPEG that looks the same at any size."""
    return encode(Image.radial_gradient("L").convert("RGB").resize((width, height)), "JPEG", **options)


@pytest.mark.parametrize(("side", "scale"), [(33, 8), (66, 4), (133, 2), (134, 1)])
def test_the_fraction_leaves_three_times_the_target_size(side, scale, monkeypatch):
    sizes = []
    monkeypatch.setattr("pixels.apply_step", lambda picture, step: sizes.append(picture.size) or picture)
    to_pixels(open_picture(photo(1000, 800)), rgb(steps_of(tfm("Resize", side))), draft=True)
    assert sizes == [(1000 // scale, 800 // scale)]


def test_a_fraction_of_a_large_jpeg_looks_the_same_in_any_orientation():
    for data in (photo(1000, 800), photo(1000, 800, exif=rotated(6))):
        full, draft = (
            to_pixels(open_picture(data), rgb(steps_of(tfm("Resize", 64))), draft=draft)
            for draft in (False, True)
        )
        assert 0 < abs(full.astype(int) - draft).max() < 8


@pytest.mark.parametrize("name", ["CropPad", "RandomCrop"])
def test_a_picture_that_is_cropped_first_is_not_scaled(name):
    data, how = photo(1000, 800), rgb(steps_of(tfm(name, 64)))
    np.testing.assert_array_equal(
        to_pixels(open_picture(data), how, draft=True), to_pixels(open_picture(data), how)
    )


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_not_scaled(form):
    data, how = encode(noise(400, 300), form), rgb(steps_of(tfm("Resize", 16)))
    np.testing.assert_array_equal(
        to_pixels(open_picture(data), how, draft=True), to_pixels(open_picture(data), how)
    )


# --- what it refuses


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(form):
    data = encode(noise(64, 64), form)
    with pytest.raises(
        NotAPictureError, match=r"^(the picture is broken or truncated|this is not a picture)"
    ):
        pixels(data[: len(data) // 2])


@settings(deadline=None)
@given(
    st.binary(max_size=64),
    st.sampled_from(
        [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\0\0\0\x1cftypavif"]
    ),
)
def test_bytes_that_are_not_a_picture_are_refused(data, magic):
    with pytest.raises(NotAPictureError):
        pixels(magic + data)


@pytest.mark.parametrize("form", ["EPS", "PDF", "PPM", "TGA", "ICO"])
def test_formats_that_are_not_for_photographs_are_refused(form):
    with pytest.raises(NotAPictureError, match="send JPEG, PNG, WebP, GIF, BMP or TIFF"):
        open_picture(encode(noise(16, 16), form))


@pytest.mark.parametrize(
    "brands", [b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1heic", b"msf1hevc", b"mif1avif"]
)
def test_heic_is_refused_with_advice(brands):
    box = b"ftyp" + brands[:4] + bytes(4) + b"mif1" + brands[4:]
    data = struct.pack(">I", 4 + len(box)) + box + bytes(200)
    with pytest.raises(NotAPictureError, match=f"^{HEIF_REFUSED}$"):
        open_picture(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_refused_with_advice_though_pillow_reads_it():
    with pytest.raises(NotAPictureError, match=f"^{HEIF_REFUSED}$"):
        open_picture(encode(noise(16, 16), "AVIF"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, crc = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + length + chunk + crc + struct.pack(">I", 0) + b"IDAT"


def test_more_than_fifty_megapixels_are_refused_by_the_header_alone():
    assert open_picture(png_header(10_000, 5_000)).size == (10_000, 5_000)
    with pytest.raises(TooLargeError, match="more than 50 megapixels"):
        open_picture(png_header(10_000, 5_001))
    assert MAX_PIXELS == 50_000_000


def gif_bomb() -> bytes:
    """43 bytes: a frame of 65535 x 65535 with a disposal method, for which Pillow would allocate 4 GB."""
    side = b"\xff\xff"
    return (
        b"GIF89a" + side * 2 + b"\x80\0\0" + b"\0" * 6 + b"!\xf9\x04\x08\0\0\0\0"
        + b"," + b"\0" * 4 + side * 2 + b"\0" + b"\x02\x02D\x01\0;"
    )  # fmt: skip


def bmp_bomb() -> bytes:
    """Two rows of 25 million run-length pixels: the decoder allocates rows of any length."""
    header = struct.pack("<IiiHHIIiiII", 40, 25_000_000, 2, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + header + bytes(1024) + b"\0\x02\0\xff"


def tiff_bomb() -> bytes:
    """8 x 8 grey pixels in tiles of 20000 x 20000, according to the header."""
    size, tile = [(256, 8), (257, 8)], [(322, 20_000), (323, 20_000)]
    grey = [(258, 8), (259, 1), (262, 1), (277, 1)]
    tags = sorted([*size, *grey, *tile, (324, 200), (325, 64)])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(200)


def jpeg_bomb() -> bytes:
    """A progressive JPEG that repeats its last scan 300 times."""
    out = io.BytesIO()
    Image.new("L", (64, 64)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 300 + data[-2:]


@pytest.mark.parametrize("bomb", [gif_bomb, bmp_bomb, tiff_bomb, jpeg_bomb])
def test_a_small_file_that_needs_gigabytes_or_hours_is_refused(bomb):
    with pytest.raises(TooLargeError):
        open_picture(bomb())


def test_a_picture_with_damaged_exif_is_not_rotated():
    out = io.BytesIO()
    picture = Image.effect_noise((30, 20), 60).convert("RGB")
    picture.save(out, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    with pytest.raises(Exception):  # noqa: B017  whatever Pillow's reader raises today
        ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue())))
    steps = [{"op": "resize", "method": "squish", "size": [20, 30], "pad": "zeros", "resample": "NEAREST"}]
    actual, place = to_input(open_picture(out.getvalue()), rgb(steps))
    assert (actual == np.asarray(picture)).all()
    assert place.size == (30, 20)
    assert (np.asarray(upright(out.getvalue())) == np.asarray(picture)).all()
