"""What the documentation names exists: paths, tasks, scripts and their flags."""

import ast
import re

from support import ROOT

FILES = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]
TEXT = "\n".join(file.read_text() for file in FILES if file.name != "CHANGELOG.md")  # which names old paths
MADE_BY_USERS = (  # paths that a user or a task makes, and units that look like paths
    "build/",
    "photos/",
    "code/",
    "config/mine.yaml",
    "config.yaml",
    "application/",
    "binary/",
    "image/",
    "pictures/s",
    "requests/s",
    "img/s",
    "train/report.py",  # an example in CONTRIBUTING.md
)
REMOVABLE = ("bench/", "cost/")  # a copy may have deleted these, and is still described by the same README


def removed(path: str) -> bool:
    """Whether a path is in a folder that this copy does not have."""
    return path.startswith(REMOVABLE) and not (ROOT / path.partition("/")[0]).is_dir()


def test_every_path_exists():
    paths = re.findall(
        r"(?:[`( ]|^)((?:[a-z][\w.-]*/)+[\w.-]*|\w+\.(?:py|yaml|lock))(?=[`)\s,:;]|$)", TEXT, re.MULTILINE
    )
    paths = [path for path in paths if not path.startswith(MADE_BY_USERS) and not removed(path)]
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    names = {file.name for folder in folders for file in folder.rglob("*")}
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists() and path not in names]


def tasks() -> set[str]:
    """The names of Invoke's tasks: the functions in tasks.py that @script_task decorates."""
    tree = ast.parse((ROOT / "tasks.py").read_text()).body
    functions = [node for node in tree if isinstance(node, ast.FunctionDef)]
    decorated = [f for f in functions if any("task" in ast.unparse(d) for d in f.decorator_list)]
    return {function.name.replace("_", "-") for function in decorated}


def test_every_command_is_a_task_or_a_make_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"(?:^ {4}|`)((?:make|invoke) [^`\n#]+)", TEXT, re.MULTILINE)
    assert len(commands) > 8
    for line in commands:
        if "VERB" in line or "TASK" in line:
            continue
        tool, *words = re.sub(r" -{1,2}[\w-]+( [^-\s]\S*)?", "", line).split()  # no options, nor their values
        verbs = {word for word in words if re.fullmatch("[a-z-]+", word)}
        assert verbs <= tasks() | (targets if tool == "make" else set()), line


def test_every_script_has_the_flags_it_is_given():
    commands = re.findall(r"python ((?:\w+/)+\w+\.py)((?:(?!python )[^`\n])*)", TEXT)
    assert len(commands) > 4
    for script, rest in commands:
        if removed(script):
            continue
        folder = (ROOT / script).parent
        known = {flag for file in folder.rglob("*.py") for flag in re.findall(r"--[a-z-]+", file.read_text())}
        assert set(re.findall(r"(?<= )'?(--[a-z-]+)", rest)) <= known, script


def test_the_readme_is_short_and_prose_wraps_at_120_characters():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for file in FILES:
        code = False
        for number, line in enumerate(file.read_text().splitlines(), 1):
            code ^= line.startswith("```")
            prose = not code and not line.startswith(("|", "    ", "!["))  # tables and code cannot wrap
            assert not prose or len(line) <= 120, f"{file.relative_to(ROOT)}:{number}"
