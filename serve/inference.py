"""The four handlers of the endpoint, and the HTTP contract around them.

SageMaker's serving toolkit, in AWS's PyTorch containers, calls a model through four functions, in this order:

    model = model_fn("/opt/ml/model")                   # once
    batch = input_fn(body, "image/jpeg", context)       # bytes in
    prediction = predict_fn(batch, model)
    body, content_type = output_fn(prediction, "application/json")

It counts their parameters (sagemaker-inference 1.10, transformer.py): model_fn has 1, the others 2, and a
function with one more gets the toolkit's context there. Any further parameter, optional or not, would be that
context or an error; so what our own callers pass beyond these is a parameter of `load_model` and
`read_request`.

`handle` answers one HTTP request. Both of our servers (server.py, app.py) call it, so every rule of the
contract (README.md) is implemented here once. Needs numpy, Pillow and the engine; no torch, no fastai.
"""

import binascii
import contextlib
import io
import json
import logging
import string
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from answers import check_output, describe, mask_png
from engine import Engine, cpus, load, memory
from fetch import FailedError, RefusedError, fetch
from pixels import (
    NotAPictureError,
    Place,
    TooLargeError,
    open_picture,
    starts_like_picture,
    to_input,
    to_pixels,  # noqa: F401 - package/ takes it from here
)

try:  # in AWS's PyTorch containers; the toolkit answers any other exception with status 500
    from sagemaker_inference.errors import BaseInferenceToolkitError as ToolkitError
except ImportError:
    ToolkitError = Exception

MAX_BODY = 25 * 10**6  # bytes; the payload limit of SageMaker's real-time endpoints, in both directions
MAX_PICTURES = 32  # in one request
FETCH_SECONDS = 15  # for all the addresses of one request together
FETCH_SLOTS = 16  # requests that may fetch addresses at the same time
# Requests that decode at the same time, while one of them runs the engine. Decoding 50 megapixels takes
# 350 MB; 400 MB are for the process itself.
DECODE_SLOTS = max(1, min(cpus() + 1, (memory() - 400 * 10**6) // (350 * 10**6)))
# Bytes of a JSON body that cannot be base64, such as its brackets; parsed, each may take 40 bytes of memory.
MAX_JSON = 300_000
SMALL_JSON = 2**20  # bytes that are parsed without one of the DECODE_SLOTS
PICTURE_TYPES = ("application/x-image", "application/octet-stream", "binary/octet-stream")
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")  # of curl -F, and of curl -d
SPACE = string.whitespace.encode()
# What base64 in JSON consists of, in both alphabets; with escaped line breaks and slashes, and in UTF-16.
BASE64_TEXT = (string.ascii_letters + string.digits + "+/-_=\\\0").encode() + SPACE
URL_SAFE = bytes.maketrans(b"-_", b"+/")  # base64url to base64
ACCEPTS = ("application/json", "application/jsonlines", "application/x-npy")
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
EMPTY = "the body is empty: send a picture's bytes, or JSON"
PNG = "image/png"  # of one picture's mask

Body = bytes | bytearray | memoryview | str  # the toolkit decodes JSON to str

log = logging.getLogger("inference")
# Separate pool: slow URL fetches must not block image requests.
fetchers = ThreadPoolExecutor(4 * MAX_PICTURES, thread_name_prefix="fetch")
fetch_slots = threading.BoundedSemaphore(FETCH_SLOTS)
decode_slots = threading.BoundedSemaphore(DECODE_SLOTS)


class RequestError(ToolkitError):
    """A request that cannot be answered: HTTP status, a code for programs, one sentence for people.

    For SageMaker's toolkit it has `status_code`, `phrase` (of the status line: the code) and `message`: the
    contract's JSON, which the toolkit sends as the body's first line, before a traceback.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        Exception.__init__(self, message)  # not the toolkit's, which makes str(error) a tuple
        self.status = self.status_code = status
        # SageMaker truncates the error bodies that it relays at 2,048 bytes.
        short = message.encode(errors="replace")[:600].decode(errors="ignore")
        self.answer = {"error": code, "message": short}
        self.message, self.phrase = json.dumps(self.answer, ensure_ascii=False), code


@dataclass(frozen=True)
class Model:
    """What serving needs of a package: the engine, and the other fields from model.json."""

    engine: Engine
    task: str  # single, multi, regression, points or segmentation
    labels: list[str]
    input: dict  # how pixels.to_input reads a picture
    threshold: float | None  # multi: labels above it are the answer
    draft: bool = False  # decode large JPEGs at a fraction of their size (pixels.to_input)
    shape: tuple[int, ...] = ()  # of the graph's output for one picture


@dataclass
class Batch:
    """The pictures of one request, opened but not decoded; an error in the place of each bad one."""

    pictures: list[Image.Image | RequestError]
    several: bool = False
    top_k: int = 5
    bad_status: int = 400  # HTTP status for a broken picture: 422 inside JSON


@dataclass(frozen=True)
class Prediction:
    """The graph's output as float32 (pictures, ...); NaN where `places` has an error."""

    outputs: np.ndarray
    places: list[Place | RequestError]  # where the graph's input was in each picture
    model: Model
    batch: Batch


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    content_type: str
    body: bytes


# --- the four handlers


def model_fn(model_dir: str | Path) -> Model:
    """Load the package in `model_dir`, and make one warm-up prediction. Raises what `load_model` raises."""
    return load_model(model_dir)


def input_fn(body: Body, content_type: str | None = None, context: Any = None) -> Batch:
    """Parse a request's body. `context` is the toolkit's, which has the custom attributes header.

    Raises RequestError if nothing in the body can be predicted.
    """
    return read_request(body, content_type, custom_attributes(context))


def predict_fn(batch: Batch, model: Model) -> Prediction:
    """Decode, resize and predict. A broken picture raises RequestError; in a list it becomes an error."""
    results = [read_pixels(picture, model, batch.bad_status) for picture in batch.pictures]
    if isinstance(results[0], RequestError) and not batch.several:
        raise results[0]
    places = [result if isinstance(result, RequestError) else result[1] for result in results]
    pixels = [result[0] for result in results if not isinstance(result, RequestError)]
    rows = model.engine.run(pixels) if pixels else np.empty((0, *model.shape))
    good = [isinstance(place, Place) for place in places]
    outputs = np.full((len(good), *rows.shape[1:]), np.nan, np.float32)
    outputs[good] = rows
    return Prediction(outputs, places, model, batch)


def output_fn(prediction: Prediction, accept: str | None = None) -> tuple[bytes, str]:
    """Encode a prediction: body and content type, chosen by `accept`.

    Raises RequestError: 406, 413 if the body would be over MAX_BODY, 500 if the model gives no numbers.
    """
    content_type = choose_accept(accept, prediction.model.task, several=prediction.batch.several)
    if content_type == "application/x-npy":
        check_answer(prediction.outputs.nbytes)
        out = io.BytesIO()
        np.save(out, prediction.outputs, allow_pickle=False)
        return out.getvalue(), content_type
    if content_type == PNG:
        place = check_prediction(prediction.outputs[0], prediction.places[0], prediction.model)
        png = mask_png(prediction.outputs[0], place)
        check_answer(len(png))
        return png, content_type
    texts = encode(prediction)
    if content_type == "application/jsonlines":
        return "".join(f"{text}\n" for text in texts).encode(), content_type
    whole = f'{{"predictions": [{", ".join(texts)}]}}' if prediction.batch.several else texts[0]
    return whole.encode(), content_type


# --- loading


def load_model(model_dir: str | Path, mode: str | None = None) -> Model:
    """Load the package in `model_dir` and make one warm-up prediction; `mode` is passed to engine.load.

    Raises ValueError if a file is not the one that model.json describes, or if its output does not fit the
    task, RuntimeError if no mode runs here.
    """
    model_dir = Path(model_dir)
    spec = json.loads((model_dir / "model.json").read_text())
    engine = load(model_dir, spec, mode)
    draft = spec["precision"]["draft"] and mode is None
    model = Model(engine, spec["task"], spec["labels"], spec["input"], spec["threshold"], draft)
    shape = warm_up(model).outputs.shape[1:]
    check_output(model.task, model.labels, shape)
    return replace(model, shape=shape)


def warm_up(model: Model) -> Prediction:
    """Make one prediction; raises whatever is wrong with the model."""
    return predict_fn(Batch([Image.new("RGB", (640, 480))]), model)


# --- one HTTP request


def handle(model: Model | None, body: bytes, headers: Mapping[str, str], request_id: str = "") -> Answer:
    """Answer one HTTP request; never raises. Header names are in lower case."""
    try:
        if model is None:
            raise RequestError(503, "not_loaded", "the model is still loading: try again in a few seconds")
        check_encoding(headers.get("content-encoding", ""))
        accept = headers.get("accept", "")
        choose_accept(accept, model.task)  # before the work: a 406 costs nothing
        attributes = headers.get(ATTRIBUTES, "")
        batch = read_request(body, headers.get("content-type"), attributes)
        choose_accept(accept, model.task, several=batch.several)
        with decode_slots:  # a mask is as large as its picture
            body, content_type = output_fn(predict_fn(batch, model), accept)
        return Answer(200, content_type, body)
    except RequestError as error:
        return refuse(error)
    except Exception:
        ticket = request_id or uuid.uuid4().hex[:12]
        log.exception("request %s failed", ticket)
        text = f"the server failed on this request; its log has the reason under {ticket}"
        return refuse(RequestError(500, "internal", text))


def refuse(error: RequestError) -> Answer:
    """An error as an HTTP response."""
    return Answer(error.status, "application/json", json.dumps(error.answer, ensure_ascii=False).encode())


# --- parsing a request


def read_request(body: Body, content_type: str | None = None, attributes: str = "") -> Batch:
    """Parse a request's body; `attributes` is SageMaker's custom attributes header ("top_k=3").

    Raises RequestError if nothing in the body can be predicted.
    """
    body = body.encode(errors="replace") if isinstance(body, str) else bytes(body)
    if len(body) > MAX_BODY:
        raise RequestError(
            413, "too_large", f"the body is over {MAX_BODY // 10**6} MB: send a smaller picture"
        )
    top_k = read_attributes(attributes)
    kind = (content_type or "").partition(";")[0].strip().lower()
    # AWS's Ray container says application/json where the caller named no type. No JSON starts like a picture.
    if kind == "application/json" and not starts_like_picture(body):
        return read_json(body, top_k)
    if kind == "application/x-npy":
        return read_npy(body, top_k)
    if not kind or kind in (*PICTURE_TYPES, "application/json") or kind.startswith("image/"):
        return Batch([read_picture(body, bad_status=400)], top_k=top_k)
    raise unsupported_type(kind)


def unsupported_type(kind: str) -> RequestError:
    """The error 415 for a Content-Type."""
    known = ", ".join(("image/*", *PICTURE_TYPES, "application/json", "application/x-npy"))
    text = f"Content-Type {kind[:100]!r} is not one of: {known}"
    if kind in FORM_TYPES:
        text += "; with curl, use -H 'Content-Type: image/jpeg' --data-binary @cat.jpg, not -F or -d"
    return RequestError(415, "unsupported_type", text)


def check_encoding(encoding: str) -> None:
    """Raise RequestError 415 for a Content-Encoding: a body that is compressed has no bound on its size."""
    if encoding.strip().lower() not in ("", "identity"):
        text = f"Content-Encoding {encoding[:100]!r} is not read: send the body as it is, without that header"
        raise RequestError(415, "unsupported_type", text)


def custom_attributes(context: Any) -> str:
    """SageMaker's custom attributes header from the toolkit's context; empty without one."""
    headers = context.request_processor[0].get_request_properties() if context else {}
    return next((text for name, text in headers.items() if name.lower() == ATTRIBUTES), "")


def read_picture(data: bytes, bad_status: int) -> Image.Image:
    """Open one picture. Raises RequestError: 413 if it is too large, else `bad_status`."""
    if not data:
        text = EMPTY if bad_status == 400 else "this picture is empty"
        raise RequestError(bad_status, "not_a_picture", text)
    try:
        return open_picture(data)
    except (NotAPictureError, TooLargeError) as error:
        if is_base64(data):
            text = 'this is base64, not a picture\'s bytes: decode it, or send JSON {"image": "<base64>"}'
            raise RequestError(bad_status, "not_a_picture", text) from None
        raise picture_error(error, bad_status) from None


def is_base64(data: bytes) -> bool:
    """Whether these bytes are the base64 of a picture, or a data: URL."""
    start = data[:500].lstrip(b" \t\r\n\"'")
    if start[:5].lower() == b"data:":
        return True
    letters = start.translate(URL_SAFE, SPACE)[:400]
    with contextlib.suppress(ValueError):
        return starts_like_picture(binascii.a2b_base64(letters[: len(letters) // 4 * 4]))
    return False


def is_data_url(text: str) -> bool:
    """Whether this is a data: URL, as browsers make it from a file."""
    return text[:200].lstrip()[:5].lower() == "data:"


def from_base64(text: str) -> bytes:
    """Decode base64 or base64url, in lines or not, padded or not, or a data: URL. Raises ValueError."""
    if is_data_url(text):
        head, comma, text = text.partition(",")
        if not head.rstrip().lower().endswith(";base64") or not comma:
            raise ValueError
    # MIME encoders break base64 into lines.
    data = text.encode("ascii").translate(URL_SAFE, SPACE).rstrip(b"=")
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)


def read_pixels(
    picture: Image.Image | RequestError, model: Model, bad_status: int
) -> tuple[np.ndarray, Place] | RequestError:
    """The graph's input for one picture and where it lies there, or the reason why there is none."""
    if isinstance(picture, RequestError):
        return picture
    try:
        return to_input(picture, model.input, draft=model.draft)
    except (NotAPictureError, TooLargeError) as error:
        return picture_error(error, bad_status)


def picture_error(error: NotAPictureError | TooLargeError, bad_status: int) -> RequestError:
    """An error of pixels.py with the contract's status and code."""
    status, code = (413, "too_large") if isinstance(error, TooLargeError) else (bad_status, "not_a_picture")
    return RequestError(status, code, str(error))


def read_json(body: bytes, top_k: int) -> Batch:
    """Parse `{"url": ...}`, `{"image": "<base64>"}` or `{"instances": [...]}`, with an optional `top_k`."""
    # Parsed, text takes up to 4 bytes a character; none is left when the permit is given back.
    with decode_slots if len(body) > SMALL_JSON else contextlib.nullcontext():
        request = parse_json(body)
        several = "instances" in request
        instances = request["instances"] if several else [request]
        if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_PICTURES:
            text = f'"instances" must be a list of 1 to {MAX_PICTURES} pictures'
            raise RequestError(422, "no_picture", text)
        top_k = check_top_k(request.get("top_k", top_k))
        found = [open_instance(instance) for instance in instances]
        del request, instances
    with fetch_slot() if any(isinstance(item, str) for item in found) else contextlib.nullcontext():
        deadline = time.monotonic() + FETCH_SECONDS
        # All of them at once: the first is not opened before the last is on its way.
        items = [fetchers.submit(fetch, item, deadline) if isinstance(item, str) else item for item in found]
        pictures = [open_fetched(item, deadline) if isinstance(item, Future) else item for item in items]
    return Batch(pictures, several, top_k, bad_status=422)


def parse_json(body: bytes) -> dict:
    """The object in a JSON body. Raises RequestError: 400, 422, or 413 for much that is not base64."""
    if not body:
        raise RequestError(400, "bad_json", EMPTY)
    if len(body) > MAX_JSON and len(body.translate(None, BASE64_TEXT)) > MAX_JSON:
        text = f"JSON may have {MAX_JSON // 1000} kB beside the base64 of pictures: send less of it"
        raise RequestError(413, "too_large", text)
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "bad_json", "the body is not valid JSON") from None
    if not isinstance(request, dict):
        raise RequestError(
            422, "no_picture", 'send {"url": ...}, {"image": "<base64>"} or {"instances": [...]}'
        )
    return request


def open_instance(instance: object) -> Image.Image | RequestError | str:
    """Open one picture of a JSON request; the reason if that fails; its address if it is to be fetched."""
    try:
        match instance:
            case {"image": str(text), **others} if "url" not in others:
                return read_picture(from_base64(text), bad_status=422)
            case {"url": str(url), **others} if "image" not in others:
                return read_picture(from_base64(url), bad_status=422) if is_data_url(url) else url
        return RequestError(422, "no_picture", 'a picture is {"url": "https://..."} or {"image": "<base64>"}')
    except RequestError as error:
        return without_frames(error)
    except ValueError:
        return RequestError(422, "no_picture", '"image" is not base64')


@contextlib.contextmanager
def fetch_slot() -> Iterator[None]:
    """Hold one of the FETCH_SLOTS. Raises RequestError 503 if none is free."""
    if not fetch_slots.acquire(blocking=False):
        text = "too many addresses are being fetched: try again in a second, or send the pictures"
        raise RequestError(503, "busy", text)
    try:
        yield
    finally:
        fetch_slots.release()


def without_frames(error: RequestError) -> RequestError:
    """The error to keep in a list: its traceback would keep the request's text and bytes in memory."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def open_fetched(fetching: Future, deadline: float) -> Image.Image | RequestError:
    """Open one picture that is being fetched; the reason if that fails."""
    try:
        return read_picture(await_fetch(fetching, deadline), bad_status=422)
    except RequestError as error:
        return without_frames(error)
    except RefusedError as error:
        return RequestError(422, "address_refused", str(error))
    except FailedError as error:
        return RequestError(422, "address_failed", str(error))


def await_fetch(fetching: Future, deadline: float) -> bytes:
    """The fetched bytes. Raises what `fetch` raised, or FailedError after `deadline`."""
    try:
        return fetching.result(max(0, deadline - time.monotonic()))
    except TimeoutError:
        fetching.cancel()  # it may still be queued
        raise FailedError(f"the address did not answer within {FETCH_SECONDS} s") from None


def read_npy(body: bytes, top_k: int) -> Batch:
    """Parse a uint8 array (height, width, 3) or (pictures, height, width, 3) in NumPy's .npy format."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, fortran, dtype = read_header(stream)
        if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1:
            raise ValueError(f"{dtype} {shape}")
        # Not np.load, which allocates whatever size the header claims, and can unpickle.
        array = np.frombuffer(body, np.uint8, offset=stream.tell()).reshape(shape)
    except Exception:  # numpy's header parser lets TokenError, RecursionError and others through
        text = (
            "the body is not a .npy file of a uint8 array (height, width, 3) or (pictures, height, width, 3)"
        )
        raise RequestError(400, "not_a_picture", text if body else EMPTY) from None
    several = array.ndim == 4
    if several and len(array) > MAX_PICTURES:
        raise RequestError(422, "no_picture", f"one array may hold {MAX_PICTURES} pictures, not {len(array)}")
    return Batch([Image.fromarray(picture) for picture in (array if several else [array])], several, top_k)


def read_attributes(attributes: str) -> int:
    """`top_k` from SageMaker's custom attributes ("top_k=3", between commas); the default without one."""
    for attribute in attributes.split(","):
        name, _, text = attribute.partition("=")
        if name.strip() == "top_k":
            try:
                return check_top_k(int(text))
            except ValueError:
                return check_top_k(text)  # which rejects it
    return Batch.top_k


def check_top_k(value: object) -> int:
    """Return `value` if it is a whole number from 1. Raises RequestError 422."""
    if type(value) is not int or value < 1:
        raise RequestError(422, "bad_top_k", f"top_k must be a whole number from 1, not {str(value)[:50]!r}")
    return value


# --- encoding an answer


def choose_accept(accept: str | None, task: str, *, several: bool = False) -> str:
    """The content type of ours that an Accept header prefers, by its q values. Raises RequestError 406."""
    offered = (*ACCEPTS, PNG) if task == "segmentation" and not several else ACCEPTS
    wildcards = {"*/*": ACCEPTS[0], "*": ACCEPTS[0], "application/*": ACCEPTS[0], "image/*": PNG}
    preferences = []
    for part in (accept or "*/*").lower().split(","):
        kind, *parameters = (text.strip() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        preferences.append((quality, wildcards.get(kind, kind)))
    # q values are "0" to "1.000", which sort as text (RFC 9110, 12.4.2).
    for quality, kind in sorted(preferences, reverse=True, key=lambda preference: preference[0]):
        if quality.strip("0.") and kind in offered:
            return kind
    text = f"Accept {(accept or '')[:100]!r} is not one of: {', '.join(offered)}"
    raise RequestError(406, "not_acceptable", text)


def encode(prediction: Prediction) -> list[str]:
    """Each picture's answer as JSON. Raises RequestError."""
    model, top_k, several = prediction.model, prediction.batch.top_k, prediction.batch.several
    texts: list[str] = []
    size = 0
    for output, result in zip(prediction.outputs, prediction.places, strict=True):
        try:
            place = check_prediction(output, result, model)
            answer = describe(output, model.task, model.labels, model.threshold, place, top_k)
        except RequestError as error:
            if not several:
                raise
            answer = error.answer
        texts.append(json.dumps(answer, allow_nan=False))
        size += len(texts[-1])
        check_answer(size)  # here, so that 32 large masks are not made in vain
    return texts


def check_prediction(output: np.ndarray, place: Place | RequestError, model: Model) -> Place:
    """The place, if there is an answer for it.

    Raises RequestError: 500 for numbers that JSON cannot hold, and for a mask's class that has no name.
    """
    if isinstance(place, RequestError):
        raise place
    if not np.isfinite(output).all():
        text = "the model gives no finite number for this picture: send another, or package it as exact"
        raise RequestError(500, "internal", text)
    if model.task == "segmentation" and output.max() >= len(model.labels):
        text = (
            f"the model's class number {output.max():.0f} has no name: package it with a name for each class"
        )
        raise RequestError(500, "internal", text)
    return place


def check_answer(size: int) -> None:
    """Raise RequestError 413 for an answer of more bytes than SageMaker relays."""
    if size > MAX_BODY:
        text = f"the answer is over {MAX_BODY // 10**6} MB: send fewer or smaller pictures"
        raise RequestError(413, "too_large", text)
