"""Inside deploy/ imports go one way: commands -> lifecycle -> ecr -> aws -> common."""

import ast
from pathlib import Path

import pytest

from support import ROOT

DEPLOY = ROOT / "deploy"
COMMANDS = ("endpoint", "image", "local", "role")
MAY_IMPORT = {  # a part of deploy/, and the other parts that its files may import
    "common": set(),
    "aws": {"common"},
    "ecr": {"aws", "common"},
    "emulator": {"ecr", "aws", "common"},  # it runs the image that ecr/docker_build.py builds
    "lifecycle": {"ecr", "aws", "common"},
}
MAY_IMPORT |= {command: set(MAY_IMPORT) for command in COMMANDS}


def part(file: Path) -> str:
    """The sub-folder of a file, or a file of deploy/ itself without its suffix."""
    return file.relative_to(DEPLOY).parts[0].removesuffix(".py")


def imported_modules(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file}: no relative imports"
            assert not node.level, f"{file}: no relative imports"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def files() -> list[Path]:
    return sorted(DEPLOY.rglob("*.py"))


def test_deploy_has_these_parts_and_no_others():
    assert {part(file) for file in files()} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_inside_deploy_go_one_way(name):
    for file in (file for file in files() if part(file) == name):
        others = {module.partition(".")[0] for module in imported_modules(file)} & set(MAY_IMPORT)
        assert others - {name} <= MAY_IMPORT[name], file


def test_modules_of_a_sub_folder_do_not_import_each_other_in_a_circle():
    known = {".".join(file.relative_to(DEPLOY).with_suffix("").parts): file for file in files()}
    uses = {name: imported_modules(file) & set(known) for name, file in known.items()}
    while free := [name for name, needs in uses.items() if not needs & set(uses)]:
        for name in free:
            del uses[name]
    assert not uses
