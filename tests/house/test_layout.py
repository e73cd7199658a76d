"""The layout: folders that do not import each other, and inside deploy/ imports that go one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

FOLDERS = [
    folder
    for folder in ("train", "package", "serve", "deploy", "client", "bench", "cost")
    if (ROOT / folder).is_dir()  # a copy may have deleted some
]
SCRIPTS = [
    "train/train.py",
    "train/adopt.py",
    "train/synthetic_pets.py",
    "package/export.py",
    "package/archive.py",
    "package/upload.py",
    "serve/server.py",
    "deploy/endpoint.py",
    "deploy/image.py",
    "deploy/local.py",
    "deploy/role.py",
    "client/cli.py",
    "cost/estimate.py",
    "bench/serving.py",
    "bench/load.py",
    "bench/measure.py",
    "bench/cold_start.py",
]
TOP = ("tasks", "configuration")
COMMANDS = ("endpoint", "image", "local", "role")  # of deploy/
MAY_IMPORT: dict[str, set[str]] = {  # a part of deploy/, and the other parts that its files may import
    "common": set(),
    "aws": {"common"},
    "ecr": {"aws", "common"},
    "emulator": {"ecr", "aws", "common"},  # it runs the image that ecr/docker_build.py builds
    "lifecycle": {"ecr", "aws", "common"},
}
MAY_IMPORT |= {command: set(MAY_IMPORT) for command in COMMANDS}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file}: no relative imports"
            assert not node.level, f"{file}: no relative imports"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def top_level(file: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(file)}


def modules(folder: str) -> set[str]:
    """What a folder on sys.path makes importable: its files, and its sub-folders (namespace packages)."""
    return {file.relative_to(ROOT / folder).parts[0].removesuffix(".py") for file in python_files(folder)}


# --- between the folders


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_imports_another(folder):
    others = set().union(*(modules(other) for other in FOLDERS if other != folder), FOLDERS, TOP)
    for file in python_files(folder):
        allowed = {"inference"} if file.name == "export.py" else set()  # by path, from the folder it packaged
        assert not (top_level(file) & others) - allowed, file


def test_tasks_imports_no_folder():
    inside = set().union(*(modules(folder) for folder in FOLDERS), FOLDERS)
    for name in TOP:
        assert not top_level(ROOT / f"{name}.py") & inside, name


def test_names_that_are_imported_are_unique_across_folders():
    names = [name for folder in FOLDERS for name in sorted(modules(folder))]
    assert len(names) == len(set(names))


def test_no_folder_is_a_package():
    assert not [file for folder in FOLDERS for file in python_files(folder) if file.name == "__init__.py"]


def test_serving_needs_neither_torch_nor_fastai():
    heavy = {"torch", "torchvision", "fastai", "timm", "boto3", "requests"}
    assert not set().union(*(top_level(file) for file in python_files("serve"))) & heavy


def outputs(flag: str) -> dict[str, tuple[int, str, str]]:
    """Each script's exit code, stdout and stderr. All at once: most of the time is Python's own start."""
    here = [script for script in SCRIPTS if script.partition("/")[0] in FOLDERS]
    started = {}
    for script in here:
        command = [sys.executable, str(ROOT / script), flag]
        started[script] = subprocess.Popen(
            command, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    ended = {script: process.communicate(timeout=120) for script, process in started.items()}
    return {script: (started[script].returncode, *output) for script, output in ended.items()}


def test_every_script_explains_itself_from_any_folder():
    for script, (code, out, error) in outputs("--help").items():
        assert (code, error) == (0, ""), script
        assert "usage:" in out, script


def test_a_bad_command_line_is_one_sentence():
    for script, (code, out, error) in outputs("--no-such-flag").items():
        assert (code, out) == (2, ""), script
        assert re.fullmatch(r"error: .+: see \w+\.py --help\n", error), script


def test_no_function_is_longer_than_40_lines():
    files = [ROOT / f"{name}.py" for name in TOP]
    files += [file for folder in (*FOLDERS, "tests") for file in python_files(folder)]
    too_long = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= 40
    ]
    assert not too_long


# --- inside deploy/


def part(file: Path) -> str:
    """The sub-folder of a file, or a file of deploy/ itself without its suffix."""
    return file.relative_to(ROOT / "deploy").parts[0].removesuffix(".py")


def test_deploy_has_these_parts_and_no_others():
    assert {part(file) for file in python_files("deploy")} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_inside_deploy_go_one_way(name):
    for file in (file for file in python_files("deploy") if part(file) == name):
        others = top_level(file) & set(MAY_IMPORT)
        assert others - {name} <= MAY_IMPORT[name], file


def test_modules_of_a_sub_folder_do_not_import_each_other_in_a_circle():
    deploy = ROOT / "deploy"
    known = {
        ".".join(file.relative_to(deploy).with_suffix("").parts): file for file in python_files("deploy")
    }
    uses = {name: imported_modules(file) & set(known) for name, file in known.items()}
    while free := [name for name, needs in uses.items() if not needs & set(uses)]:
        for name in free:
            del uses[name]
    assert not uses
