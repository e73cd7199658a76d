"""The smoke test: an endpoint is reported live only after it answers a validation picture as training did.

SageMaker's own health check also passes before the model is loaded, or when it never will be.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aws.client import Aws, AwsError, error_code, error_response, none_if_missing
from aws.wait import progress_line
from common import CommandError, terminal_safe

MAX_BYTES = 4_000_000  # of a picture: serverless takes requests of 4 MB, the other kinds more
LOADING = ("ModelNotReadyException", "ServiceUnavailable", "InternalDependencyException", "ReadTimeoutError")
LOADING_SECONDS = 300  # AWS's Ray container passes the health check long before its model is loaded
ASYNC_SECONDS = 1200
PAUSE = 3  # seconds between two tries
TRIES = 3  # of a request that is answered with an error, which may be the first request's alone


@dataclass(frozen=True)
class TestPicture:
    """A picture, and the labels with which it must be answered (None: any prediction passes)."""

    __test__ = False  # pytest collects classes by this name

    name: str
    body: bytes
    expected: set[str] | None


def pick_picture(build: Path, *, compare: bool = True) -> TestPicture:
    """The validation picture with training's most confident right answer. Raises CommandError without one."""
    source = build / "train" / "validation.json"
    try:
        entries = json.loads(source.read_text())
        usable = [e for e in entries if (source.parent / e["file"]).stat().st_size <= MAX_BYTES]
        best = max(usable, key=lambda e: (e["predicted"] == e["labels"], e["confidence"]))
        file = source.parent / best["file"]
        return TestPicture(file.name, file.read_bytes(), set(best["predicted"]) if compare else None)
    except FileNotFoundError as error:
        text = f"{error.filename}, which the smoke test needs, was not found"
        raise CommandError(2, f"{text}: run `invoke train` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{source} names no picture for the smoke test ({error})"
        raise CommandError(2, f"{text}: run `invoke train` first") from None


def run(aws: Aws, project: str, kind: str, bucket: str, picture: TestPicture) -> tuple[bool, str]:
    """Whether the endpoint's answer is right, and one sentence on it."""
    invoke = invoke_async if kind == "async" else invoke_endpoint
    start, tries = time.monotonic(), 0
    with progress_line(f"smoke test of {project} with {picture.name}", "") as show:
        while True:
            tries += 1
            try:
                return judge(invoke(aws, project, bucket, picture.body, show), picture)
            except AwsError as error:
                loading = is_loading(error)
                if error_code(error) != "ModelError" and not loading:
                    raise
                wait_longer = loading and time.monotonic() - start < LOADING_SECONDS
                if tries >= TRIES and not wait_longer:
                    return False, f"it did not answer {picture.name}: {container_message(error)}"
                show("the container runs and loads the model" if loading else "it responded with an error")
            time.sleep(PAUSE)


def is_loading(error: Exception) -> bool:
    """Whether the container runs and its model is not loaded."""
    # SageMaker returns status 0 when its own limit of 60 s has passed.
    status = error_response(error).get("OriginalStatusCode")
    return error_code(error) in LOADING or status in (0, 502, 503, 504)


def invoke_endpoint(aws: Aws, project: str, _: str, picture: bytes, __: Callable[[str], None]) -> bytes:
    """The endpoint's response to a picture."""
    request = {"ContentType": "application/x-image", "Accept": "application/json"}
    response = aws("sagemaker-runtime").invoke_endpoint(EndpointName=project, Body=picture, **request)
    return response["Body"].read()


def invoke_async(aws: Aws, project: str, bucket: str, picture: bytes, show: Callable[[str], None]) -> bytes:
    """An asynchronous endpoint's response, through S3."""
    s3, key = aws("s3"), f"{project}/async/in/{uuid.uuid4()}"
    s3.put_object(Bucket=bucket, Key=key, Body=picture)
    accepted = aws("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=project,
        InputLocation=f"s3://{bucket}/{key}",
        ContentType="application/x-image",
        Accept="application/json",
    )
    deadline = time.monotonic() + ASYNC_SECONDS
    while time.monotonic() < deadline:
        for name in ("OutputLocation", "FailureLocation"):
            output_bucket, _, output_key = accepted.get(name, "").removeprefix("s3://").partition("/")
            if not output_key:
                continue
            found = none_if_missing(s3.get_object, Bucket=output_bucket, Key=output_key)
            if found:
                return found["Body"].read()
        show("the picture is queued in S3 until an instance takes it")
        time.sleep(PAUSE)
    return b"nothing within 20 minutes"


def judge(body: bytes, picture: TestPicture) -> tuple[bool, str]:
    """Compare a response with training's answer."""
    try:
        answer = json.loads(body)
        labels = set(answer.get("classes", [answer["class"]]))
        label = terminal_safe(" ".join(answer["class"].split()))
        text = f"{picture.name} is {label} ({answer['confidence']:.1%})"
    except (ValueError, KeyError, TypeError, AttributeError):
        beginning = terminal_safe(body[:200].decode(errors="replace"))
        return False, f"its response to {picture.name} is not a prediction: {beginning}"
    if picture.expected is None:
        return True, f"{text}, answered by an older archive"
    if labels != picture.expected:
        return False, f"the answer is that {text}, but training said {', '.join(sorted(picture.expected))}"
    return True, f"{text}, as training said"


def container_message(error: Exception) -> str:
    """The container's own error message, if it sent one."""
    response = error_response(error)
    text = terminal_safe(" ".join(str(response.get("OriginalMessage") or error).split())[:300])
    return f"status {response['OriginalStatusCode']}, {text}" if "OriginalStatusCode" in response else text
