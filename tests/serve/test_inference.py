"""The handlers without a server: which packages they need, and how loading fails."""

import base64
import contextlib
import importlib.metadata
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import inference
from support import ROOT

SERVING = [  # what serve/inference.py may need; the other packages of the group are for the HTTP servers
    "numpy",
    "openvino",
    "pillow",
]
PREDICT = """
import sys
sys.path.insert(0, sys.argv[1] + "/code")
from inference import handle, model_fn
answer = handle(model_fn(sys.argv[1]), open(sys.argv[2], "rb").read(), {"content-type": "image/jpeg"})
print(answer.status, answer.body.decode())
assert not {"torch", "torchvision", "fastai", "starlette", "uvicorn", "requests"} & set(sys.modules)
"""


def distributions(names: list[str]) -> set[str]:
    """These packages and all their dependencies, from the metadata of the installed ones."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
            todo += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A virtual environment with the handlers' requirements and nothing else, made without a network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    for name in distributions(SERVING):
        tops = {file.parts[0] for file in importlib.metadata.files(name) or []} - {"..", "__pycache__"}
        for top in tops:
            (site / top).symlink_to(str(importlib.metadata.distribution(name).locate_file(top)))
    return tmp_path / "venv" / "bin" / "python"


def test_the_handlers_need_only_numpy_pillow_and_the_engine(bare_python, project):
    missing = subprocess.run([bare_python, "-c", "import torch"], capture_output=True, check=False)
    assert missing.returncode == 1  # else the environment proves nothing
    picture = sorted((project / "train" / "pictures").iterdir())[0]
    done = subprocess.run(
        [bare_python, "-c", PREDICT, project / "model", picture], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('200 {"class"')


def test_the_containers_requirements_are_locked_and_only_what_it_lacks():
    wanted = [line for line in (ROOT / "serve/requirements.txt").read_text().splitlines() if line[:1] != "#"]
    assert [re.split("==", line)[0] for line in wanted] == ["openvino"]
    assert all(f"\n{line} " in (ROOT / "requirements.lock").read_text() for line in wanted)
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["serve"]
    assert {re.split("[=; ]", need)[0] for need in group} == {*SERVING, "uvicorn", "starlette"}


@pytest.fixture
def broken(project, tmp_path) -> Path:
    """A copy of the model folder, to be damaged."""
    return Path(shutil.copytree(project / "model", tmp_path / "model"))


def test_a_model_that_is_not_the_one_described_fails_at_load(broken):
    with open(broken / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="package it again"):
        inference.model_fn(broken)


def test_the_parity_of_the_package_is_written_into_model_json(project):
    spec = json.loads((project / "model" / "model.json").read_text())
    assert spec["parity"]["pictures"] == 64
    assert spec["parity"]["max_difference"] < spec["parity"]["tolerance"] == 1e-3


def test_the_four_handlers_one_after_the_other(project):
    model = inference.model_fn(project / "model")
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    batch = inference.input_fn(picture, "image/jpeg")
    prediction = inference.predict_fn(batch, model)
    body, content_type = inference.output_fn(prediction, "application/json")
    assert prediction.outputs.shape == (1, len(model.labels))
    assert prediction.outputs.dtype == np.float32
    assert content_type == "application/json"
    assert json.loads(body)["class"] == model.labels[prediction.outputs[0].argmax()]


@pytest.mark.parametrize(
    ("handler", "count"), [("model_fn", 1), ("input_fn", 3), ("predict_fn", 2), ("output_fn", 2)]
)
def test_the_handlers_have_the_parameters_that_sagemakers_toolkit_counts(handler, count):
    """1, 2, 2 and 2; where there is one more, the toolkit passes its context there."""
    parameters = list(inspect.signature(getattr(inference, handler)).parameters)
    assert len(parameters) == count
    assert parameters[-1] == "context" or count < 3


class Context:
    """What the toolkit's context has of a request."""

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}
        self.request_processor = [self]

    def get_request_properties(self) -> dict[str, str]:
        return self.headers


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_be_of_any_type_of_bytes(project, kind):
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros((4, 5, 3), np.uint8))
    for body, content_type in (
        (picture, None),
        (picture, "image/jpeg"),
        (array.getvalue(), "application/x-npy"),
        (json.dumps({"image": base64.b64encode(picture).decode()}).encode(), "application/json"),
    ):
        batch = inference.input_fn(kind(body), content_type)
        assert [isinstance(picture, Image.Image) for picture in batch.pictures] == [True]


def test_a_body_of_json_may_be_text(project):
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    body = json.dumps({"image": base64.b64encode(picture).decode(), "top_k": 2})
    assert inference.input_fn(body, "application/json").top_k == 2
    with pytest.raises(inference.RequestError) as error:
        inference.input_fn('{"image": "é\ud800"', "application/json")
    assert error.value.answer["error"] == "bad_json"


def test_top_k_comes_from_the_toolkits_context(project):
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    for name in ("X_Amzn_SageMaker_Custom_Attributes", "x_amzn_sagemaker_custom_attributes"):
        assert inference.input_fn(picture, None, Context(**{name: "top_k=2"})).top_k == 2
    assert inference.input_fn(picture, None, Context(Accept="*/*")).top_k == inference.Batch.top_k
    assert inference.input_fn(picture, None, None).top_k == inference.Batch.top_k


def test_without_an_accept_the_answer_is_json(project):
    model = inference.model_fn(project / "model")
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    prediction = inference.predict_fn(inference.input_fn(picture, None), model)
    assert inference.output_fn(prediction, None) == inference.output_fn(prediction, "application/json")


TOOLKIT_ERRORS = """
class BaseInferenceToolkitError(Exception):
    def __init__(self, status_code, message, phrase):
        super().__init__(status_code, message, phrase)
"""
RAISE = """
import sys
sys.path[:0] = sys.argv[1:]
from sagemaker_inference.errors import BaseInferenceToolkitError
from inference import RequestError, input_fn
try:
    input_fn(b"x", "text/plain")
except BaseInferenceToolkitError as error:
    print(error.status_code, error.phrase, error.message, error, sep="\\n")
"""


def test_an_error_is_one_of_the_toolkits_where_that_is_installed(tmp_path):
    """As in sagemaker_inference/errors.py; `TOOLKIT=1` runs the contract under the real one."""
    (tmp_path / "sagemaker_inference").mkdir()
    (tmp_path / "sagemaker_inference" / "errors.py").write_text(TOOLKIT_ERRORS)
    command = [sys.executable, "-B", "-c", RAISE, tmp_path, ROOT / "serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status, phrase, message, sentence = done.stdout.splitlines()
    assert (status, phrase) == ("415", "unsupported_type")
    assert json.loads(message) == {"error": "unsupported_type", "message": sentence}
    assert sentence.startswith("Content-Type 'text/plain' is not one of: image/*")


def test_large_json_is_parsed_under_the_permits_of_pictures(monkeypatch):
    """And small JSON without: the addresses in it need not wait for pixels."""
    parsing, parse = threading.Event(), inference.parse_json

    def parse_json(body: bytes) -> dict:
        parsing.set()
        return parse(body)

    monkeypatch.setattr(inference, "parse_json", parse_json)
    monkeypatch.setattr(inference, "decode_slots", threading.BoundedSemaphore(1))
    large = json.dumps({"image": "A" * inference.SMALL_JSON}).encode()
    with ThreadPoolExecutor(1) as pool:
        with inference.decode_slots:
            assert inference.input_fn(b'{"image": "AAAA"}', "application/json").bad_status == 422
            parsing.clear()
            waiting = pool.submit(inference.input_fn, large, "application/json")
            assert not parsing.wait(0.3)
        assert waiting.result(30).bad_status == 422
    assert parsing.is_set()


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b'{"":0},' * 3_400_000 + b"0]",
        b'{"instances": [' + b"[]," * 8_000_000 + b"0]}",
        json.dumps({"image": "A " * 12_000_000}).encode(),
        '{{"image": "{}😀"}}'.format("A" * 24_000_000).encode(),
    ],
    ids=["objects", "lists", "words", "wide"],
)
def test_json_never_takes_more_memory_than_a_picture(body):
    """The largest body, parsed; a decoded picture may take 350 MB."""
    tracemalloc.start()
    with contextlib.suppress(inference.RequestError):
        batch = inference.input_fn(body, "application/json")
        assert isinstance(batch.pictures[0], inference.RequestError)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 350e6
    assert left < 10e6


def test_503_before_the_model_is_loaded():
    answer = inference.handle(None, b"", {})
    assert (answer.status, json.loads(answer.body)["error"]) == (503, "not_loaded")


def test_pictures_are_closed_as_soon_as_they_are_decoded(project):
    """32 decoded photographs of 50 megapixels would take 4.8 GB."""
    model = inference.model_fn(project / "model")
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    batch = inference.input_fn(picture, "image/jpeg")
    inference.predict_fn(batch, model)
    with pytest.raises(ValueError, match="closed"):
        batch.pictures[0].load()
