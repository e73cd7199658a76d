"""The rules of the house, and that what the documentation says exists."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support import ROOT

FOLDERS = ("train", "package", "serve", "deploy", "client", "bench", "cost")
SCRIPTS = ["train/train.py", "train/sample.py", "package/export.py", "package/archive.py"]
SCRIPTS += ["serve/server.py", "deploy/local.py", "deploy/image.py", "client/cli.py", "cost/estimate.py"]
SCRIPTS += ["bench/serving.py", "bench/load.py", "bench/probe.py"]
README = "\n".join(file.read_text() for file in [ROOT / "README.md", *ROOT.glob("*/README.md")])


def imports(file: Path) -> set[str]:
    """The top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def modules(folder: str) -> set[str]:
    """What a folder on sys.path makes importable: its files, and its sub-folders (namespace packages)."""
    return {file.relative_to(ROOT / folder).parts[0].removesuffix(".py") for file in scripts(folder)}


def scripts(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_imports_another(folder):
    others = set().union(*(modules(other) for other in FOLDERS if other != folder), FOLDERS, {"tasks"})
    for file in scripts(folder):
        allowed = {"inference"} if file.name == "export.py" else set()  # by path, from the folder it packaged
        assert not (imports(file) & others) - allowed, file


def test_tasks_imports_no_folder():
    assert not imports(ROOT / "tasks.py") & set().union(*(modules(folder) for folder in FOLDERS), FOLDERS)


def test_names_that_are_imported_are_unique_across_folders():
    names = [name for folder in FOLDERS for name in sorted(modules(folder))]
    assert len(names) == len(set(names))


def test_no_folder_is_a_package():
    assert not [file for folder in FOLDERS for file in scripts(folder) if file.name == "__init__.py"]


def test_serving_needs_neither_torch_nor_fastai():
    heavy = {"torch", "torchvision", "fastai", "timm", "boto3", "requests"}
    assert not set().union(*(imports(file) for file in (ROOT / "serve").glob("*.py"))) & heavy


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    "file",
    sorted(file for folder in (*FOLDERS, "tests") for file in (ROOT / folder).rglob("*.py")),
    ids=lambda file: file.name,
)
def test_no_function_is_longer_than_40_lines(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 40, f"{file.name}: {node.name}"


def test_the_lock_names_versions_and_hashes_only():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or re.search("(?<!no-emit-)index-url", line)]
    pinned = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert all("==" in line and line.endswith("\\") for line in pinned)


def test_the_lock_has_every_direct_dependency():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = {
        re.match(r"[A-Za-z0-9_-]+", need)[0]
        for group in groups.values()
        for need in group
        if type(need) is str
    }
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert named <= locked


def test_every_path_in_the_readme_exists():
    paths = re.findall(
        r"(?:[`( ]|^)((?:[a-z][\w.-]*/)+[\w.-]*|\w+\.(?:py|yaml|lock))(?=[`)\s,:;]|$)", README, re.M
    )
    elsewhere = (
        "build/",
        "photos/",
        "code/",
        "config/mine.yaml",
        "config.yaml",
        "application/",
        "pictures/s",
        "requests/s",
    )
    names = {file.name for file in ROOT.glob("*/*")}  # as the table of the house says them
    paths = [path for path in paths if not path.startswith(elsewhere)]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists() and path not in names]


def tasks() -> set[str]:
    """Invoke's verbs: the functions in tasks.py that @task decorates."""
    tree = ast.parse((ROOT / "tasks.py").read_text()).body
    functions = [node for node in tree if isinstance(node, ast.FunctionDef)]
    return {
        f.name.replace("_", "-") for f in functions if any("task" in ast.unparse(d) for d in f.decorator_list)
    }


def test_every_verb_in_the_readme_is_a_task_or_a_make_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = re.findall(r"(?:^ {4}|`)((?:make|invoke) [^`\n#]+)", README, re.MULTILINE)
    assert len(said) > 8
    for line in said:
        tool, *words = re.sub(r" -{1,2}[\w-]+( [^-\s]\S*)?", "", line).split()  # no options, nor their values
        verbs = {word for word in words if re.fullmatch("[a-z-]+", word)}
        assert verbs <= tasks() | (targets if tool == "make" else set()), line


def test_every_script_in_the_readme_has_the_flags_it_is_given():
    said = re.findall(r"python ((?:\w+/)+\w+\.py)((?:(?!python )[^`\n])*)", README)
    assert len(said) > 4
    for script, rest in said:
        known = set(re.findall(r"--[a-z-]+", (ROOT / script).read_text()))
        assert set(re.findall(r"(?<= )'?(--[a-z-]+)", rest)) <= known, script
