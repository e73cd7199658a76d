"""The client and every kind of endpoint on SageMaker: what is sent, waited for, cleared away and said."""

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
PICTURE = b"\xff\xd8\xffcat"  # to the container that aws.knowing is
ANSWER = {"class": "cat", "confidence": 0.95, "predictions": []}
NOT_A_PICTURE = '{"error": "not_a_picture", "message": "these bytes are no picture that can be read"}'
NOT_LOADED = b'{"error": "not_loaded", "message": "the model is still loading"}'
DELETED = ("s3:DeleteObject", "s3:DELETE")  # the cloud may not know its name
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
    """InvokeEndpointAsync as AWS describes it: also inline, and answered after some looks at S3."""

    def __init__(self):
        self.requests, self.looks, self.words = [], 0, "{}"

    def __call__(self, cloud, request, given):
        name = request.path.split("/")[2]
        there = cloud.moto.sagemaker()
        if name not in there.endpoints:
            return fake_aws_answers.Problem(
                f"Endpoint {name} of account {fake_aws_answers.ACCOUNT} not found."
            )
        endpoint = there.endpoints[name]
        config = there.configs[endpoint.endpoint_config_name].async_inference_config["OutputConfig"]
        places = {"Output": config["S3OutputPath"], "Failure": config["S3FailurePath"]}
        places = {key: f"{place}/{len(self.requests)}.out" for key, place in places.items()}
        body = request.get_data()
        if source := request.headers.get("X-Amzn-SageMaker-InputLocation"):
            assert body == b""
            body = cloud.client("s3").get_object(**predictor._in_s3(source))["Body"].read()
        self.requests.append((source, dict(request.headers), body))
        status, answer = cloud.answer(endpoint, request.headers, body)
        place = predictor._in_s3(places["Output" if status == 200 else "Failure"])
        answer = answer if status == 200 else self.words.format(answer.decode(), status=status).encode()
        self.write(cloud, place, answer)
        headers = {f"X-Amzn-SageMaker-{key}Location": place for key, place in places.items()}
        return Response(json.dumps({"InferenceId": "1"}), 202, headers, content_type="application/json")

    def write(self, cloud, place, answer):
        """At once, when somebody has looked so many times, or (None) never."""
        if self.looks is None:
            return
        looked = cloud.calls["s3:GetObject"] + self.looks

        def wait():
            while cloud.calls["s3:GetObject"] < looked:
                time.sleep(0.01)
            cloud.client("s3").put_object(**place, Body=answer)

        if self.looks:
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
    """An account that this process, too, takes for AWS; waiting takes little time."""
    aws.nobody(monkeypatch)
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.04)
    for name, fault in FAULTS_HERE.items():
        monkeypatch.setitem(FAULTS, name, fault)
    with aws.running() as cloud:
        for key, value in cloud.environment.items():
            monkeypatch.setenv(key, value)
        cloud.answer = aws.knowing
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
    """A picture that no format makes much smaller, and a container that takes any."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def taking(sizes):
    """A container that notes how much it gets."""

    def answer(endpoint, headers, body):
        sizes.append(len(body))
        return 200, json.dumps(ANSWER).encode()

    return answer


# Which kind


@pytest.mark.parametrize("kind", VARIANTS)
def test_aws_is_asked_once_what_kind_it_is(cloud, kind):
    make(cloud, kind)
    pets = ImagePredictor("pets")
    assert (pets.kind, pets.where) == (kind, f"endpoint pets in eu-west-1 ({kind}) at {cloud.url}")
    assert list(pets.predict_many([PICTURE] * 3)) == [ANSWER] * 3
    assert (cloud.calls["sagemaker:DescribeEndpoint"], cloud.calls["sagemaker:DescribeEndpointConfig"]) == (
        1,
        1,
    )


@pytest.mark.parametrize("call", ["DescribeEndpoint", "DescribeEndpointConfig"])
def test_who_may_only_invoke_takes_it_for_a_real_time_one(cloud, call):
    make(cloud, "real-time")
    cloud.break_(f"sagemaker:{call}", "denied")
    pets = ImagePredictor("pets")
    assert pets.where == f"endpoint pets in eu-west-1 (taken for real-time) at {cloud.url}"
    assert pets.predict(PICTURE) == ANSWER


@pytest.mark.parametrize("kind", ["real-time", "serverless"])
def test_a_kind_that_is_given_is_not_looked_up(cloud, kind):
    make(cloud, kind)
    assert ImagePredictor("pets", kind=kind).predict(PICTURE) == ANSWER
    assert cloud.calls == {"sagemaker:InvokeEndpoint": 1}


def test_an_endpoint_that_is_not_there_is_a_sentence_when_it_is_asked(cloud):
    error = failure(ImagePredictor("nobody").predict, PICTURE)
    assert (error.code, error.status) == ("aws", 400)
    assert str(error).startswith("Endpoint nobody of account 123456789012 not found; `aws sagemaker list-end")


# Serverless


def test_a_serverless_endpoint_gets_no_more_than_it_takes(cloud):
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


def test_a_cold_start_is_waited_for_and_told(cloud):
    make(cloud, "serverless")
    replies = [(503, NOT_LOADED), (0, b"Your invocation timed out while waiting for a response"), None]
    cloud.answer = lambda *request: replies.pop(0) or aws.knowing(*request)
    cloud.break_("sagemaker:InvokeEndpoint", "cold", times=2)
    pets = ImagePredictor("pets", on_wait=(said := []).append)
    assert pets.predict(PICTURE) == ANSWER
    assert said == ["pets is still starting: it is asked again for up to 240 s"] * 4


@pytest.mark.parametrize(
    ("fault", "code"), [("cold", "not_loaded"), ("away", "not_loaded"), ("throttle", "busy")]
)
def test_who_never_gets_ready_is_given_up_with_a_sentence(cloud, monkeypatch, fault, code):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    make(cloud, "serverless")
    cloud.break_("sagemaker:InvokeEndpoint", fault)
    started = time.monotonic()
    error = failure(ImagePredictor("pets", patience=0.3).predict, PICTURE)
    assert (error.code, error.status) == (code, FAULTS[fault][0])
    assert str(error).startswith(FAULTS[fault][2].rstrip(". "))
    assert "; " in str(error)  # and what to do
    assert time.monotonic() - started >= 0.3
    assert cloud.calls["sagemaker:InvokeEndpoint"] > 2


# Asynchronous


def test_a_small_picture_travels_inside_the_request(cloud, later):
    make(cloud, "async")
    later.looks = 5
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
def test_a_large_picture_travels_through_s3_and_is_cleared_away(cloud, later, output, given, prefix):
    make(cloud, "async", S3OutputPath=f"s3://{BUCKET}/{output}")
    cloud.answer = taking(sizes := [])
    picture = noise(300)
    assert len(picture) > INLINE_LIMIT
    pets = ImagePredictor("pets", inputs=given and f"s3://{BUCKET}/{given}")
    assert pets.predict(picture) == ANSWER
    assert sizes == [len(picture)]
    assert re.fullmatch(f"s3://{BUCKET}/{prefix}/[0-9a-f-]{{36}}", later.requests[0][0])
    assert [one for one in cloud.objects() if "/out" not in one and "answers/" not in one] == []


def test_what_may_not_be_cleared_away_stays_without_a_word(cloud):
    make(cloud, "async")
    cloud.answer = taking([])
    for name in DELETED:
        cloud.break_(name, "denied")
    assert ImagePredictor("pets").predict(noise(300)) == ANSWER
    assert sum(cloud.calls[name] for name in DELETED) == 1
    assert [one for one in cloud.objects() if "/async/in/" in one]


@pytest.mark.parametrize(
    "words",
    [
        '{0}',
        'Received client error ({status}) from primary with message "{0}". See https://eu-west-1.console.aws.'
        'amazon.com/cloudwatch/home?region=eu-west-1#logEventViewer:group="x" in account 1 for more.',
    ],
    ids=["as it was said", "in AWS's sentence"],
)  # fmt: skip
def test_a_failure_comes_in_the_contracts_words(cloud, later, words):
    make(cloud, "async")
    later.words = words
    cloud.answer = lambda *_: (400, NOT_A_PICTURE.encode())
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == ("not_a_picture", "these bytes are no picture that can be read")
    assert error.status == (400 if "status" in words else None)


def test_a_failure_that_is_not_ours_is_quoted(cloud, later):
    make(cloud, "async")
    later.words = "The input could not be\nread: {0}"
    cloud.answer = lambda *_: (500, b"no such key")
    error = failure(ImagePredictor("pets").predict, PICTURE)
    assert (error.code, str(error)) == (
        "unexpected",
        "the server failed: The input could not be read: no such key",
    )


def test_an_instance_that_woke_and_still_loads_is_asked_again(cloud, later):
    make(cloud, "async")
    later.words = 'Received server error ({status}) from primary with message "{0}".'
    replies = [(503, NOT_LOADED), None]
    cloud.answer = lambda *request: replies.pop(0) or aws.knowing(*request)
    assert ImagePredictor("pets").predict(PICTURE) == ANSWER
    assert len(later.requests) == 2


def test_an_endpoint_that_sleeps_is_waited_for_told_and_given_up(cloud, later):
    make(cloud, "async")
    later.looks = None
    pets = ImagePredictor("pets", patience=0.6, on_wait=(said := []).append)
    error = failure(pets.predict, PICTURE)
    assert (error.code, error.status) == ("timeout", None)
    assert str(error) == f"pets wrote no s3://{BUCKET}/pets/async/out/0.out within 0.6 s"
    assert set(said) == {
        "pets has not answered yet: an instance may have to start; it is waited for up to 1 s"
    }
    assert later.requests[0][1]["X-Amzn-Sagemaker-Requestttlseconds"] == "60"


def test_waiting_can_be_given_up_from_another_thread(cloud, later):
    make(cloud, "async")
    later.looks = None
    pets = ImagePredictor("pets")
    threading.Timer(0.3, pets.close).start()
    answers = pets.predict_many([PICTURE, PICTURE])
    assert [(error.code, str(error)) for error in answers] == [
        ("stopped", "nobody waited for the answer any longer")
    ] * 2


def test_who_may_not_list_the_bucket_still_gets_the_answer(cloud):
    make(cloud, "async")
    cloud.break_("s3:GetObject", "unlisted", times=3)
    assert ImagePredictor("pets").predict(PICTURE) == ANSWER


@pytest.mark.parametrize("call", ["s3:GetObject", "s3:PutObject", "sagemaker:InvokeEndpointAsync"])
def test_what_is_forbidden_is_named_at_once(cloud, call):
    make(cloud, "async")
    pets = ImagePredictor("pets")
    cloud.answer = taking([])
    cloud.break_(call, "denied")
    error = failure(pets.predict, PICTURE if call == "s3:GetObject" else noise(300))
    assert (error.code, error.status) == ("aws", 403)
    assert f"not authorized to perform: {call}" in str(error)
    assert "; your AWS identity needs " in str(error)


def test_without_a_place_in_s3_a_picture_is_made_to_fit_into_the_request(cloud, later):
    make(cloud, "async")
    cloud.break_("sagemaker:DescribeEndpoint", "denied")
    cloud.answer = taking(sizes := [])
    pets = ImagePredictor("pets", kind="async")
    assert pets.where.startswith("endpoint pets in eu-west-1 (async)")
    assert pets.predict(noise(600)) == ANSWER
    assert later.requests[0][0] is None
    assert sizes[0] <= INLINE_LIMIT
    assert failure(ImagePredictor("pets", kind="async", shrink=0).predict, noise(300)).code == "too_large"


# On the command line


@pytest.fixture
def photos(tmp_path):
    """Two pictures in a folder."""
    build(tmp_path / "pets")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(tmp_path / "pets/train" / name, folder)
    return folder


@pytest.mark.parametrize("kind", VARIANTS)
def test_invoke_predict_asks_every_kind_and_says_where(cloud, photos, tmp_path, kind):
    for name in ("fastai-sagemaker-pets", "fastai-sagemaker-pets-ttl"):
        trust = '{"Statement": [{"Principal": {"Service": "sagemaker.amazonaws.com"}}]}'
        cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"project": str(tmp_path / "pets")}))

    def invoke(*words):
        command = [*INVOKE, "-f", tmp_path / "mine.yaml", *words]
        pipes = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | cloud.environment, **pipes)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    invoke("deploy", "--kind", kind)
    done = invoke("predict", str(photos), "--endpoint", "pets")
    where = f"endpoint pets in eu-west-1 ({kind}) at {cloud.url}"
    assert f"\nasking about 2 pictures: {where}\n" in done.stderr
    assert re.search(r"cat\.jpg +cat +━+╸? +95\.0 %", done.stdout)
    assert re.search(r"dog\.jpg +dog +━+╸? +95\.0 %", done.stdout)
    done = invoke("predict", str(photos), "--endpoint", "pets", "--kind", kind, "--", "--json")
    result = json.loads(done.stdout)
    assert [row["class"] for row in result["pictures"]] == ["cat", "dog"]
    assert (result["summary"]["asked"], result["summary"]["failed"]) == (where, 0)


def test_the_terminal_says_that_it_waits_once(cloud, photos):
    make(cloud, "serverless")
    cloud.break_("sagemaker:InvokeEndpoint", "cold", times=2)
    shown, code = on_terminal(photos, "--endpoint", "pets")
    assert code == 0, shown
    assert shown.count("pets is still starting: it is asked again for up to 240 s") == 1
    assert shown.index("asking about 2 pictures: endpoint pets") < shown.index("still starting")
    assert "2 pictures, 0 failed" in shown


def test_a_plain_server_is_named_by_its_address(cloud, photos, capsys):
    assert cli.main([str(photos), "--url", cloud.url + "/invocations"]) == 3
    assert f"asking about 2 pictures: http://{urlsplit(cloud.url).netloc}\n" in capsys.readouterr().err


def test_a_kind_is_not_for_an_address(cloud, photos, capsys):
    assert cli.main([str(photos), "--url", cloud.url, "--kind", "async"]) == 2
    assert capsys.readouterr().err.startswith("error: kind (one of real-time, serverless, async) is for an")
