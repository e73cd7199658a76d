"""Failures while an endpoint is created or updated: they are explained and rolled back."""

import json
import re
import time

import pytest
from botocore import exceptions

import fake_aws as aws
from aws.client import as_command_error
from endpoint import main
from fake_aws import build
from lifecycle import diagnose


def log(cloud, *lines):
    """The container writes these lines to its log."""
    logs, names = cloud.client("logs"), {"logGroupName": "/aws/sagemaker/Endpoints/pets"}
    logs.create_log_group(**names)
    logs.create_log_stream(**names, logStreamName="AllTraffic/i-0123456789abcdef0")
    now = int((time.time() + 60) * 1000)
    events = [{"timestamp": now + number, "message": line} for number, line in enumerate(lines)]
    logs.put_log_events(**names, logStreamName="AllTraffic/i-0123456789abcdef0", logEvents=events)


def wrong(endpoint, headers, body):
    """A container with a wrong answer."""
    return 200, json.dumps({"class": "dog", "confidence": 0.9}).encode()


def serving(cloud) -> str:
    return cloud.client("sagemaker").describe_endpoint(EndpointName="pets")["EndpointConfigName"]


def test_an_endpoint_that_fails_is_explained_and_deleted(cloud, run_verb):
    reason = "The primary container for production variant AllTraffic did not pass the ping health check."
    cloud.outcomes["any"] = ("Failed", reason)
    log(cloud, "starting", "ModuleNotFoundError: No module named 'openvino'")
    said = run_verb("deploy", "--ttl", "1h", code=1)
    assert reason in said
    assert "No module named 'openvino'" in said
    assert "likely cause: code/requirements.txt lacks a package" in said
    assert "everything was removed; nothing is billed" in said
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (wrong, "cat.jpg is dog .*but training said cat"),
        (lambda *_: (500, b'{"error": "internal"}'), "did not answer cat.jpg: status 500"),
        (lambda *_: (200, b"<html>"), "is not a prediction: <html>"),
        (lambda *_: (200, b'["cat"]'), "is not a prediction"),
    ],
    ids=["another class", "an error", "no JSON", "other JSON"],
)
def test_an_endpoint_with_a_wrong_answer_is_never_live(cloud, run_verb, answer, says):
    cloud.answer = answer
    said = run_verb("deploy", code=1)
    assert re.search(says, said)
    assert "is live:" not in said
    assert cloud.resources() == []


def test_the_smoke_test_waits_for_a_model_that_is_loading(cloud, run_verb):
    requests = []

    def slow(*request):
        requests.append(1)
        return aws.correct_container(*request) if len(requests) > 6 else (503, b"not loaded")

    cloud.answer = slow
    said = run_verb("deploy")
    assert said.count("smoke test of pets with cat.jpg") == 1  # a line for every change, not for every try
    assert "the container runs and loads the model" in said
    assert "pets is live" in said


def test_the_smoke_test_retries_after_sagemakers_own_time_out(cloud, run_verb):
    requests = []

    def slow(*request):
        requests.append(1)
        return aws.correct_container(*request) if len(requests) > 6 else (0, b"Your invocation timed out")

    cloud.answer = slow
    assert "pets is live" in run_verb("deploy")


def test_an_update_with_a_wrong_answer_is_rolled_back(cloud, run_verb):
    run_verb("deploy")
    first, left = serving(cloud), cloud.resources()
    build(run_verb.folder, archive=b"two")
    cloud.answer = lambda one, *rest: (aws.correct_container if one.endpoint_config_name == first else wrong)(
        one, *rest
    )
    said = run_verb("deploy", code=1)
    assert "training said cat" in said
    assert "pets serves its previous version" in said
    assert serving(cloud) == first
    assert cloud.resources() == left


def test_an_update_that_aws_rolls_back_is_explained(cloud, run_verb):
    run_verb("deploy")
    first, left = serving(cloud), cloud.resources()
    cloud.outcomes["any"] = ("Failed", "alarms fastai-sagemaker-pets:5xx went off")
    said = run_verb("deploy", "--count", "2", "--guard", "on", code=1)
    assert "was rolled back by AWS: alarms fastai-sagemaker-pets:5xx went off" in said
    assert serving(cloud) == first
    assert [one for one in cloud.resources() if not one.startswith("alarm")] == left


def test_a_rollback_with_an_error_is_rolled_back(cloud, run_verb):
    run_verb("deploy")
    build(run_verb.folder, archive=b"two")
    run_verb("deploy")
    second, left = serving(cloud), cloud.resources()
    cloud.answer = lambda one, *rest: (
        (500, b"x") if one.endpoint_config_name != second else aws.correct_container(one, *rest)
    )
    run_verb("deploy", "--rollback", code=1)
    assert serving(cloud) == second
    assert cloud.resources() == left


def test_a_failed_rollback_is_reported_and_keeps_the_configuration(cloud, run_verb):
    """The new archive's answer is wrong, and AWS has no instance left for the rollback."""
    run_verb("deploy")
    first = serving(cloud)
    build(run_verb.folder, archive=b"two")
    cloud.answer = lambda one, *rest: (aws.correct_container if one.endpoint_config_name == first else wrong)(
        one, *rest
    )
    cloud.outcomes[first] = ("Failed", "Unable to provision requested ML compute capacity")
    said = run_verb("deploy", code=1)
    assert "not everything could be rolled back" in said
    assert "Unable to provision" in said
    assert "serves its previous version" not in said
    sagemaker = cloud.client("sagemaker")
    config = sagemaker.describe_endpoint_config(EndpointConfigName=serving(cloud))
    assert sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])


def test_a_failed_update_restores_autoscaling(cloud, run_verb):
    """Another instance type requires that autoscaling is removed first."""
    run_verb("deploy", "--max", "4", "--target", "77")
    left, scaler = cloud.resources(), cloud.client("application-autoscaling")
    cloud.outcomes["any"] = ("Failed", "no capacity")
    run_verb("deploy", "--max", "4", "--target", "99", "--instance", "ml.c7i.xlarge", code=1)
    assert cloud.resources() == left
    (target,) = scaler.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    (policy,) = scaler.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 4)
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 77


def test_an_endpoint_that_failed_earlier_is_explained_before_it_is_deleted(cloud, run_verb):
    cloud.outcomes["any"] = ("Failed", "the ping health check failed")
    cloud.break_("sagemaker:DescribeEndpoint", "interrupt", times=1)
    run_verb("deploy", code=130)
    cloud.break_("sagemaker:CreateEndpoint", "interrupt", times=1)
    run_verb("deploy", code=130)
    cloud.outcomes.clear()
    said = run_verb("deploy")
    assert "pets had failed to start: the ping health check failed" in said
    assert "pets is live" in said


def test_an_endpoint_that_cannot_be_deleted_keeps_its_schedule_and_parts(cloud, run_verb):
    run_verb("deploy", "--ttl", "4h")
    left = cloud.resources()
    cloud.break_("sagemaker:DeleteEndpoint", "denied")
    said = run_verb("destroy", "--yes", "--data", code=3)
    assert "is kept as long as the endpoint exists" in said
    assert cloud.resources() == left
    assert cloud.objects()
    cloud.faults.clear()
    run_verb("destroy", "--yes", "--data")
    assert cloud.resources() == cloud.objects() == []


def test_the_schedule_of_an_earlier_endpoint_is_cancelled(cloud, run_verb):
    run_verb("deploy", "--ttl", "4h")
    cloud.client("sagemaker").delete_endpoint(EndpointName="pets")  # as in the console
    cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
    assert "the scheduled deletion of an earlier endpoint was cancelled" in run_verb("deploy")
    assert not [one for one in cloud.resources() if one.startswith("schedule")]


def test_rollback_accepts_a_ttl(cloud, run_verb):
    run_verb("deploy")
    build(run_verb.folder, archive=b"two")
    run_verb("deploy")
    assert "scheduled for deletion at" in run_verb("deploy", "--rollback", "--ttl", "4h")
    assert [one for one in cloud.resources() if one.startswith("schedule")]


@pytest.mark.parametrize(
    ("running", "words", "traffic"),
    [
        (2, ["--max", "4"], "CANARY"),
        (1, ["--max", "4"], "ALL_AT_ONCE"),  # scaled in to one, which has no half
        (2, ["--max", "4", "--capture", "outputs"], "CANARY"),  # nothing is retained: two new instances
    ],
)
def test_a_canary_is_at_most_half_of_the_running_instances(cloud, run_verb, running, words, traffic):
    run_verb("deploy", "--count", "2", "--max", "4")
    sagemaker = cloud.client("sagemaker")
    weights = {"VariantName": "AllTraffic", "DesiredInstanceCount": running}
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="pets", DesiredWeightsAndCapacities=[weights]
    )
    build(run_verb.folder, archive=b"two")
    run_verb("deploy", "--count", "2", "--guard", "on", *words)
    policy = cloud.updates[-1]["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    assert policy["TrafficRoutingConfiguration"]["Type"] == traffic


def test_a_role_that_was_just_created_is_retried(cloud, run_verb):
    """For some seconds AWS rejects CreateModel and CreateSchedule with this message."""
    aws.FAULTS["not yet"] = (
        400,
        "ValidationException",
        "Could not access model data at s3://b/x. Please ensure that the role exists and that its trust "
        'relationship policy allows the action "sts:AssumeRole".',
    )
    cloud.break_("sagemaker:CreateModel", "not yet", times=1)
    cloud.break_("scheduler:CreateSchedule", "not yet", times=1)
    assert "pets is live" in run_verb("deploy", "--ttl", "4h")


def test_rollback_without_a_previous_version_is_a_sentence(cloud, run_verb):
    assert "pets has no previous version" in run_verb("deploy", "--rollback", code=1)
    run_verb("deploy")
    assert "pets has no previous version" in run_verb("deploy", "--rollback", code=1)


def test_a_live_endpoint_that_breaks_later_is_reported_and_kept(cloud, run_verb):
    run_verb("deploy")
    left = cloud.resources()
    cloud.answer = wrong
    assert "pets was left unchanged" in run_verb("deploy", code=1)
    assert cloud.resources() == left


@pytest.mark.parametrize("call", ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "InvokeEndpoint"])
def test_an_interrupted_deployment_continues(cloud, run_verb, call):
    cloud.break_(f"sagemaker:{call}", "interrupt", times=1)
    assert "stopped: the same command continues" in run_verb("deploy", code=130)
    assert "pets is live" in run_verb("deploy")
    assert cloud.calls["sagemaker:CreateEndpoint"] == 1


def test_an_interrupted_update_can_still_be_rolled_back(cloud, run_verb):
    run_verb("deploy")
    first = serving(cloud)
    build(run_verb.folder, archive=b"two")
    cloud.break_("sagemaker:UpdateEndpoint", "interrupt", times=1)
    run_verb("deploy", code=130)
    run_verb("deploy")
    run_verb("deploy", "--rollback")
    assert serving(cloud) == first


def test_somebody_elses_endpoint_is_not_changed(cloud, run_verb):
    sagemaker = cloud.client("sagemaker")
    sagemaker.create_model(ModelName="theirs")
    variant = {"VariantName": "v", "ModelName": "theirs", "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="theirs", ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName="pets", EndpointConfigName="theirs")
    left = cloud.resources()
    for verb, *words in (["deploy"], ["destroy", "--yes"], ["status"], ["deploy", "--rollback"]):
        assert "was not created by this tool" in run_verb(verb, *words, code=2)
    assert cloud.resources() == left


def test_a_gpu_that_would_be_idle_is_noted(cloud, run_verb):
    (run_verb.folder / "model").mkdir()
    for use, noted in ((["bf16", "fp32"], True), (["cuda-fp16", "fp32"], False)):
        (run_verb.folder / "model/model.json").write_text(json.dumps({"precision": {"use": use}}))
        said = run_verb("deploy", "--instance", "ml.g5.xlarge")
        assert ("the GPU of ml.g5.xlarge would be idle" in said) == noted
    assert "would be idle" not in run_verb("deploy", "--instance", "ml.c7i.large")


def test_an_endpoint_cannot_change_its_kind(cloud, run_verb):
    run_verb("deploy")
    left = cloud.resources()
    said = run_verb("deploy", "--kind", "serverless", code=2)
    assert (
        "an endpoint that is real-time cannot become serverless: delete it with `invoke destroy` first"
        in said
    )
    assert cloud.resources() == left


def test_an_endpoint_that_is_deleted_meanwhile_is_a_sentence(cloud, run_verb):
    """As in the console, or by the schedule of --ttl."""

    def delete(*request):
        cloud.client("sagemaker").delete_endpoint(EndpointName="pets")
        cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
        return aws.correct_container(*request)

    cloud.answer = delete
    said = run_verb("deploy", code=1)
    assert "the endpoint pets was deleted during the smoke test" in said
    assert "everything was removed; nothing is billed" in said
    assert cloud.resources() == []


# --- before anything is created


def test_a_missing_permission_of_the_role_is_named(cloud, run_verb):
    cloud.denied_actions.add("s3:GetObject")
    said = run_verb("deploy", code=3)
    assert re.search("role/fastai-sagemaker-pets lacks s3:GetObject on arn:aws:s3:::.*/model.tar.gz", said)
    assert "`invoke role --create` fixes it" in said
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["--guard", "on"], "cloudwatch:DescribeAlarms"),
        (["--capture", "outputs"], "s3:PutObject"),
        (["--kind", "async"], "s3:PutObject"),
    ],
)
def test_the_roles_permissions_are_checked_for_the_settings(cloud, run_verb, words, action):
    cloud.denied_actions.add(action)
    assert f"lacks {action} on " in run_verb("deploy", *words, code=3)
    assert cloud.resources() == []
    run_verb("deploy")


def test_a_missing_permission_of_a_batchs_role_names_the_command_that_adds_it(cloud, run_verb):
    bucket = f"sagemaker-{aws.REGION}-123456789012"
    run_verb("deploy")
    cloud.client("s3").put_object(Bucket=bucket, Key="photos/cat.jpg", Body=b"x")
    left = cloud.resources()
    cloud.denied_actions.add("s3:PutObject")
    said = run_verb("transform", f"s3://{bucket}/photos", f"s3://{bucket}/answers", code=3)
    assert f"lacks s3:PutObject on arn:aws:s3:::{bucket}/answers/answer.out" in said
    assert f"`invoke role --create --read s3://{bucket}/photos --write s3://{bucket}/answers`" in said
    assert cloud.resources() == left


def test_a_role_that_is_missing_or_not_sagemakers_is_reported(cloud, run_verb):
    assert "there is no role arn:aws:iam::123456789012:role/no" in run_verb("deploy", "--role", "no", code=2)
    cloud.client("iam").create_role(RoleName="mine", AssumeRolePolicyDocument="{}")
    assert "SageMaker may not assume" in run_verb("deploy", "--role", "mine", code=2)
    assert cloud.resources() == []


def test_a_quota_that_is_too_small_is_reported_with_its_console_page(cloud, run_verb):
    cloud.quotas["ml.c7i.large for endpoint usage"] = 1
    said = run_verb("deploy", "--count", "2", code=3)
    assert "your quota of ml.c7i.large for endpoint usage is 1, and 2 are needed at once" in said
    assert "servicequotas/home/services/sagemaker/quotas/L-00000000" in said
    assert cloud.resources() == []
    run_verb("deploy")
    assert "2 are needed at once" in run_verb("deploy", "--latency", "1", "--startup", "700", code=3)


@pytest.mark.parametrize("call", ["iam:SimulatePrincipalPolicy", "servicequotas:ListServiceQuotas"])
def test_a_check_that_is_denied_is_skipped_with_a_note(cloud, run_verb, call):
    cloud.break_(call, "denied")
    said = run_verb("deploy")
    assert f"was not checked: your AWS identity may not {call}" in said
    assert "pets is live" in said


def test_a_deleted_archive_or_bucket_is_reported(cloud, run_verb):
    run_verb("deploy")
    run_verb("destroy", "--yes", "--data")
    (run_verb.folder / "model.tar.gz").write_bytes(b"one")
    words = ["deploy", "--project", "pets", "--build", str(run_verb.folder)]
    assert main(words) == 3
    cloud.client("s3").delete_bucket(Bucket=f"sagemaker-{aws.REGION}-123456789012")
    assert main(words) == 3
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Unable to provision requested ML compute capacity: insufficient instance capacity", "another type"),
        ("Image size 12345678 is greater than supported size 10 GB", "too large for serverless"),
        ("CannotPullContainerError: pull access denied", "cannot be pulled"),
        ("Failed to download model data from s3://b/pets/x/model.tar.gz", "s3:GetObject"),
        ("User: x is not authorized to perform: ecr:BatchGetImage", "role"),
    ],
)
def test_aws_own_reason_counts_before_the_log(reason, advice):
    assert advice in diagnose.likely_cause(reason, ["No module named 'x'"])


def test_similar_words_are_not_taken_for_a_cause():
    lines = ["SECRET_KEY is set", "loading model data from s3://b/k", "assuming 2 cores"]
    ping = "did not pass the ping health check"
    assert diagnose.likely_cause("unknown", lines) is None
    assert "its log says why" in diagnose.likely_cause(ping, lines)


def test_a_log_that_may_not_be_read_is_not_reported_as_empty(cloud, run_verb):
    cloud.outcomes["any"] = ("Failed", "did not pass the ping health check")
    log(cloud, "starting")
    cloud.break_("logs:DescribeLogStreams", "denied")
    said = run_verb("deploy", code=1)
    assert "its log cannot be read: your AWS identity may not logs:DescribeLogStreams" in said


def test_control_characters_of_a_container_are_escaped(cloud, run_verb):
    evil = "\x1b]0;owned\x07[/x]\u202e"
    cloud.outcomes["any"] = ("Failed", evil)
    log(cloud, evil)
    said = run_verb("deploy", code=1)
    cloud.outcomes.clear()
    cloud.answer = lambda *_: (200, json.dumps({"class": evil, "confidence": 0.9}).encode())
    said += run_verb("deploy", code=1)
    cloud.answer = lambda *_: (500, evil.encode())
    said += run_verb("deploy", code=1)
    assert said.count("\\x1b]0;owned\\x07[/x]\\u202e") == 6
    assert not re.search("[\x07\x1b\u202e]", said)


@pytest.mark.parametrize(
    ("code", "message", "says", "number"),
    [
        ("ThrottlingException", "Rate exceeded", "CreateModel: Rate exceeded: AWS is busy", 3),
        ("ValidationException", "The subnet ID 'subnet-1' does not exist", "exist: correct the setting", 2),
        ("ValidationException", "Cannot update in-progress endpoint", "endpoint: run the command again", 3),
    ],
)
def test_an_error_of_aws_is_a_sentence_with_the_right_advice(
    cloud, run_verb, monkeypatch, code, message, says, number
):
    monkeypatch.setitem(aws.FAULTS, "mine", (400, code, message))
    cloud.break_("sagemaker:CreateModel", "mine")
    assert says in run_verb("deploy", code=number)
    tries = 3 if number == 3 and code == "ThrottlingException" else 1
    assert cloud.calls["sagemaker:CreateModel"] == tries
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (exceptions.UnauthorizedSSOTokenError(), "`aws sso login`"),
        (exceptions.LoginRefreshRequired(), "`aws login`"),
        (exceptions.LoginTokenLoadError(error_msg="x"), "`aws login`"),
    ],
)
def test_an_expired_login_names_the_login_command(error, advice):
    stop = as_command_error(error)
    assert advice in str(stop)
    assert "your AWS identity may not" not in str(stop)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("exec /usr/bin/serve: exec format error", "another processor"),
        ("ModuleNotFoundError: No module named 'openvino'", "requirements.txt"),
        ("[Errno -3] Temporary failure in name resolution", "isolation"),
        ("ERROR: Could not find a version that satisfies the requirement openvino", "isolation"),
        ("CUDA error: the provided PTX was compiled with an unsupported toolchain; CUDA driver", "`ami`"),
        ("raylet was killed by SIGKILL: out of memory", "too little memory"),
        ("Fatal Python error: Segmentation fault", "crashed"),
        ("is not authorized to perform: s3:GetObject", "role"),
        ("did not pass the ping health check", "raise `startup`"),
        ("the sun is shining", None),
    ],
)
def test_known_causes_are_recognised(line, advice):
    cause = diagnose.likely_cause(line, [])
    assert cause == diagnose.likely_cause("unknown", ["INFO ready", line])
    assert advice in cause if advice else cause is None
