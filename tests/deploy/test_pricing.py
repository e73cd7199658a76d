"""Prices: from cost/, without cost/, and when an endpoint's cost so far can be estimated."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

import fake_aws as aws
from aws import pricing
from aws.names import LIVE_TAG, PREVIOUS_TAG
from emulator import docker_run
from lifecycle.state import State
from lifecycle.status import why_not_estimated
from support import ROOT

CREATED = datetime(2026, 11, 1, tzinfo=UTC)
PRICE = pricing.Price(0.107, 79.96, "$0.107 an hour")


@pytest.fixture
def without_cost(tmp_path):
    """A copy of this repository's deploy/ from which cost/ was deleted."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "serve", tmp_path / "serve", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_deploy_without_cost_says_that_the_price_is_not_estimated(without_cost):
    build = without_cost / "build"
    aws.build(build)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with aws.running() as cloud:
        cloud.answer = aws.correct_container
        for name in ("fastai-sagemaker-pets", "fastai-sagemaker-pets-ttl"):
            trust = '{"Statement": [{"Principal": {"Service": "sagemaker.amazonaws.com"}}]}'
            cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        environment |= cloud.environment
        archive, out = build / "model.tar.gz", build / "uploaded.json"
        upload = ["package/upload.py", f"--archive={archive}", f"--out={out}", "--project=pets"]
        subprocess.run([sys.executable, *upload], cwd=ROOT, env=environment, check=True)
        command = [
            sys.executable,
            "deploy/endpoint.py",
            "deploy",
            "--project=pets",
            f"--build={build}",
            "--max=2",
        ]
        done = subprocess.run(
            command, cwd=without_cost, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == [
        "price not estimated: cost/ is not here",
        "autoscaling: 1 to 2 instances; `invoke destroy` deletes it",
    ]
    assert "pets is live" in done.stdout


def test_a_container_without_cost_has_no_limit_and_a_note(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pricing, "ESTIMATE", tmp_path / "cost" / "estimate.py")
    assert docker_run.size_flags("ml.c7i.large", None) == []
    assert "cost/ is not here" in capsys.readouterr().out
    assert docker_run.size_flags(None, 2048) == ["--memory", "2048m", "--memory-swap", "2048m"]


# --- what an endpoint has cost: the same rule as in cost/actual.py


def reason(
    *, count=1, limits=None, known=True, price=PRICE, tags=None, config=None, variant=None, **endpoint
):
    """Why the cost of an endpoint is not estimated; without arguments, of one that was never changed."""
    described = {"EndpointStatus": "InService", "EndpointConfigName": "pets-1", "CreationTime": CREATED}
    described |= {"LastModifiedTime": CREATED + timedelta(minutes=8)} | endpoint
    variant = {"VariantName": "AllTraffic"} | (
        variant or {"InstanceType": "ml.c7i.large", "InitialInstanceCount": 1}
    )
    configured = {"CreationTime": CREATED - timedelta(seconds=1), "ProductionVariants": [variant]} | (
        config or {}
    )
    state = State(described, {LIVE_TAG: "pets-1"} | (tags or {}))
    return why_not_estimated(state, configured, count, limits, price, is_scaling_known=known)


def test_the_cost_of_an_endpoint_that_was_never_changed_is_estimated():
    assert reason() is None
    assert reason(limits={"min": 1, "max": 1}) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": {"ServerlessConfig": {"MemorySizeInMB": 2048}}}, "serverless is billed per request"),
        ({"price": pricing.Price(None, None, "unknown")}, "the price is unknown"),
        ({"EndpointStatus": "Creating"}, "it is Creating"),
        ({"EndpointStatus": "Updating"}, "it is Updating"),
        ({"known": False}, "autoscaling's limits are unknown"),
        ({"limits": {"min": 1, "max": 3}}, "autoscaling changes the number of instances"),
        ({"tags": {PREVIOUS_TAG: "pets-0"}}, "its configuration was changed after its creation"),
        (
            {"config": {"CreationTime": CREATED + timedelta(seconds=1)}},
            "its configuration was changed after its creation",
        ),
        ({"count": 2}, "its number of instances was changed after its creation"),
        ({"LastModifiedTime": CREATED + timedelta(hours=3)}, "it was changed after its creation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_cost_of_an_endpoint_that_was_changed_is_not_estimated(changes, says):
    assert reason(**changes) == says
