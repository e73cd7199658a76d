"""The client with every kind of endpoint on SageMaker: what it sends, waits for, deletes and prints."""

import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from PIL import Image
from test_cli import on_terminal
from test_predictor import failure
from werkzeug.wrappers import Response

import cli
import fake_aws as aws
import fake_aws_answers
import predictor
from fake_aws import FAULTS, build
from predictor import INLINE_LIMIT, SERVERLESS_LIMIT, ImagePredictor
from support import INVOKE, ROOT

BUCKET = "mine"
PICTURE = b"\xff\xd8\xffcat"  # as the container aws.correct_container reads it
ANSWER = {"class": "cat", "confidence": 0.95, "predictions": []}
NOT_A_PICTURE = '{"error": "not_a_picture", "message": "these bytes are no picture that can be read"}'
NOT_LOADED = b'{"error": "not_loaded", "message": "the model is still loading"}'
DELETED = ("s3:DeleteObject", "s3:DELETE")  # the fake may not know the operation's name
VARIANTS = {
    "real-time": {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1},
    "serverless": {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 5}},
    "async": {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1},
}
FAULTS_HERE = {
    "cold": (429, "ModelNotReadyException", "The model is not ready for inference. Try again later."),
    "away": (503, "ServiceUnavailable", "The service is unavailable."),
    "unlisted": (403, "AccessDenied", "User is not authorized to perform: s3:ListBucket on this bucket"),
}


class Later:
    """InvokeEndpointAsync as AWS documents it: also inline, and answered after some reads of S3."""

    def __init__(self):
        self.requests, self.reads, self.form = [], 0, "{}"

    def __call__(self, cloud, request, given):
        name = request.path.split("/")[2]
        there = cloud.moto.sagemaker()
        if name not in there.endpoints:
            return fake_aws_answers.Problem(
                f"Endpoint {name} of account {fake_aws_answers.ACCOUNT} not found."
            )
        endpoint = there.endpoints[name]
        config = there.configs[endpoint.endpoint_config_name].async_inference_config["OutputConfig"]
        locations = {"Output": config["S3OutputPath"], "Failure": config["S3FailurePath"]}
        locations = {key: f"{uri}/{len(self.requests)}.out" for key, uri in locations.items()}
        body = request.get_data()
        if source := request.headers.get("X-Amzn-SageMaker-InputLocation"):
            assert body == b""
            body = cloud.client("s3").get_object(**predictor._parse_s3_uri(source))["Body"].read()
        self.requests.append((source, dict(request.headers), body))
        status, answer = cloud.answer(endpoint, request.headers, body)
        target = predictor._parse_s3_uri(locations["Output" if status == 200 else "Failure"])
        answer = answer if status == 200 else self.form.format(answer.decode(), status=status).encode()
        self.write(cloud, target, answer)
        headers = {f"X-Amzn-SageMaker-{key}Location": uri for key, uri in locations.items()}
        return Response(json.dumps({"InferenceId": "1"}), 202, headers, content_type="application/json")

    def write(self, cloud, target, answer):
        """Write the answer at once, after so many reads of S3, or (None) never."""
        if self.reads is None:
            return
        enough = cloud.calls["s3:GetObject"] + self.reads

        def wait():
            while cloud.calls["s3:GetObject"] < enough:
                time.sleep(0.01)
            cloud.client("s3").put_object(**target, Body=answer)

        if self.reads:
            threading.Thread(target=wait, daemon=True).start()
        else:
            wait()


@pytest.fixture
def later(monkeypatch):
    later = Later()
    monkeypatch.setitem(fake_aws_answers.ANSWERS, "sagemaker:InvokeEndpointAsync", later)
    return later


@pytest.fixture
def cloud(monkeypatch, later):
    """An AWS account for this process; waits are short."""
    aws.without_credentials(monkeypatch)
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.04)
    for name, fault in FAULTS_HERE.items():
        monkeypatch.setitem(FAULTS, name, fault)
    with aws.running() as cloud:
        for key, value in cloud.environment.items():
            monkeypatch.setenv(key, value)
        cloud.answer = aws.correct_container
        place = {"LocationConstraint": aws.REGION}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud


def make(cloud, kind, **outputs):
    """An endpoint called pets."""
    sagemaker = cloud.client("sagemaker")
    role = f"arn:aws:iam::{fake_aws_answers.ACCOUNT}:role/pets"
    sagemaker.create_model(ModelName="pets", ExecutionRoleArn=role, PrimaryContainer={"Image": "x"})
    data = f"s3://{BUCKET}/pets/async"
    outputs = {"S3OutputPath": f"{data}/out", "S3FailurePath": f"{data}/failed"} | outputs
    later = {"AsyncInferenceConfig": {"OutputConfig": outputs}} if kind == "async" else {}
    variant = {"VariantName": "v", "ModelName": "pets", "InitialVariantWeight": 1.0} | VARIANTS[kind]
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant], **later)
    sagemaker.create_endpoint(EndpointName="pets", EndpointConfigName="c")
    for _ in range(cloud.polls + 1):
        sagemaker.describe_endpoint(EndpointName="pets")
    cloud.calls.clear()


def noise(side):
    """A picture that no format compresses."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def taking(sizes):
    """A container that records the sizes of the bodies."""

    def answer(endpoint, headers, body):
        sizes.append(len(body))
        return 200, json.dumps(ANSWER).encode()

    return answer


# Which kind


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_kind_is_looked_up_once(cloud, kind):
    make(cloud, kind)
    pets = ImagePredictor("pets")
    assert (pets.kind, pets.description) == (kind, f"endpoint pets in eu-west-1 ({kind}) at {cloud.url}")
    assert list(pets.predict_many([PICTURE] * 3)) == [ANSWER] * 3
    assert (cloud.calls["sagemaker:DescribeEndpoint"], cloud.calls["sagemaker:DescribeEndpointConfig"]) == (
        1,
        1,
    )


@pytest.mark.parametrize("call", ["DescribeEndpoint", "DescribeEndpointConfig"])
def test_without_permission_to_describe_real_time_is_assumed(cloud, call):
    make(cloud, "real-time")
    cloud.break_(f"sagemaker:{call}", "denied")
    pets = ImagePredictor("pets")
    assert pets.description == f"endpoint pets in eu-west-1 (assumed real-time) at {cloud.url}"
    assert pets.predict(PICTURE) == ANSWER


@pytest.mark.parametrize("kind", ["real-time", "serverless"])
def test_a_given_kind_is_not_looked_up(cloud, kind):
    make(cloud, kind)
    assert ImagePredictor("pets", kind=kind).predict(PICTURE) == ANSWER
    assert cloud.calls == {"sagemaker:InvokeEndpoint": 1}


def test_an_endpoint_that_does_not_exist_is_an_error_at_the_first_request(cloud):
    error = failure(ImagePredictor("nobody").predict, PICTURE)
    assert (error.code, error.status) == ("aws", 400)
    assert str(error).startswith("Endpoint nobody of account 123456789012 not found; `aws sagemaker list-end")


# Serverless


def test_a_picture_is_scaled_down_to_the_serverless_limit(cloud):
    make(cloud, "serverless")
    cloud.answer = taking(sizes := [])
    picture = noise(1250)
    assert len(picture) > SERVERLESS_LIMIT
    assert ImagePredictor("pets").predict(picture) == ANSWER
    assert 0 < sizes[0] <= SERVERLESS_LIMIT
    error = failure(ImagePredictor("pets", shrink=0).predict, picture)
    assert (error.code, str(error)) == (
        "too_large",
        f"{len(picture):,} bytes are over the limit of 4,000,000",
    )


def test_a_cold_start_is_retried_with_a_message(cloud):
    make(cloud, "serverless")
    replies = [(503, NOT_LOADED), (0, b"Your invocation timed out while waiting for a response"), None]
    cloud.answer = lambda *request: replies.pop(0) or aws.correct_container(*request)
    cloud.break_("sagemaker:InvokeEndpoint", "cold", times=2)
    pets = ImagePredictor("pets", on_wait=(sentences := []).append)
    assert pets.predict(PICTURE) == ANSWER
    assert sentences == ["pets is still starting: retrying for up to 240 s"] * 4


@pytest.mark.parametrize(
    ("fault", "code"), [("cold", "not_loaded"), ("away", "not_loaded"), ("throttle", "busy")]
)
def test_an_endpoint_that_never_gets_ready_is_an_error_after_max_wait(cloud, monkeypatch, fault, code):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    make(cloud, "serverless")
    cloud.break_("sagemaker:InvokeEndpoint", fault)
    started = time.monotonic()
    error = failure(ImagePredictor("pets", max_wait=0.3).predict, PICTURE)
    assert (error.code, error.status) == (code, FAULTS[fault][0])
    assert str(error).startswith(FAULTS[fault][2].rstrip(". "))
    assert "; " in str(error)  # and what to do
    assert time.monotonic() - started >= 0.3
    assert cloud.calls["sagemaker:InvokeEndpoint"] > 2


# Asynchronous


def test_a_small_picture_is_sent_inside_the_request(cloud, later):
    make(cloud, "async")
    later.reads = 5
    assert ImagePredictor("pets").predict(PICTURE, top_k=2) == ANSWER
    ((source, headers, body),) = later.requests
    assert (source, body) == (None, PICTURE)
    assert headers["X-Amzn-Sagemaker-Content-Type"] == "image/jpeg"
    assert headers["X-Amzn-Sagemaker-Accept"] == "application/json"
    assert headers["X-Amzn-Sagemaker-Custom-Attributes"] == "top_k=2"
    assert headers["X-Amzn-Sagemaker-Requestttlseconds"] == "1200"
    assert cloud.objects() == [f"s3://{BUCKET}/pets/async/out/0.out"]


@pytest.mark.parametrize(
    ("output", "given", "prefix"),
    [
        ("pets/async/out", None, "pets/async/in"),
        ("answers/", None, "answers/in"),
        ("pets/async/out", "photos/", "photos"),
    ],
)
def test_a_large_picture_is_sent_through_s3_and_deleted(cloud, later, output, given, prefix):
    make(cloud, "async", S3OutputPath=f"s3://{BUCKET}/{output}")
    cloud.answer = taking(sizes := [])
    picture = noise(300)
    assert len(picture) > INLINE_LIMIT
    pets = ImagePredictor("pets", s3_input=given and f"s3://{BUCKET}/{given}")
    assert pets.predict(picture) == ANSWER
    assert sizes == [len(picture)]
    assert re.fullmatch(f"s3://{BUCKET}/{prefix}/[0-9a-f-]{{36}}", later.requests[0][0])
    assert [uri for uri in cloud.objects() if "/out" not in uri and "answers/" not in uri] == []


def test_denied_deletion_is_ignored(cloud):
    make(cloud, "async")
    cloud.answer = taking([])
    for name in DELETED:
        cloud.break_(name, "denied")
    assert ImagePredictor("pets").predict(noise(300)) == ANSWER
    assert sum(cloud.calls[name] for name in DELETED) == 1
    assert [uri for uri in cloud.objects() if "/async/in/" in uri]


@pytest.mark.parametrize(
    "form",
    [
        '{0}',
        'Received client error ({status}) from primary with message "{0}". See https://eu-west-1.console.aws.'
        'amazon.com/cloudwatch/home?region=eu-west-1#logEventViewer:group="x" in account 1 for more.',
    ],
    ids=["plain", "in AWS's sentence"],
)  # fmt: skip
def test_an_asynchronous_failure_is_the_servers_own_error(cloud, later, form):
    make(cloud, "async")
    later.form = form
    cloud.answer = lambda *_: (400, NOT_A_PICTURE.encode())
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == ("not_a_picture", "these bytes are no picture that can be read")
    assert error.status == (400 if "status" in form else None)


def test_an_asynchronous_failure_outside_the_contract_is_quoted(cloud, later):
    make(cloud, "async")
    later.form = "The input could not be\nread: {0}"
    cloud.answer = lambda *_: (500, b"no such key")
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == (
        "unexpected",
        "the server failed: The input could not be read: no such key",
    )


@pytest.mark.parametrize("status", [200, 500])
def test_an_asynchronous_answer_of_30_mb_is_not_read(cloud, status):
    make(cloud, "async")
    cloud.answer = lambda *_: (status, b" " * 30_000_000)
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == (
        "unexpected",
        "the answer has over 25 MB; is this the right endpoint?",
    )


@pytest.mark.parametrize("kind", VARIANTS)
def test_another_shape_than_an_answer_is_an_error(cloud, kind):
    make(cloud, kind)
    for body in (b'{"class": 5}', b"[" * 100_000, b'{"class": "\xff"}', b"\x1b]52;c;aGk=\x07"):
        cloud.answer = lambda *_, body=body: (200, body)
        error = failure(ImagePredictor("pets").predict, PICTURE)
        assert (error.code, error.status) == ("unexpected", 200)
        assert not predictor.UNSAFE.search(str(error))


@pytest.mark.parametrize("kind", VARIANTS)
def test_an_errors_message_is_safe_to_print(cloud, kind):
    make(cloud, kind)
    message = json.dumps({"error": "internal", "message": "\x1b]52;c;aGk=\x07\x9b\u202e"}, ensure_ascii=False)
    cloud.answer = lambda *_: (400, message.encode())
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == ("internal", "\\x1b]52;c;aGk=\\x07\\x9b\\u202e")


def test_an_instance_that_is_still_loading_is_retried(cloud, later):
    make(cloud, "async")
    later.form = 'Received server error ({status}) from primary with message "{0}".'
    replies = [(503, NOT_LOADED), None]
    cloud.answer = lambda *request: replies.pop(0) or aws.correct_container(*request)
    assert ImagePredictor("pets").predict(PICTURE) == ANSWER
    assert len(later.requests) == 2


def test_waiting_for_a_stopped_instance_has_a_message_and_ends_after_max_wait(cloud, later):
    make(cloud, "async")
    later.reads = None
    pets = ImagePredictor("pets", max_wait=0.6, on_wait=(sentences := []).append)
    error = failure(pets.predict, PICTURE)
    assert (error.code, error.status) == ("timeout", None)
    assert str(error) == f"pets wrote no s3://{BUCKET}/pets/async/out/0.out within 0.6 s"
    assert set(sentences) == {"pets has not answered yet: an instance may have to start; waiting up to 1 s"}
    assert later.requests[0][1]["X-Amzn-Sagemaker-Requestttlseconds"] == "60"


def test_close_ends_the_waiting_of_other_threads(cloud, later):
    make(cloud, "async")
    later.reads = None
    pets = ImagePredictor("pets")

    def close_later() -> None:
        while cloud.calls["s3:GetObject"] < 4:  # both pictures wait for their answers
            time.sleep(0.01)
        pets.close()

    threading.Thread(target=close_later, daemon=True).start()
    answers = pets.predict_many([PICTURE, PICTURE])
    assert [(error.code, str(error)) for error in answers] == [
        ("stopped", "close() was called before the answer came")
    ] * 2


def test_the_answer_is_read_without_permission_to_list_the_bucket(cloud):
    make(cloud, "async")
    cloud.break_("s3:GetObject", "unlisted", times=3)
    assert ImagePredictor("pets").predict(PICTURE) == ANSWER


@pytest.mark.parametrize("call", ["s3:GetObject", "s3:PutObject", "sagemaker:InvokeEndpointAsync"])
def test_a_denied_call_is_named_without_retries(cloud, call):
    make(cloud, "async")
    pets = ImagePredictor("pets")
    cloud.answer = taking([])
    cloud.break_(call, "denied")
    error = failure(pets.predict, PICTURE if call == "s3:GetObject" else noise(300))
    assert (error.code, error.status) == ("aws", 403)
    assert f"not authorized to perform: {call}" in str(error)
    assert "; your AWS identity needs " in str(error)


def test_without_an_s3_prefix_a_picture_is_scaled_down_to_the_inline_limit(cloud, later):
    make(cloud, "async")
    cloud.break_("sagemaker:DescribeEndpoint", "denied")
    cloud.answer = taking(sizes := [])
    pets = ImagePredictor("pets", kind="async")
    assert pets.description.startswith("endpoint pets in eu-west-1 (async)")
    assert pets.predict(noise(600)) == ANSWER
    assert later.requests[0][0] is None
    assert sizes[0] <= INLINE_LIMIT
    assert failure(ImagePredictor("pets", kind="async", shrink=0).predict, noise(300)).code == "too_large"


# The command line


@pytest.fixture
def photos(tmp_path):
    """Two pictures in a folder."""
    build(tmp_path / "pets")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(tmp_path / "pets/train" / name, folder)
    return folder


def check_table(out: str, err: str, description: str) -> None:
    """Both pictures are in the table, and the endpoint is named before it."""
    assert f"sending 2 pictures to {description}\n" in err
    assert re.search(r"cat\.jpg +cat +━+╸? +95\.0 %", out)
    assert re.search(r"dog\.jpg +dog +━+╸? +95\.0 %", out)


def check_json(out: str, description: str) -> None:
    result = json.loads(out)
    assert [row["class"] for row in result["pictures"]] == ["cat", "dog"]
    assert (result["summary"]["endpoint"], result["summary"]["failed"]) == (description, 0)


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_command_line_works_with_every_kind_and_names_the_endpoint(cloud, photos, kind, capsys):
    make(cloud, kind)
    description = f"endpoint pets in eu-west-1 ({kind}) at {cloud.url}"
    assert cli.main([str(photos), "--endpoint", "pets"]) == 0
    check_table(*capsys.readouterr(), description)
    assert cli.main([str(photos), "--endpoint", "pets", "--kind", kind, "--json"]) == 0
    check_json(capsys.readouterr().out, description)


def test_invoke_predict_queries_what_invoke_deploy_made(cloud, photos, tmp_path):
    """An asynchronous endpoint: only there does the client depend on how deploy names its S3 paths."""
    for name in ("fastai-sagemaker-pets", "fastai-sagemaker-pets-ttl"):
        trust = '{"Statement": [{"Principal": {"Service": "sagemaker.amazonaws.com"}}]}'
        cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"project": str(tmp_path / "pets")}))

    def invoke(*arguments):
        command = [*INVOKE, "-f", tmp_path / "mine.yaml", *arguments]
        pipes = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    invoke("deploy", "--kind", "async")
    description = f"endpoint pets in eu-west-1 (async) at {cloud.url}"
    done = invoke("predict", str(photos), "--endpoint", "pets")
    check_table(done.stdout, done.stderr, description)
    done = invoke("predict", str(photos), "--endpoint", "pets", "--kind", "async", "--", "--json")
    check_json(done.stdout, description)


def test_waiting_is_printed_once(cloud, photos):
    make(cloud, "serverless")
    cloud.break_("sagemaker:InvokeEndpoint", "cold", times=2)
    shown, code = on_terminal(photos, "--endpoint", "pets")
    assert code == 0, shown
    assert shown.count("pets is still starting: retrying for up to 240 s") == 1
    assert shown.index("sending 2 pictures to endpoint pets") < shown.index("still starting")
    assert "2 pictures, 0 failed" in shown


def test_a_plain_server_is_named_by_its_address(cloud, photos, capsys):
    assert cli.main([str(photos), "--url", cloud.url + "/invocations"]) == 3
    assert f"sending 2 pictures to http://{urlsplit(cloud.url).netloc}\n" in capsys.readouterr().err


def test_a_kind_is_not_for_an_address(cloud, photos, capsys):
    assert cli.main([str(photos), "--url", cloud.url, "--kind", "async"]) == 2
    assert capsys.readouterr().err.startswith("error: kind (one of real-time, serverless, async) is for an")
