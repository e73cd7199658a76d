"""The generated pictures are labelled, reproducible, and have the defects of real ones."""

from collections import Counter

import pytest
from PIL import Image, ImageOps

import synthetic_pets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_pets.draw(tmp_path_factory.mktemp("sample"), count=120, seed=3)


def test_pictures_are_named_as_in_pets_and_classes_are_balanced(folder):
    kinds = Counter(path.name.partition("_")[0] for path in folder.iterdir())
    assert kinds == {"Cat": 31, "Dog": 30, "Owl": 30, "Rabbit": 30}


def test_the_same_seed_draws_the_same_bytes(folder, tmp_path):
    again = synthetic_pets.draw(tmp_path / "again", count=120, seed=3)
    other = synthetic_pets.draw(tmp_path / "other", count=4, seed=4)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert (other / "Cat_0.jpg").read_bytes() != (folder / "Cat_0.jpg").read_bytes()


def test_every_mode_orientation_and_a_range_of_sizes_occurs(folder):
    modes, orientations, sides = set(), set(), set()
    for path in folder.iterdir():
        with Image.open(path) as im:
            modes.add((im.format, im.mode))
            orientations.add(im.getexif().get(0x0112, 1))
            sides |= set(im.size)
    assert modes >= {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("GIF", "P")}
    assert orientations == set(range(1, 9))
    assert 120 <= min(sides) < 160 < 360 < max(sides) <= 400


def test_two_files_have_wrong_suffixes_and_one_is_truncated(folder):
    wrong = {path.name for path in folder.glob("*.jpg") if path.read_bytes()[:2] != b"\xff\xd8"}
    assert wrong == {"Dog_1.jpg", "Owl_2.jpg"}
    with Image.open(folder / "Cat_120.jpg") as im, pytest.raises(OSError, match="truncated"):
        im.load()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_viewer_that_applies_exif_shows_every_picture_upright(orientation, tmp_path):
    drawn = Image.effect_noise((40, 30), 100).convert("RGB").resize((160, 120))
    path = tmp_path / "picture.jpg"
    path.write_bytes(synthetic_pets.encode(drawn, "JPEG", "RGB", orientation))
    with Image.open(path) as im:
        seen = ImageOps.exif_transpose(im)
    assert seen.size == drawn.size
    difference = Image.blend(seen.convert("L"), ImageOps.invert(drawn.convert("L")), 0.5)
    assert all(100 < value < 156 for value in difference.getextrema())


def test_the_command_line_writes_a_folder(tmp_path, capsys):
    assert synthetic_pets.main(["--out", str(tmp_path / "new" / "pictures"), "--count", "3"]) == 0
    assert len(list((tmp_path / "new" / "pictures").iterdir())) == 4
    assert "3 pictures" in capsys.readouterr().out
