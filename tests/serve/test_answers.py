"""Answers of regression, points and segmentation: where the input lies in a picture, and over HTTP."""

import base64
import hashlib
import io
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import requests
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from plain_server import running, wait_for_ping

import inference
from answers import check_output, describe, paint, points, regression, segmentation
from pixels import Place, placement, to_input
from support import ROOT

BOXES = ["squish", "crop", "pad"]


# --- where the input lies in the picture, by fastai


def steps_of(pipeline: Any) -> list[dict]:
    """model.json's steps for fastai's pipeline."""
    from fastai.vision.augment import RatioResize

    from pipeline import item_steps

    steps = []
    for tfm in pipeline:
        if isinstance(tfm, RatioResize):
            resample = Image.Resampling(tfm.resamples[0]).name
            steps.append({"op": "ratio_resize", "side": tfm.max_sz, "resample": resample})
        else:
            steps += item_steps([tfm])
    return steps


def pipeline_of(chain: list[tuple]) -> Any:
    """fastai's validation pipeline of these transforms and their arguments, in fastai's own order."""
    from fastai.vision import augment
    from fastai.vision.all import Pipeline

    return Pipeline([getattr(augment, name)(*args) for name, *args in chain], split_idx=1)


def by_fastai(item: Any, pipeline: Any) -> Any:
    """An item after the pipeline. RatioResize crops at random even at validation: here in the middle."""
    with mock.patch("random.random", return_value=0.5):
        return pipeline(item)


SIDES = st.integers(2, 90)
SIZES = SIDES | st.tuples(SIDES, SIDES)
PICTURES = st.integers(8, 300)
RESIZES = st.builds(lambda size, method: ("Resize", size, method, "zeros"), SIZES, st.sampled_from(BOXES))
CROPS = st.builds(lambda name, size: (name, size), st.sampled_from(["CropPad", "RandomCrop"]), SIZES)
RATIOS = st.builds(lambda side: ("RatioResize", side), st.integers(40, 90))
CHAINS = st.lists(RESIZES | CROPS | RATIOS, min_size=1, max_size=3)


@settings(deadline=None, max_examples=200)
@given(PICTURES, PICTURES, CHAINS)
@example(500, 333, [("Resize", 460), ("RandomCrop", 224)])
@example(333, 501, [("RatioResize", 96), ("RandomCrop", (96, 96))])
@example(301, 77, [("Resize", (60, 90), "pad"), ("Resize", 45, "squish")])
def test_the_place_of_the_input_is_where_fastai_moves_points(width, height, chain):
    from fastai.vision.core import TensorPoint

    pipeline = pipeline_of(chain)
    try:
        left, top, right, bottom = placement((width, height), steps_of(pipeline))
    except inference.NotAPictureError:
        left = right = top = bottom = 0.0
    assume(left < right and top < bottom)  # of a line of pixels nothing may be left
    corners = TensorPoint([[-1.0, -1.0], [1.0, 1.0]], sz=(width, height))
    for transform in pipeline:
        # One by one: fastai keeps the size as float32, which it then rounds otherwise than a picture's.
        moved = by_fastai(corners, partial(transform, split_idx=1))
        corners = TensorPoint(moved, sz=tuple(map(int, moved.sz)))
    expected = [
        [-2 * left / (right - left) - 1, -2 * top / (bottom - top) - 1],
        [2 * (width - left) / (right - left) - 1, 2 * (height - top) / (bottom - top) - 1],
    ]
    np.testing.assert_allclose(corners.numpy(), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(20, 90),
    SIZES,
    st.sampled_from(["RandomCrop", "Resize"]),
)
@example(500, 333, 96, 96, "RandomCrop")
@example(90, 1, 89, 64, "Resize")
def test_ratio_resize_gives_fastais_pixels(width, height, side, size, last):
    from fastai.vision.core import PILImage

    pipeline = pipeline_of([("RatioResize", side), (last, size)])
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    how = {"mode": "RGB", "steps": steps_of(pipeline)}
    try:
        expected = np.asarray(by_fastai(PILImage.create(noise), pipeline))
    except ZeroDivisionError:  # no pixel is left
        with pytest.raises(inference.NotAPictureError, match="long and narrow"):
            to_input(Image.fromarray(noise), how)
        return
    np.testing.assert_array_equal(to_input(Image.fromarray(noise), how)[0], expected)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(91, 300),
    st.integers(91, 300),
    st.one_of(RESIZES.map(lambda words: [words]), CROPS.map(lambda words: [words])),
)
@example(300, 200, [("RatioResize", 96), ("RandomCrop", (96, 96))])
@example(199, 300, [("RatioResize", 64), ("RandomCrop", (40, 64))])
def test_a_mask_that_fastai_scales_down_is_scaled_up_to_one_that_fastai_scales_down_to_the_same(
    width, height, chain
):
    from fastai.vision.core import PILMask

    classes = np.random.default_rng(width * 1000 + height).integers(1, 200, (height, width), np.uint8)
    pipeline = pipeline_of(chain)
    small = np.asarray(by_fastai(PILMask.create(classes), pipeline))
    box = placement((width, height), steps_of(pipeline))
    mask = np.asarray(paint(small.astype(np.float32), Place((width, height), box)))
    again = np.asarray(by_fastai(PILMask.create(mask), pipeline))
    np.testing.assert_array_equal(again, small)
    assert set(np.unique(mask)) <= {*np.unique(small), 255}
    cropped = max(box[0], box[1], width - box[2], height - box[3])
    assert (mask == 255).any() == (cropped > 0.5)  # the centre of a pixel counts


def test_a_mask_that_is_smaller_than_the_input_covers_all_of_it():
    """2 x 3 class numbers over a box that is cropped above and below, and padded left and right."""
    mask = np.asarray(paint(np.array([[0, 1, 2], [3, 4, 5]], np.float32), Place((4, 4), (-1, 1, 5, 3))))
    assert mask.tolist() == [[255] * 4, [0, 1, 1, 2], [3, 4, 4, 5], [255] * 4]


# --- the answers


PLACE = Place((200, 100), (50.0, 0.0, 150.0, 100.0))


def test_values_are_those_of_float32_without_its_rounding():
    assert regression(np.array([1.49, -3, 1e-9, 16777216], np.float32)) == {
        "values": [1.49, -3.0, 1e-9, 16777216.0]
    }


def test_points_are_pixels_of_the_picture():
    output = np.array([[-1, -1], [1, 1], [0, 0.5], [-2, 1.2]], np.float32)
    expected = [[50.0, 0.0], [150.0, 100.0], [100.0, 75.0], [0.0, 110.0]]
    assert points(output, PLACE) == {"points": expected}


def test_a_mask_has_the_shares_of_what_the_model_sees_largest_first():
    answer = segmentation(np.array([[2, 2], [2, 0]], np.float32), ["sky", "cat", "dog"], PLACE)
    mask = read_mask(answer["mask"])
    assert answer["classes"] == [{"class": "dog", "share": 0.75}, {"class": "sky", "share": 0.25}]
    assert (answer["width"], answer["height"]) == (200, 100) == mask.shape[::-1]
    assert [mask[10, x] for x in (0, 49, 50, 149, 150)] == [255, 255, 2, 2, 255]
    assert [mask[90, x] for x in (50, 99, 100, 149)] == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("task", "labels", "shape"),
    [
        ("single", ["cat"], (2,)),
        ("multi", ["cat"], ()),
        ("regression", [], (3, 1)),
        ("points", [], (4, 3)),
        ("segmentation", ["cat"], (3, 8, 8)),
        ("segmentation", [str(number) for number in range(256)], (8, 8)),
        ("regression", [], (0,)),
        ("detection", [], (4,)),
    ],
)
def test_an_output_that_does_not_fit_the_task_is_an_error_when_the_model_is_loaded(task, labels, shape):
    with pytest.raises(ValueError, match=r"again$"):
        check_output(task, labels, shape)


# --- over HTTP: small graphs with a known output

LABELS = ["sky", "cat", "dog"]
SQUISH = {"op": "resize", "method": "squish", "size": [8, 12], "pad": "zeros", "resample": "NEAREST"}
CROP = SQUISH | {"method": "crop"}
MEAN = helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0)
GRAPHS: dict[
    str, tuple[list, list]
] = {  # the nodes from float32 pixels (N, 8, 12, C) to the output, and its shape
    "regression": ([MEAN, helper.make_node("Mul", ["mean", "scale"], ["out"])], ["batch", "C"]),
    "points": (
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
            helper.make_node("Squeeze", ["zeros", "one"], ["flat"]),
            helper.make_node("ReduceMean", ["flat", "two"], ["single"], keepdims=1),
            helper.make_node("Add", ["single", "corners"], ["out"]),
        ],
        ["batch", 3, 2],
    ),
    "segmentation": ([helper.make_node("Gather", ["pixels", "first"], ["out"], axis=3)], ["batch", 8, 12]),
}
CONSTANTS = {
    "axes": np.array([1, 2]),
    "one": np.array([1]),
    "two": np.array([2]),
    "scale": np.float32(2),
    "zero": np.float32(0),
    "corners": np.array([[[-1, -1], [1, 1], [0, 0]]], np.float32),
    "first": np.array(0),
}


def write_model(folder: Path, task: str, scale: float = 2, **changes: object) -> Path:
    """A model folder: regression gives each channel's mean * scale, points the input's corners and middle,
    segmentation the first channel."""
    how: dict[str, Any] = {
        "shape": ["batch", 8, 12, 3],
        "dtype": "uint8",
        "mode": "RGB",
        "steps": [SQUISH],
        **changes,
    }
    channels = how["shape"][3]
    nodes, shape = GRAPHS[task]
    shape = [channels if side == "C" else side for side in shape]
    constants = CONSTANTS | {"scale": np.float32(scale)}
    graph = helper.make_graph(
        [helper.make_node("Cast", ["pictures"], ["pixels"], to=TensorProto.FLOAT), *nodes],
        "graph",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", 8, 12, channels])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        folder / "model.onnx",
    )
    spec = {
        "labels": LABELS if task == "segmentation" else [],
        "task": task,
        "threshold": None,
        "input": how,
        "precision": {"use": ["fp32"], "draft": False},
        "sha256": {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
    }
    (folder / "model.json").write_text(json.dumps(spec))
    shutil.copytree(ROOT / "serve", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module", params=list(GRAPHS))
def served(request, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """A task, and the address of the plain server with its model."""
    task = request.param
    with running(write_model(tmp_path_factory.mktemp("served") / "model", task)) as process:
        line = process.log.wait_for("INFO server: ready after ")
        wait_for_ping(process.url, 200)
        assert line.endswith(f" s: {'3 labels' if task == 'segmentation' else task}, fp32\n")
        yield task, process.url


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def read_mask(text: str) -> np.ndarray:
    """The mask of an answer."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        return np.asarray(picture)


def b64(data: bytes) -> dict:
    return {"image": base64.b64encode(data).decode()}


CLASSES = np.repeat(np.repeat(np.array([[0, 1, 2], [1, 1, 2]], np.uint8), 8, 0), 16, 1)  # 16 x 48
PHOTO = png(np.stack([CLASSES, CLASSES * 0 + 10, CLASSES * 0 + 20], -1))
EXPECTED = {
    "regression": {"values": [pytest.approx(2 * CLASSES.mean()), 20.0, 40.0]},
    "points": {"points": [[0.0, 0.0], [48.0, 16.0], [24.0, 8.0]]},
    "segmentation": {
        "classes": [
            {"class": "cat", "share": 0.5},
            {"class": "dog", "share": 0.333333},
            {"class": "sky", "share": 0.166667},
        ],
        "mask": mock.ANY,
        "width": 48,
        "height": 16,
    },
}


def test_one_picture_over_http(served):
    task, url = served
    reply = requests.post(f"{url}/invocations", PHOTO, headers={"Content-Type": "image/png"}, timeout=60)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json() == EXPECTED[task]
    if task == "segmentation":
        np.testing.assert_array_equal(read_mask(reply.json()["mask"]), CLASSES)


def test_several_pictures_over_http_of_which_one_is_bad(served):
    task, url = served
    request = {"instances": [b64(b"x"), b64(PHOTO)], "top_k": 1}
    replies = [
        requests.post(
            f"{url}/invocations", json=request, headers={"Accept": f"application/{kind}"}, timeout=60
        )
        for kind in ("json", "jsonlines", "x-npy")
    ]
    answers = [replies[0].json()["predictions"], [json.loads(line) for line in replies[1].text.splitlines()]]
    for bad, good in answers:
        assert (bad["error"], good) == ("not_a_picture", EXPECTED[task])
    outputs = np.load(io.BytesIO(replies[2].content), allow_pickle=False)
    shape = {"regression": (3,), "points": (3, 2), "segmentation": (8, 12)}[task]
    assert (outputs.shape, outputs.dtype) == ((2, *shape), np.float32)
    assert np.isnan(outputs[0]).all()
    assert np.isfinite(outputs[1]).all()


def test_only_bad_pictures_over_http(served):
    task, url = served
    request, accept = {"instances": [b64(b"x")] * 2}, {"Accept": "application/x-npy"}
    answers = requests.post(f"{url}/invocations", json=request, timeout=60).json()["predictions"]
    assert [answer["error"] for answer in answers] == ["not_a_picture"] * 2
    reply = requests.post(f"{url}/invocations", json=request, headers=accept, timeout=60)
    outputs = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert outputs.shape[1:] == {"regression": (3,), "points": (3, 2), "segmentation": (8, 12)}[task]
    assert np.isnan(outputs).all()


@pytest.mark.parametrize(
    "accept",
    ["image/png", "image/*", "text/html, image/png;q=0.5", "application/json;q=0.4, image/png;q=0.5"],
)
def test_a_mask_alone_for_segmentation(served, accept):
    task, url = served
    reply = requests.post(f"{url}/invocations", PHOTO, headers={"Accept": accept}, timeout=60)
    if task == "segmentation":
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
        np.testing.assert_array_equal(Image.open(io.BytesIO(reply.content)), CLASSES)
    elif "json" in accept:
        assert reply.json() == EXPECTED[task]
    else:
        assert (reply.status_code, reply.json()["error"]) == (406, "not_acceptable")
        assert "image/png" not in reply.json()["message"].partition("is not one of")[2]


def test_a_mask_alone_is_not_for_several_pictures(served):
    task, url = served
    several = {"instances": [b64(PHOTO)] * 2}
    for accept, status in (("image/png", 406), ("image/png, application/json;q=0.1", 200)):
        reply = requests.post(f"{url}/invocations", json=several, headers={"Accept": accept}, timeout=60)
        assert reply.status_code == status, reply.text
    assert reply.json()["predictions"] == [EXPECTED[task]] * 2


# --- in process


def ask(model: inference.Model, body: bytes | dict, accept: str = "", kind: str = "") -> tuple[int, Any]:
    """The status and the answer of the handlers, JSON or bytes."""
    if isinstance(body, dict):
        body, kind = json.dumps(body).encode(), "application/json"
    answer = inference.handle(model, body, {"accept": accept, "content-type": kind})
    is_json = answer.content_type == "application/json"
    return answer.status, json.loads(answer.body) if is_json else answer.body


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
def test_a_class_of_a_mask_without_a_name_is_one_sentence(tmp_path, accept):
    model = inference.model_fn(write_model(tmp_path / "model", "segmentation"))
    status, answer = ask(replace(model, labels=model.labels[:1]), PHOTO, accept)
    assert (status, answer["error"]) == (500, "internal")
    assert "has no name: package it with a name for each class" in answer["message"]


def test_a_406_costs_no_work(tmp_path, monkeypatch):
    models = [inference.model_fn(write_model(tmp_path / task, task)) for task in ("points", "segmentation")]
    monkeypatch.setattr(inference, "predict_fn", None)
    assert ask(models[0], PHOTO, "image/png")[0] == 406
    status, answer = ask(models[1], {"instances": [b64(PHOTO)]}, "image/png")
    assert (status, answer["error"]) == (406, "not_acceptable")


def test_points_and_masks_of_a_cropped_picture_lie_in_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.ones((80, 40, 3), np.uint8)).save(file, "PNG", exif=exif)  # 80 x 40 upright
    how = {"steps": [CROP]}
    model = inference.model_fn(write_model(tmp_path / "points", "points", **how))
    assert ask(model, file.getvalue()) == (200, {"points": [[10.0, 0.0], [70.0, 40.0], [40.0, 20.0]]})
    model = inference.model_fn(write_model(tmp_path / "masks", "segmentation", **how))
    status, answer = ask(model, file.getvalue())
    mask = read_mask(answer.pop("mask"))
    assert (status, answer) == (200, {"classes": [{"class": "cat", "share": 1.0}], "width": 80, "height": 40})
    assert mask.shape == (40, 80)
    assert (mask[:, 10:70] == 1).all()
    assert (mask[:, :10] == 255).all()
    assert (mask[:, 70:] == 255).all()
    ignoring = inference.model_fn(write_model(tmp_path / "lying", "points", exif="ignore"))
    assert ask(ignoring, file.getvalue())[1] == {"points": [[0.0, 0.0], [40.0, 80.0], [20.0, 40.0]]}


def test_a_grey_model_takes_pictures_and_arrays_of_any_colour(tmp_path):
    how = {"mode": "L", "shape": ["batch", 8, 12, 1], "levels": [1000, 2000]}
    model = inference.model_fn(write_model(tmp_path / "model", "regression", scale=1, **how))
    colour = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    grey = float(np.asarray(Image.fromarray(colour).convert("L"))[0, 0])
    npy = io.BytesIO()
    np.save(npy, colour)
    assert ask(model, png(colour)) == (200, {"values": [grey]})
    assert ask(model, npy.getvalue(), kind="application/x-npy") == (200, {"values": [grey]})
    assert ask(model, png(np.full((20, 30), 1600, np.uint16))) == (200, {"values": [153.0]})


def test_json_never_holds_a_number_that_is_none(tmp_path):
    model = inference.model_fn(write_model(tmp_path / "model", "regression", scale=1e38))
    fine, too_bright = png(np.full((8, 12, 3), 1, np.uint8)), png(np.full((8, 12, 3), 9, np.uint8))
    assert ask(model, fine)[1]["values"] == pytest.approx([1e38] * 3)
    status, answer = ask(model, too_bright)
    assert (status, answer["error"]) == (500, "internal")
    assert "no finite number" in answer["message"]
    first, second = ask(model, {"instances": [b64(too_bright), b64(fine)]})[1]["predictions"]
    assert (first["error"], second["values"][0]) == ("internal", pytest.approx(1e38))
    assert np.isinf(np.load(io.BytesIO(ask(model, too_bright, "application/x-npy")[1]))).all()


@pytest.mark.parametrize(
    "accept", ["application/json", "application/jsonlines", "application/x-npy", "image/png"]
)
def test_an_answer_that_sagemaker_would_not_relay_is_refused(tmp_path, monkeypatch, accept):
    model = inference.model_fn(write_model(tmp_path / "model", "segmentation"))
    pictures = PHOTO if accept == "image/png" else {"instances": [b64(PHOTO)] * 8}
    assert ask(model, pictures, accept)[0] == 200
    monkeypatch.setattr(inference, "MAX_BODY", 50 if accept == "image/png" else 1500)
    monkeypatch.setattr(inference, "read_request", lambda *_: batch)
    batch = inference.Batch([Image.open(io.BytesIO(PHOTO)) for _ in range(8)], several=accept != "image/png")
    status, answer = ask(model, b"", accept)
    assert (status, answer["error"]) == (413, "too_large")
    assert answer["message"].endswith("send fewer or smaller pictures")


def test_a_multi_label_answer_is_as_it_was():
    answer = describe(np.array([0.25, 0.75], np.float32), "multi", ["a", "b"], 0.5, PLACE, 1)
    top = {"class": "b", "confidence": 0.75}
    assert json.dumps(answer) == json.dumps({**top, "predictions": [top], "classes": ["b"]})


def test_a_mask_of_fifty_megapixels_needs_little_time_and_memory():
    """The mask itself is 50 MB; it is made in 0.2 s on a core of an AMD EPYC."""
    tracemalloc.start()
    place = Place((8660, 5773), (0.0, 0.0, 8660.0, 5773.0))
    answer = segmentation(np.tile(np.arange(3, dtype=np.float32), (512, 171)), LABELS, place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(answer["mask"]) < 5 * 10**6
    assert peak < 150 * 10**6
