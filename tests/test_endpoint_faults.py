"""Every AWS call of a deployment broken in turn: the command's own patience, or `destroy`, leaves nothing.

A few pairs of a call and a fault run always; FAULTS=all in the environment runs every pair.
"""

import os

import cloud as aws
import pytest
from cloud import build

import endpoint
import role
import upload

EVERY = 4
ONCE = ("throttle", "500", "cut", "interrupt")
ALWAYS = ("throttle", "500", "cut", "denied", "limit", "expired")
DEPLOY = ["--ttl", "4h", "--max", "2", "--guard", "on"]
UPLOAD_CALLS = ["sts:GetCallerIdentity", "s3:HeadBucket", "s3:CreateBucket", "s3:HeadObject", "s3:PutObject"]
UPLOAD_CALLS += ["s3:PutPublicAccessBlock", "s3:PutBucketEncryption"]
CREATE_CALLS = [
    "iam:GetRole",
    "iam:SimulatePrincipalPolicy",
    "servicequotas:ListServiceQuotas",
    "scheduler:UpdateSchedule",
    "scheduler:CreateSchedule",
    "sagemaker:DescribeEndpoint",
    "sagemaker:DescribeModel",
    "sagemaker:CreateModel",
    "sagemaker:DescribeEndpointConfig",
    "sagemaker:CreateEndpointConfig",
    "sagemaker:CreateEndpoint",
    "sagemaker:InvokeEndpoint",
    "sagemaker:ListTags",
    "sagemaker:AddTags",
    "cloudwatch:DescribeAlarms",
    "application-autoscaling:RegisterScalableTarget",
    "application-autoscaling:PutScalingPolicy",
]
UPDATE_CALLS = [
    "sagemaker:UpdateEndpoint",
    "cloudwatch:PutMetricAlarm",
    "application-autoscaling:DescribeScalableTargets",
]
DESTROY_CALLS = [
    "scheduler:GetSchedule",
    "scheduler:DeleteSchedule",
    "application-autoscaling:DescribeScalableTargets",
    "application-autoscaling:DeregisterScalableTarget",
    "sagemaker:ListTransformJobs",
    "sagemaker:DeleteEndpoint",
    "sagemaker:ListEndpointConfigs",
    "sagemaker:DeleteEndpointConfig",
    "sagemaker:ListModels",
    "sagemaker:DeleteModel",
    "cloudwatch:DeleteAlarms",
    "s3:ListObjectVersions",
    "s3:DeleteObjects",
    "logs:DescribeLogGroups",
]


def pairs(calls, kinds):
    """Every pair, or, for every day, some calls with the kinds in turn."""
    if os.environ.get("FAULTS") == "all":
        return [(call, kind) for call in calls for kind in kinds]
    return [(call, kinds[number % len(kinds)]) for number, call in enumerate(calls[::EVERY])]


@pytest.fixture
def cloud(monkeypatch):
    with aws.account(monkeypatch) as cloud:
        cloud.answer = aws.knowing
        yield cloud


@pytest.fixture
def pets(cloud, tmp_path, capsys):
    """`invoke deploy` and `invoke destroy`, in this process; the exit code and what they said."""
    folder = tmp_path / "pets"
    build(folder)
    places = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]

    def pets(verb, *words):
        code = upload.main([*places, "--project", "pets"]) if verb == "deploy" else 0
        if code == 0:
            code = endpoint.main([verb, "--project", "pets", "--build", str(folder), *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    assert role.main(["--project", "pets", "--create"]) == 0
    pets.folder = folder
    cloud.calls.clear()
    return pets


def destroyed(cloud, pets):
    cloud.faults.clear()
    code, said = pets("destroy", "--yes", "--data")
    assert (code, cloud.left(), cloud.objects()) == (0, [], []), said


@pytest.mark.parametrize(("call", "kind"), pairs(UPLOAD_CALLS + CREATE_CALLS, ONCE))
def test_what_breaks_once_is_overcome(cloud, pets, call, kind):
    cloud.break_(call, kind, times=1)
    code, said = pets("deploy", *DEPLOY)
    assert cloud.calls[call] > 0
    if kind == "interrupt":
        assert (code, "stopped" in said) == (130, True)
        code, said = pets("deploy", *DEPLOY)
    assert (code, "pets is live" in said) == (0, True), said
    assert cloud.calls["sagemaker:CreateEndpoint"] <= 2  # the second only where the first's answer was lost
    destroyed(cloud, pets)


@pytest.mark.parametrize(("call", "kind"), pairs(UPLOAD_CALLS + CREATE_CALLS, ALWAYS))
def test_what_stays_broken_is_a_sentence_and_leaves_nothing(cloud, pets, call, kind):
    cloud.break_(call, kind)
    code, said = pets("deploy", *DEPLOY)
    assert cloud.calls[call] > 0
    if code == 0:
        # What may not be asked is passed over: with a note, or without where nobody has asked for it.
        assert kind == "denied", said
        assert "note: " in said or call in ("cloudwatch:DescribeAlarms", "scheduler:GetSchedule"), said
    else:
        assert (code, said.count("error: ")) == (3, 1), said
    destroyed(cloud, pets)


@pytest.mark.parametrize(("call", "kind"), pairs(UPDATE_CALLS, ONCE) + pairs(UPDATE_CALLS, ALWAYS))
def test_an_update_that_breaks_leaves_what_was_live(cloud, pets, call, kind):
    assert pets("deploy")[0] == 0
    before = cloud.client("sagemaker").describe_endpoint(EndpointName="pets")["EndpointConfigName"]
    build(pets.folder, archive=b"two")
    cloud.break_(call, kind, times=1 if kind == "interrupt" else float("inf"))
    code, said = pets("deploy", *DEPLOY)
    assert code in (0, 3, 130), said
    cloud.faults.clear()
    endpoint = cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
    assert endpoint["EndpointConfigName"] == before or code in (0, 130)
    assert pets("deploy", *DEPLOY)[0] == 0
    destroyed(cloud, pets)


@pytest.mark.parametrize(("call", "kind"), pairs(DESTROY_CALLS, ONCE) + pairs(DESTROY_CALLS, ALWAYS))
def test_destroying_says_what_it_could_not_and_can_be_repeated(cloud, pets, call, kind):
    assert pets("deploy", *DEPLOY)[0] == 0
    times = 1 if kind == "interrupt" else float("inf")
    cloud.break_(call, kind, times)
    code, said = pets("destroy", "--yes", "--data")
    assert code in (0, 3, 130), said
    if code == 3:
        assert "could not be" in said or "error: " in said
    destroyed(cloud, pets)
