"""Send pictures to an endpoint: on SageMaker by its name, anywhere else by its address.

    from predictor import ImagePredictor

    predictor = ImagePredictor("pets")                          # SageMaker (any kind), needs boto3
    predictor = ImagePredictor(url="http://127.0.0.1:8080")     # a plain server, needs requests
    predictor.predict("cat.jpg")
    # {"class": "Bengal", "confidence": 0.93, "predictions": [{"class": "Bengal", "confidence": 0.93}, ...]}

    for answer in predictor.predict_many(["cat.jpg", "dog.jpg"]):
        print(answer)                                           # an answer, or a PredictionError
    predictor.close()                                           # or `with ImagePredictor("pets") as ...`

What an answer contains depends on the model's task:

    one label       {"class": "Bengal", "confidence": 0.93, "predictions": [{"class", "confidence"}, ...]}
    several labels  the same, and "classes": ["Bengal", "kitten"], those above the model's threshold
    regression      {"values": [1.5]}
    points          {"points": [[x, y], ...]}
    segmentation    {"classes": [{"class": "cat", "share": 0.31}, ...], "mask": "iVBO...", "width", "height"}

Points and the mask are in pixels of the picture that was given, upright by its EXIF orientation (unless the
model was packaged to ignore it), also where a smaller one was sent. A share is of the pixels that the model
sees. The mask is a PNG in base64, its pixels are numbers of classes, 255 is one that the model does not see:

    mask = read_mask(predictor.predict("cat.jpg"))              # a PIL image, needs Pillow

Whatever an endpoint sends, you get such an answer or a PredictionError, within `timeout`. The names of
classes may be any text: print them with `terminal_safe`.

Copy this one file into your application. Other packages are imported only when needed: Pillow to send PIL
images, to scale down large pictures (without it, they are sent unscaled) and to read masks, numpy for arrays.
"""

import base64
import contextlib
import io
import json
import math
import os
import re
import struct
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# AWS's limits, "Amazon SageMaker endpoints and quotas".
REALTIME_LIMIT = 25_000_000  # bytes in one request; a few Regions may still have the former 6 MB
SERVERLESS_LIMIT = 4_000_000
INLINE_LIMIT = 128_000  # bytes that an asynchronous endpoint takes without S3
KINDS = {  # of endpoints on SageMaker: bytes in one request, default of `max_wait` in seconds
    "real-time": (REALTIME_LIMIT, 7.5),
    "serverless": (SERVERLESS_LIMIT, 240),  # a cold start may take three minutes
    "async": (REALTIME_LIMIT, 1200),  # S3 allows more, the server does not; an instance may have to start
}
CONNECT_SECONDS = 5
UPLOAD_SECONDS = 30  # boto3 has as long to send a picture as to connect: 25 MB at 7 Mbit/s
CONNECTIONS = 32
FIRST_WAIT = 0.5  # seconds before the first retry while a model is loading or busy; doubled each time ...
LONGEST_WAIT = 10  # ... up to this, whatever a server's Retry-After says
RETRIES = 4  # of a plain server that is loading or busy
NOTICE = 0.1  # seconds after which a thread that waits for an answer notices `close`
SHRINK = 1280  # pixels: several times a model's input, in a tenth of the bytes of a phone's photograph
SIDES = (2048, 1024, 512, 256)  # pixels; those below `shrink` are tried in turn to fit into the limit
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # as on the server, serve/pixels.py
ORIENTATION = 0x0112  # EXIF's: 1 is upright; from 5 on, width and height change places
GREY = ("1", "L", "LA")  # Pillow's modes without colours
MAX_PIXELS = 50 * 10**6  # of a picture on the server, and so of a mask
MAX_DECODED = 220 * 10**6  # pixels of a picture to scale down: the largest sensors of phones have 200 million
ONE_AT_A_TIME = threading.Lock()  # those over MAX_PIXELS: a progressive JPEG of 200 megapixels takes 600 MB

# Of an answer, which may be anything.
MAX_ANSWER = REALTIME_LIMIT  # bytes: AWS's and the server's own limit; masks of large pictures come near it
MAX_ITEMS = 10**6  # brackets and commas: parsed, each may be 60 times as large as in the text
MAX_NAME = 1000  # characters of a class's name, and of an error's message
MAX_NUMBER = 3.5e38  # a little over float32's largest
SURROGATES = re.compile("[\ud800-\udfff]")  # JSON's escapes can write them, UTF-8 cannot
UNSAFE = re.compile(  # characters that control a terminal, are invisible or change the text's direction
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)

SIGNATURES = {  # the first bytes of a file
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"\x93NUMPY": "application/x-npy",
}
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis"}  # as on the server

ADVICE = {  # by a pattern in the name of botocore's exception, or in AWS's error code
    "Credential|Token|UnrecognizedClient|Signature": (
        "check `aws sts get-caller-identity`, run `aws configure` or `aws sso login`, or set AWS_PROFILE"
    ),
    "ProfileNotFound": "`aws configure list-profiles` shows those that exist",
    "NoRegion": "set AWS_DEFAULT_REGION or run `aws configure`",
    "AccessDenied": (
        "your AWS identity needs sagemaker:InvokeEndpoint on this endpoint; for an asynchronous one "
        "sagemaker:InvokeEndpointAsync, and s3:PutObject and s3:GetObject in its bucket"
    ),
    "Validation": (
        "`aws sagemaker list-endpoints` shows those that exist in this Region; "
        "if this one is asynchronous and you may not describe it, say so (kind)"
    ),
    "Throttl|TooManyRequests": "the endpoint is busy; send fewer requests at once or give it more instances",
    "ModelNotReady|ServiceUnavailable|Internal": "try again in a minute",
}


CODES = {  # AWS's error codes as those of the HTTP contract (serve/README.md)
    "ModelNotReadyException": "not_loaded",
    "ServiceUnavailable": "not_loaded",
    "ThrottlingException": "busy",
    "413": "too_large",
}


class PredictionError(Exception):
    """No answer for this picture; `str(error)` is one sentence with the reason.

    `code` is the server's ("not_a_picture", "address_refused", "not_loaded", ...) or the client's:
    "unreadable", "not_a_picture" and "too_large" before anything is sent; "unreachable", "timeout", "aws",
    "stopped" (`close` was called) and "unexpected" (another kind of server answered). `status` is the HTTP
    status, None without one. The sentence is safe to print.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(terminal_safe(message[:MAX_NAME]))
        self.code, self.status = code, status


def terminal_safe(text: str) -> str:
    """The text with its UNSAFE characters escaped (\\x1b)."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class ImagePredictor:
    """Client of one endpoint; may be shared by threads.

    Pass either `endpoint`, the name of a SageMaker endpoint, or `url`, the base address of a plain server. A
    picture whose longest side is over `shrink` pixels is sent as a JPEG of that size: fewer bytes, less time;
    `shrink=0` sends it unscaled. A picture with more bytes than the endpoint takes (or `limit`, if that is
    less) is scaled down further, or with `shrink=0` rejected. A picture of 16 bits or floats per pixel
    (Pillow's modes I, I;16, F) is never scaled down, because a JPEG would lose its values. EXIF's orientation
    is sent, too. `timeout`: seconds for each try, to the last byte of the answer (and for each call of S3);
    SageMaker's own is 60.

    The other arguments are for SageMaker:

    - `kind`: one of KINDS. Default: looked up once, here, with DescribeEndpoint and DescribeEndpointConfig;
      an endpoint that you may not describe is assumed to be real-time.
    - `max_wait`: seconds to retry a busy or starting endpoint (default: KINDS), and to wait for the answer of
      an asynchronous one. `on_wait` is called with a sentence when that takes long.
    - `s3_input`: for an asynchronous endpoint, the "s3://bucket/prefix" through which pictures over
      INLINE_LIMIT bytes are sent (default: "in" beside the endpoint's own "out"); they are deleted
      afterwards.
    - `session`: a boto3.Session of your own, for another Region or other credentials.

    `predictor.kind` and `predictor.description` name the endpoint. Raises ValueError for wrong arguments,
    PredictionError if AWS is not configured on this machine.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        url: str | None = None,
        limit: int | None = None,
        shrink: int = SHRINK,
        timeout: float = 70,
        kind: str | None = None,
        s3_input: str | None = None,
        max_wait: float | None = None,
        on_wait: Callable[[str], None] | None = None,
        session: Any = None,
    ) -> None:
        if bool(endpoint) == bool(url):
            raise ValueError("give either endpoint= (a SageMaker endpoint) or url= (a plain server)")
        if isinstance(shrink, bool) or shrink < 0:
            raise ValueError(f"shrink is a number of pixels, or 0 to send pictures unscaled, not {shrink}")
        if kind and (url or kind not in KINDS):
            kinds = f"kind (one of {', '.join(KINDS)}) is for an endpoint on SageMaker"
            raise ValueError(f"{kinds}; it was {kind!r} for {endpoint or url}")
        self._server: _Plain | _SageMaker = (
            _Plain(url, timeout)
            if url
            else _SageMaker(str(endpoint), session, timeout, kind, s3_input, max_wait, on_wait)
        )
        self.kind, self.description = self._server.kind, self._server.description
        self.shrink, self.limit = shrink, min(limit or self._server.limit, self._server.limit)

    def close(self) -> None:
        """Stop waiting, in every thread: pictures without an answer become a PredictionError, "stopped"."""
        self._server.stopped.set()

    def __enter__(self) -> "ImagePredictor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, picture: Any, top_k: int = 5) -> dict:
        """The answer for one picture, as the head of this file describes it.

        `picture`: an encoded picture's bytes, a path, an http(s) address (which the endpoint fetches), a PIL
        image, or an array of uint8, shape (height, width, 3), RGB. A classifier's answer has its `top_k`
        predictions, best first. Raises PredictionError, also for an answer of another shape.
        """
        picture = _load(picture)
        body, content_type = pack(picture, self.shrink, self.limit)
        answer = _answer(self._server.send(body, content_type, f"top_k={top_k}"))
        smaller = content_type == "image/jpeg" and body is not picture
        return _in_pixels_of(picture, answer, body) if smaller else answer

    def predict_many(
        self, pictures: Iterable, top_k: int = 5, concurrency: int = 8
    ) -> Iterator[dict | PredictionError]:
        """Answers in the order of `pictures`, `concurrency` at a time; where one failed, its PredictionError.

        Nothing is sent before the first answer is requested, and `pictures` may be a generator of any length:
        it is read at most 2 * `concurrency` ahead of the answers.
        """
        pending: deque = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="predict")
        try:
            for picture in pictures:
                pending.append(pool.submit(self._answer_or_error, picture, top_k))
                if len(pending) >= 2 * concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer_or_error(self, picture: Any, top_k: int) -> dict | PredictionError:
        try:
            return self.predict(picture, top_k)
        except PredictionError as error:
            return error


# From a picture to a request


def pack(picture: Any, shrink: int = 0, limit: int = REALTIME_LIMIT) -> tuple[bytes, str]:
    """Encode a picture as a request's body; returns the body and its Content-Type.

    Over `shrink` pixels (0: no limit) it is scaled down to a JPEG, if that has fewer bytes; over `limit`
    bytes or MAX_PIXELS in any case. Raises PredictionError.
    """
    picture = _load(picture)
    if isinstance(picture, str):
        return json.dumps({"url": picture}).encode(), "application/json"
    size = _size(picture) if shrink else (0, 0)
    pixels = size[0] * size[1]
    if pixels > MAX_DECODED and isinstance(picture, bytes):
        has = f"the picture has {pixels / 10**6:.0f} megapixels"
        raise PredictionError("too_large", f"{has}: save it with {MAX_DECODED // 10**6} or fewer")
    if shrink and _longest(size) > shrink:
        with contextlib.suppress(Exception):  # Pillow's decoders raise many types; the server decides
            with ONE_AT_A_TIME if pixels > MAX_PIXELS else contextlib.nullcontext():
                small = scale_down(picture, shrink, limit)
            if not isinstance(picture, bytes) or len(small) < len(picture) or pixels > MAX_PIXELS:
                return small, "image/jpeg"
    body, content_type = _encode(picture)
    if len(body) <= limit:
        return body, content_type
    over = f"{len(body):,} bytes are over the limit of {limit:,}"
    if not shrink:
        raise PredictionError("too_large", over)
    try:
        return scale_down(picture, shrink, limit), "image/jpeg"
    except Exception as error:
        raise PredictionError("too_large", f"{over}, and cannot be scaled down: {error}") from error


def _load(picture: Any) -> Any:
    """An address, encoded bytes, a PIL image or an array; a path is read. Raises PredictionError."""
    # A caller with an image or an array has imported its library; other callers need not have it.
    pil, numpy = sys.modules.get("PIL.Image"), sys.modules.get("numpy")
    if isinstance(picture, str) and re.match("https?://", picture, re.IGNORECASE):
        return picture
    if isinstance(picture, str | os.PathLike):
        picture = _read(Path(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        if not picture:
            raise PredictionError("not_a_picture", "the picture is empty")
        picture = bytes(picture)
        if is_heif(picture):
            raise PredictionError(
                "not_a_picture", "HEIC and AVIF pictures cannot be read: convert them to JPEG"
            )
        return picture
    if pil and isinstance(picture, pil.Image):
        return picture
    if numpy and isinstance(picture, numpy.ndarray):
        if picture.dtype != numpy.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            wanted = "an array must be uint8 of shape (height, width, 3)"
            raise PredictionError("not_a_picture", f"{wanted}, not {picture.dtype} of shape {picture.shape}")
        return picture
    kinds = "bytes, a path, an http(s) address, a PIL image or an array"
    raise PredictionError("not_a_picture", f"a picture is {kinds}, not {type(picture).__name__}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PredictionError("unreadable", f"cannot read {path}: {reason}") from error


def _encode(picture: Any) -> tuple[bytes, str]:
    """A picture's bytes without loss, and their Content-Type. Raises PredictionError."""
    if isinstance(picture, bytes):
        return picture, _type(picture)
    file = io.BytesIO()
    if hasattr(picture, "dtype"):
        import numpy as np

        np.save(file, picture, allow_pickle=False)
        return file.getvalue(), "application/x-npy"
    try:
        picture.load()
        image, kind = picture, "PNG"
        if _is_deep(image):
            kind = "PNG" if image.mode == "I;16" else "TIFF"  # PNG has no floats, and at most 16 bits
        elif image.mode not in (*GREY, "P", "RGB", "RGBA"):
            image = image.convert("RGB")
        image.save(
            file, kind, **_orientation_only(picture), **({"compress_level": 1} if kind == "PNG" else {})
        )
    except OSError as error:  # a truncated file that Pillow opened
        raise PredictionError("not_a_picture", f"the image cannot be read: {error}") from error
    return file.getvalue(), f"image/{kind.lower()}"


def _type(body: bytes) -> str:
    """The Content-Type by a file's first bytes: file names are too often wrong."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    kinds = (kind for signature, kind in SIGNATURES.items() if body.startswith(signature))
    return next(kinds, "application/octet-stream")


def is_heif(data: bytes) -> bool:
    """Whether these are the bytes of an HEIC file, as iPhones write them, or of an AVIF file."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
    return data[4:8] == b"ftyp" and not HEIF.isdisjoint(brands)


# Scaling down, and back


def scale_down(picture: Any, shrink: int, limit: int) -> bytes:
    """A JPEG of at most `shrink` pixels and `limit` bytes. Raises PredictionError and Pillow's errors."""
    image = open_picture(picture)
    if _is_deep(image):
        raise ValueError("a picture of 16 bits or floats per pixel would lose its values")
    if isinstance(picture, bytes):  # decoding a JPEG at half its size takes a third of the time
        image.draft(None, _scaled(image.size, shrink))
    image.load()  # Pillow rotates a TIFF while it decodes
    options = _orientation_only(image) | {"quality": 90}
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode != mode:  # `convert` would copy 200 megapixels, 800 MB
        image = image.convert(mode)
    for side in (shrink, *(side for side in SIDES if side < shrink)):
        file = io.BytesIO()
        image.resize(_scaled(image.size, side)).save(file, "JPEG", **options)
        if file.tell() <= limit:
            return file.getvalue()
    raise PredictionError("too_large", f"no usable size fits into {limit:,} bytes")


def open_picture(picture: Any) -> Any:
    """A PIL image; encoded bytes are not decoded yet. Raises what Pillow raises."""
    from PIL import Image

    if isinstance(picture, bytes) and picture.startswith(b"\x93NUMPY"):
        import numpy as np

        picture = np.load(io.BytesIO(picture), allow_pickle=False)
    if isinstance(picture, bytes):
        return _open_bytes(picture, FORMATS)
    return Image.fromarray(picture) if hasattr(picture, "dtype") else picture


def _open_bytes(data: bytes, formats: tuple[str, ...]) -> Any:
    """As Image.open, without its limit of pixels: photographs are over it, and it is the application's."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    for opener, accepts in (Image.OPEN[name] for name in formats if name in Image.OPEN):
        if accepts is None or accepts(data[:16]):
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # as Image.open does
                return opener(io.BytesIO(data), "")
    raise UnidentifiedImageError("these bytes are not a picture that Pillow reads")


def _size(picture: Any) -> tuple[int, int]:
    """Width and height in pixels; 0 and 0 if they cannot be read here."""
    try:
        return open_picture(picture).size
    except Exception:  # no Pillow, or a format that it does not read
        return 0, 0


def _longest(size: tuple[int, int]) -> int:
    # A model sees the middle of a panorama, which must keep its height: no side counts more than double.
    return min(max(size), 2 * min(size))


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` scaled to a longest side of `side`; unchanged if it is smaller."""
    scale = min(1, side / _longest(size))
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height


def _is_deep(image: Any) -> bool:
    """Whether a pixel has more than 8 bits: Pillow's modes I, I;16, I;16B and F."""
    return image.mode[0] in "IF"


def _orientation(image: Any) -> int:
    """EXIF's orientation, 1 to 8; 1 if EXIF is damaged, like the server."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's EXIF reader raises many types, too
        return 1
    return value if value in range(1, 9) else 1


def _orientation_only(image: Any) -> dict[str, Any]:
    """Options of Pillow's `save` that keep the orientation, and nothing else of EXIF.

    The pixels are not rotated here, because a model may have been packaged to ignore the orientation.
    """
    from PIL import Image

    if (value := _orientation(image)) == 1:
        return {}
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return {"exif": exif}


def _in_pixels_of(picture: Any, answer: dict, body: bytes) -> dict:
    """The answer for `body`, a smaller `picture`, with points and mask in pixels of the picture.

    Raises PredictionError if a mask is broken, or has neither the size of `body` nor that size on its side.
    """
    if "class" in answer or "values" in answer:
        return answer
    image = open_picture(body)
    given, sent = open_picture(picture).size, image.size
    if _orientation(image) >= 5:  # the server rotates it, unless the model ignores EXIF: see below
        given, sent = given[::-1], sent[::-1]
    if given == sent:
        return answer
    if "points" in answer:
        # Both sides have the same scale, up to the rounding of a pixel: it serves rotated or not.
        across, down = given[0] / sent[0], given[1] / sent[1]
        return answer | {"points": [[round(x * across, 3), round(y * down, 3)] for x, y in answer["points"]]}
    if (answer["width"], answer["height"]) == sent[::-1]:
        given, sent = given[::-1], sent[::-1]
    if (answer["width"], answer["height"]) != sent:
        text = f"a mask of {answer['width']} x {answer['height']} for a picture of {sent[0]} x {sent[1]}"
        raise PredictionError("unexpected", f"{text} pixels; is this the right endpoint?", 200)
    file = io.BytesIO()
    read_mask(answer).resize(given, 0).save(file, "PNG", compress_level=1)  # 0: the nearest pixel
    mask = base64.b64encode(file.getvalue()).decode()
    return answer | {"mask": mask, "width": given[0], "height": given[1]}


# Waiting for an answer, and reading it


def _in_time(call: Callable[[], Any], seconds: float, stopped: threading.Event, late: str) -> Any:
    """What `call()` returns or raises; it runs in a thread of its own, which is given up after `seconds`.

    A socket's timeout is for one read: an answer of a byte a second would never be late. Raises
    PredictionError: "timeout" with the sentence `late`, or "stopped".
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    end = time.monotonic() + seconds
    if not stopped.is_set():
        threading.Thread(target=run, name="request", daemon=True).start()
    while not stopped.is_set():
        wait([future], max(0, min(end - time.monotonic(), NOTICE)))
        if future.done():
            return future.result()
        if time.monotonic() > end:
            raise PredictionError("timeout", late)
    raise _stopped()


def _stopped() -> PredictionError:
    return PredictionError("stopped", "close() was called before the answer came")


def _read_all(body: Any) -> bytes:
    """The bytes of a stream, at most MAX_ANSWER. Raises PredictionError."""
    data = bytearray()
    while piece := body.read(65536):
        data += piece
        if len(data) > MAX_ANSWER:
            body.close()
            raise _endless()
    return bytes(data)


def _endless() -> PredictionError:
    over = f"the answer has over {MAX_ANSWER // 10**6} MB"
    return PredictionError("unexpected", f"{over}; is this the right endpoint?")


class _Counted(io.RawIOBase):
    """What a server sends in one reply, headers and all; ends after `seconds` and twice MAX_ANSWER bytes.

    The libraries read without end where a server says that a chunk has -1 bytes, or sends `100 Continue` for
    ever. Twice: the lengths of chunks count as well. Raises PredictionError and TimeoutError.
    """

    def __init__(self, file: Any, seconds: float) -> None:
        self.file, self.left, self.end = file, 2 * MAX_ANSWER, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto1(buffer)
        self.left -= count
        if self.left < 0:
            raise _endless()
        if time.monotonic() > self.end:
            raise TimeoutError("Read timed out.")
        return count

    def close(self) -> None:
        self.file.close()  # else the socket stays open
        super().close()


# A plain server


class _Plain:
    """The connection to a server at an address of its own."""

    kind, limit = None, REALTIME_LIMIT

    def __init__(self, url: str, timeout: float) -> None:
        if not re.match("https?://.", url, re.IGNORECASE):
            raise ValueError(f"an address starts with http:// or https://, unlike {url!r}")
        self.description, self.timeout = url.rstrip("/").removesuffix("/invocations"), timeout
        self.url, self.session = f"{self.description}/invocations", _session(url, timeout)
        self.stopped = threading.Event()

    def send(self, body: bytes, content_type: str, attributes: str) -> bytes:
        """Send one request, retry where that helps; returns the answer's body. Raises PredictionError."""
        headers = {
            "Content-Type": content_type,
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a small compressed body may be a large one
            "X-Amzn-SageMaker-Custom-Attributes": attributes,
        }
        post, late = (
            partial(self._post, body, headers),
            f"{self.url} did not answer within {self.timeout:g} s",
        )
        retries, lost = RETRIES, False
        while True:
            pause: float = 0
            try:
                status, after, reply = _in_time(post, self.timeout, self.stopped, late)
                if status not in (502, 503, 504) or not retries:
                    break
                pause = max(FIRST_WAIT * 2 ** (RETRIES - retries), after)
                retries -= 1
            except PredictionError as failure:
                # A prediction changes nothing: it is safe to send it again, once, on a new connection.
                if failure.code != "unreachable" or lost:
                    raise
                lost = True
            if self.stopped.wait(min(pause, LONGEST_WAIT)):
                raise _stopped()
        if status != 200:
            raise _refusal(status, reply.decode(errors="replace"))
        return reply

    def _post(self, body: bytes, headers: dict) -> tuple[int, int, bytes]:
        """A reply's status, Retry-After in seconds (0: none) and body. Raises PredictionError."""
        import requests
        from urllib3.exceptions import HTTPError

        options = {"timeout": (CONNECT_SECONDS, self.timeout), "stream": True, "allow_redirects": False}
        try:
            with self.session.post(self.url, data=body, headers=headers, **options) as reply:
                after = reply.headers.get("Retry-After", "")
                seconds = int(after) if re.fullmatch("[0-9]{1,5}", after) else 0
                return reply.status_code, seconds, _read_all(reply.raw)
        except (requests.RequestException, HTTPError) as error:
            raise _unreachable(error, self.url, self.timeout) from error


def _session(url: str, timeout: float) -> Any:
    """A requests session whose connections read no more than _Counted does."""
    from http.cookiejar import DefaultCookiePolicy

    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            _count(self.poolmanager, timeout)

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            if proxy not in self.proxy_manager:
                _count(super().proxy_manager_for(proxy, **options), timeout)
            return self.proxy_manager[proxy]

    session: Any = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_maxsize=CONNECTIONS))
    session.get_redirect_target = lambda reply: None  # else requests reads a redirect's body, however long
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # a prediction needs none
    # A company's proxy cannot reach this machine's own ports.
    session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
    return session


def _count(manager: Any, timeout: float) -> None:
    """Have the connections of urllib3's pool manager read through _Counted, and send for up to `timeout`."""
    from http.client import HTTPResponse

    class Reply(HTTPResponse):
        def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self.fp: Any = io.BufferedReader(_Counted(self.fp, timeout))

    def connected(kind: Any) -> Any:
        def connect(self: Any) -> None:
            kind.connect(self)
            self.sock.settimeout(timeout)  # else a large picture must be sent within CONNECT_SECONDS

        return type("Connection", (kind,), {"response_class": Reply, "connect": connect})

    manager.pool_classes_by_scheme = {
        scheme: type("Pool", (pool,), {"ConnectionCls": connected(pool.ConnectionCls)})
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _unreachable(error: Exception, url: str, timeout: float) -> PredictionError:
    if "Read timed out" in str(error):
        return PredictionError("timeout", f"{url} did not answer within {timeout:g} s")
    root = _root(error)
    reason = getattr(root, "strerror", None) or root
    return PredictionError("unreachable", f"{url} cannot be reached ({reason}); is the server running?")


def _root(error: Exception) -> Exception:
    """The innermost error: requests wraps urllib3's, which wraps the socket's own."""
    for inner in (getattr(error, "reason", None), error.__cause__, *error.args):
        if isinstance(inner, Exception):
            return _root(inner)
    return error


# SageMaker


class _SageMaker:
    """The connection to an endpoint on SageMaker of any kind; the arguments are ImagePredictor's."""

    def __init__(
        self,
        name: str,
        session: Any,
        timeout: float,
        kind: str | None,
        s3_input: str | None,
        max_wait: float | None,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        import boto3

        self.name, self.on_wait, self.stopped = name, on_wait or (lambda sentence: None), threading.Event()
        self.timeout = timeout
        with _translate_errors():
            session = session or boto3.Session()  # threads cannot share the default one of boto3.client()
            self.runtime = session.client("sagemaker-runtime", config=_config(read_timeout=timeout))
            complete = kind and (s3_input or kind != "async")
            found, prefix = (kind, s3_input) if complete else _describe(session, self.runtime, name)
            self.kind, self.s3_input = kind or found or "real-time", (s3_input or prefix or "").rstrip("/")
            self.s3: Any = session.client("s3", config=_config()) if self.kind == "async" else None
        self.limit, default = KINDS[self.kind]
        self.max_wait = default if max_wait is None else max_wait
        operation = self.runtime.meta.service_model.operation_model("InvokeEndpointAsync")
        self.inline = INLINE_LIMIT if "Body" in operation.input_shape.members else 0  # 0: an older boto3
        if self.kind == "async" and not self.s3_input:
            self.limit = self.inline
        assumed = "" if kind or found else "assumed "
        self.description = _description(name, self.runtime.meta, assumed + self.kind)

    def send(self, body: bytes, content_type: str, attributes: str) -> bytes:
        """Send one request, retry for `max_wait`; returns the answer's body. Raises PredictionError."""
        request = {
            "EndpointName": self.name,
            "ContentType": content_type,
            "Accept": "application/json",
            "CustomAttributes": attributes,
        }
        end = time.monotonic() + self.max_wait
        pauses = self._pauses(end)
        while True:
            try:
                with _translate_errors():
                    return self._invoke_async(request, body, end) if self.s3 else self._invoke(request, body)
            except PredictionError as failure:
                # boto3 itself retries when AWS is busy, but not when the server behind it is.
                cold_start = self.kind == "serverless" and failure.code == "timeout"
                if failure.code not in ("not_loaded", "busy") and not cold_start:
                    raise
                state = "busy" if failure.code == "busy" else "still starting"
                self.on_wait(f"{self.name} is {state}: retrying for up to {self.max_wait:.0f} s")
                if next(pauses, None) is None:
                    raise

    def _pauses(self, end: float) -> Iterator[float]:
        """Wait with exponential backoff until `end`; yields each pause in seconds."""
        pause = FIRST_WAIT
        while (left := end - time.monotonic()) > 0:
            if self.stopped.wait(min(pause, left)):
                raise _stopped()
            yield pause
            pause = min(2 * pause, LONGEST_WAIT)

    def _in_time(self, call: Callable[..., Any], **options: Any) -> Any:
        late = f"{self.name} did not answer within {self.timeout:g} s"
        return _in_time(partial(call, **options), self.timeout, self.stopped, late)

    def _invoke(self, request: dict, body: bytes) -> bytes:
        return self._in_time(lambda: _read_all(self.runtime.invoke_endpoint(**request, Body=body)["Body"]))

    def _invoke_async(self, request: dict, body: bytes, end: float) -> bytes:
        """Send the picture, inside the request or through S3, and read the answer from S3."""
        # An answer that its caller no longer waits for need not be computed. AWS takes 60 s to 6 h.
        request = request | {"RequestTTLSeconds": min(max(int(self.max_wait), 60), 21600)}
        invoke = self.runtime.invoke_endpoint_async
        if len(body) <= self.inline:
            return self._fetch(self._in_time(invoke, **request, Body=body), end)
        uri = f"{self.s3_input}/{uuid.uuid4()}"
        try:
            self._in_time(self.s3.put_object, **_parse_s3_uri(uri), Body=body)
            return self._fetch(self._in_time(invoke, **request, InputLocation=uri), end)
        finally:
            with contextlib.suppress(Exception):  # it may be denied, and the answer is more important
                self.s3.delete_object(**_parse_s3_uri(uri))

    def _fetch(self, locations: dict, end: float) -> bytes:
        """Wait for the answer in S3. Raises PredictionError, also for the one at the failure location."""
        output = locations["OutputLocation"]
        for pause in self._pauses(end):
            if (answer := self._read(output)) is not None:
                return answer
            if (failure := self._read(locations.get("FailureLocation"))) is not None:
                raise _failure(failure.decode(errors="replace"))
            if pause >= LONGEST_WAIT / 2:
                more = f"an instance may have to start; waiting up to {self.max_wait:.0f} s"
                self.on_wait(f"{self.name} has not answered yet: {more}")
        raise PredictionError("timeout", f"{self.name} wrote no {output} within {self.max_wait:g} s")

    def _read(self, uri: str | None) -> bytes | None:
        """An object in S3; None if it does not exist."""
        from botocore.exceptions import ClientError

        try:
            return self._in_time(self._get, **_parse_s3_uri(uri)) if uri else None
        except ClientError as error:
            code = error.response["Error"]["Code"]
            # Without s3:ListBucket, S3 answers AccessDenied for an object that does not exist.
            if code == "NoSuchKey" or (code == "AccessDenied" and "s3:GetObject" not in str(error)):
                return None
            raise

    def _get(self, **place: str) -> bytes:
        found = self.s3.get_object(**place)
        if found["ContentLength"] > MAX_ANSWER:
            found["Body"].close()
            raise _endless()
        return _read_all(found["Body"])


def _config(**options: Any) -> Any:
    from botocore.config import Config

    defaults: dict[str, Any] = {"connect_timeout": UPLOAD_SECONDS, "max_pool_connections": CONNECTIONS}
    return Config(**defaults | {"retries": {"mode": "standard"}} | options)


def _describe(session: Any, runtime: Any, name: str) -> tuple[str | None, str | None]:
    """An endpoint's kind, and the S3 prefix for an asynchronous one's input; None where AWS does not tell."""
    from botocore.exceptions import BotoCoreError, ClientError

    sagemaker = session.client(
        "sagemaker",
        config=_config(connect_timeout=CONNECT_SECONDS, read_timeout=10, retries={"total_max_attempts": 2}),
    )
    if runtime.meta.endpoint_url.replace("//runtime", "//api") != sagemaker.meta.endpoint_url:
        return None, None  # a local stand-in for the runtime, of which AWS knows nothing
    try:
        config = sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        config = sagemaker.describe_endpoint_config(EndpointConfigName=config)
    except (BotoCoreError, ClientError):  # usually denied; any other error comes again with the first request
        return None, None
    if asynchronous := config.get("AsyncInferenceConfig"):
        out = asynchronous["OutputConfig"].get("S3OutputPath")
        return "async", f"{out.rstrip('/').removesuffix('/out')}/in" if out else None
    return ("serverless" if config["ProductionVariants"][0].get("ServerlessConfig") else "real-time"), None


def _description(name: str, runtime: Any, kind: str) -> str:
    """The endpoint's name, Region and kind; and the address, if it is not AWS's own."""
    own = re.match(r"https://runtime[\w-]*\.sagemaker", runtime.endpoint_url)
    return f"endpoint {name} in {runtime.region_name} ({kind})" + f" at {runtime.endpoint_url}" * (not own)


def _parse_s3_uri(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise a PredictionError for whatever botocore raises."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _aws_error(error) from error


def _aws_error(error: Any) -> PredictionError:
    """The PredictionError for botocore's error: the server's own if it answered, else AWS's with advice."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, ReadTimeoutError

    if isinstance(error, ReadTimeoutError):
        return PredictionError("timeout", f"the endpoint did not answer in time: {error}")
    if isinstance(error, ConnectionError | HTTPClientError):
        return PredictionError("unreachable", f"AWS cannot be reached: {error}")
    if isinstance(error, ClientError):
        return _aws_refusal(error.response)
    return PredictionError("aws", _advise(type(error).__name__, str(error)))


def _aws_refusal(reply: dict) -> PredictionError:
    name, message = reply["Error"]["Code"], reply["Error"]["Message"]
    if name == "ModelError":
        return _refusal(reply.get("OriginalStatusCode"), reply.get("OriginalMessage") or message)
    status = reply["ResponseMetadata"].get("HTTPStatusCode")
    return PredictionError(CODES.get(name, "aws"), _advise(name, message or name), status)


def _advise(name: str, message: str) -> str:
    advice = (text for pattern, text in ADVICE.items() if re.search(pattern, name))
    return "; ".join([message.rstrip(". "), *list(advice)[:1]])


# From a reply to an answer


def read_mask(answer: dict) -> Any:
    """The mask of a segmentation's answer: a PIL image of mode L whose pixels are numbers of classes.

    It has the answer's width and height; 255 is a pixel that the model does not see. Needs Pillow. Raises
    PredictionError if the mask is broken.
    """
    try:
        mask = _open_bytes(base64.b64decode(answer["mask"]), ("PNG",))
        mask.load()
    except Exception as error:  # Pillow's decoders raise many types
        raise PredictionError("unexpected", f"the answer's mask cannot be read: {error}", 200) from error
    return mask


def _answer(reply: bytes) -> dict:
    """The answer in an endpoint's reply, which may be anything. Raises PredictionError."""
    with contextlib.suppress(ValueError, RecursionError):
        if _is_answer(answer := _parse(reply.decode())):
            return answer
    text = " ".join(reply[:200].decode(errors="replace").split())
    raise PredictionError("unexpected", f"not a prediction: {text}; is this the right endpoint?", 200)


def _parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError for a million brackets.

    Python's reader also takes NaN, infinite numbers and a key twice, of which the last wins.
    """
    if sum(map(text.count, "[{,")) > MAX_ITEMS:
        raise ValueError("too many values")
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number")
    return number


def _is_answer(answer: Any) -> bool:
    """Whether it has the shape of an answer of one of the tasks, and no error in it.

    Other keys than those are not looked at.
    """
    if not isinstance(answer, dict) or "error" in answer:
        return False
    if "class" in answer:
        named = _each(_is_name, answer.get("classes", []))
        ranked = _each(lambda one: _is_named(one, "confidence"), answer.get("predictions"))
        return named and ranked and _is_named(answer, "confidence")
    if "values" in answer:
        return _each(_is_number, answer["values"]) and len(answer["values"]) > 0
    if "points" in answer:
        points = answer["points"]
        return _each(lambda point: _each(_is_number, point) and len(point) == 2, points) and len(points) > 0
    return _each(lambda one: _is_named(one, "share"), answer.get("classes")) and _has_mask(answer)


def _each(check: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(check, values))


def _is_number(value: Any) -> bool:
    # JSON has whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _is_named(value: Any, number: str) -> bool:
    """Whether it is a class's name with a number, its confidence or share."""
    return isinstance(value, dict) and _is_name(value.get("class")) and _is_number(value.get(number))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and not SURROGATES.search(value)


def _has_mask(answer: dict) -> bool:
    """Whether the mask is a PNG of 8-bit grey pixels in base64 of the size that the answer says.

    The pixels are not decoded, which would need Pillow. Raises ValueError if it is not base64.
    """
    mask, sides = answer.get("mask"), (answer.get("width"), answer.get("height"))
    size = [side for side in sides if type(side) is int and side > 0]  # isinstance would take True
    if not isinstance(mask, str) or len(size) < 2 or size[0] * size[1] > MAX_PIXELS:
        return False
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"".join(side.to_bytes(4, "big") for side in size) + b"\x08\0"
    return base64.b64decode(mask, validate=True).startswith(header)


def _failure(text: str) -> PredictionError:
    """An asynchronous endpoint's failure output: AWS's sentence, which quotes the server's answer."""
    text = text[:10_000]  # more would take the expression a long time
    match = re.search(r'\((\d{1,3})\) from [^"]*"(.*?)"(?:\. See |\.?\s*$)', text, re.DOTALL)
    return _refusal(int(match[1]), match[2]) if match else _refusal(None, text)


def _refusal(status: int | None, text: str) -> PredictionError:
    """The contract's {"error": ..., "message": ...} as an exception; also for proxies and crashes."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        refusal = _parse(text)
        if re.fullmatch("[a-z_]{1,40}", refusal["error"]) and isinstance(refusal["message"], str):
            return PredictionError(refusal["error"], refusal["message"], status)
    quoted = " ".join(text[:1000].split())[:300] or "no message"
    # SageMaker reports 0 when the container did not answer in time.
    code = "not_loaded" if status == 503 else "timeout" if status == 0 else "unexpected"
    how = f"answered with status {status}" if status else "failed"
    return PredictionError(code, f"the server {how}: {quoted}", status)
