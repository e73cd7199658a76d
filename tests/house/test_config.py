"""A mistake in a configuration file is one sentence, with the file and the line, and exit code 2."""

# ruff: noqa: E501 - the table has a mistake and its sentence in a line

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from invoke import Exit

import configuration
from configuration import (
    DEFAULTS,
    SECTIONS,
    Section,
    Setting,
    default_project_file,
    read_defaults,
    read_project,
)
from support import INVOKE, ROOT

QUOTES = r"a backslash between double quotes: use single quotes, such as '^(.+)_\d+\.jpg$'"
COLON = "not `key: value`: check the indentation, and put text with a colon in quotes"


def message(read, *arguments, **options) -> str:
    """The one sentence with which reading ends."""
    with pytest.raises(Exit) as info:
        read(*arguments, **options)
    assert info.value.code == 2
    text = info.value.message or ""
    assert text.startswith("error: ")
    assert "\n" not in text
    return text.removeprefix("error: ")


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A project file in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path("mine.yaml")


@pytest.fixture
def every_section(monkeypatch):
    """Sections are checked also where this copy of the repository has not got their folders."""
    monkeypatch.setattr(Section, "is_here", True)


TRAIN = "project: a\ntrain:\n"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        # not a project file
        ("- a\n- b\n", 1, "the file must be `key: value` lines"),
        ("hello\n", 1, "the file must be `key: value` lines"),
        ("project: a\n? [b]\n: c\n", 2, "the file must be `key: value` lines, with one word as key"),
        ("project: a\n---\nproject: b\n", 2, "not YAML: but found another document"),
        # broken YAML
        (TRAIN + "\tbs: 3\n", 3, "a tab: YAML is indented with spaces"),
        (TRAIN + "  labels: [a: b\n", 3, "a bracket is not closed, or a comma is missing: put text with [ or { in quotes"),
        (TRAIN + '  labels: "^(.+)_\\d+\\.jpg$"\n', 3, QUOTES),
        (TRAIN + '  labels: "\\xy"\n', 3, QUOTES),
        (TRAIN + '  labels: "\\bcat"\n', 3, "`labels` has a control character: use single quotes where a \\ is meant"),
        (TRAIN + '  labels: "a\n  bs: 3\n', 3, "a quote is not closed"),
        (TRAIN + "  labels: @a\n", 3, "found character '@' that cannot start any token: put the text in single quotes"),
        (TRAIN + "  labels: a: b\n", 3, COLON),
        (TRAIN + "  bs: 3\n   lr: 4\n", 4, COLON),
        (TRAIN + "  bs: 3\n lr: 4\n", 4, "not `key: value`: check the indentation, the colon and the space after it"),
        ("project: *a\n", 1, "not YAML: found undefined alias 'a'"),
        ("project: a\x01\n", 1, "not YAML: special characters are not allowed"),
        ("project: " + "[" * 1000, 1, "too deeply nested"),
        # sections
        ("project: a\ntrian:\n  bs: 4\n", 2, "no section is called trian (did you mean train?)"),
        ("project: a\nbs: 4\n", 2, "no section is called bs: it is a setting of train, and goes below `train:`, indented"),
        ("projekt: a\n", 1, "no section is called projekt (did you mean project?)"),
        (TRAIN + "  # bs: 4\n", 2, "section train is empty: remove the line, or indent its settings below it"),
        (TRAIN + "bs: 4\n", 2, "section train is empty: remove the line, or indent its settings below it"),
        ("project: a\ntrain: resnet18\n", 2, "`train` is a section: its settings go below it, indented, such as `data: ...`"),
        (TRAIN + "  - bs: 4\n", 3, "section train must be `key: value` lines"),
        ("project: a\nrun: 5\n", 2, "section run must be `key: value` lines"),
        # settings
        (TRAIN + "  frozn: 3\n", 3, "section train has no setting frozn (did you mean frozen?): `invoke train --help` lists them"),
        ("project: a\nupload:\n  buket: b\n", 3, "section upload has no setting buket (did you mean bucket?): bucket"),
        ("project: a\nproject: b\n", 2, "`project` is given twice, first in line 1: remove one"),
        (TRAIN + "  bs: 1\n  lr: 1\n  bs: 2\n", 5, "`bs` is given twice, first in line 3: remove one"),
        (TRAIN + "  bs: many\n", 3, "`bs`: 'many' is not a whole number"),
        (TRAIN + "  bs: 3.5\n", 3, "`bs`: '3.5' is not a whole number"),
        (TRAIN + "  lr: small\n", 3, "`lr`: 'small' is not a number"),
        (TRAIN + "  weights: imagent\n", 3, "`weights`: 'imagent' is not one of imagenet, none (did you mean imagenet?)"),
        ("project: a\ndeploy:\n  tags: [a, b]\n", 3, "`tags` must be one value: write several as one text, such as 'a,b'"),
        # what YAML makes of a word or a number
        ("project: no\n", 1, "YAML reads `project: no` as false: write 'no' in quotes"),
        ("project: 012\n", 1, "YAML reads `project: 012` as 10: write '012' in quotes"),
        ("project: 1:30\n", 1, "YAML reads `project: 1:30` as 90: write '1:30' in quotes"),
        ("project: 1.10\n", 1, "YAML reads `project: 1.10` as 1.1: write '1.10' in quotes"),
        ("project: 2024-01-31\n", 1, "YAML reads `project: 2024-01-31` as a date or another type: write '2024-01-31' in quotes"),
        ("project: 2024-02-31\n", 1, "YAML reads `project: 2024-02-31` as a date or another type: write '2024-02-31' in quotes"),
        ("project: !x a\n", 1, "YAML reads `project: a` as a date or another type: write 'a' in quotes"),
        (TRAIN + "  data: off\n", 3, "YAML reads `data: off` as false: write 'off' in quotes"),
        (TRAIN + "  bs: 012\n", 3, "YAML reads `bs: 012` as 10: write it in decimal"),
        (TRAIN + "  lr: 1:30\n", 3, "YAML reads `lr: 1:30` as 90: write it in decimal"),
    ],
    ids=lambda value: value[-24:].strip() if isinstance(value, str) and "\n" in value else "",
)  # fmt: skip
@pytest.mark.usefixtures("every_section")
def test_a_mistake_is_one_sentence_with_its_line(mine, text, line, problem):
    mine.write_text(text)
    assert message(read_project, mine) == f"mine.yaml:{line}: {problem}"


@pytest.mark.usefixtures("every_section")
def test_what_is_written_in_other_ways_is_the_same(mine):
    mine.write_bytes(
        b"\xef\xbb\xbfproject: 12\r\ntrain:\r\n  lr: 1e-3\r\n  bs: 1_6\r\n  seed:\r\n  labels: '\\d'\r\n"
        b"deploy: {guard: yes, capture: off, isolation: 'on', ttl: 4h, count: '2'}\r\nrun:\r\n  echo: true\r\n"
    )
    data = read_project(mine)
    assert data["train"] == {"lr": "1e-3", "bs": 16, "seed": None, "labels": r"\d"}
    assert data["deploy"] == {"guard": "on", "capture": "off", "isolation": "on", "ttl": "4h", "count": "2"}
    assert (data["project"], data["run"]) == (12, {"echo": True})


@pytest.mark.parametrize("text", ["", "# nothing\n", "project:\n", "project: ''\n", "train:\n  bs: 3\n"])
@pytest.mark.usefixtures("every_section")
def test_a_file_names_its_project(mine, text):
    mine.write_text(text)
    end = "names no project: add a line `project: NAME` (results go to build/NAME)"
    assert message(read_project, mine) == f"mine.yaml {end}"
    read_project(mine, named=False)  # invoke.yaml, Invoke's own file in the project's folder, need not


def test_a_file_that_cannot_be_read_says_why(mine, monkeypatch):
    monkeypatch.setattr(configuration, "FOLDER", Path("config"))
    Path("config").mkdir()
    Path("config/local.yaml").touch()
    assert message(read_project, mine) == "there is no mine.yaml"
    assert message(read_project, Path("config/locl.yaml")) == (
        "there is no config/locl.yaml (did you mean config/local.yaml?)"
    )
    Path("folder.yaml").mkdir()
    assert message(read_project, Path("folder.yaml")) == "folder.yaml cannot be read: Is a directory"
    assert message(read_project, Path("tasks.py")).startswith("tasks.py is not a .yaml file")
    mine.write_bytes(b"project: a\n# caf\xe9\n")
    assert message(read_project, mine) == "mine.yaml:2: this is not UTF-8: save the file in UTF-8"

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert message(read_project, mine) == "mine.yaml cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["pets", "local", "mine"], "pets"),
        (["x", "local"], "x"),
        (["x", "y", "local"], ""),
        (["local"], ""),
        ([], ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_without_f_it_is_pets_yaml_or_else_the_only_other_one(mine, monkeypatch, names, chosen):
    folder = Path.cwd() / "config"
    monkeypatch.setattr(configuration, "FOLDER", folder)
    folder.mkdir()
    for name in ("defaults", *names):
        (folder / f"{name}.yaml").touch()
    if chosen:
        assert default_project_file() == folder / f"{chosen}.yaml"
    else:
        files = ", ".join(f"config/{name}.yaml" for name in sorted(names)) or "none"
        sentence = f"which project? Name its file with -f (in config/: {files})"
        assert message(default_project_file) == sentence


def test_sections_of_a_folder_that_was_removed_are_passed_over(mine, monkeypatch):
    monkeypatch.setattr(configuration, "ROOT", Path.cwd())
    mine.write_text("project: a\nbench:\n  whatever: 1\ncost:\n")
    assert read_project(mine) == {"project": "a", "bench": {"whatever": 1}}


# --- config/defaults.yaml


def test_every_default_says_what_it_is_and_what_it_takes():
    for section, known in SECTIONS.items():
        assert re.fullmatch(r"[a-z]+/[a-z_]+\.py", known.script), section
        for key, setting in known.settings.items():
            assert setting.help, f"{section}.{key}"
            assert setting.kind in ("text", "number", "whole number") or len(setting.choices) > 1, key
            assert re.fullmatch("[a-z0-9_]+", key)
    assert str(SECTIONS["train"].settings["bs"]) == "batch size (whole number; default: 32)"


def test_the_project_files_here_are_right_and_say_only_what_differs():
    for file in configuration.project_files():
        data = read_project(file)
        ours = file.name in ("pets.yaml", "local.yaml")
        for section in set(data) & set(DEFAULTS) if ours else ():
            same = {key for key, value in data[section].items() if value == DEFAULTS[section][key]}
            assert not same, f"{file.name}, {section}: these are the defaults"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("project: pets\n", 1, "section project must be `key: value` lines"),
        ("train:\n", 1, "section train must be `key: value` lines"),
        ("train:\n\tbs: 3\n", 2, "a tab: YAML is indented with spaces"),
        ("train:\n  bs: many  # batch size [whole number]\n", 2, "`bs`: 'many' is not a whole number"),
        ("train:\n  bs: 3\n  bs: 3\n", 3, "`bs` is given twice, first in line 2: remove one"),
        ("train:\n  data: no  # [text]\n", 2, "YAML reads `data: no` as false: write 'no' in quotes"),
    ],
)
def test_a_mistake_in_the_defaults_is_one_sentence_too(mine, text, line, problem):
    mine.write_text(text)
    assert message(read_defaults, mine) == f"mine.yaml:{line}: {problem}"


def test_a_default_without_a_comment_has_the_kind_of_its_value(mine):
    mine.write_text("mine: # mine/mine.py\n  a: 1\n  b: 0.5\n  c: x  # just a comment\n  d:\n")
    kinds = {"a": "whole number", "b": "number", "c": "text", "d": "text"}
    values = {"a": 1, "b": 0.5, "c": "x", "d": None}
    settings = {key: Setting(values[key], "", kind) for key, kind in kinds.items()}
    assert read_defaults(mine) == {"mine": Section("mine/mine.py", settings)}


# --- through `invoke` itself, in copies of this repository


@pytest.fixture
def copy(tmp_path) -> Path:
    """tasks.py, the configuration, and for each script an empty file."""
    folder = tmp_path / "a cöpy"
    shutil.copytree(ROOT / "config", folder / "config")
    for name in ("tasks.py", "configuration.py", "Makefile"):
        shutil.copy(ROOT / name, folder)
    scripts = {section.script for section in SECTIONS.values()}
    for script in {*scripts, "package/archive.py", "deploy/role.py"}:
        (folder / script).parent.mkdir(exist_ok=True)
        (folder / script).touch()
    return folder


def invoke(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess:
    env = {key: text for key, text in os.environ.items() if not key.startswith("INVOKE_")} | environment
    command = [*INVOKE, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False)
    assert "Traceback" not in done.stderr
    return done


def failure(done: subprocess.CompletedProcess) -> str:
    """The sentence of a run that ended with exit code 2."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr.strip().removeprefix("error: ")


def test_pets_yaml_may_be_renamed(copy):
    (copy / "config/pets.yaml").rename(copy / "config/x.yaml")
    (copy / "config/x.yaml").write_text("project: other\n")
    assert "train" in invoke(copy, "--list").stdout
    assert "--out=build/other/train" in invoke(copy, "--dry", "train").stderr
    assert "--out=build/local/train" in invoke(copy, "--dry", "train", "-f", "config/local.yaml").stderr


def test_a_removed_folder_takes_its_verbs_along(copy):
    def verbs() -> list[str]:
        listed = invoke(copy, "--list").stdout
        helped = subprocess.run(["make", "help"], cwd=copy, capture_output=True, text=True, check=True).stdout
        pattern = re.compile(r"^  ([a-z-]+)  +\w", re.MULTILINE)
        names = pattern.findall(listed)
        assert sorted(pattern.findall(helped.partition("Invoke's")[2])) == names
        return names

    before = verbs()
    shutil.rmtree(copy / "bench")
    shutil.rmtree(copy / "cost")
    assert verbs() == [verb for verb in before if verb not in ("bench", "cost")]
    assert len(before) == 15
    assert failure(invoke(copy, "cost")) == "no verb is called cost: `make help` lists them"
    (copy / "config/pets.yaml").write_text("project: pets\nbench:\n  unknown: 1\ncost:\n")
    assert "--out=build/pets/train" in invoke(copy, "--dry", "train").stderr
    assert "--out=build/pets/train" in invoke(copy, "--dry", "train", "-f", "config/pets.yaml").stderr
    # And with the sections gone from the defaults as well:
    defaults = copy / "config/defaults.yaml"
    text = defaults.read_text()
    defaults.write_text(re.sub(r"^(bench|cost):.*\n(  .*\n)+", "", text, flags=re.MULTILINE))
    (copy / "config/pets.yaml").write_text("project: pets\n")
    assert "--check" in invoke(copy, "--dry", "deploy").stderr
    defaults.write_text(defaults.read_text().replace("  stack: ray", "  # stack: ray"))
    assert failure(invoke(copy, "transform", "s3://a", "s3://b")).startswith(
        "config/defaults.yaml has no setting stack"
    )


def test_cost_knows_what_would_be_deployed_also_without_deploy(copy):
    shutil.rmtree(copy / "deploy")
    (copy / "mine.yaml").write_text("project: a\ndeploy:\n  count: 3\n")
    command = invoke(copy, "--dry", "-f", "mine.yaml", "cost").stderr
    assert " --instance=ml.c7i.large --count=3 " in command


def test_each_file_is_checked_before_invoke_reads_it(copy):
    bad = "project: a\ntrain:\n\tbs: 3\n"
    (copy / "mine.yaml").write_text(bad)
    assert (
        failure(invoke(copy, "-f", "mine.yaml", "train"))
        == "mine.yaml:3: a tab: YAML is indented with spaces"
    )
    assert failure(invoke(copy, "train", INVOKE_RUNTIME_CONFIG="mine.yaml")).startswith("mine.yaml:3: a tab")
    (copy / "config/pets.yaml").write_text(bad)
    assert failure(invoke(copy, "train")).startswith("config/pets.yaml:3: a tab")
    (copy / "invoke.yaml").write_text("train:\n  bs: many\n")
    assert failure(invoke(copy, "--list")) == "invoke.yaml:2: `bs`: 'many' is not a whole number"
    (copy / "invoke.yaml").unlink()
    (copy / "config/defaults.yaml").write_text(bad)
    assert failure(invoke(copy, "--list")) == "config/defaults.yaml:3: a tab: YAML is indented with spaces"


def test_invokes_own_files_work_and_are_checked_when_merged(copy, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    own = home / ".invoke.yaml"
    own.write_text("train:\n  bs: 7\nanother_project:\n  key: 1\n")
    (copy / "invoke.yaml").write_text("train:\n  size: 64\n")
    done = invoke(copy, "--dry", "train", HOME=str(home))
    assert "--size=64 --bs=7 " in done.stderr
    own.write_text("train:\n  bs: many\n")
    assert failure(invoke(copy, "train", HOME=str(home))) == "`bs` of train: 'many' is not a whole number"
    own.write_text("train:\n  sb: 7\n")
    assert failure(invoke(copy, "train", HOME=str(home))).startswith("section train has no setting sb")
    own.write_text("train:\n  bs: {a: 1}\n")
    assert failure(invoke(copy, "train", HOME=str(home))).startswith(
        "a file that Invoke reads, such as ~/.inv"
    )
    own.write_text("train: 5\n")
    sentence = "section train of ~/.invoke.yaml or /etc/invoke.yaml must be `key: value` lines"
    assert failure(invoke(copy, "train", HOME=str(home))) == sentence
