"""The sentences that tasks say: Invoke's --dry prints each command instead of running it."""

import re
import shlex
import signal
import subprocess
from pathlib import Path
from runpy import run_path

import pytest
import requests
import yaml

import export
import options
import train
from lifecycle import settings
from support import INVOKE, ROOT, invoke, run, said, value

COST_BY_TASKS = {"example", "compare", "simulate", "hourly", "actual", "billed", "refresh", "json", "csv"}
COST_BY_TASKS |= {"without", "offers", "archive", "bench"}
MODEL = ("stack", "role", "environment", "tags", "kms_key", "subnets", "security_groups", "isolation")
PETS = yaml.safe_load((ROOT / "config" / "pets.yaml").read_text())


def test_the_road_is_four_commands_that_meet_in_build():
    train, export, archive, ask = said("train", "package", "--local", "test-local")
    assert train[0] == "train/train.py"
    assert value(train, "--out") == "build/pets/train"
    assert value(train, "--arch") == "resnet50"
    assert value(train, "--labels") == r"^(.+)_\d+\.jpg$"
    assert export[:3] == shlex.split("package/export.py --train=build/pets/train --out=build/pets/model")
    assert export[3:] == ["--precision=auto", "--device=cpu"]
    assert archive == shlex.split("package/archive.py --model=build/pets/model --out=build/pets/model.tar.gz")
    assert ask[0] == "deploy/local.py"
    assert value(ask, "--model") == "build/pets/model"
    assert value(ask, "--expect") == "build/pets/train/validation.json"


def test_another_file_is_another_project_on_top_of_the_defaults():
    (train,) = said("-f", "config/local.yaml", "train")
    assert value(train, "--out") == "build/local/train"
    assert value(train, "--data") == "sample"
    assert value(train, "--lr") == str(PETS["train"]["lr"])


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["train", "--arch", "resnet34"], {}),
        (["train", "--arch=resnet34"], {"INVOKE_TRAIN_ARCH": "resnet101"}),
        (["train"], {"INVOKE_TRAIN_ARCH": "resnet34"}),
    ],
    ids=["a flag", "a flag beats the environment", "the environment"],
)
def test_a_flag_can_be_given_for_one_run(words, environment):
    (train,) = said(*words, **environment)
    assert value(train, "--arch") == "resnet34"


def test_an_unknown_key_reaches_the_script_and_fails_there_by_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("train:\n  epochs: 3\n")
    done = invoke("-f", str(tmp_path / "mine.yaml"), "train")
    assert done.returncode == 2
    assert "unrecognized arguments: --epochs=3" in done.stderr


@pytest.mark.parametrize("verb", ["train", "package", "test-local"])
@pytest.mark.parametrize(
    ("text", "says"),
    [("trian:\n  bs: 3\n", "no section is called trian"), (None, "there is no ")],
    ids=["a section that does not exist", "a file that does not exist"],
)
def test_what_invoke_would_pass_over_is_a_sentence(tmp_path, text, says, verb):
    if text:
        (tmp_path / "mine.yaml").write_text(text)
    done = invoke("-f", str(tmp_path / "mine.yaml"), verb)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_script_ends_the_road_with_its_exit_code():
    done = invoke("-f", "config/local.yaml", "train", "--weights", "no-such-weights", "package")
    assert done.returncode == 2
    assert "no-such-weights" in done.stderr
    assert "package/export.py" not in done.stderr


def test_pictures_are_relative_to_where_the_user_stands():
    done = invoke("--dry", "predict", "README.md", "--top-k", "3", cwd=ROOT)
    assert " README.md" in done.stderr
    for name in ("predictor.py", "*.py"):
        done = invoke("--dry", "predict", name, cwd=ROOT / "client")
        assert f"cd {ROOT} &&" in done.stderr
        assert f"client/{name}" in done.stderr


def test_a_value_that_starts_with_a_dash_stays_a_value(tmp_path):
    (tmp_path / "mine.yaml").write_text("train:\n  labels: '-(.+)-'\n")
    (command,) = said("-f", str(tmp_path / "mine.yaml"), "train")
    assert value(command, "--labels") == "-(.+)-"


def test_more_pictures_come_after_two_dashes_and_keep_their_spaces():
    (ask,) = said("predict", "a.jpg", "--", "b c.jpg", "https://example.org/d.jpg")
    assert ask[-3:] == ["a.jpg", "b c.jpg", "https://example.org/d.jpg"]
    assert value(ask, "--url") == "http://127.0.0.1:8080"


def test_an_endpoint_takes_the_place_of_the_local_address():
    (ask,) = said("predict", "a.jpg", "--endpoint", "pets")
    assert value(ask, "--endpoint") == "pets"
    assert not [word for word in ask if word.startswith("--url")]


def test_an_address_given_for_one_run_beats_an_endpoint_in_the_configuration():
    (ask,) = said("predict", "a.jpg", "--url", "http://127.0.0.1:9", INVOKE_PREDICT_ENDPOINT="pets")
    assert value(ask, "--url") == "http://127.0.0.1:9"
    assert not [word for word in ask if word.startswith("--endpoint")]


@pytest.mark.parametrize(
    ("section", "script", "given_by_tasks"),
    [
        ("train", "train/train.py", {"out"}),
        ("package", "package/export.py", {"train", "out", "code"}),
        ("local", "deploy/local.py", {"model", "docker", "instance", "memory", "base"}),
        ("predict", "client/cli.py", {"expect", "json", "no_thumbnails"}),
        ("bench", "bench/load.py", {"out", "json", "yes"}),
        ("cost", "cost/estimate.py", COST_BY_TASKS),
        ("image", "deploy/image.py", {"project", "build", "kind", "bucket", "base", "delete", "yes"}),
        ("deploy", "deploy/endpoint.py deploy", {"project", "build", "rollback", "check"}),
        ("transform", "deploy/endpoint.py transform", {"project", "build", *MODEL}),
    ],
)
def test_a_section_of_the_configuration_is_its_scripts_flags(section, script, given_by_tasks):
    usage = run(*script.split(), "--help").stdout.partition("options:")[0]
    flags = set(re.findall(r"--([a-z][a-z0-9-]*)", usage))
    assert {flag.replace("-", "_") for flag in flags} - given_by_tasks == set(PETS[section])
    help_ = invoke("--help", section).stdout  # the other way round, it would be transform's first place
    assert all(f"--{key.replace('_', '-')}" in help_ for key in PETS[section])


def test_the_container_here_is_as_large_as_what_is_deployed():
    (bare,) = said("local")
    assert not [word for word in bare if word.startswith(("--docker", "--instance", "--memory"))]
    (local,) = said("local", "--docker", INVOKE_DEPLOY_INSTANCE="ml.m5.xlarge")
    assert "--docker" in local
    assert value(local, "--instance") == "ml.m5.xlarge"
    (test,) = said("test-local", "--docker", INVOKE_DEPLOY_KIND="serverless", INVOKE_DEPLOY_MEMORY="2048")
    assert value(test, "--memory") == "2048"
    assert test.index("--docker") < test.index("client/cli.py")


def test_what_is_destroyed_may_be_in_a_bucket_of_ones_own():
    (destroy,) = said("destroy", "--data", INVOKE_UPLOAD_BUCKET="mine")
    assert value(destroy, "--bucket") == "mine"


def test_deploying_uploads_first_and_going_back_does_not():
    check, upload, deploy = said("deploy", "--ttl", "4h")
    assert {"deploy", "--check", "--ttl=4h"} <= set(check)
    assert upload[0] == "package/upload.py"
    assert value(upload, "--archive") == "build/pets/model.tar.gz"
    assert value(upload, "--out") == "build/pets/uploaded.json"
    assert deploy[:2] == ["deploy/endpoint.py", "deploy"]
    assert value(deploy, "--project") == "pets"
    assert value(deploy, "--ttl") == "4h"
    (deploy,) = said("deploy", "--rollback")
    assert "--rollback" in deploy


def test_batch_runs_what_the_endpoint_runs():
    (transform,) = said("transform", "s3://a/b", "s3://c/d", INVOKE_DEPLOY_SUBNETS="subnet-1")
    assert transform[:2] == ["deploy/endpoint.py", "transform"]
    assert transform[-2:] == ["s3://a/b", "s3://c/d"]
    assert value(transform, "--subnets") == "subnet-1"


def test_pets_yaml_says_the_defaults_that_deploy_has_by_itself():
    parse = run_path(str(ROOT / "deploy/endpoint.py"))["arguments"]
    for verb, words in (("deploy", []), ("transform", ["s3://a", "s3://b"])):
        given = {key: value for key, value in PETS[verb].items() if value is not None}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        own, same = ([verb, *words, "--project=pets", *some] for some in ([], flags))
        left, right = vars(parse(own)), vars(parse(same))
        assert {key: left[key] for key in PETS[verb]} == {key: right[key] for key in PETS[verb]}


def test_the_readmes_table_has_every_setting_of_deploy_and_its_default():
    text = (ROOT / "deploy/README.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    keys = [re.findall(r"`(\w+)`", names) for names, _ in rows]
    assert sorted(key for row in keys for key in row) == sorted(PETS["deploy"])
    for names, (_, shown) in zip(keys, rows, strict=True):
        known = [PETS["deploy"][name] for name in names]
        wanted = [str(value) for value in known if value not in (None, "")]
        assert all(value in shown for value in wanted), names
        assert wanted or not re.search(r"\w", shown) or "async" in shown, (
            names
        )  # those two depend on the kind


def test_bench_loads_one_endpoint_and_writes_into_build():
    (bench,) = said("bench", "--p99", "200ms")
    assert bench[0] == "bench/load.py"
    assert [value(bench, f"--{key}") for key in ("url", "p99", "out")] == [
        PETS["bench"]["url"], "200ms", "build/pets/bench.json",
    ]  # fmt: skip
    assert not [word for word in bench if word.startswith(("--endpoint", "--pictures", "--yes"))]
    (bench,) = said("bench", "--endpoint", "pets", "--yes")
    assert value(bench, "--endpoint") == "pets"
    assert "--yes" in bench
    assert not [word for word in bench if word.startswith("--url")]


@pytest.mark.parametrize("section", ["predict", "bench"])
def test_pets_yaml_says_the_defaults_that_the_client_and_bench_have_by_themselves(section):
    script = {"predict": "client/cli.py", "bench": "bench/load.py"}[section]
    parse = run_path(str(ROOT / script))["parse"]
    given = {key.replace("_", "-"): value for key, value in PETS[section].items() if value is not None}
    own = parse(["--url", given["url"]])
    assert parse([f"--{key}={value}" for key, value in given.items()]) == own


def test_cost_is_of_the_deployment_unless_it_says_otherwise():
    (cost,) = said("cost")
    assert cost[0] == "cost/estimate.py"
    deployed = PETS["deploy"]
    for key in ("kind", "instance", "count", "memory", "provisioned", "max"):
        assert value(cost, f"--{key}") == str(deployed[key])
    assert value(cost, "--archive") == "build/pets/model.tar.gz"
    assert value(cost, "--bench") == "build/pets/bench.json"
    assert not [word for word in cost if word.startswith(("--invocations", "--region", "--volume"))]
    (cost,) = said("cost", "--compare", "--instance=ml.m5.large", "--json", INVOKE_DEPLOY_MAX="4")
    assert [value(cost, f"--{key}") for key in ("instance", "max", "invocations")] == [
        "ml.m5.large",
        "4",
        "600",
    ]
    parsed = run_path(str(ROOT / "deploy/endpoint.py"))["arguments"](["deploy", "--project=pets", "--max=4"])
    assert settings.check(parsed).target == 600
    assert {"--compare", "--json"} <= set(cost)
    assert "--example=guide" in said("cost", "--example")[0]


def test_pets_yaml_says_the_defaults_that_cost_has_by_itself():
    given = {key: value for key, value in PETS["cost"].items() if value is not None}
    deployed = {
        key: PETS["deploy"][key] for key in ("kind", "instance", "count", "memory", "provisioned", "max")
    }
    words = [f"--{key}={value}" for key, value in (given | deployed).items()]
    assert options.parse(words, "") == options.parse([], "")


def test_pets_yaml_says_the_defaults_that_train_has_by_itself():
    assert vars(train.arguments(["--out", "x"])) == PETS["train"] | {"out": Path("x")}


def test_pets_yaml_says_the_defaults_that_package_has_by_itself():
    args = vars(export.arguments(["--train", "x", "--out", "y"]))
    assert {key: args[key] for key in PETS["package"]} == PETS["package"]


def test_no_section_has_a_name_that_invoke_needs_itself():
    assert not {"run", "tasks", "sudo", "runners", "timeouts"} & set(PETS)


def test_invoke_lists_a_line_for_every_verb():
    listed = re.findall(r"^  ([a-z-]+)  +\w", invoke("--list").stdout, re.MULTILINE)
    verbs = (
        "bench cost deploy destroy image local logs package predict role status test-local train transform"
    )
    assert listed == verbs.split()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_a_task_serves_also_without_a_terminal(project, tmp_path, sign):
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
