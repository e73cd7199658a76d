"""The commands that verbs build: Invoke's --dry prints each of them instead of running it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from configuration import DEFAULTS, INVOKES_OWN, SECTIONS, ProjectProgram
from support import INVOKE, ROOT, value
from support import invoke as run_invoke

DEPLOYED = ("kind", "instance", "count", "memory", "provisioned", "max")
COST_BY_TASKS = {"example", "compare", "simulate", "hourly", "actual", "billed", "refresh", "json", "csv"}
COST_BY_TASKS |= {"without", "offers", "archive", "bench"}
MODEL = ("stack", "role", "environment", "tags", "kms_key", "subnets", "security_groups", "isolation")
VERBS = {  # each with the folders that it needs
    "adopt": {"train"},
    "bench": {"bench"},
    "cost": {"cost"},
    "deploy": {"deploy", "package"},
    "destroy": {"deploy"},
    "image": {"deploy"},
    "local": {"deploy"},
    "logs": {"deploy"},
    "package": {"package"},
    "predict": {"client"},
    "role": {"deploy"},
    "status": {"deploy"},
    "test-local": {"deploy", "client"},
    "train": {"train"},
    "transform": {"deploy"},
}


def here(*folders: str) -> bool:
    return all((ROOT / folder).is_dir() for folder in folders)


def needs(*folders: str) -> pytest.MarkDecorator:
    """A test of verbs whose folders a copy of this repository may have removed."""
    return pytest.mark.skipif(not here(*folders), reason=f"{', '.join(folders)}: not in this copy")


@pytest.fixture
def invoke(capsys, monkeypatch) -> Iterator[Callable]:
    """`invoke` in this process: exit code and output. Each call loads tasks.py again, as `invoke` does."""

    def run(*words, cwd=ROOT, **environment):
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["invoke", *map(str, words)])
            patch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)  # Invoke sets it
            for name, text in environment.items():
                patch.setenv(name, text)
            code = 0
            try:
                ProjectProgram(name="Invoke", binary="inv[oke]", version="0").run(sys.argv)
            except SystemExit as error:
                code = int(error.code or 0)
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    sys_path, modules = list(sys.path), sys.modules.get("tasks")
    yield run
    sys.path[:] = sys_path
    if modules is None:
        sys.modules.pop("tasks", None)


@pytest.fixture
def commands(invoke, tmp_path) -> Callable:
    """The commands that `invoke --dry ...` prints, as words, without the interpreter.

    The project is pets, whatever this copy has in config/pets.yaml, unless another is given.
    """
    (tmp_path / "pets.yaml").write_text("project: pets\n")

    def run(*words, **options):
        project = () if "-f" in words or "INVOKE_PROJECT" in options else ("-f", tmp_path / "pets.yaml")
        done = invoke(*project, "--dry", *words, **options)
        assert done.returncode == 0, done.err
        return [shlex.split(line)[1:] for line in done.err.splitlines()]

    return run


@needs("train", "package", "deploy", "client")
def test_the_workflow_is_four_commands_that_meet_in_build(commands):
    train, export, archive, test = commands("train", "package", "--local", "test-local")
    assert train[0] == "train/train.py"
    assert value(train, "--out") == "build/pets/train"
    assert value(train, "--arch") == "resnet50"
    assert value(train, "--labels") == r"^(.+)_\d+\.jpg$"
    assert export[:3] == shlex.split("package/export.py --train=build/pets/train --out=build/pets/model")
    assert export[3:] == ["--precision=auto", "--exif=upright", "--device=cpu"]
    assert archive == shlex.split("package/archive.py --model=build/pets/model --out=build/pets/model.tar.gz")
    assert test[0] == "deploy/local.py"
    assert value(test, "--model") == "build/pets/model"
    assert value(test, "--expect") == "build/pets/train/validation.json"


@needs("train", "package")
def test_the_same_commands_through_invoke_itself_and_from_a_subfolder():
    done = run_invoke("--dry", "train", "package", "--local", cwd=ROOT / "config")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert [re.search(r"\w+/\w+\.py(?= )", line)[0] for line in lines] == [
        "train/train.py", "package/export.py", "package/archive.py",
    ]  # fmt: skip
    assert all(line.startswith(f"cd {shlex.quote(str(ROOT))} && ") for line in lines)


@needs("train")
def test_another_file_is_another_project_on_top_of_the_defaults(commands):
    (train,) = commands("-f", "config/local.yaml", "train")
    assert value(train, "--out") == "build/local/train"
    assert value(train, "--data") == "sample"
    assert value(train, "--lr") == str(DEFAULTS["train"]["lr"])


@needs("train")
@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["train", "--arch", "resnet34"], {}),
        (["train", "--arch=resnet34"], {"INVOKE_TRAIN_ARCH": "resnet101"}),
        (["train"], {"INVOKE_TRAIN_ARCH": "resnet34"}),
    ],
    ids=["a flag", "a flag beats the environment", "the environment"],
)
def test_a_flag_can_be_given_for_one_run(commands, words, environment):
    (train,) = commands(*words, **environment)
    assert value(train, "--arch") == "resnet34"


@needs("train")
def test_a_file_given_with_f_beats_the_environment_and_the_default_one_does_not(commands, tmp_path):
    (tmp_path / "mine.yaml").write_text("project: mine\ntrain:\n  arch: resnet34\n")
    (train,) = commands("-f", tmp_path / "mine.yaml", "train", INVOKE_TRAIN_ARCH="resnet101")
    assert value(train, "--arch") == "resnet34"
    (train,) = commands("train", INVOKE_PROJECT="other")
    assert value(train, "--out") == "build/other/train"


@needs("train", "package")
def test_a_failed_script_ends_the_run_with_its_exit_code():
    done = run_invoke("-f", "config/local.yaml", "train", "--bs", "1", "package")
    assert done.returncode == 2
    assert "--bs" in done.stderr.splitlines()[-1]
    assert "package/export.py" not in done.stderr


@needs("client")
def test_pictures_are_relative_to_where_the_user_stands(invoke):
    assert " README.md" in invoke("--dry", "predict", "README.md", "--top-k", "3").err
    for name in ("predictor.py", "*.py"):
        done = invoke("--dry", "predict", name, cwd=ROOT / "client")
        assert f"cd {shlex.quote(str(ROOT))} &&" in done.err
        assert f"client/{name}" in done.err


@needs("train")
def test_a_learner_its_pictures_and_a_table_are_relative_to_where_the_user_stands(invoke):
    words = ["--learner", "export.pkl", "--pictures", "~/photos", "--labels", "labels.csv"]
    done = invoke("--dry", "adopt", *words, cwd=ROOT / "config")
    (command,) = [shlex.split(line.partition(" && ")[2])[1:] for line in done.err.splitlines()]
    assert command[0] == "train/adopt.py"
    assert value(command, "--learner") == "config/export.pkl"
    assert value(command, "--pictures") == str(Path.home() / "photos")
    assert value(command, "--labels") == "config/labels.csv"
    assert value(command, "--out") == "build/pets/train"
    done = invoke(
        "--dry", "adopt", "--labels", r"^(.+)_\d+", cwd=ROOT / "config", INVOKE_ADOPT_LEARNER="a.pkl"
    )
    (command,) = [shlex.split(line.partition(" && ")[2])[1:] for line in done.err.splitlines()]
    assert value(command, "--labels") == r"^(.+)_\d+"
    assert value(command, "--learner") == "a.pkl"


@needs("train")
def test_a_value_that_starts_with_a_dash_stays_a_value(commands, tmp_path):
    (tmp_path / "mine.yaml").write_text("project: mine\ntrain:\n  labels: '-(.+)-'\n")
    (command,) = commands("-f", tmp_path / "mine.yaml", "train")
    assert value(command, "--labels") == "-(.+)-"


@needs("client")
def test_more_pictures_come_after_two_dashes_and_keep_their_spaces(commands):
    (predict,) = commands("predict", "a.jpg", "--", "b c.jpg", "https://example.org/d.jpg")
    assert predict[-3:] == ["a.jpg", "b c.jpg", "https://example.org/d.jpg"]
    assert value(predict, "--url") == "http://127.0.0.1:8080"


@needs("client")
def test_an_endpoint_replaces_the_local_address(commands):
    (predict,) = commands("predict", "a.jpg", "--endpoint", "pets")
    assert value(predict, "--endpoint") == "pets"
    assert not [word for word in predict if word.startswith("--url")]


@needs("client")
def test_an_address_given_for_one_run_beats_an_endpoint_in_the_configuration(commands):
    (predict,) = commands("predict", "a.jpg", "--url", "http://127.0.0.1:9", INVOKE_PREDICT_ENDPOINT="pets")
    assert value(predict, "--url") == "http://127.0.0.1:9"
    assert not [word for word in predict if word.startswith("--endpoint")]


@needs("deploy", "client")
def test_the_container_here_is_as_large_as_what_is_deployed(commands):
    (bare,) = commands("local")
    assert not [word for word in bare if word.startswith(("--docker", "--instance", "--memory"))]
    (local,) = commands("local", "--docker", INVOKE_DEPLOY_INSTANCE="ml.m5.xlarge")
    assert "--docker" in local
    assert value(local, "--instance") == "ml.m5.xlarge"
    serverless = {"INVOKE_DEPLOY_KIND": "serverless", "INVOKE_DEPLOY_MEMORY": "2048"}
    (test,) = commands("test-local", "--docker", **serverless)
    assert value(test, "--memory") == "2048"
    assert test.index("--docker") < test.index("client/cli.py")


@needs("deploy")
def test_what_is_destroyed_may_be_in_a_bucket_of_ones_own(commands):
    (destroy,) = commands("destroy", "--data", INVOKE_UPLOAD_BUCKET="mine")
    assert value(destroy, "--bucket") == "mine"
    assert "--data" in destroy


@needs("deploy", "package")
def test_deploying_uploads_first_and_rolling_back_does_not(commands):
    check, upload, deploy = commands("deploy", "--ttl", "4h")
    assert {"deploy", "--check", "--ttl=4h"} <= set(check)
    assert upload[0] == "package/upload.py"
    assert value(upload, "--archive") == "build/pets/model.tar.gz"
    assert value(upload, "--out") == "build/pets/uploaded.json"
    assert deploy[:2] == ["deploy/endpoint.py", "deploy"]
    assert value(deploy, "--project") == "pets"
    assert value(deploy, "--ttl") == "4h"
    (deploy,) = commands("deploy", "--rollback")
    assert "--rollback" in deploy


@needs("deploy", "package")
def test_on_and_off_reach_a_script_as_these_words_wherever_they_were_written(commands, tmp_path):
    (tmp_path / "mine.yaml").write_text("project: mine\ndeploy:\n  guard: on\n  capture: off\n")
    deploy = commands("-f", tmp_path / "mine.yaml", "deploy")[-1]
    assert (value(deploy, "--guard"), value(deploy, "--capture")) == ("on", "off")


@needs("deploy")
def test_batch_runs_what_the_endpoint_runs(commands):
    (transform,) = commands("transform", "s3://a/b", "s3://c/d", INVOKE_DEPLOY_SUBNETS="subnet-1")
    assert transform[:2] == ["deploy/endpoint.py", "transform"]
    assert transform[-2:] == ["s3://a/b", "s3://c/d"]
    assert value(transform, "--subnets") == "subnet-1"


@needs("bench")
def test_bench_loads_one_endpoint_and_writes_into_build(commands):
    (bench,) = commands("bench", "--p99", "200ms")
    assert bench[0] == "bench/load.py"
    assert [value(bench, f"--{key}") for key in ("url", "p99", "out")] == [
        DEFAULTS["bench"]["url"], "200ms", "build/pets/bench.json",
    ]  # fmt: skip
    assert not [word for word in bench if word.startswith(("--endpoint", "--pictures", "--yes"))]
    (bench,) = commands("bench", "--endpoint", "pets", "--yes")
    assert value(bench, "--endpoint") == "pets"
    assert "--yes" in bench
    assert not [word for word in bench if word.startswith("--url")]


@needs("cost")
def test_cost_is_of_the_deployment_unless_it_says_otherwise(commands):
    (cost,) = commands("cost")
    assert cost[0] == "cost/estimate.py"
    for key in DEPLOYED:
        assert value(cost, f"--{key}") == str(DEFAULTS["deploy"][key])
    assert value(cost, "--archive") == "build/pets/model.tar.gz"
    assert value(cost, "--bench") == "build/pets/bench.json"
    assert not [word for word in cost if word.startswith(("--invocations", "--region", "--volume"))]
    (cost,) = commands("cost", "--compare", "--instance=ml.m5.large", "--json", INVOKE_DEPLOY_MAX="4")
    assert [value(cost, f"--{key}") for key in ("instance", "max", "invocations")] == [
        "ml.m5.large",
        "4",
        "600",
    ]
    assert {"--compare", "--json"} <= set(cost)
    assert "--example=guide" in commands("cost", "--example")[0]


@needs("deploy")
def test_the_target_that_cost_assumes_is_the_one_that_deploy_has():
    import endpoint
    import tasks
    from lifecycle import settings

    args = endpoint.arguments(["deploy", "--project=pets", "--max=4"])
    assert settings.check(args).target == tasks.TARGET


# --- sections and the flags of their scripts

READ_FLAGS = """
import argparse, json, os, runpy, sys

script, verb, settings, probes = json.load(sys.stdin)

def converted(action, text):
    return action.type(text) if action.type and isinstance(text, str) else text

def accepts(action, text):
    try:
        return converted(action, text) in (action.choices or [converted(action, text)])
    except (ValueError, argparse.ArgumentTypeError):
        return False

def read(parser, *_, **__):
    if verb:
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[verb]
    flags = {}
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            text = settings.get(action.dest)
            flags[action.dest] = {
                "choices": action.choices and list(action.choices),
                "accepted": [probe for probe in probes if accepts(action, probe)],
                "number": action.type in (int, float),
                "default": action.default is not None,
                "same": text is None or converted(action, text) == converted(action, action.default),
            }
    print(json.dumps(flags))
    sys.exit()

argparse.ArgumentParser.parse_args = read
sys.path.insert(0, os.path.dirname(script))
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


@cache
def flags_of(section: str) -> dict[str, dict]:
    """The flags of a section's script, as its argparse parser has them; read in a process of its own."""
    script, verb = SECTIONS[section].script, section if section in ("deploy", "transform") else ""
    defaults = {key: None if text is None else str(text) for key, text in DEFAULTS[section].items()}
    probes = {choice for known in SECTIONS[section].settings.values() for choice in known.choices}
    words = json.dumps([str(ROOT / script), verb, defaults, sorted({"x", "1.5", *probes})])
    done = subprocess.run([sys.executable, "-c", READ_FLAGS], input=words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


GIVEN_BY_TASKS = {
    "train": {"out"},
    "adopt": {"out"},
    "package": {"train", "out", "code"},
    "local": {"model", "docker", "instance", "memory", "base"},
    "predict": {"expect", "json", "no_thumbnails"},
    "bench": {"out", "json", "yes"},
    "upload": {"archive", "project", "out", "optional"},
    "cost": COST_BY_TASKS,
    "image": {"project", "build", "kind", "bucket", "base", "delete", "yes"},
    "deploy": {"project", "build", "rollback", "check"},
    "transform": {"project", "build", *MODEL},
}


@pytest.mark.parametrize("section", GIVEN_BY_TASKS)
def test_a_section_is_its_scripts_flags_with_the_same_defaults_and_kinds(section):
    assert set(GIVEN_BY_TASKS) == set(SECTIONS)
    if not SECTIONS[section].is_here:
        pytest.skip(f"{SECTIONS[section].script} is not in this copy")
    flags = flags_of(section)
    assert set(flags) - GIVEN_BY_TASKS[section] == set(DEFAULTS[section])
    given_by_tasks = {"cost": DEPLOYED, "image": ["instance"]}.get(section, [])
    for key, setting in SECTIONS[section].settings.items():
        flag, accepted = flags[key], set(flags[key]["accepted"])
        # predict and bench have an address where the script wants to be told one.
        assert flag["same"] or (key == "url" and not flag["default"]), f"{section}.{key}: another default"
        assert setting.default is not None or not flag["default"] or key in given_by_tasks, key
        assert flag["choices"] is None or set(flag["choices"]) == set(setting.choices), key
        assert setting.kind in ("whole number", "number") or not flag["number"], key
        if setting.kind == "text":
            assert flag["choices"] is None, key
        elif setting.choices:
            assert set(setting.choices) <= accepted, key
            assert "x" not in accepted, key
        else:
            assert not accepted & ({"x", "1.5"} if setting.kind == "whole number" else {"x"}), key


@pytest.mark.parametrize(
    "verb", ["train", "adopt", "package", "local", "predict", "bench", "cost", "image", "deploy", "transform"]
)
def test_help_has_every_setting_with_its_help_kind_and_default(invoke, verb):
    if not here(*VERBS[verb]):
        pytest.skip("not in this copy")
    text = " ".join(invoke("--help", verb).out.split())
    for key, setting in SECTIONS[verb].settings.items():
        assert f"--{key.replace('_', '-')}=VALUE {' '.join(str(setting).split())}" in text
        assert setting.help
        assert f"({setting.kind}" in text


def test_the_readmes_table_has_every_setting_of_deploy_and_its_default():
    if not here("deploy"):
        pytest.skip("deploy: not in this copy")
    text = (ROOT / "deploy/README.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    keys = [re.findall(r"`(\w+)`", names) for names, _ in rows]
    assert sorted(key for row in keys for key in row) == sorted(DEFAULTS["deploy"])
    for names, (_, shown) in zip(keys, rows, strict=True):
        known = [DEFAULTS["deploy"][name] for name in names]
        wanted = [str(value) for value in known if value not in (None, "")]
        assert all(value in shown for value in wanted), names
        # `min` and `target` have no default of their own: it depends on the kind.
        assert wanted or not re.search(r"\w", shown) or "async" in shown, names


def test_no_section_has_a_name_that_invoke_needs_itself():
    assert not set(INVOKES_OWN) & set(SECTIONS)


# --- what Invoke says


def test_invoke_lists_a_line_for_every_verb_that_is_here(invoke):
    listed = re.findall(r"^  ([a-z-]+)  +\w", invoke("--list").out, re.MULTILINE)
    assert listed == [verb for verb, folders in VERBS.items() if here(*folders)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no verb is called trian (did you mean train?): `make help` lists them"),
        (["--help", "trian"], "no verb is called trian (did you mean train?): `make help` lists them"),
        (["train", "predikt"], "no verb is called predikt (did you mean predict?): `make help` lists them"),
        (["qwertz"], "no verb is called qwertz: `make help` lists them"),
        (
            ["train", "--frosen", "3"],
            "train has no option --frosen (did you mean --frozen?): see `invoke train --help`",
        ),
        (["--dri", "train"], "invoke has no option --dri (did you mean --dry?): see `invoke --help`"),
        (["predict", "--top-k"], "--top-k needs a value: see `invoke predict --help`"),
        (["predict"], "predict needs PICTURES: see `invoke predict --help`"),
        (["train", "--bs", "many"], "--bs: 'many' is not a whole number"),
        (["train", "--lr", "x"], "--lr: 'x' is not a number"),
        (
            ["train", "--weights", "imagent"],
            "--weights: 'imagent' is not one of imagenet, none (did you mean imagenet?)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@needs("train", "client")
def test_a_mistake_on_the_command_line_is_one_sentence(invoke, words, message):
    done = invoke(*words)
    assert (done.returncode, done.out, done.err) == (2, "", f"error: {message}\n")


@needs("train")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"INVOKE_TRAIN_BS": "many"}, "INVOKE_TRAIN_BS in the environment: 'many' is not a whole number"),
        ({"INVOKE_TRAIN_BS": ""}, "INVOKE_TRAIN_BS in the environment: '' is not a whole number"),
        ({"INVOKE_TRAIN_EPOCS": "1"}, "INVOKE_TRAIN_EPOCS in the environment is not a setting of train"),
        (
            {"INVOKE_TRAIN_FROZE": "1"},
            "INVOKE_TRAIN_FROZE in the environment is not a setting of train (did you mean FROZEN?)",
        ),
        ({"INVOKE_DEPLOY_MIN": "one"}, "INVOKE_DEPLOY_MIN in the environment: 'one' is not a whole number"),
        (
            {"INVOKE_RUN_WATCHERS": "x"},
            "an INVOKE_ variable in the environment: "
            "Can't adapt an environment string into a <class 'list'>!",
        ),
        (
            {"INVOKE_RUNTIME_CONFIG": "config/locl.yaml"},
            "there is no config/locl.yaml (did you mean config/local.yaml?)",
        ),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_environment_is_one_sentence(invoke, environment, message):
    done = invoke("--dry", "train", **environment)
    assert (done.returncode, done.out, done.err) == (2, "", f"error: {message}\n")


@needs("deploy", "client")
@pytest.mark.parametrize("verb", ["local", "test-local"])
def test_a_model_that_is_older_than_its_learner_is_noted(invoke, tmp_path, verb):
    (tmp_path / "mine.yaml").write_text(f"project: {tmp_path}\n")
    for number, file in enumerate(("model/model.json", "train/metrics.json")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (number, number))
    note = "note: the model is older than the Learner in build/: `invoke package` exports it again\n"
    assert invoke("-f", tmp_path / "mine.yaml", verb).err.startswith(note)
    assert note not in invoke("-f", tmp_path / "mine.yaml", "--dry", verb).err
    os.utime(tmp_path / "model/model.json", (2, 2))
    assert note not in invoke("-f", tmp_path / "mine.yaml", verb).err


@needs("deploy")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_what_a_verb_serves_also_without_a_terminal(project, tmp_path, sign):
    (tmp_path / "mine.yaml").write_text(f"project: {project}\n")
    command = [*INVOKE, "-f", tmp_path / "mine.yaml", "local", "--port", "0"]
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        process.send_signal(sign)
        assert process.wait(30) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/ping", timeout=5)
