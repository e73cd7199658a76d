"""package/archive.py: the same folder gives the same archive, with nothing else in it."""

import hashlib
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

import archive

MEMBERS = [
    "code/answers.py",
    "code/app.py",
    "code/container.py",
    "code/engine.py",
    "code/fetch.py",
    "code/inference.py",
    "code/pixels.py",
    "code/requirements.txt",
    "code/server.py",
    "config.yaml",
    "model.json",
    "model.onnx",
]


@pytest.fixture
def model(project, tmp_path) -> Path:
    """A copy of the project's model folder with a smaller graph."""
    folder = shutil.copytree(project / "model", tmp_path / "model")
    (folder / "model.onnx").write_bytes(os.urandom(10**6))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name, without Python's bytecode."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pack(model: Path, out: Path) -> int:
    """Run the script's main."""
    return archive.main(["--model", str(model), "--out", str(out)])


def rejected(capsys, model: Path, out: Path, code: int) -> str:
    """Pack, expect exit code `code` and unchanged files around `out`, and return the one-line message."""
    before = content(out.parent) if out.parent.is_dir() else None
    assert pack(model, out) == code
    output = capsys.readouterr()
    assert re.fullmatch(r"error: .+\n", output.err)
    assert not output.out
    assert before == (content(out.parent) if out.parent.is_dir() else None)
    return output.err


def test_it_holds_what_the_container_needs_and_no_more(project):
    with tarfile.open(project / "model.tar.gz") as tar:
        assert [(info.name, info.isreg(), info.mode) for info in tar] == [
            (name, True, 0o644) for name in MEMBERS
        ]


def test_it_has_no_trace_of_this_machine(project):
    with tarfile.open(project / "model.tar.gz") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in tar} == {
            (0, 0, 0, "", "")
        }
    header = (project / "model.tar.gz").read_bytes()[:10]
    assert header[3:8] == bytes(5)  # no file name, no time


def test_unpacked_it_is_the_folder(project, tmp_path):
    shutil.unpack_archive(project / "model.tar.gz", tmp_path / "unpacked", filter="data")
    assert content(tmp_path / "unpacked") == content(project / "model")


def test_the_same_files_give_the_same_bytes_in_any_folder(project, tmp_path):
    moved = shutil.copytree(project / "model", tmp_path / "elsewhere")
    for age, path in enumerate(sorted(moved.rglob("*"), reverse=True)):
        path.chmod(0o700)
        os.utime(path, (age, age))
    (moved / "code" / "__pycache__").mkdir()
    (moved / "code" / "__pycache__" / "inference.cpython-313.pyc").touch()
    (moved / ".DS_Store").touch()
    assert pack(moved, tmp_path / "again.tar.gz") == 0
    assert (tmp_path / "again.tar.gz").read_bytes() == (project / "model.tar.gz").read_bytes()


def test_a_user_module_in_code_is_packed(model, tmp_path):
    (model / "code" / "breeds.py").touch()
    assert pack(model, tmp_path / "model.tar.gz") == 0
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        assert tar.getnames() == sorted([*MEMBERS, "code/breeds.py"])


def test_the_printed_sha256_is_the_files(model, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "model.tar.gz"
    assert pack(model, out) == 0
    printed = re.fullmatch(
        rf"{re.escape(str(out))}: ([\d.]+) MB, sha256 ([0-9a-f]{{64}})\n", capsys.readouterr().out
    )
    assert printed[2] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert float(printed[1]) == pytest.approx(out.stat().st_size / 1e6, abs=0.05)
    assert [path.name for path in out.parent.iterdir()] == ["model.tar.gz"]


@pytest.mark.parametrize("name", archive.REQUIRED)
def test_a_missing_file_is_named(model, tmp_path, capsys, name):
    (model / name).unlink()
    (tmp_path / "model.tar.gz").write_bytes(b"the previous archive")
    message = rejected(capsys, model, tmp_path / "model.tar.gz", code=2)
    assert message == f"error: {model} lacks {name}: run `invoke package` again\n"


def test_a_missing_graph_that_model_json_lists_is_named(model, tmp_path, capsys):
    facts = json.loads((model / "model.json").read_text())
    facts["sha256"]["model.int8.onnx"] = "0" * 64
    (model / "model.json").write_text(json.dumps(facts))
    message = rejected(capsys, model, tmp_path / "model.tar.gz", code=2)
    assert message == f"error: {model} lacks model.int8.onnx: run `invoke package` again\n"
    (model / "model.int8.onnx").touch()
    assert pack(model, tmp_path / "model.tar.gz") == 0
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        assert tar.getnames() == sorted([*MEMBERS, "model.int8.onnx"])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": "of another version"}'])
def test_a_model_json_of_another_format_is_rejected(model, tmp_path, capsys, text):
    (model / "model.json").write_text(text)
    message = rejected(capsys, model, tmp_path / "model.tar.gz", code=2)
    assert "model.json is not what export.py wrote: run `invoke package` again" in message


def test_a_missing_folder_is_rejected(tmp_path, capsys):
    assert "there is no folder" in rejected(capsys, tmp_path / "none", tmp_path / "model.tar.gz", code=2)


def test_links_are_rejected(model, tmp_path, capsys):
    (model / "weights").symlink_to(tmp_path)
    (model / "model.onnx").rename(tmp_path / "model.onnx")
    (model / "model.onnx").symlink_to(tmp_path / "model.onnx")
    message = rejected(capsys, model, tmp_path / "model.tar.gz", code=2)
    assert "has links, which SageMaker does not unpack: replace model.onnx, weights" in message


def test_a_file_that_changes_meanwhile_is_an_error(model, tmp_path, capsys, monkeypatch):
    write = archive.write

    def write_and_change(*args):
        write(*args)
        (model / "config.yaml").write_text("changed")

    monkeypatch.setattr(archive, "write", write_and_change)
    assert pack(model, tmp_path / "out" / "model.tar.gz") == 2
    assert "changed while it was packed" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["file/model.tar.gz", "folder"], ids=["below a file", "a folder"])
def test_a_path_that_cannot_be_written_is_an_error(model, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "something").touch()
    assert f"{tmp_path / name} was not written: " in rejected(capsys, model, tmp_path / name, code=3)
