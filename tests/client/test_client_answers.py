"""client/predictor.py: the answers of every task, those that are none, and answers for a smaller picture."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from predictor import ImagePredictor, PredictionError, pack, read_mask
from scripted_server import ANSWER, reply, scripted

WIDTH, HEIGHT = 900, 601  # of the picture; neither side is a multiple of its size when it is scaled down
BOX = 500, 50, 800, 300  # of a bright rectangle in it: left, top, right, bottom


def png(image):
    """A PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def segmentation(mask, /, **changed):
    """The answer with this mask, a PIL image."""
    classes = [{"class": "cat", "share": 0.75}, {"class": "dog", "share": 0.25}]
    answer = {"classes": classes, "mask": png(mask), "width": mask.width, "height": mask.height}
    return answer | changed


MASK = Image.frombytes("L", (3, 2), bytes([0, 0, 1, 0, 255, 1]))
ANSWERS = {
    "single": ANSWER,
    "multi": {**ANSWER, "classes": ["cat", "dog"]},
    "none of several": {**ANSWER, "classes": []},
    "regression": {"values": [1.5]},
    "whole numbers": {"values": [3, -2]},
    "points": {"points": [[1.25, 2], [-3, 400.5]]},
    "segmentation": segmentation(MASK),
    "nothing seen": segmentation(Image.new("L", (3, 2), 255), classes=[]),
    "of an extended server": {"values": [1.5], "unit": "kg"},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_every_task_are_returned_unchanged(answer):
    with scripted(reply(body=answer)) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == answer


def test_a_mask_is_read_as_numbers_of_classes():
    mask = read_mask(ANSWERS["segmentation"])
    assert (mask.mode, mask.size, mask.tobytes()) == ("L", (3, 2), MASK.tobytes())


def text(**answer):
    return json.dumps(answer)


GREY16, COLOURS, LARGE = Image.new("I;16", (3, 2)), Image.new("RGB", (3, 2)), Image.new("L", (10_001, 5000))
HOSTILE = {
    "nothing": "",
    "brackets": "[" * 100_000,
    "a list": "[]",
    "a text": '"class"',
    "empty": "{}",
    "a class that is a number": text(**ANSWER | {"class": 7}),
    "a class that is null": text(**ANSWER | {"class": None}),
    "no confidence": text(**{"class": "cat", "predictions": []}),
    "a confidence that is a text": text(**ANSWER | {"confidence": "0.9"}),
    "a confidence that is true": text(**ANSWER | {"confidence": True}),
    "a confidence that is NaN": text(**ANSWER | {"confidence": float("nan")}),
    "no predictions": text(**{"class": "cat", "confidence": 0.9}),
    "predictions that are numbers": text(**ANSWER | {"predictions": [1]}),
    "predictions without a class": text(**ANSWER | {"predictions": [{"confidence": 1}]}),
    "predictions that are a table": text(**ANSWER | {"predictions": {"class": "cat", "confidence": 1}}),
    "classes that are a text": text(**ANSWER | {"classes": "cat"}),
    "classes that are numbers": text(**ANSWER | {"classes": [1]}),
    "no value": text(values=[]),
    "a value that is none": text(values=[None]),
    "values that are a number": text(values=1.5),
    "infinite": '{"values": [1e999]}',
    "not a number": '{"values": [NaN]}',
    "larger than any float": '{"values": [1' + "0" * 400 + "]}",
    "more digits than Python reads": '{"values": [1' + "0" * 5000 + "]}",
    "no points": text(points=[]),
    "a point of three numbers": text(points=[[1, 2, 3]]),
    "a point of one number": text(points=[[1, 2], [1]]),
    "a point that is a table": text(points=[{"x": 1, "y": 2}]),
    "a point of texts": text(points=[["1", "2"]]),
    "an infinite point": '{"points": [[1, Infinity]]}',
    "no mask": text(classes=[], width=3, height=2),
    "no classes": text(mask=png(MASK), width=3, height=2),
    "classes without shares": text(**segmentation(MASK, classes=[{"class": "cat"}])),
    "a share that is NaN": text(**segmentation(MASK, classes=[{"class": "cat", "share": float("nan")}])),
    "a mask of numbers": text(**segmentation(MASK, mask=[0, 1])),
    "a mask that is not base64": text(**segmentation(MASK, mask="iVBO Rw!")),
    "a mask outside of ASCII": text(**segmentation(MASK, mask="ä")),
    "a mask that is not a PNG": text(**segmentation(MASK, mask=base64.b64encode(b"GIF8").decode())),
    "a mask of 16 bits": text(**segmentation(GREY16)),
    "a mask with colours": text(**segmentation(COLOURS)),
    "another width": text(**segmentation(MASK, width=2)),
    "width and height that changed places": text(**segmentation(MASK, width=2, height=3)),
    "a width that is a text": text(**segmentation(MASK, width="3")),
    "a height that is true": text(**segmentation(Image.new("L", (3, 1)), height=True)),
    "no pixels": text(**segmentation(MASK, width=0)),
    "a negative size": text(**segmentation(MASK, width=-3, height=-2)),
    "over 50 megapixels": text(**segmentation(LARGE)),
    "a huge size": text(**segmentation(MASK, width=10**400)),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_not_a_prediction(body):
    with scripted(reply(body=body)) as server, pytest.raises(PredictionError) as caught:
        ImagePredictor(url=server.url).predict(b"x")
    assert (caught.value.code, caught.value.status) == ("unexpected", 200)
    assert str(caught.value) == f"not a prediction: {body[:200]}; is this the right endpoint?"


def test_a_mask_that_ends_early_is_an_error_where_it_is_read():
    mask = base64.b64encode(base64.b64decode(png(Image.effect_noise((30, 20), 90)))[:200]).decode()
    answer = segmentation(Image.new("L", (30, 20)), mask=mask)
    with scripted(reply(body=answer)) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == answer
    with pytest.raises(PredictionError, match="the answer's mask cannot be read: ") as caught:
        read_mask(answer)
    assert caught.value.code == "unexpected"


# Answers for a smaller picture


def picture(orientation=1, size=(WIDTH, HEIGHT)):
    """A dark picture with a bright BOX, as it looks upright, stored in a rotated JPEG."""
    image = Image.effect_noise(size, 20).point(lambda value: value // 4)
    ImageDraw.Draw(image).rectangle(BOX, fill=255)
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # what turns it back
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = back
    image.save(file, "JPEG", exif=exif)
    stored = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


def served(task, *, ignore_exif=False):
    """A server that finds the bright box in what it is sent: its corners, or its pixels."""

    def answer(body):
        if body.startswith(b"\x93NUMPY"):
            image = Image.fromarray(np.load(io.BytesIO(body)))
        else:
            image = Image.open(io.BytesIO(body))
        image = (image if ignore_exif else ImageOps.exif_transpose(image)).convert("L")
        bright = image.point([0] * 128 + [1] * 128)
        if task == "points":
            left, top, right, bottom = bright.getbbox()
            return reply(body={"points": [[left, top], [right, bottom]]})
        return reply(body=segmentation(bright))

    return scripted(answer=answer)


@pytest.mark.parametrize("ignore_exif", [False, True], ids=["upright", "EXIF ignored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_and_masks_are_in_pixels_of_the_picture_that_was_given(orientation, ignore_exif):
    given = picture(orientation)
    upright = Image.open(io.BytesIO(given))
    size = (upright if ignore_exif else ImageOps.exif_transpose(upright)).size
    scaled_pixel = WIDTH / 300
    with served("points", ignore_exif=ignore_exif) as server:
        whole, small = (ImagePredictor(url=server.url, shrink=n).predict(given)["points"] for n in (0, 300))
        assert len(server.requests[1].body) < len(server.requests[0].body) / 3
    if not ignore_exif:
        assert whole == [[BOX[0], BOX[1]], [BOX[2] + 1, BOX[3] + 1]]
    assert np.abs(np.subtract(whole, small)).max() <= scaled_pixel
    with served("segmentation", ignore_exif=ignore_exif) as server:
        whole, small = (ImagePredictor(url=server.url, shrink=n).predict(given) for n in (0, 300))
    assert (small["width"], small["height"]) == (whole["width"], whole["height"]) == size
    assert read_mask(small).size == size
    assert small["classes"] == whole["classes"]
    different = np.asarray(read_mask(whole)) != np.asarray(read_mask(small))
    edge = 2 * (BOX[2] - BOX[0] + BOX[3] - BOX[1])
    assert different.sum() <= edge * scaled_pixel / 2


@pytest.mark.parametrize("kind", ["image", "array", "path", "over the limit"])
def test_whatever_was_scaled_down_the_answer_is_for_the_given_picture(tmp_path, kind):
    image = Image.open(io.BytesIO(picture()))
    (tmp_path / "a.jpg").write_bytes(picture())
    given = {"image": image, "array": np.asarray(image.convert("RGB")), "path": tmp_path / "a.jpg"}
    options = {"limit": 20_000} if kind == "over the limit" else {"shrink": 300}
    for task in ("points", "segmentation"):
        with served(task) as server:
            answer = ImagePredictor(url=server.url, **options).predict(given.get(kind, picture()))
            sent = Image.open(io.BytesIO(server.requests[0].body)).size
        assert sent < (WIDTH, HEIGHT)
        if task == "points":
            corners = [[BOX[0], BOX[1]], [BOX[2], BOX[3]]]
            assert np.abs(np.subtract(answer["points"], corners)).max() <= WIDTH / sent[0] + 1
        else:
            assert read_mask(answer).size == (answer["width"], answer["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("answer", [ANSWER, {"values": [1.5]}, {**ANSWER, "points": "none"}])
def test_other_answers_for_a_smaller_picture_stay_as_they_are(answer):
    with scripted(reply(body=answer)) as server:
        assert ImagePredictor(url=server.url, shrink=300).predict(picture()) == answer


def test_a_mask_of_another_size_than_the_picture_that_was_sent_is_an_error():
    with scripted(reply(body=ANSWERS["segmentation"])) as server:
        with pytest.raises(PredictionError, match="a mask of 3 x 2 for a picture of 300 x 201 pix") as caught:
            ImagePredictor(url=server.url, shrink=300).predict(picture())
        assert caught.value.code == "unexpected"
        broken = segmentation(Image.new("L", (300, 201)))
        broken["mask"] = base64.b64encode(base64.b64decode(broken["mask"])[:50]).decode()
    with scripted(reply(body=broken)) as server:
        with pytest.raises(PredictionError, match="the answer's mask cannot be read") as caught:
            ImagePredictor(url=server.url, shrink=300).predict(picture())
        assert caught.value.code == "unexpected"


def test_points_outside_of_the_picture_are_scaled_as_the_others():
    with scripted(reply(body={"points": [[-30, 0], [300, 200]]})) as server:
        answer = ImagePredictor(url=server.url, shrink=300).predict(picture())
    assert answer == {"points": [[-90.0, 0.0], [900.0, 598.01]]}
    assert Image.open(io.BytesIO(pack(picture(), 300)[0])).size == (300, 201)
