"""client/cli.py on models that predict values or points or segment: the table, the colours, --expect."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from test_cli import on_terminal, run

import cli
import predictor
import table
from scripted_server import ANSWER, reply, scripted

SIZE = 60, 40
VALUES = {"values": [1.25]}
POINTS = {"points": [[0, 0], [59.5, 39.75]]}


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mask(changed=0):
    """Classes 0 and 1, left and right; the lowest quarter is not seen; `changed` pixels are class 1 too."""
    image = Image.new("L", SIZE, 0)
    ImageDraw.Draw(image).rectangle((40, 0, 59, 39), fill=1)
    ImageDraw.Draw(image).rectangle((0, 30, 59, 39), fill=255)
    for number in range(changed):
        image.putpixel((number % 40, number // 40), 1)
    return image


def segmented(image):
    classes = [{"class": "background", "share": 0.666667}, {"class": "cat", "share": 0.333333}]
    encoded = base64.b64encode(png(image)).decode()
    return {"classes": classes, "mask": encoded, "width": image.width, "height": image.height}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", SIZE, "white").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def table_of(capsys, photo, answer, *arguments):
    """The heading and the row of one picture, and the exit code."""
    with scripted(reply(body=answer)) as server:
        code, out, _ = run(capsys, photo, "--url", server.url, *arguments)
    heading, _, *rows = out.strip("\n").splitlines()[1:]
    return code, heading.split(), "\n".join(rows[:-2])


# The table


@pytest.mark.parametrize(
    ("answer", "heading", "row"),
    [
        (VALUES, "values", r"a\.png +1\.25 +\d+"),
        ({"values": [1 / 3, -2, 3e38]}, "values", r"a\.png +0\.333333, -2, 3e\+38 +\d+"),
        ({"values": list(range(9))}, "values", r"a\.png +0, 1, 2, 3, 4, 5, \.\.\. \(9 values\) +\d+"),
        (POINTS, "points", r"a\.png +2 points: \(0, 0\) \(59\.5, 39\.75\) +\d+"),
        ({"points": [[1, 2]]}, "points", r"a\.png +1 point: \(1, 2\) +\d+"),
        ({"points": [[n, n] for n in range(7)]}, "points", r"7 points: \(0, 0\) \(1, 1\) \(2, 2\) \.\.\. +"),
        (segmented(mask()), "class share others", r"a\.png +background ━+╸ +66\.7 % +cat 33 % +\d+"),
        (segmented(mask()) | {"classes": []}, "class share others", r"a\.png +none +0\.0 % +\d+"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_row_of_every_task_fits(photo, capsys, monkeypatch, answer, heading, row, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, found, text = table_of(capsys, photo, answer)
    if columns == "80":  # no column with the other classes
        heading, row = heading.removesuffix(" others"), row.replace("cat 33 % +", "")
    assert (code, found) == (0, ["file", *heading.split(), "ms"])
    assert re.search(row, text)
    assert max(map(len, text.splitlines())) <= int(columns)


def test_a_mask_that_cannot_be_read_is_an_error_of_its_picture(photo, capsys):
    broken = segmented(mask())
    broken["mask"] = base64.b64encode(png(mask())[:60]).decode()
    (photo.parent / "b.png").write_bytes(photo.read_bytes() + b"b")

    def answer(body):
        return reply(body=broken if body.endswith(b"b") else segmented(mask()))

    with scripted(answer=answer) as server:
        code, out, _ = run(capsys, photo.parent, "--url", server.url)
    assert code == 1
    assert re.search(r"b\.png +the answer's mask cannot be read: ", out)
    assert "2 pictures, 1 failed" in out


def test_json_has_the_whole_answer_and_an_answer_cannot_change_the_rest_of_a_row(photo, capsys):
    answer = segmented(mask()) | {
        "file": "other",
        "message": [],
        "latency_ms": "1",
        "training": 1,
    }
    with scripted(reply(body=answer)) as server:
        code, out, _ = run(capsys, photo, "--url", server.url, "--json")
    (row,) = json.loads(out)["pictures"]
    assert code == 0
    assert isinstance(row.pop("latency_ms"), float)
    assert row == {"file": str(photo), **segmented(mask())}


def test_control_characters_in_an_answer_are_escaped(photo, capsys):
    evil = "\x1b]0;x\x07\u202e"
    answers = [ANSWER | {"class": evil}, segmented(mask()) | {"classes": [{"class": evil, "share": 1}]}]
    steps = [*(reply(body=answer) for answer in answers), reply(400, {"error": "x", "message": evil})]
    with scripted(*steps, reply(404, evil)) as server:
        outputs = [run(capsys, photo, "--url", server.url)[1:] for _ in range(4)]
    for out, err in outputs:
        assert "\\x1b]0;x\\x07\\u202e" in out + err
        assert not re.search("[\x07\x1b\u202e]", out + err)


# In colours


def cells(painted):
    """The half blocks of a thumbnail: rows of (upper, lower), each red, green, blue."""
    block = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)")
    return [
        [
            ((r, g, b), (x, y, z))
            for *numbers, blocks in block.findall(line)
            for r, g, b, x, y, z in [map(int, numbers)]
            for _ in blocks
        ]
        for line in painted.splitlines()
        if "▀" in line
    ]


def paint(photo, answer, *arguments):
    with scripted(reply(body=answer)) as server:
        painted, code = on_terminal(photo, "--url", server.url, *arguments)
    assert code == 0
    return painted


def half(number):
    """A class's colour over white."""
    return tuple((255 + channel) // 2 for channel in table.colour(number))


def near(colour, other):
    return all(abs(a - b) <= 2 for a, b in zip(colour, other, strict=True))


def test_points_are_drawn_over_the_thumbnail(photo):
    rows = cells(paint(photo, {"points": [[0, 0], [60, 40], [30, 20], [-1, 5], [30, 41]]}))
    assert (len(rows), len(rows[0])) == (8, 24)  # 24 x 16 pixels
    coloured = {
        (x, 2 * y + lower): pair[lower]
        for y, row in enumerate(rows)
        for x, pair in enumerate(row)
        for lower in (0, 1)
        if pair[lower] != (255, 255, 255)
    }
    assert coloured == {(0, 0): table.colour(0), (23, 15): table.colour(1), (12, 8): table.colour(2)}


def test_a_mask_is_drawn_over_the_thumbnail_in_the_colours_of_the_bars(photo):
    painted = paint(photo, segmented(mask()))
    rows = cells(painted)
    assert (len(rows), len(rows[0])) == (8, 24)
    assert near(rows[0][0][0], half(0))
    assert near(rows[0][23][1], half(1))
    assert rows[7][0] == ((255, 255, 255),) * 2  # not seen
    for number in (0, 1):
        assert "\x1b[38;2;{};{};{}m━".format(*table.colour(number)) in painted
    for arguments, columns in ((["--no-thumbnails"], "120"), ([], "80")):
        with scripted(reply(body=segmented(mask()))) as server:
            plain, _ = on_terminal(photo, "--url", server.url, *arguments, COLUMNS=columns)
        assert "background" in plain
        assert "▀" not in plain


def test_classes_are_matched_with_the_masks_numbers_by_their_shares(photo):
    rare = segmented(mask().point([7, 3, *range(2, 256)]))
    lines = table.ranking(rare, large=True)
    assert lines == [
        ("background", 0.666667, "rgb({},{},{})".format(*table.colour(7))),
        ("cat", 0.333333, "rgb({},{},{})".format(*table.colour(3))),
    ]
    many = rare | {"classes": [{"class": str(n), "share": 0.01} for n in range(99)]}
    assert [name for name, _, _ in table.ranking(many, large=True)] == [str(n) for n in range(8)]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_mask_is_drawn_over_the_picture_as_the_model_saw_it(tmp_path, ignored):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", SIZE, "white")
    picture.save(tmp_path / "a.jpg", exif=exif)
    seen = mask() if ignored else mask().transpose(Image.Transpose.ROTATE_270)
    image = table.small_picture({"file": str(tmp_path / "a.jpg"), **segmented(seen)})
    assert image.size == ((24, 16) if ignored else (11, 16))
    assert near(image.getpixel((0, 0)), half(0) if ignored else (255, 255, 255))
    assert near(image.getpixel((image.width - 1, 0)), half(1) if ignored else half(0))


# Compared with training


def validation(folder, *entries):
    """A validation.json of as many pictures, and their masks."""
    for number, entry in enumerate(entries):
        entry["file"] = f"{number:03}.png"
        entry.setdefault("labels", None)
        Image.new("RGB", SIZE, (number, 0, 0)).save(folder / entry["file"])
    (folder / "validation.json").write_text(json.dumps(entries))
    return folder / "validation.json"


def with_masks(folder, count):
    (folder / "masks").mkdir()
    mask().save(folder / "masks/000.png")
    shares = {"background": 0.666667, "cat": 0.333333}
    return validation(folder, *({"predicted": shares, "mask": "masks/000.png"} for _ in range(count)))


def compared(capsys, file, *answers):
    """The exit code, the table's text, the verdict and each row's `training`, for these answers in turn."""
    found = []
    for arguments in ([], ["--json"]):
        with scripted(*(reply(body=answer) for answer in answers)) as server:
            words = ["--url", server.url, "--expect", file, "--concurrency", "1", *arguments]
            found.append(run(capsys, *words))
    (code, out, _), (again, text, _) = found
    result = json.loads(text)
    assert code == again == (0 if result["summary"]["verdict"]["passed"] else 1)
    verdict = result["summary"]["verdict"]
    assert out.splitlines()[-1] == verdict["sentence"]
    return code, out, verdict, [row["training"] for row in result["pictures"]]


@pytest.mark.parametrize(
    ("first", "code", "sentence"),
    [
        (1.039, 0, "passed: 2 of 2 answers agree with training; largest difference in a value 3.9e-02"),
        (1.041, 1, "failed: 1 of 2 answers agree with training; largest difference in a value 4.1e-02"),
    ],
)
def test_values_may_differ_by_one_percent_of_their_range(tmp_path, capsys, first, code, sentence):
    file = validation(tmp_path, {"predicted": [1, 10], "labels": [1.5, 9]}, {"predicted": [5, 10]})
    answers = {"values": [first, 10]}, {"values": [5, 10.0099]}
    found, out, verdict, training = compared(capsys, file, *answers)
    assert (found, verdict["sentence"]) == (code, sentence)
    assert training[0]["tolerance"] == pytest.approx([0.04, 0.01])
    assert (verdict["right"], training[0]["right"]) == (None, None)
    assert re.search(rf"000\.png .* {'✗' if code else '✓'} 1, 10 +1\.5, 9 +\d+", out)
    assert re.search(r"001\.png .* ✓ 5, 10 +\d+", out)


@pytest.mark.parametrize(
    ("y", "code", "sentence"),
    [
        (20.6, 0, "passed: 2 of 2 answers agree with training; largest difference 0.6 pixels"),
        (20.61, 1, "failed: 1 of 2 answers agree with training; largest difference 0.6 pixels"),
        (30, 1, "failed: 1 of 2 answers agree with training; largest difference 10.0 pixels"),
    ],
)
def test_points_may_differ_by_one_percent_of_the_longer_side(tmp_path, capsys, y, code, sentence):
    entry = {"predicted": [[10, 20], [30, 5]], "size": SIZE}
    file = validation(tmp_path, entry | {"labels": [[11, 21], [30, 5]]}, dict(entry))
    answers = {"points": [[10, y], [30, 5]]}, {"points": [[10, 20], [30, 5]]}
    found, out, verdict, training = compared(capsys, file, *answers)
    assert (found, verdict["sentence"]) == (code, sentence)
    assert [one["difference"] for one in training] == [round(y - 20, 3), 0]
    assert re.search(rf"000\.png .* {'✗' if code else '✓'} {y - 20:.1f} pixels", out)


@pytest.mark.parametrize(
    ("changed", "code", "sentence"),
    [
        (40, 0, "passed: 2 of 3 answers agree with training; largest difference 1.67 % of a "
         "picture's pixels"),
        (72, 0, "passed: 2 of 3 answers agree with training; largest difference 3.00 % of a "
         "picture's pixels"),
        (73, 1, "failed: 2 of 3 answers agree with training; largest difference 3.04 % of a "
         "picture's pixels"),
    ],
)  # fmt: skip
def test_of_all_masks_together_one_percent_of_the_pixels_may_differ(
    tmp_path, capsys, changed, code, sentence
):
    file = with_masks(tmp_path, 3)
    found, out, verdict, training = compared(
        capsys, file, segmented(mask(changed)), segmented(mask()), segmented(mask())
    )
    assert (found, verdict["sentence"]) == (code, sentence)
    assert [one["same"] for one in training] == [2400 - changed, 2400, 2400]
    assert re.search(rf"000\.png .* ✗ {100 * changed / 2400:.2f} % differ", out)
    assert re.search(r"001\.png .* ✓ 0\.00 % differ", out)


def test_a_mask_of_another_size_has_no_pixel_in_common(tmp_path, capsys):
    other = segmented(mask().resize((30, 20), 0))
    code, _, verdict, _ = compared(capsys, with_masks(tmp_path, 1), other)
    assert (code, verdict["sentence"]) == (
        1, "failed: 0 of 1 answers agree with training; largest difference 100.00 % of a picture's pixels",
    )  # fmt: skip


def test_without_labels_the_sentence_does_not_speak_of_them(tmp_path, capsys):
    said = {"predicted": ["cat"], "confidence": 0.9}
    code, out, verdict, training = compared(capsys, validation(tmp_path, dict(said), dict(said)), ANSWER)
    assert (code, verdict["sentence"]) == (
        0, "passed: 2 of 2 answers agree with training; largest difference in confidence 0.0e+00",
    )  # fmt: skip
    assert (verdict["right"], [one["right"] for one in training]) == (None, [None, None])
    assert re.search(r"000\.png +cat .* ✓ 90\.0 % +\d+", out)


def test_of_some_labels_only_those_are_counted(tmp_path, capsys):
    said = {"predicted": ["cat"], "confidence": 0.9}
    file = validation(tmp_path, dict(said), said | {"labels": ["cat"]}, said | {"labels": ["dog"]})
    _, _, verdict, _ = compared(capsys, file, ANSWER)
    assert verdict["sentence"].endswith("; 1 of 2 (50 %) match the label")


@pytest.mark.parametrize("kind", ["values", "points", "masks"])
def test_a_picture_without_an_answer_fails(tmp_path, capsys, kind):
    if kind == "masks":
        file, answer = with_masks(tmp_path, 2), segmented(mask())
    else:
        entry = {"predicted": [1.25]} if kind == "values" else {"predicted": POINTS["points"], "size": SIZE}
        file = validation(tmp_path, dict(entry), dict(entry))
        answer = VALUES if kind == "values" else POINTS
    refusal = reply(400, {"error": "not_a_picture", "message": "no picture"})
    with scripted(refusal, reply(body=answer)) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file, "--concurrency", "1")
    assert code == 1
    assert out.splitlines()[-1].startswith("failed: 1 of 2 answers agree with training; largest difference")


@pytest.mark.parametrize(
    ("entry", "answer", "sentence"),
    [
        ({"predicted": [1.5]}, ANSWER, "answers with classes, but training predicted values: name the"),
        ({"predicted": ["cat"], "confidence": 1}, VALUES, "answers with values, but training predicted cl"),
        ({"predicted": [[1, 2]], "size": SIZE}, segmented(mask()), "answers with a mask, but training pred"),
        ({"predicted": {"cat": 1}, "mask": "000.png"}, POINTS, "answers with points, but training pred"),
        ({"predicted": [1.5, 2]}, VALUES, "answers with 1 values, but training predicted 2: name the"),
        ({"predicted": [[1, 2]], "size": SIZE}, POINTS, "answers with 2 points, but training predicted 1: "),
        ({"predicted": {}, "mask": "none.png"}, segmented(mask()), "cannot read the mask "),
    ],
)  # fmt: skip
def test_answers_of_another_model_are_one_sentence(tmp_path, capsys, entry, answer, sentence):
    with scripted(reply(body=answer)) as server:
        code, out, err = run(capsys, "--url", server.url, "--expect", validation(tmp_path, dict(entry)))
    assert (code, out) == (2, "")
    assert sentence in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "entry",
    [
        {"predicted": ["cat"]},
        {"predicted": [1.5, [2]]},
        {"predicted": [[1, 2, 3]], "size": SIZE},
        {"predicted": [[1, 2]], "size": [60]},
        {"predicted": ["cat"], "mask": "000.png"},
        {"predicted": {"cat": "much"}, "mask": "000.png"},
        {"predicted": ["cat"], "confidence": None},
        {"predicted": [1.5], "labels": 7},
        {"predicted": [1.5], "labels": ["heavy"]},
    ],
)
def test_entries_that_training_does_not_write_are_one_sentence(tmp_path, capsys, entry):
    file = validation(tmp_path, dict(entry))
    code, out, err = run(capsys, "--url", "http://127.0.0.1:1", "--expect", file)
    assert (code, out, err) == (2, "", f"error: {file} is not a validation.json that training wrote\n")


def test_values_of_different_lengths_are_not_training_s(tmp_path, capsys):
    file = validation(tmp_path, {"predicted": [1.5]}, {"predicted": [1.5, 2]})
    assert run(capsys, "--url", "http://127.0.0.1:1", "--expect", file)[0] == 2


def test_pictures_that_are_refused_are_found_in_a_folder(tmp_path):
    for name in ("a.avif", "b.AVIF", "c.heic"):
        (tmp_path / name).touch()
    assert [Path(file).name for file in cli.find_pictures([str(tmp_path)])] == ["a.avif", "b.AVIF", "c.heic"]
