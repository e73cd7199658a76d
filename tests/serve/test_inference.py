"""The handlers without a server: which packages they need, and how loading fails."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

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
