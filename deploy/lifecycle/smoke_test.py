"""The smoke test: an endpoint is reported live only after it answers a validation picture as training did.

SageMaker's own health check also passes before the model is loaded, or when it never will be. The same
labels, values, points, or shares of classes count as the same answer; a mask's pixels are not compared.
"""

import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws.client import Aws, AwsError, error_code, error_response, none_if_missing
from aws.wait import progress_line
from common import CommandError, terminal_safe

MAX_BYTES = 4_000_000  # of a picture: serverless takes requests of 4 MB, the other kinds more
LOADING = ("ModelNotReadyException", "ServiceUnavailable", "InternalDependencyException", "ReadTimeoutError")
LOADING_SECONDS = 300  # AWS's Ray container passes the health check long before its model is loaded
ASYNC_SECONDS = 1200
PAUSE = 3  # seconds between two tries
TRIES = 3  # of a request that is answered with an error, which may be the first request's alone


# How far an answer may be from training's.
MAX_SHIFT = 0.01  # of a point, as a share of the picture's longer side
MAX_SHARE = 0.01  # of a class's share of the pixels
MAX_ERROR = 0.01  # of a value, as a share of its largest prediction minus its smallest ...
MIN_ERROR = 1e-3  # ... but at least as a share of the value or of 1, whichever is larger

# By the kind of an answer: how a sentence says it, and its largest difference from training's.
VERBS = {"labels": "is", "values": "has", "points": "has", "shares": "is"}
DIFFERENCES = {
    "labels": "",
    "values": " (largest difference {:.2g})",
    "points": " (largest difference {:.1f} pixels)",
    "shares": " (largest difference {:.1%} of the pixels)",
}


@dataclass(frozen=True)
class Expected:
    """What training predicted for a picture.

    `answer` by `kind`: labels, a set of names; values, a list; points, a list of [x, y] in pixels; shares, a
    dictionary by the class's name. `allowed`: how far each value or point may be from it.
    """

    kind: str
    answer: Any
    allowed: list[float]


@dataclass(frozen=True)
class TestPicture:
    """A picture, and the answer that it must get (None: any prediction passes)."""

    __test__ = False  # pytest collects classes by this name

    name: str
    body: bytes
    expected: Expected | None


def pick_picture(build: Path, *, compare: bool = True) -> TestPicture:
    """The validation picture to compare: the best by `rank`. Raises CommandError without one."""
    source = build / "train" / "validation.json"
    try:
        entries = json.loads(source.read_text())
        sizes = [(entry, (source.parent / entry["file"]).stat().st_size) for entry in entries]
        usable = [(entry, size) for entry, size in sizes if size <= MAX_BYTES]
        best = max(usable, key=lambda one: rank(*one))[0]
        file, expected = source.parent / best["file"], expected_answer(best, entries)
        return TestPicture(file.name, file.read_bytes(), expected if compare else None)
    except FileNotFoundError as error:
        text = f"{error.filename}, which the smoke test needs, was not found"
        raise CommandError(2, f"{text}: run `invoke train` first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{source} names no picture for the smoke test ({error})"
        raise CommandError(2, f"{text}: run `invoke train` first") from None


def rank(entry: dict, size: int) -> tuple[bool, float]:
    """Larger for a better picture: training's most confident right answer; without labels its most confident.

    Where training had no confidence (values, points, masks), the smallest file.
    """
    if "confidence" in entry:
        return entry["predicted"] == entry["labels"], entry["confidence"]
    return True, -size


def expected_answer(entry: dict, entries: list[dict]) -> Expected:
    """What training predicted for the picture of an entry in validation.json.

    Raises ValueError, KeyError, TypeError or AttributeError if training writes no such entry.
    """
    predicted = entry["predicted"]
    if "mask" in entry:
        shares = {name: number(share) for name, share in predicted.items()}
        return Expected("shares", shares, [])
    if "size" in entry:
        shift = MAX_SHIFT * max(map(number, entry["size"]))
        return Expected("points", [point(one) for one in predicted], [shift] * len(predicted))
    if "confidence" in entry:
        return Expected("labels", set(predicted), [])
    columns = zip(*(one["predicted"] for one in entries), strict=True)
    spreads = [max(column) - min(column) for column in columns]
    allowed = [
        max(MAX_ERROR * spread, MIN_ERROR * max(1, abs(value)))
        for spread, value in zip(spreads, predicted, strict=True)
    ]
    return Expected("values", [number(value) for value in predicted], allowed)


def number(value: Any) -> float:
    """A finite number. Raises TypeError, ValueError or OverflowError for anything else."""
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError(f"{value} is not a number")
    return float(value)


def point(value: Any) -> list[float]:
    """Two finite numbers. Raises as `number`."""
    x, y = value
    return [number(x), number(y)]


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
    """Compare a response with training's answer; it may be anything."""
    try:
        kind, answer, detail = read_answer(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        beginning = terminal_safe(body[:200].decode(errors="replace"))
        return False, f"its response to {picture.name} is not a prediction: {beginning}"
    text = f"{picture.name} {VERBS[kind]} {detail}"
    expected = picture.expected
    if expected is None:
        return True, f"{text}, answered by an older archive"
    same, difference = compare(answer, expected) if kind == expected.kind else (False, 0)
    if not same:
        said = words(expected.kind, expected.answer)
        more = DIFFERENCES[kind].format(difference) if difference else ""
        return False, f"the answer is that {text}, but training said {said}{more}"
    return True, f"{text}, as training said{DIFFERENCES[kind].format(difference)}"


def read_answer(answer: Any) -> tuple[str, Any, str]:
    """The kind of an endpoint's answer, the answer as in Expected, and as words.

    Raises ValueError, KeyError, TypeError, AttributeError or OverflowError if it is not an answer.
    """
    if "class" in answer:
        label = one_line(answer["class"])
        labels = {str(name) for name in answer.get("classes", [answer["class"]])}
        return "labels", labels, f"{label} ({number(answer['confidence']):.1%})"
    found: list
    if "values" in answer:
        kind, found = "values", [number(value) for value in answer["values"]]
    elif "points" in answer:
        kind, found = "points", [point(one) for one in answer["points"]]
    else:
        if not isinstance(answer["mask"], str):
            raise ValueError("a mask is text")
        shares = {one["class"]: number(one["share"]) for one in answer["classes"]}
        return "shares", shares, words("shares", shares)
    if not found:
        raise ValueError("no value or point")
    return kind, found, words(kind, found)


def compare(answer: Any, expected: Expected) -> tuple[bool, float]:
    """Whether an answer of the same kind is near enough to training's, and the largest difference."""
    if expected.kind == "labels":
        return answer == expected.answer, 0
    if expected.kind == "shares":
        names = answer.keys() | expected.answer.keys()
        shares = [(answer.get(name, 0), expected.answer.get(name, 0)) for name in names]
        differences = [round(abs(one - other), 6) for one, other in shares]
        return max(differences, default=0) <= MAX_SHARE, max(differences, default=0)
    if len(answer) != len(expected.answer):
        return False, 0
    if expected.kind == "points":
        differences = [math.dist(*pair) for pair in zip(answer, expected.answer, strict=True)]
    else:
        differences = [abs(a - b) for a, b in zip(answer, expected.answer, strict=True)]
    near = all(d <= most for d, most in zip(differences, expected.allowed, strict=True))
    return near, max(differences)


def words(kind: str, answer: Any) -> str:
    """An answer, as in Expected, for a sentence; the first three of many."""
    if kind == "labels":
        return one_line(", ".join(sorted(answer)) or "none")
    if kind == "shares":
        first = sorted(answer.items(), key=lambda one: -one[1])
        name, texts = "", [f"{share:.1%} {one_line(name)}" for name, share in first] or ["nothing"]
    elif kind == "points":
        name, texts = "1 point: ", [f"({x:.4g}, {y:.4g})" for x, y in answer]
    else:
        name, texts = "the value ", [f"{value:.4g}" for value in answer]
    if len(texts) > 1:
        name = {"points": f"{len(texts)} points: ", "values": "the values "}.get(kind, "")
    return name + ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def one_line(text: str) -> str:
    """A text out of an answer, safe to print, in one line of at most 300 characters."""
    return terminal_safe(" ".join(text.split())[:300])


def container_message(error: Exception) -> str:
    """The container's own error message, if it sent one."""
    response = error_response(error)
    text = terminal_safe(" ".join(str(response.get("OriginalMessage") or error).split())[:300])
    return f"status {response['OriginalStatusCode']}, {text}" if "OriginalStatusCode" in response else text
