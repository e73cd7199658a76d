"""Every AWS call of every command fails in turn: the command's retries, or `destroy`, leave nothing behind.

A sample of the cases always runs, FAULTS=all in the environment runs all. The last line has their number.
"""

import itertools
import os
import re
from contextlib import contextmanager

import pytest

import fake_aws as aws
from aws import pricing
from fault_matrix import COMMANDS, REASON, Pets

ALL = os.environ.get("FAULTS") == "all"
STEP = 1 if ALL else 53  # coprime with the number of kinds, so that each kind is in the sample
ONCE = ("throttle", "500", "cut")
ALWAYS = ("500", "cut", "denied", "limit", "expired")
SILENT = {  # if denied, skipped without a note, because the settings do not mention it
    "cloudwatch:DescribeAlarms",
    "application-autoscaling:DescribeScalableTargets",
    "application-autoscaling:DescribeScalingPolicies",
    "application-autoscaling:DeregisterScalableTarget",
    "scheduler:DeleteSchedule",
    "logs:DescribeLogStreams",
    "logs:GetLogEvents",
    "s3:ListObjectsV2",
}
CHANGES = ("update", "update to less", "update to what fails", "rollback")
CASES = [
    (name, call, kind, times)
    for name, command in COMMANDS.items()
    for call in command.calls.split()
    if not (command.like and call in COMMANDS[command.like].calls.split())
    for kinds, times in ((ONCE, 1), (ALWAYS, float("inf")))
    for kind in kinds
]


@pytest.fixture
def tried(record_property):
    """Report what was broken to conftest.py's last line: a command, a call, a kind, how often or when."""
    return lambda *fault: record_property("fault", fault)


@contextmanager
def project(monkeypatch, folder, capsys):
    """A project in an account of its own."""
    with aws.account(monkeypatch) as cloud:
        cloud.answer = aws.correct_container
        monkeypatch.setattr(
            pricing, "estimate_price", lambda *_, **__: pricing.Price(None, None, "price unknown")
        )
        aws.build(folder)
        yield Pets(cloud, folder, capsys)


@pytest.fixture
def pets(monkeypatch, tmp_path, capsys):
    with project(monkeypatch, tmp_path / "pets", capsys) as pets:
        yield pets


def run(pets, name) -> tuple[int, str]:
    return pets(COMMANDS[name].words)


def prepare(pets, name) -> None:
    COMMANDS[name].before(pets)
    pets.cloud.faults.clear()
    pets.cloud.calls.clear()
    pets.cloud.injected.clear()


def destroyed(pets) -> None:
    pets.cloud.faults.clear()
    code, said = pets("destroy --yes --data")
    assert (code, pets.resources()) == (0, []), said
    pets.done("role --remove")
    assert pets.cloud.client("iam").list_roles()["Roles"] == []


def serves_what_is_live(pets) -> bool:
    endpoint = pets.endpoint()
    tags = pets.cloud.client("sagemaker").list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    live = {"Key": "fastai-sagemaker:live", "Value": endpoint["EndpointConfigName"]}
    return endpoint["EndpointStatus"] == "InService" and live in tags


@pytest.mark.parametrize("name", COMMANDS)
def test_the_matrix_has_every_call_of_every_command(pets, name):
    prepare(pets, name)
    code, said = run(pets, name)
    assert code == COMMANDS[name].code, said
    assert set(pets.cloud.calls) == set(COMMANDS[name].calls.split())


def test_every_kind_of_fault_is_among_the_everyday_cases():
    assert {case[2:] for case in CASES[::STEP]} == {case[2:] for case in CASES}


@pytest.mark.parametrize(("name", "call", "kind", "times"), CASES[::STEP])
def test_a_fault_is_retried_or_reported_and_destroy_removes_everything(pets, tried, name, call, kind, times):
    prepare(pets, name)
    pets.cloud.break_(call, kind, times)
    code, said = run(pets, name)
    assert pets.cloud.injected[call, kind] > 0
    tried(name, call, kind, times)
    if times == 1:
        assert code == COMMANDS[name].code, said
    elif code == 3:
        assert len(re.findall("^error: ", said, re.MULTILINE)) == 1 or name == "destroy", said
    else:
        assert code == COMMANDS[name].code, said
        assert (
            any(word in said for word in ("note: ", "unknown: ", "not everything could")) or call in SILENT
        ), said
    if name in CHANGES and "not everything could be rolled back" not in said:
        assert serves_what_is_live(pets), said
    if name in CHANGES and code == 3:
        pets.cloud.faults.clear()
        code, said = run(pets, name)
        assert (code, serves_what_is_live(pets)) == (COMMANDS[name].code, True), said
    destroyed(pets)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(4) if ALL else [6])  # in parts, for several workers
@pytest.mark.parametrize("name", list(COMMANDS)[:: 1 if ALL else 4])
def test_ctrl_c_at_any_moment(monkeypatch, tmp_path, capsys, tried, name, first):
    for moment in itertools.count(first, 4) if ALL else [first]:
        with project(monkeypatch, tmp_path / str(moment), capsys) as pets:
            prepare(pets, name)
            pets.cloud.break_("", "interrupt", times=1, after=moment)
            code, said = run(pets, name)
            if not pets.cloud.injected:
                break
            for pair in pets.cloud.injected:
                tried(name, *pair, moment)
            assert (code, "stopped" in said or name == "logs") == (130, True), said
            if moment % 2 == 0:  # every second time, repeat the command before destroy
                code, said = run(pets, name)
                assert code == COMMANDS[name].code, said
            destroyed(pets)


@pytest.mark.parametrize("name", ["deploy", "deploy async", "deploy serverless", "update", "rollback"])
def test_an_endpoint_that_fails_is_explained_and_everything_is_removed(pets, tried, name):
    prepare(pets, name)
    change = name in CHANGES
    before = pets.resources()
    pets.cloud.outcomes["any"] = ("Failed", REASON)
    code, said = run(pets, name)
    tried(name, "sagemaker:UpdateEndpoint" if change else "sagemaker:CreateEndpoint", "failed", 1)
    assert (code, REASON in said) == (1, True), said
    assert serves_what_is_live(pets) if change else pets.resources() == before
    pets.cloud.outcomes.clear()
    pets.done(COMMANDS[name].words)
    destroyed(pets)
