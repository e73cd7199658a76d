"""The gate: "live" is said of an endpoint only when it has answered a real picture as training did.

SageMaker's own health check says yes before the model is loaded, or when it never will be.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws.client import Aws, AwsError, error_code, error_response, none_if_missing
from aws.wait import progress_line
from common import CommandError, terminal_safe

MAX_BYTES = 4_000_000  # bytes that every kind of endpoint takes
LOADING = ("ModelNotReadyException", "ServiceUnavailable", "InternalDependencyException", "ReadTimeoutError")
LOADING_SECONDS = 300  # AWS's Ray container says that it is healthy long before
ASYNC_SECONDS = 1200
PAUSE = 3  # seconds between two tries
TRIES = 3  # of an error that may be the first request's alone


@dataclass(frozen=True)
class TestImage:
    """A picture, and the labels that it must be answered with (None: any answer will do)."""

    name: str
    body: bytes
    expected: set[str] | None


def pick_image(build: Path, compare: bool = True) -> TestImage:
    """The validation picture that training was surest of and right about. Raises Stop if there is none."""
    source = build / "train" / "validation.json"
    try:
        entries = json.loads(source.read_text())
        usable = [e for e in entries if (source.parent / e["file"]).stat().st_size <= MAX_BYTES]
        best = max(usable, key=lambda e: (e["predicted"] == e["labels"], e["confidence"]))
        file = source.parent / best["file"]
        return TestImage(file.name, file.read_bytes(), set(best["predicted"]) if compare else None)
    except FileNotFoundError as error:
        raise CommandError(
            2, f"there is no {error.filename}, to ask about: run `invoke train` first"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            2, f"{source} names no picture to ask ({error}): run `invoke train` first"
        ) from None


def run(aws: Aws, project: str, kind: str, bucket: str, question: TestImage) -> tuple[bool, str]:
    """Whether the endpoint answered rightly, and one sentence on its answer."""
    answer = invoke_async if kind == "async" else invoke
    start, tries = time.monotonic(), 0
    with progress_line(f"asking {project} about {question.name}", "") as tell:
        while True:
            tries += 1
            try:
                return judge(answer(aws, project, bucket, question.body, tell), question)
            except AwsError as error:
                loading = is_loading(error)
                if error_code(error) != "ModelError" and not loading:
                    raise
                patient = loading and time.monotonic() - start < LOADING_SECONDS
                if tries >= TRIES and not patient:
                    return False, f"it did not answer {question.name}: {container_message(error)}"
                tell("its container runs and loads the model" if loading else "it answered with an error")
            time.sleep(PAUSE)


def is_loading(error: Any) -> bool:
    """Whether the container is up and its model is not."""
    status = error_response(error).get("OriginalStatusCode")  # SageMaker says 0 when its own 60 s have passed
    return error_code(error) in LOADING or status in (0, 502, 503, 504)


def invoke(aws: Aws, project: str, _: str, picture: bytes, __: Callable[[str], None]) -> bytes:
    """The endpoint's answer to a picture."""
    request = {"ContentType": "application/x-image", "Accept": "application/json"}
    reply = aws("sagemaker-runtime").invoke_endpoint(EndpointName=project, Body=picture, **request)
    return reply["Body"].read()


def invoke_async(aws: Aws, project: str, bucket: str, picture: bytes, tell: Callable[[str], None]) -> bytes:
    """An asynchronous endpoint's answer, through S3."""
    s3, key = aws("s3"), f"{project}/async/in/{uuid.uuid4()}"
    s3.put_object(Bucket=bucket, Key=key, Body=picture)
    places = aws("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=project,
        InputLocation=f"s3://{bucket}/{key}",
        ContentType="application/x-image",
        Accept="application/json",
    )
    deadline = time.monotonic() + ASYNC_SECONDS
    while time.monotonic() < deadline:
        for name in ("OutputLocation", "FailureLocation"):
            there, _, path = places.get(name, "").removeprefix("s3://").partition("/")
            found = path and none_if_missing(s3.get_object, Bucket=there, Key=path)
            if found:
                return found["Body"].read()
        tell("the picture waits in S3 until an instance takes it")
        time.sleep(PAUSE)
    return b"nothing within 20 minutes"


def judge(body: bytes, question: TestImage) -> tuple[bool, str]:
    """Compare an answer with what training said."""
    try:
        answer = json.loads(body)
        labels = set(answer.get("classes", [answer["class"]]))
        label = terminal_safe(" ".join(answer["class"].split()))
        text = f"{question.name} is {label} ({answer['confidence']:.1%})"
    except (ValueError, KeyError, TypeError, AttributeError):
        shown = terminal_safe(body[:200].decode(errors="replace"))
        return False, f"its answer to {question.name} is no prediction: {shown}"
    if question.expected is None:
        return True, f"{text}, says an older archive"
    if labels != question.expected:
        return False, f"{text}, it says, and training said {', '.join(sorted(question.expected))}"
    return True, f"{text}, as training said"


def container_message(error: Any) -> str:
    """The container's own words, if it had any."""
    reply = error_response(error)
    original = terminal_safe(" ".join(str(reply.get("OriginalMessage") or error).split())[:300])
    return f"status {reply['OriginalStatusCode']}, {original}" if "OriginalStatusCode" in reply else original
