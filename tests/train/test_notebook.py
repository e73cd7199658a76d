"""train/pets.ipynb runs from its first cell to its last, in a kernel of its own, on generated pictures."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from support import ROOT

NOTEBOOK = ROOT / "train/pets.ipynb"
USED = ("train", "package", "serve", "deploy", "client", "config")  # folders whose scripts it runs
DEFAULT = 'DATA = "pets"  # or "sample"'

pytestmark = pytest.mark.xdist_group("notebook")


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, 4)


def cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == name)


def printed(notebook: nbformat.NotebookNode, name: str) -> str:
    """What a cell wrote to stdout."""
    outputs = cell(notebook, name).outputs
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


# --- as it is committed


def test_it_is_a_valid_notebook_without_results(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    names = [cell.id for cell in notebook.cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z-]+", name) for name in names)  # given, not generated at each save
    for one in notebook.cells:
        assert not one.metadata
        if one.cell_type == "code":
            assert (one.outputs, one.execution_count) == ([], None), one.id
            ast.parse(one.source)
    kernel = {"display_name": "fastai-sagemaker", "language": "python", "name": "fastai-sagemaker"}
    assert notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert "KERNEL := fastai-sagemaker\n" in (ROOT / "Makefile").read_text()


def test_it_is_written_as_jupyter_writes_it():
    text = NOTEBOOK.read_text()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"


def test_its_default_is_the_real_pets_by_the_guides_recipe(notebook):
    assert cell(notebook, "data").source == DEFAULT
    assert 'untar_data(URLs.PETS) / "images", resnet50, 299, 32' in cell(notebook, "files").source
    assert "learn.fit_one_cycle(8, slice(3e-3))" in cell(notebook, "fit").source
    assert "learn.fit_one_cycle(3, slice(1e-6, 1e-4))" in cell(notebook, "fit").source


# --- its functions


def functions(notebook: nbformat.NotebookNode, name: str, **known: object) -> dict[str, Any]:
    """The functions that a cell defines, in a namespace with what the first cells import."""
    tree = ast.parse(cell(notebook, name).source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    space = known | {"os": os, "subprocess": subprocess, "sys": sys, "contextmanager": contextmanager}
    exec(compile(tree, name, "exec"), space)
    return space


def test_a_command_that_fails_ends_the_cell_below_its_output(notebook, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = functions(notebook, "package", DATA="sample")["run"]
    run("-c", "import os; print(os.environ['INVOKE_PROJECT'])")
    with pytest.raises(SystemExit, match=r"^-m invoke nothing: exit code 2$"):
        run("-m", "invoke", "nothing")
    said = "sample\nerror: no verb is called nothing: `make help` lists them\n"
    assert capsys.readouterr().out == said


def test_a_server_that_does_not_start_says_why(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    serving = functions(notebook, "query")["serving"]
    sentence = f"error: {tmp_path} is not a packaged model: run `invoke package` first\n"
    with pytest.raises(AssertionError, match=re.escape(sentence)), serving(tmp_path):
        pass


# --- executed


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """The part of the repository that the notebook uses; Jupyter knows no kernel but this Python's."""
    for name in ("JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("JUPYTER_PATH", "INVOKE_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "a cöpy"
    for name in USED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tasks.py", "configuration.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells as Jupyter does that was started in `folder`."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()


def left_running(folder: Path) -> list[psutil.Process]:
    """Processes that work in this folder."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        cwd = process.info["cwd"]
        found += [process] if cwd and Path(cwd).is_relative_to(folder) else []
    return found


def test_it_trains_packages_and_queries_the_sample(notebook, copy):
    cell(notebook, "data").source = 'DATA = "sample"'
    execute(notebook, copy / "train")
    errors = [o for one in notebook.cells for o in one.get("outputs", []) if o.output_type == "error"]
    assert not errors
    assert printed(notebook, "files") == "160 pictures, and 1 that cannot be opened\n"
    shown = [
        one.id
        for one in notebook.cells
        if any("image/png" in o.get("data", {}) for o in one.get("outputs", []))
    ]
    assert shown == ["dataloaders", "show-results", "confusion", "top-losses"]
    assert "handlers answer as learn.predict does on 32 validation pictures" in printed(notebook, "package")
    verdict = printed(notebook, "test-local").splitlines()[-1]
    assert verdict.startswith("passed: ")
    said = printed(notebook, "query")
    file, label, confidence = re.fullmatch(
        r"(\S+): learn\.predict says (\w+), (0\.\d+|1\.0+); the endpoint:\n", said
    ).groups()
    answer = ast.literal_eval(cell(notebook, "query").outputs[-1].data["text/plain"])
    assert answer["class"] == label == file.partition("_")[0]
    assert len(answer["predictions"]) == 3
    assert answer["confidence"] == pytest.approx(
        float(confidence), abs=0.02
    )  # bf16 where the processor has it
    assert not left_running(copy)
    assert sorted(path.name for path in (copy / "build").iterdir()) == ["sample"]
    assert "\x1b" not in printed(notebook, "package") + printed(notebook, "test-local")
