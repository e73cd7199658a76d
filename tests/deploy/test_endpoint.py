"""The verbs of an endpoint through `invoke`, against AWS's API over HTTP at another address."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import yaml

import fake_aws as aws
from fake_aws import build
from support import INVOKE, ROOT

BUCKET = f"sagemaker-{aws.REGION}-123456789012"


@pytest.fixture
def invoked(cloud, tmp_path):
    """`invoke ...` in a project called pets; returns its output."""
    folder = tmp_path / "pets"
    build(folder)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"project": str(folder)}))
    others = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}

    def invoked(*words, code=0):
        command = [*INVOKE, "-f", tmp_path / "mine.yaml", *words]
        pipes = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, cwd=ROOT, env=others | cloud.environment, **pipes, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return invoked


def described(cloud) -> tuple[dict, dict]:
    """The endpoint, and its tags."""
    sagemaker = cloud.client("sagemaker")
    endpoint = sagemaker.describe_endpoint(EndpointName="pets")
    tags = sagemaker.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    return endpoint, {tag["Key"].partition(":")[2] or tag["Key"]: tag["Value"] for tag in tags}


def test_an_endpoint_is_created_and_deleted_completely(cloud, invoked):
    invoked("role", "--create")
    said = invoked("deploy")
    assert f"s3://{BUCKET}/pets/" in said
    assert "create endpoint pets in eu-west-1: real-time" in said
    assert re.search("(an hour|price unknown|not estimated).*; `invoke destroy` deletes it", said)
    assert "pets is live: cat.jpg is cat (95.0%), as training said" in said
    assert [one.split()[0] for one in cloud.resources()] == ["endpoint", "config", "model"]

    made = cloud.calls.copy()
    assert "pets is live, unchanged" in invoked("deploy")
    changed = [call for call in cloud.calls - made if re.search(":(Create|Update|Delete|Put|Add)", call)]
    assert changed == []

    assert "removed endpoint pets" in invoked("destroy", "--yes", "--data")
    assert cloud.resources() == cloud.objects() == []
    assert "nothing of pets is on AWS" in invoked("destroy", "--yes", "--data")


def test_a_new_archive_is_an_update_and_can_be_rolled_back(cloud, run_verb):
    run_verb("deploy")
    first = described(cloud)[0]["EndpointConfigName"]
    build(run_verb.folder, archive=b"two")
    assert "update endpoint pets" in run_verb("deploy")
    endpoint, tags = described(cloud)
    second = endpoint["EndpointConfigName"]
    assert second != first
    assert (tags["live"], tags["previous"]) == (second, first)
    assert cloud.calls["sagemaker:CreateEndpoint"] == 1

    assert f"pets is live with {first}" in run_verb("deploy", "--rollback")
    endpoint, tags = described(cloud)
    assert endpoint["EndpointConfigName"] == first
    assert (tags["live"], tags["previous"]) == (first, second)


def test_ttl_scaling_and_tags_are_created_and_removed_again(cloud, run_verb):
    scaler, scheduler = cloud.client("application-autoscaling"), cloud.client("scheduler")
    run_verb(
        "deploy", "--ttl", "4h", "--max", "4", "--target", "120", "--cooldown", "60", "--tags", "owner=me"
    )
    (policy,) = scaler.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    wanted = policy["TargetTrackingScalingPolicyConfiguration"]
    assert (wanted["TargetValue"], wanted["ScaleInCooldown"]) == (120, 60)
    schedule = scheduler.get_schedule(Name="fastai-sagemaker-pets-ttl")
    assert schedule["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
    assert json.loads(schedule["Target"]["Input"]) == {"EndpointName": "pets"}
    assert schedule["ActionAfterCompletion"] == "DELETE"
    assert described(cloud)[1]["owner"] == "me"

    run_verb("deploy", "--ttl", "none", "--max", "0", "--count", "2")
    found = [one.split()[0] for one in cloud.resources()]
    assert found == ["endpoint", "config", "config", "model"]  # another count needs no other model
    assert described(cloud)[0]["ProductionVariants"][0]["CurrentInstanceCount"] == 2


def test_serverless(cloud, run_verb):
    run_verb("deploy", "--kind", "serverless", "--memory", "2048", "--concurrency", "7", "--ttl", "1h")
    variant = described(cloud)[0]["ProductionVariants"][0]
    assert variant["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 7}
    run_verb("destroy", "--yes")
    assert cloud.resources() == []


def test_asynchronous_with_scaling_to_zero(cloud, run_verb):
    assert "pets is live" in run_verb("deploy", "--kind", "async", "--max", "3")
    alarms = cloud.client("cloudwatch").describe_alarms()["MetricAlarms"]
    policies = cloud.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")
    step = next(one for one in policies["ScalingPolicies"] if one["PolicyType"] == "StepScaling")
    assert [(one["MetricName"], one["AlarmActions"]) for one in alarms] == [
        ("HasBacklogWithoutCapacity", [step["PolicyARN"]])
    ]
    run_verb("destroy", "--yes", "--data")
    assert cloud.resources() == cloud.objects() == []


def test_batch_answers_every_picture_under_a_prefix(cloud, run_verb):
    s3 = cloud.client("s3")
    run_verb("deploy")
    for label in ("cat", "dog"):
        s3.put_object(Bucket=BUCKET, Key=f"photos/a/{label}.jpg", Body=b"\xff\xd8\xff" + label.encode())
    run_verb("transform", f"s3://{BUCKET}/photos", f"s3://{BUCKET}/answers")
    for label in ("cat", "dog"):
        answer = s3.get_object(Bucket=BUCKET, Key=f"answers/a/{label}.jpg.out")["Body"].read()
        assert json.loads(answer)["class"] == label


def test_status_all_and_destroy_need_no_build_folder(cloud, run_verb):
    run_verb("deploy", "--count", "2")
    cloud.client("sagemaker").create_model(ModelName="theirs")
    variant = {"VariantName": "AllTraffic", "ModelName": "theirs", "InstanceType": "ml.m5.large"}
    variants = [variant | {"InitialInstanceCount": 1}]
    cloud.client("sagemaker").create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=variants)
    cloud.client("sagemaker").create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
    for file in run_verb.folder.rglob("*.*"):
        file.unlink()
    (found,) = json.loads(run_verb("status", "--all", "--json"))
    assert (found["project"], found["count"]) == ("pets", 2)
    run_verb("destroy", "--yes")
    assert cloud.resources() == ["endpoint theirs", "config theirs", "model theirs"]


def seconds(command, code: int, says: str, **options) -> float:
    """A command's duration, the shortest of a few runs: this machine may be busy."""
    durations = []
    for _ in range(4):
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)
        durations.append(time.monotonic() - start)
        assert done.returncode == code, done.stdout + done.stderr
        assert re.fullmatch(says, done.stderr), done.stderr
    return min(durations)


@pytest.mark.parametrize(
    "command",
    [
        [*INVOKE, "deploy"],
        [*INVOKE, "status"],
        [sys.executable, "deploy/endpoint.py", "deploy", "--project=pets"],
    ],
    ids=["invoke deploy", "invoke status", "deploy/endpoint.py"],
)
def test_no_credentials_is_one_sentence_within_three_seconds(tmp_path, command):
    others = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    nowhere = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    says = "(.*python.* --project=pets.*\n)?error: no AWS credentials were found: .*\n"
    assert seconds(command, 3, says, env=others | nowhere) < 3


def test_aws_verbs_do_not_import_the_local_server():
    code = "import sys, endpoint; print({'local', 'uvicorn', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "deploy", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_listing_the_verbs_is_fast_and_does_not_import_boto3():
    code = "import sys, tasks; print([name for name in sys.modules if name.startswith('boto')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    alone = seconds([sys.executable, "-c", "import invoke, yaml"], 0, "")
    took = seconds([*INVOKE, "--list"], 0, "")
    assert took < 0.5 or took < 2.5 * alone, (took, alone)  # a busy machine is as slow with Invoke itself
