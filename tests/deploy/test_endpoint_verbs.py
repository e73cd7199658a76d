"""status, logs, destroy and transform in detail; the deployer's policy allows every call of all verbs."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

import endpoint
import fake_aws as aws
import role
import upload
from aws import pricing
from aws.names import console_url
from fake_aws import build
from fake_aws_answers import ANSWERS
from support import ROOT

BUCKET = f"sagemaker-{aws.REGION}-123456789012"
STREAM = "AllTraffic/i-0123456789abcdef"


def flat(said: str) -> str:
    """A table's text without its lines."""
    return " ".join(re.sub("[│\n]", " ", said).split())


@pytest.fixture
def prices(monkeypatch, tmp_path, cloud):
    """The prices of cost/prices.json, without what this user's `invoke cost --refresh` has stored."""
    if not (ROOT / "cost").is_dir():
        pytest.skip("cost/ is not here")
    monkeypatch.setattr(pricing, "ESTIMATE", ROOT / "cost" / "estimate.py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- status


def measure(cloud, name, *values, ago=5):
    """CloudWatch's metrics of some minutes ago, in its own units."""
    dimensions = [{"Name": "EndpointName", "Value": "pets"}, {"Name": "VariantName", "Value": "AllTraffic"}]
    at = datetime.now(UTC) - timedelta(minutes=ago)
    data = [{"MetricName": name, "Dimensions": dimensions, "Timestamp": at, "Value": one} for one in values]
    cloud.client("cloudwatch").put_metric_data(Namespace="AWS/SageMaker", MetricData=data)


def test_status_shows_the_last_hour(cloud, run_verb):
    run_verb("deploy")
    assert json.loads(run_verb("status", "--json"))["last_hour"]["invocations"] is None
    assert "no requests" in run_verb("status")
    measure(cloud, "Invocations", *[1] * 8, ago=1)
    measure(cloud, "Invocations", 1, 1, 1, 1, ago=21)
    measure(cloud, "Invocations", 100, ago=70)
    measure(cloud, "Invocation5XXErrors", 0, 1, 0, ago=21)
    hour = json.loads(run_verb("status", "--json"))["last_hour"]
    assert (hour["invocations"], hour["5xx"], hour["minutes"]) == (12, 1, 5)
    points = hour["points"]["invocations"]
    assert (len(points), [point for point in points if point]) == (12, [4, 8])
    assert {8, None} == set(points[-2:]) or points[-1] == 8
    said = run_verb("status")
    assert re.search("·{5,8}▅·{3,4}█·?  12 requests", said)
    assert re.search("·{5,8}█·{4,5}  1 answered with 5xx", said)


def test_an_ascii_terminal_gets_replacement_characters(cloud, run_verb):
    run_verb("deploy")
    measure(cloud, "Invocations", 1, ago=1)
    command = [sys.executable, "deploy/endpoint.py", "status", "--project=pets"]
    environment = os.environ | cloud.environment | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 requests in 12 x 5 minutes" in done.stdout


def test_an_hour_that_cannot_be_read_is_not_reported_as_without_requests(cloud, run_verb, monkeypatch):
    run_verb("deploy")
    cloud.break_("cloudwatch:GetMetricData", "denied")
    said = run_verb("status")
    assert "last hour unknown: your AWS identity may not" in flat(said)
    assert "no requests" not in said
    cloud.faults.clear()
    partly = {"MetricDataResults": [{"Id": "m0", "StatusCode": "InternalError"}]}
    monkeypatch.setitem(ANSWERS, "cloudwatch:GetMetricData", lambda *_: partly)
    said = run_verb("status")
    assert "did not return every metric (InternalError)" in flat(said)
    assert "no requests" not in said


def test_deploy_and_status_print_the_price_and_its_range_with_autoscaling(run_verb, prices):
    said = run_verb("deploy", "--instance=ml.m5.large", "--max=4")
    assert re.search(r"1 x ml.m5.large in eu-west-1: \$0.\d+ an hour", said)
    low, high = re.search(r"autoscaling: 1 to 4 instances, \$([\d.]+) to \$([\d.]+) a month;", said).groups()
    assert float(high) == pytest.approx(4 * float(low), abs=0.05)
    said = flat(run_verb("status"))
    assert f"${low} to ${high} a month" in said
    assert "not estimated: autoscaling changes the number of instances" in said
    run_verb("deploy", "--instance=ml.m5.large", "--max=0")
    assert "about $0.00" in run_verb("status")


def test_an_unknown_price_names_the_command_and_a_price_for_comparison(run_verb, prices):
    said = run_verb("deploy", "--max=4")
    assert "`invoke cost --refresh --region eu-west-1` reads AWS's list" in said
    assert re.search(r"for comparison, 1 x ml.c7i.large in us-east-1: \$0.107 an hour", said)
    assert re.search(r"autoscaling: 1 to 4 instances, \$[\d.]+ to \$[\d.]+ a month in us-east-1;", said)
    facts = json.loads(run_verb("status", "--json"))
    assert (facts["spent"], facts["spent_unknown"]) == (None, "the price is unknown")


def test_the_cost_of_serverless_is_not_estimated(cloud, run_verb):
    run_verb("deploy", "--kind", "serverless")
    assert "not estimated: serverless is billed per request" in flat(run_verb("status"))


def test_the_cost_of_an_updated_endpoint_is_not_estimated(run_verb, prices):
    words = ["--instance=ml.m5.large"]
    run_verb("deploy", *words)
    run_verb("deploy", *words, "--count=2")
    assert "not estimated: its configuration was changed after its creation" in flat(run_verb("status"))


def test_status_all_continues_after_a_project_that_may_not_be_read(cloud, run_verb, tmp_path):
    run_verb("deploy")
    build(tmp_path / "cats")
    folder = str(tmp_path / "cats")
    places = ["--archive", f"{folder}/model.tar.gz", "--out", f"{folder}/uploaded.json"]
    assert role.main(["--project", "cats", "--create"]) == 0
    assert upload.main([*places, "--project", "cats"]) == 0
    assert endpoint.main(["deploy", "--project", "cats", "--build", folder]) == 0
    said = run_verb("status", "--all")
    assert re.search("cats in eu-west-1.*pets in eu-west-1", said, re.DOTALL)
    cloud.break_("sagemaker:DescribeEndpoint", "denied", times=1)  # the first of them
    said = run_verb("status", "--all", code=3)
    assert "error: cats: your AWS identity may not sagemaker:DescribeEndpoint" in said
    assert re.search("pets in eu-west-1.*InService", said, re.DOTALL)
    cloud.break_("sagemaker:DescribeEndpoint", "denied", times=1)
    cats, dogs = json.loads(run_verb("status", "--all", "--json", code=3).partition("error: ")[0])
    assert "may not sagemaker:DescribeEndpoint" in cats["error"]
    assert (dogs["project"], dogs["status"]) == ("pets", "InService")


HOSTILE = "[/opt/ml] [red]x\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe"


def is_harmless(said: str) -> bool:
    """Whether it has no control characters."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said)


def test_control_characters_of_a_reason_are_escaped(cloud, run_verb):
    run_verb("deploy")
    cloud.moto.call("set_endpoint", name="pets", failure_reason=HOSTILE)
    said = run_verb("status")
    assert "[/opt/ml] [red]x\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egpj.exe" in re.sub(
        "[│\\s]", "", said
    ).replace("[/opt/ml][red]", "[/opt/ml] [red]")
    assert is_harmless(said)


@pytest.mark.parametrize(
    ("partition", "region", "host"),
    [
        ("aws", "eu-west-1", "https://eu-west-1.console.aws.amazon.com/"),
        ("aws-cn", "cn-north-1", "https://cn-north-1.console.amazonaws.cn/"),
        ("aws-us-gov", "us-gov-west-1", "https://console.amazonaws-us-gov.com/"),
    ],
)
def test_the_console_url_is_that_of_the_partition(partition, region, host):
    assert console_url(partition, region, "pets").startswith(host + f"sagemaker/home?region={region}#")


def test_latencies_are_percentiles_converted_from_microseconds(cloud, run_verb):
    cloud.percentiles = {"ModelLatency p50": 21_000.0, "ModelLatency p99": 48_500.0}
    run_verb("deploy")
    hour = json.loads(run_verb("status", "--json"))["last_hour"]
    assert (hour["model_p50_ms"], hour["model_p99_ms"], hour["overhead_p50_ms"]) == (21.0, 48.5, None)


def test_status_shows_age_scheduled_deletion_scaling_and_leftovers(cloud, run_verb):
    run_verb("deploy", "--ttl", "4h", "--max", "3", "--guard", "on")
    said = run_verb("status")
    assert re.search("deletion .* UTC, in 3:5\\d h", said)
    assert "autoscaling: 1 to 3 instances" in said
    assert re.search(r"^console: https://\S+/home\?region=eu-west-1#/endpoints/pets$", said, re.MULTILINE)
    cloud.client("sagemaker").delete_endpoint(EndpointName="pets")
    cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
    said = run_verb("status", code=1)
    assert "there is no endpoint" in said
    assert re.search("models +│ pets-", said)
    assert "left over" in said


def test_an_endpoint_without_a_smoke_test_is_not_proven(cloud, run_verb):
    cloud.break_("sagemaker:InvokeEndpoint", "interrupt", times=1)
    run_verb("deploy", code=130)
    assert "InService, not proven" in run_verb("status", code=1)


def test_what_may_not_be_read_is_a_note(cloud, run_verb):
    run_verb("deploy")
    cloud.break_("scheduler:GetSchedule", "denied")
    said = flat(run_verb("status"))
    assert "scheduled deletion unknown: your AWS identity may not scheduler:GetSchedule" in said


# --- logs


def write(cloud, at, *lines, stream=STREAM):
    logs, names = cloud.client("logs"), {"logGroupName": "/aws/sagemaker/Endpoints/pets"}
    if not logs.describe_log_groups(logGroupNamePrefix=names["logGroupName"])["logGroups"]:
        logs.create_log_group(**names)
    logs.create_log_stream(**names, logStreamName=stream)
    events = [{"timestamp": int((at + n) * 1000), "message": line} for n, line in enumerate(lines)]
    logs.put_log_events(**names, logStreamName=stream, logEvents=events)


def test_the_instances_lines_are_merged_by_time(cloud, run_verb):
    now = time.time()
    write(cloud, now - 60, "a1", "a2", "a3")
    write(cloud, now - 59.5, "b1", "b2", stream="AllTraffic/i-b")
    write(cloud, now - 7000, "old", stream="AllTraffic/i-c")
    said = run_verb("logs")
    assert re.findall("a1|a2|a3|b1|b2|old", said) == ["a1", "b1", "a2", "b2", "a3"]
    assert "old" in run_verb("logs", "--since", "2h")


def test_no_log_is_a_sentence(cloud, run_verb):
    assert "pets has written nothing in this time" in run_verb("logs", code=1)


def test_following_prints_each_new_line_once_until_ctrl_c(cloud, run_verb, tmp_path):
    write(cloud, time.time() - 5, "first")
    command = [sys.executable, "deploy/endpoint.py", "logs", "--project=pets", "--follow"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes) as process:
        assert "first" in process.stdout.readline()
        write(cloud, time.time(), "second", stream="AllTraffic/i-b")
        assert "second" in process.stdout.readline()
        process.send_signal(2)
        remaining, notes = process.communicate(timeout=30)
    assert (process.returncode, remaining, notes) == (0, "", "the log of pets in eu-west-1; times are UTC\n")


def test_following_waits_for_the_first_line_and_retries_transient_errors(cloud, run_verb):
    command = [sys.executable, "deploy/endpoint.py", "logs", "--project=pets", "--follow"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | cloud.environment | {"AWS_MAX_ATTEMPTS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert "times are UTC" in process.stderr.readline()
        assert "waiting for pets to write something" in process.stderr.readline()
        cloud.break_("logs:FilterLogEvents", "throttle", times=1)
        note = process.stderr.readline()
        write(cloud, time.time(), "first")
        assert "first" in process.stdout.readline()
        process.send_signal(2)
        process.communicate(timeout=30)
    advice = "AWS is busy: run the command again in a minute; retrying"
    assert note == f"note: FilterLogEvents: Rate exceeded: {advice}\n"
    assert process.returncode == 0


def test_following_stops_at_a_permanent_error(cloud, run_verb):
    cloud.break_("logs:FilterLogEvents", "expired")
    assert "log in again" in run_verb("logs", "--follow", code=3)


def test_an_instance_has_one_name_in_all_its_streams(cloud, run_verb):
    write(cloud, time.time() - 60, "a")
    write(cloud, time.time() - 50, "b", stream=f"{STREAM}/data-log")
    said = run_verb("logs")
    assert len(re.findall(r"\d\d:\d\d:\d\d 456789abcdef [ab]", said)) == 2
    assert "data-log" not in said


def test_control_characters_of_a_log_are_escaped(cloud, run_verb):
    write(cloud, time.time() - 60, f"\x1b[36mINFO\x1b[0m {HOSTILE}", "one\r\ntwo")
    said = run_verb("logs")
    assert "INFO [/opt/ml] [red]x\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egpj.exe" in said
    assert "one\n  two" in said
    assert is_harmless(said)


# --- destroy


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_destroying_asks_first(cloud, run_verb, answer, code):
    run_verb("deploy")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "deploy/endpoint.py", "destroy", "--project=pets"]
    pipes = {"stdin": theirs, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code
    assert "remove all this of pets?" in done.stdout
    assert bool(cloud.resources()) == bool(code)


def test_without_a_terminal_destroy_needs_yes(cloud, run_verb, monkeypatch):
    run_verb("deploy")
    left = cloud.resources()
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert "stdin is not a terminal: pass --yes to confirm" in run_verb("destroy", code=2)
    sys.stdin.close()
    assert cloud.resources() == left


def test_destroy_waits_for_an_endpoint_that_is_being_created(cloud, run_verb):
    cloud.polls = 5
    cloud.break_("sagemaker:CreateEndpoint", "interrupt", times=1)
    run_verb("deploy", code=130)
    assert "removed endpoint pets" in run_verb("destroy", "--yes")
    assert cloud.resources() == []


def test_other_objects_in_the_bucket_are_kept(cloud, run_verb):
    s3 = cloud.client("s3")
    for key in ("pets/mine.csv", "pets-2/0123456789ab/model.tar.gz", "pets/0123456789ab/notes.txt"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    run_verb("destroy", "--yes", "--data")
    assert sorted(one.removeprefix(f"s3://{BUCKET}/") for one in cloud.objects()) == [
        "pets-2/0123456789ab/model.tar.gz",
        "pets/0123456789ab/notes.txt",
        "pets/mine.csv",
    ]


def test_every_version_of_an_archive_is_removed(cloud, run_verb):
    s3 = cloud.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    (key,) = (one.removeprefix(f"s3://{BUCKET}/") for one in cloud.objects())
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"again")
    s3.delete_object(Bucket=BUCKET, Key=key)
    run_verb("destroy", "--yes", "--data")
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
        ([f"s3://{BUCKET}/x", "out"], "'out' is not an S3 URI"),
        ([f"s3://{BUCKET}/none", f"s3://{BUCKET}/answers"], "there is nothing under"),
        ([f"s3://{BUCKET}/x", f"s3://{BUCKET}/y", "--payload", "30"], "at most 100 MB"),
        ([f"s3://{BUCKET}/x", f"s3://{BUCKET}/y", "--instance", "ml.x"], "no instance type ml.x"),
    ],
)
def test_an_invalid_transform_is_a_sentence(cloud, run_verb, words, says):
    assert says in run_verb("transform", *words, code=2)
    assert cloud.resources() == []


def test_a_transform_that_fails_is_explained(cloud, run_verb):
    cloud.job_outcome = ("Failed", "ClientError: no image")
    said = run_verb("transform", *photos(cloud), code=1)
    assert "ended as Failed: ClientError: no image" in said


def test_an_interrupted_transform_is_found_again_and_destroy_stops_it(cloud, run_verb):
    cloud.job_outcome = ("InProgress", "")
    cloud.break_("sagemaker:DescribeTransformJob", "interrupt", times=1)
    places = photos(cloud)
    run_verb("transform", *places, code=130)
    cloud.break_("sagemaker:DescribeTransformJob", "interrupt", times=1)
    run_verb("transform", *places, code=130)
    assert cloud.calls["sagemaker:CreateTransformJob"] == 1
    assert "transform job  pets-batch-" in run_verb("destroy", "--yes")
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


def test_the_deployers_policy_allows_every_call_of_every_verb(cloud, run_verb, capsys):
    run_verb("deploy", "--ttl", "4h", "--max", "2", "--guard", "on")
    run_verb("deploy", "--ttl", "none", "--count", "2", "--max", "2", "--guard", "on")
    run_verb("deploy", "--rollback", "--min", "1", "--max", "3")
    run_verb("status", "--all")
    write(cloud, time.time(), "line")
    run_verb("logs")
    run_verb("transform", *photos(cloud))
    run_verb("destroy", "--yes")
    run_verb("deploy", "--kind", "async", "--max", "2")
    cloud.answer = lambda *_: (500, b"x")
    build(run_verb.folder, archive=b"one")
    run_verb("deploy", "--kind", "async", "--max", "0", "--concurrency", "2", code=1)
    run_verb("destroy", "--yes", "--data")
    capsys.readouterr()
    role.main(["--project", "pets"])
    policy = json.loads(capsys.readouterr().out)["deployer"]["policy"]
    made = {call for call in cloud.calls if not call.startswith(("sts:", "logs:Create", "logs:Put"))}
    made -= {"iam:CreateRole", "iam:UpdateAssumeRolePolicy", "iam:PutRolePolicy"}  # an administrator's
    assert {ACTIONS.get(call, call) for call in made} - allowed(policy) == set()
    assert len(made) > 40
