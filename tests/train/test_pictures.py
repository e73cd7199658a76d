"""Pictures are opened upright, labelled by --labels, and checked before training."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pictures import Upright, UsageError, check, label, open_upright, scale_levels, upright


def encoded(im: Image.Image, form: str, orientation: int = 1, **options) -> bytes:
    """A file's bytes with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    im.save(file, form, exif=exif, **options)
    return file.getvalue()


@pytest.fixture
def gradient():
    return Image.merge("RGB", [Image.linear_gradient("L").resize((30, 20)).rotate(a) for a in (0, 90, 180)])


@pytest.fixture
def folder(tmp_path, gradient):
    """Two pictures of each of two classes, and other files as they occur in such folders."""
    for name in ("Cat_1.jpg", "Cat_2.png", "Dog_1.webp", "Dog_2.tiff"):
        (tmp_path / name[:3]).mkdir(exist_ok=True)
        gradient.save(tmp_path / name[:3] / name)
    (tmp_path / "notes.txt").write_text("not a picture, and without a picture's suffix")
    (tmp_path / "Cat" / "._Cat_1.jpg").write_bytes(b"metadata of macOS")
    return tmp_path


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation, gradient):
    data = encoded(gradient, form, orientation)
    with Image.open(io.BytesIO(data)) as im:
        expected = ImageOps.exif_transpose(im).convert("RGB")
    assert upright(data).size == ((20, 30) if orientation > 4 else (30, 20))
    assert upright(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode, gradient):
    im = Image.new("I;16", (30, 20), 255) if mode == "I;16" else gradient.convert(mode)
    assert upright(encoded(im, "TIFF" if mode == "CMYK" else "PNG")).mode == "RGB"


def test_the_first_frame_of_an_animation_and_of_an_mpo_is_used(gradient, tmp_path):
    black = Image.new("RGB", (30, 20))
    for name in ("animation.gif", "phone.mpo"):
        gradient.save(tmp_path / name, save_all=True, append_images=[black])
        assert max(upright(tmp_path / name).getextrema()[0]) > 200


def test_pictures_above_fifty_megapixels_are_rejected():
    # If another test has imported serve/pixels.py, which lowers Pillow's own limit, Pillow raises first.
    with pytest.raises((ValueError, Image.DecompressionBombError), match=r"8000 x 8000|64000000"):
        upright(encoded(Image.new("1", (8000, 8000)), "PNG"))


def test_formats_that_the_server_rejects_are_rejected(gradient):
    with pytest.raises(OSError, match="cannot identify"):
        upright(encoded(gradient, "PPM"))


@pytest.mark.parametrize("brand", [b"heic", b"avif"])
def test_heic_and_avif_are_refused_in_one_sentence(tmp_path, brand):
    data = b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00mif1" + brand + bytes(40)
    (tmp_path / "a.heic").write_bytes(data)
    for picture in (data, tmp_path / "a.heic"):
        with pytest.raises(
            ValueError, match=r"^HEIC and AVIF pictures cannot be read: convert them to JPEG$"
        ):
            upright(picture)


def deep_pictures():
    """The same values in each mode with more than 8 bits."""
    values = np.linspace(-500, 60000, 600).reshape(20, 30)
    whole = values.clip(0).astype(np.uint16)
    return {
        "I;16": (Image.fromarray(whole), "PNG", whole),
        "I": (Image.fromarray(values.astype(np.int32)), "TIFF", values.astype(np.int32)),
        "F": (Image.fromarray(values.astype(np.float32)), "TIFF", values.astype(np.float32)),
    }


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_with_more_than_eight_bits_are_scaled_by_the_levels(mode, tmp_path):
    picture, form, values = deep_pictures()[mode]
    assert picture.mode == mode
    picture.save(tmp_path / "a", form)
    grey = np.asarray(open_upright(tmp_path / "a", [-500.0, 60000.0]))
    assert np.abs(grey[..., 0] - (values + 500.0) / 60500 * 255).max() <= 0.5 + 1e-9
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (np.asarray(Upright([-500.0, 60000.0])(tmp_path / "a")) == grey).all()
    assert (np.asarray(scale_levels(picture, [-500.0, 60000.0])) == grey[..., 0]).all()
    eight = Image.fromarray(grey)
    eight.save(tmp_path / "b", "PNG")
    assert open_upright(tmp_path / "b", [0.0, 9.0]).tobytes() == eight.tobytes()  # others are not scaled


def test_the_levels_are_the_extremes_of_the_usable_pictures(folder, tmp_path):
    assert check(label(folder, "folder"), folder)[2] is None
    deep = deep_pictures()
    for name, (picture, form, _) in zip(
        ("Cat/a.png", "Dog/b.tiff", "Dog/c.tiff"), deep.values(), strict=True
    ):
        picture.save(folder / name, form)
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(folder / "Cat/nan.tiff")
    items, left_out, levels = check(label(folder, "folder"), folder)
    assert levels == [-500.0, 60000.0]
    assert len(items) == 7
    assert left_out == [{"file": "Cat/nan.tiff", "reason": "holds values that are not finite numbers"}]


def test_labels_come_from_an_expression_on_the_file_name(folder):
    labelled = label(folder, r"^(.+)_\d+\.\w+$")
    assert {path.name: name for path, name in labelled.items()} == {
        "Cat_1.jpg": "Cat",
        "Cat_2.png": "Cat",
        "Dog_1.webp": "Dog",
        "Dog_2.tiff": "Dog",
    }


def test_labels_come_from_folders_with_or_without_a_split(folder, tmp_path):
    assert sorted(label(folder, "folder").values()) == ["Cat", "Cat", "Dog", "Dog"]
    for part in ("train", "val"):
        (folder / part).mkdir()
    (folder / "Cat").rename(folder / "train" / "Cat")
    (folder / "Dog").rename(folder / "val" / "Dog")
    assert sorted(label(folder, "folder").values()) == ["Cat", "Cat", "Dog", "Dog"]


def test_labels_come_from_a_csv_file_one_or_several_each(folder):
    table = folder / "labels.csv"
    table.write_text("\ufeffname,label\nCat/Cat_1.jpg,cat\nDog/Dog_1.webp,dog\nDog/Dog_2.tiff,\n", "utf-8")
    assert list(label(folder, str(table)).values()) == ["cat", "dog", None]
    table.write_text("name,labels\nCat/Cat_1.jpg,small furry\nDog/Dog_1.webp,furry\nDog/Dog_2.tiff,\n")
    assert list(label(folder, str(table)).values()) == [["small", "furry"], ["furry"], []]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("(", "no regular expression"),
        (r"^.+_\d+", r"has no \(group\)"),
        (r"^(.+)_\d+\.bmp$", "gives no picture a label: for example .*Cat_1.jpg"),
        (r"^(C.+)_", "finds only the class Cat"),
        ("missing.csv", "missing.csv: cannot be read"),
        ("odd.csv", "the first line must be name,label"),
    ],
)
def test_labels_that_cannot_work_are_an_error(labels, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "odd.csv").write_text("file;class\nCat/Cat_1.jpg;cat\n")
    with pytest.raises(UsageError, match=message):
        label(folder, labels)


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no pictures in"):
        label(tmp_path, "folder")


def test_unusable_pictures_are_listed_with_the_reason(folder):
    whole = (folder / "Cat" / "Cat_1.jpg").read_bytes()
    (folder / "Cat" / "Cat_3.jpg").write_bytes(whole[:-60])
    (folder / "Cat" / "Cat_4.jpg").write_bytes(b"<html>404</html>")
    (folder / "Cat" / "holiday.jpg").write_bytes(whole)
    (folder / "Cat" / "Cat_5.jpg").symlink_to(folder / "gone.jpg")
    items, left_out, _ = check(label(folder, r"^(.+)_\d+\.\w+$"), folder)
    assert [path.name for path, _ in items] == ["Cat_1.jpg", "Cat_2.png", "Dog_1.webp", "Dog_2.tiff"]
    reasons = {picture["file"]: picture["reason"] for picture in left_out}
    assert list(reasons) == ["Cat/Cat_3.jpg", "Cat/Cat_4.jpg", "Cat/Cat_5.jpg", "Cat/holiday.jpg"]
    assert "truncated" in reasons["Cat/Cat_3.jpg"]
    assert reasons["Cat/Cat_4.jpg"].startswith("not a picture (JPEG, PNG")
    assert reasons["Cat/Cat_5.jpg"] == "No such file or directory"
    assert reasons["Cat/holiday.jpg"] == "no label"


def test_too_few_classes_after_the_check_is_an_error(folder):
    for path in (folder / "Dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="only 2 of 4 pictures can be used"):
        check(label(folder, "folder"), folder)


def test_real_photographs_with_wrong_suffixes_are_usable(pets):
    folder = pets[0].parent
    items, left_out, _ = check(label(folder, r"^(.+)_\d+\.jpg$"), folder)
    assert len(items) == 120
    assert not left_out
