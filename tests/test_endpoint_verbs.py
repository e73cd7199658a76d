"""status, logs, destroy and transform in detail, and that the deployer's policy allows what they all do."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import cloud as aws
import pytest
from cloud import build
from conftest import ROOT

import endpoint
import role
import upload

BUCKET = f"sagemaker-{aws.REGION}-123456789012"
STREAM = "AllTraffic/i-0123456789abcdef"


@pytest.fixture
def cloud(monkeypatch):
    with aws.account(monkeypatch) as cloud:
        cloud.answer = aws.knowing
        yield cloud


@pytest.fixture
def pets(cloud, tmp_path, capsys):
    """deploy/endpoint.py's verbs; what they said comes back."""
    folder = tmp_path / "pets"
    build(folder)
    places = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]

    def pets(verb, *words, code=0):
        capsys.readouterr()
        done = endpoint.main([verb, "--project", "pets", "--build", str(folder), *words])
        said = capsys.readouterr()
        assert done == code, said.out + said.err
        return said.out + said.err

    assert role.main(["--project", "pets", "--create"]) == 0
    assert upload.main([*places, "--project", "pets"]) == 0
    pets.folder = folder
    return pets


# --- status


def measure(cloud, name, *values):
    """CloudWatch's metrics of the last minutes, in its own units."""
    dimensions = [{"Name": "EndpointName", "Value": "pets"}, {"Name": "VariantName", "Value": "AllTraffic"}]
    at = datetime.now(UTC) - timedelta(minutes=5)
    data = [{"MetricName": name, "Dimensions": dimensions, "Timestamp": at, "Value": one} for one in values]
    cloud.client("cloudwatch").put_metric_data(Namespace="AWS/SageMaker", MetricData=data)


def test_status_says_what_the_last_hour_was_like(cloud, pets):
    pets("deploy")
    assert json.loads(pets("status", "--json"))["last_hour"]["invocations"] is None
    assert "no requests" in pets("status")
    measure(cloud, "Invocations", 1, 1, 1)
    measure(cloud, "Invocation5XXErrors", 0, 1, 0)
    hour = json.loads(pets("status", "--json"))["last_hour"]
    assert (hour["invocations"], hour["5xx"]) == (3, 1)
    assert "3 requests, 0 4xx, 1 5xx" in pets("status")


def test_latencies_are_asked_as_percentiles_in_microseconds(cloud, pets):
    cloud.percentiles = {"ModelLatency p50": 21_000.0, "ModelLatency p99": 48_500.0}
    pets("deploy")
    hour = json.loads(pets("status", "--json"))["last_hour"]
    assert (hour["model_p50_ms"], hour["model_p99_ms"], hour["overhead_p50_ms"]) == (21.0, 48.5, None)


def test_status_says_age_end_scaling_and_leftovers(cloud, pets):
    pets("deploy", "--ttl", "4h", "--max", "3", "--guard", "on")
    said = pets("status")
    assert re.search("ends .* UTC, in 3:5\\d h", said)
    assert "1 to 3 instances" in said
    assert "sagemaker/home?region=eu-west-1#/endpoints/pets" in re.sub("[│\\s]", "", said)
    cloud.client("sagemaker").delete_endpoint(EndpointName="pets")
    cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
    said = pets("status", code=1)
    assert "there is no endpoint" in said
    assert re.search("models +│ pets-", said)


def test_an_endpoint_that_is_not_proven_is_not_called_live(cloud, pets):
    cloud.break_("sagemaker:InvokeEndpoint", "interrupt", times=1)
    pets("deploy", code=130)
    assert "InService, not proven" in pets("status", code=1)


def test_what_may_not_be_seen_is_a_note(cloud, pets):
    pets("deploy")
    cloud.break_("scheduler:GetSchedule", "denied")
    said = " ".join(re.sub("[│\n]", " ", pets("status")).split())
    assert "ends unknown: your AWS identity may not scheduler:GetSchedule" in said


# --- logs


def write(cloud, at, *lines, stream=STREAM):
    logs, names = cloud.client("logs"), {"logGroupName": "/aws/sagemaker/Endpoints/pets"}
    if not logs.describe_log_groups(logGroupNamePrefix=names["logGroupName"])["logGroups"]:
        logs.create_log_group(**names)
    logs.create_log_stream(**names, logStreamName=stream)
    events = [{"timestamp": int((at + n) * 1000), "message": line} for n, line in enumerate(lines)]
    logs.put_log_events(**names, logStreamName=stream, logEvents=events)


def test_the_instances_lines_are_merged_in_time(cloud, pets):
    now = time.time()
    write(cloud, now - 60, "a1", "a2", "a3")
    write(cloud, now - 59.5, "b1", "b2", stream="AllTraffic/i-b")
    write(cloud, now - 7000, "old", stream="AllTraffic/i-c")
    said = pets("logs")
    assert re.findall("a1|a2|a3|b1|b2|old", said) == ["a1", "b1", "a2", "b2", "a3"]
    assert "old" in pets("logs", "--since", "2h")


def test_no_log_is_a_sentence(cloud, pets):
    assert "pets has written nothing in this time" in pets("logs", code=1)


def test_following_prints_each_new_line_once_until_ctrl_c(cloud, pets, tmp_path):
    write(cloud, time.time() - 5, "first")
    command = [sys.executable, "deploy/endpoint.py", "logs", "--project=pets", "--follow"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes) as process:
        assert "first" in process.stdout.readline()
        write(cloud, time.time(), "second", stream="AllTraffic/i-b")
        assert "second" in process.stdout.readline()
        process.send_signal(2)
        rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest, said) == (0, "", "")


# --- destroy


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_destroying_asks_first(cloud, pets, answer, code):
    pets("deploy")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "deploy/endpoint.py", "destroy", "--project=pets"]
    pipes = {"stdin": theirs, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code
    assert "remove all this of pets?" in done.stdout
    assert bool(cloud.left()) == bool(code)


def test_without_a_terminal_nothing_is_destroyed_unasked(cloud, pets, monkeypatch):
    pets("deploy")
    left = cloud.left()
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert "`invoke destroy --yes`" in pets("destroy", code=2)
    sys.stdin.close()
    assert cloud.left() == left


def test_an_endpoint_that_is_being_made_is_waited_for(cloud, pets):
    cloud.looks = 5
    cloud.break_("sagemaker:CreateEndpoint", "interrupt", times=1)
    pets("deploy", code=130)
    assert "removed endpoint pets" in pets("destroy", "--yes")
    assert cloud.left() == []


def test_other_peoples_objects_in_the_same_bucket_stay(cloud, pets):
    s3 = cloud.client("s3")
    for key in ("pets/mine.csv", "pets-2/0123456789ab/model.tar.gz", "pets/0123456789ab/notes.txt"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    pets("destroy", "--yes", "--data")
    assert sorted(one.removeprefix(f"s3://{BUCKET}/") for one in cloud.objects()) == [
        "pets-2/0123456789ab/model.tar.gz",
        "pets/0123456789ab/notes.txt",
        "pets/mine.csv",
    ]


def test_every_version_of_an_archive_is_removed(cloud, pets):
    s3 = cloud.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    (key,) = (one.removeprefix(f"s3://{BUCKET}/") for one in cloud.objects())
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"again")
    s3.delete_object(Bucket=BUCKET, Key=key)
    pets("destroy", "--yes", "--data")
    left = s3.list_object_versions(Bucket=BUCKET)
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")


# --- transform


def photos(cloud):
    cloud.client("s3").put_object(Bucket=BUCKET, Key="photos/cat.jpg", Body=b"\xff\xd8\xffcat")
    return [f"s3://{BUCKET}/photos", f"s3://{BUCKET}/answers"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"s3://{BUCKET}/x", "out"], "'out' is no address in S3"),
        ([f"s3://{BUCKET}/none", f"s3://{BUCKET}/answers"], "there is nothing under"),
        ([f"s3://{BUCKET}/x", f"s3://{BUCKET}/y", "--payload", "30"], "at most 100 MB"),
        ([f"s3://{BUCKET}/x", f"s3://{BUCKET}/y", "--instance", "ml.x"], "no instance type ml.x"),
    ],
)
def test_what_cannot_be_transformed_is_a_sentence(cloud, pets, words, says):
    assert says in pets("transform", *words, code=2)
    assert cloud.left() == []


def test_a_transform_that_fails_says_why(cloud, pets):
    cloud.job_end = ("Failed", "ClientError: no image")
    said = pets("transform", *photos(cloud), code=1)
    assert "ended as Failed: ClientError: no image" in said


def test_an_interrupted_transform_is_found_again_and_destroy_stops_it(cloud, pets):
    cloud.job_end = ("InProgress", "")
    cloud.break_("sagemaker:DescribeTransformJob", "interrupt", times=1)
    places = photos(cloud)
    pets("transform", *places, code=130)
    cloud.break_("sagemaker:DescribeTransformJob", "interrupt", times=1)
    pets("transform", *places, code=130)
    assert cloud.calls["sagemaker:CreateTransformJob"] == 1
    assert "transform job  pets-batch-" in pets("destroy", "--yes")
    (job,) = cloud.client("sagemaker").list_transform_jobs()["TransformJobSummaries"]
    assert job["TransformJobStatus"] == "Stopped"


# --- permissions

ACTIONS = {  # where a call is not its permission's name
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
}


def allowed(policy: dict) -> set[str]:
    actions = [one["Action"] for one in policy["Statement"]]
    return {name for action in actions for name in ([action] if isinstance(action, str) else action)}


def test_the_deployers_policy_allows_every_call_of_a_whole_life(cloud, pets, capsys):
    pets("deploy", "--ttl", "4h", "--max", "2", "--guard", "on")
    pets("deploy", "--ttl", "none", "--count", "2", "--max", "2", "--guard", "on")
    pets("deploy", "--rollback", "--min", "1", "--max", "3")
    pets("status", "--all")
    write(cloud, time.time(), "line")
    pets("logs")
    pets("transform", *photos(cloud))
    pets("destroy", "--yes")
    pets("deploy", "--kind", "async", "--max", "2")
    cloud.answer = lambda *_: (500, b"x")
    build(pets.folder, archive=b"one")
    pets("deploy", "--kind", "async", "--max", "0", "--concurrency", "2", code=1)
    pets("destroy", "--yes", "--data")
    capsys.readouterr()
    role.main(["--project", "pets"])
    policy = json.loads(capsys.readouterr().out)["deployer"]["policy"]
    made = {call for call in cloud.calls if not call.startswith(("sts:", "logs:Create", "logs:Put"))}
    made -= {"iam:CreateRole", "iam:UpdateAssumeRolePolicy", "iam:PutRolePolicy"}  # an administrator's
    assert {ACTIONS.get(call, call) for call in made} - allowed(policy) == set()
    assert len(made) > 40
