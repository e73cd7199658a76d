"""Ask a picture of an endpoint: on SageMaker by name, anywhere else by address.

    from predictor import ImagePredictor

    predictor = ImagePredictor("pets")                          # SageMaker, needs boto3
    predictor = ImagePredictor(url="http://127.0.0.1:8080")     # a plain server, needs requests
    predictor.predict("cat.jpg")
    # {"class": "Bengal", "confidence": 0.93, "predictions": [{"class": "Bengal", "confidence": 0.93}, ...]}

    for answer in predictor.predict_many(["cat.jpg", "dog.jpg"]):
        print(answer)                                           # an answer, or a PredictionError

Copy this one file into your application. Nothing else is imported before it is needed: Pillow only to send
PIL images and to scale down what is large (without it, pictures are sent as they are), numpy for arrays.
"""

import contextlib
import io
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REALTIME_LIMIT = 25_000_000  # bytes in one request; a few Regions may still have the former 6 MB
SERVERLESS_LIMIT = 4_000_000
CONNECT_SECONDS = 5
CONNECTIONS = 32
WAITS = (0.5, 1, 2, 4)  # seconds between tries while a model is loading or busy
LONGEST_WAIT = 10  # seconds, whatever a server's Retry-After asks for
SHRINK = 1280  # pixels: several times what models look at, in a tenth of the bytes of a phone's photograph
SIDES = (2048, 1024, 512, 256)  # pixels, those below `shrink` tried in turn to fit a picture into the limit
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # that are scaled down here: the server's own

SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"\x93NUMPY": "application/x-npy",
}

ADVICE = {  # by a pattern in the name of botocore's exception, or in AWS's error code
    "Credential|Token|UnrecognizedClient|Signature": (
        "check `aws sts get-caller-identity`, run `aws configure` or `aws sso login`, or set AWS_PROFILE"
    ),
    "ProfileNotFound": "`aws configure list-profiles` shows those that exist",
    "NoRegion": "set AWS_DEFAULT_REGION or run `aws configure`",
    "AccessDenied": "your AWS identity needs sagemaker:InvokeEndpoint on this endpoint",
    "ValidationError": "`aws sagemaker list-endpoints` shows those that exist in this Region",
    "Throttl|TooManyRequests": "the endpoint is busy; ask fewer at once or give it more instances",
    "ModelNotReady|ServiceUnavailable|Internal": "try again in a minute",
}


class PredictionError(Exception):
    """No answer for this picture; `str(error)` is one sentence that says why.

    `code` is the server's word ("not_a_picture", "address_refused", "not_loaded", ...) or one of ours:
    "unreadable", "not_a_picture" and "too_large" before anything is sent; "unreachable", "timeout", "aws"
    and "unexpected" (whoever answered is no such server). `status` is the HTTP status, None without one.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class ImagePredictor:
    """Asks one endpoint; may be shared by threads.

    Give either `endpoint`, the name of a SageMaker endpoint, or `url`, the base address of a plain server.
    `runtime` is a boto3 `sagemaker-runtime` client of your own making, with its own time-outs. A picture
    with a longest side over `shrink` pixels is sent as a JPEG of that size: fewer bytes, less time;
    `shrink=0` sends it as it is. One request holds `limit` bytes (SERVERLESS_LIMIT for serverless endpoints):
    a picture over that is scaled down further, or with `shrink=0` refused. `timeout` is in seconds, for each
    try; SageMaker itself gives up after 60.

    Raises ValueError unless exactly one of both is given; PredictionError if AWS is not set up here.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        url: str | None = None,
        runtime: Any = None,
        limit: int = REALTIME_LIMIT,
        shrink: int = SHRINK,
        timeout: float = 70,
    ) -> None:
        if bool(endpoint) == bool(url):
            raise ValueError("give either endpoint= (a SageMaker endpoint) or url= (a plain server)")
        if isinstance(shrink, bool) or shrink < 0:
            raise ValueError(f"shrink is a number of pixels, or 0 to send pictures as they are, not {shrink}")
        self.shrink, self.limit = shrink, limit
        if endpoint:
            self._send = partial(_invoke, runtime or _runtime(timeout), endpoint)
        else:
            self._send = partial(_post, *_session(url), timeout)

    def predict(self, picture: Any, top_k: int = 5) -> dict:
        """The answer for one picture, its `top_k` predictions best first.

        `picture`: an encoded picture's bytes, a path, an http(s) address (which the endpoint fetches), a PIL
        image, or an array of uint8, shape (height, width, 3), RGB. Raises PredictionError.
        """
        body, content_type = pack(picture, self.shrink, self.limit)
        return _answer(self._send(body, content_type, f"top_k={top_k}"))

    def predict_many(
        self, pictures: Iterable, top_k: int = 5, concurrency: int = 8
    ) -> Iterator[dict | PredictionError]:
        """Answers in the order of `pictures`, `concurrency` at a time; where one failed, its PredictionError.

        Nothing is asked before the first answer is wanted, and `pictures` may be a generator of any length:
        it is read only a little ahead of the answers.
        """
        waiting: deque = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="predict")
        try:
            for picture in pictures:
                waiting.append(pool.submit(self._answer_or_error, picture, top_k))
                if len(waiting) >= 2 * concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer_or_error(self, picture: Any, top_k: int) -> dict | PredictionError:
        try:
            return self.predict(picture, top_k)
        except PredictionError as error:
            return error


# From a picture to a request


def pack(picture: Any, shrink: int = 0, limit: int = REALTIME_LIMIT) -> tuple[bytes, str]:
    """A picture as the body of a request, and the body's Content-Type.

    Over `shrink` pixels (0: any number) it is scaled down to a JPEG, if that has fewer bytes; over `limit`
    bytes in any case. Raises PredictionError.
    """
    picture = _take(picture)
    if isinstance(picture, str):
        return json.dumps({"url": picture}).encode(), "application/json"
    if shrink and _side(picture) > shrink:
        with contextlib.suppress(Exception):  # Pillow's readers raise many kinds; the server shall judge
            small = scale_down(picture, shrink, limit)
            if not isinstance(picture, bytes) or len(small) < len(picture):
                return small, "image/jpeg"
    body, content_type = _whole(picture)
    if len(body) <= limit:
        return body, content_type
    over = f"{len(body):,} bytes are over the limit of {limit:,}"
    if not shrink:
        raise PredictionError("too_large", over)
    try:
        return scale_down(picture, shrink, limit), "image/jpeg"
    except Exception as error:
        raise PredictionError("too_large", f"{over}, and cannot be scaled down: {error}") from error


def _take(picture: Any) -> Any:
    """An address, encoded bytes, a PIL image or an array, all else read or refused."""
    # Whoever holds an image or an array has imported its library; nobody else should have to.
    pil, numpy = sys.modules.get("PIL.Image"), sys.modules.get("numpy")
    if isinstance(picture, str) and re.match("https?://", picture, re.IGNORECASE):
        return picture
    if isinstance(picture, str | os.PathLike):
        picture = _read(Path(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        if not picture:
            raise PredictionError("not_a_picture", "the picture is empty")
        return bytes(picture)
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


def _whole(picture: Any) -> tuple[bytes, str]:
    """All of a picture's pixels, and their type."""
    if isinstance(picture, bytes):
        return picture, _type(picture)
    file = io.BytesIO()
    if hasattr(picture, "dtype"):
        import numpy as np

        np.save(file, picture, allow_pickle=False)
        return file.getvalue(), "application/x-npy"
    try:
        image = _upright(picture)  # PNG would lose the orientation
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
            image = image.convert("RGB")
        image.save(file, "PNG", compress_level=1)
    except OSError as error:  # a file that Pillow opened breaks off
        raise PredictionError("not_a_picture", f"the image cannot be read: {error}") from error
    return file.getvalue(), "image/png"


def _type(body: bytes) -> str:
    """The type that bytes show themselves: the names of files are too often wrong."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    kinds = (kind for signature, kind in SIGNATURES.items() if body.startswith(signature))
    return next(kinds, "application/octet-stream")


# Less of a picture


def scale_down(picture: Any, shrink: int, limit: int) -> bytes:
    """A JPEG of at most `shrink` pixels and `limit` bytes. Raises PredictionError, and what Pillow does."""
    image = _open(picture)
    if isinstance(picture, bytes):  # a JPEG decoded at a half or less of its size: a third of the time
        image.draft(None, _scaled(image.size, shrink))
    image = _upright(image).convert("RGB")
    for side in (shrink, *(side for side in SIDES if side < shrink)):
        file = io.BytesIO()
        image.resize(_scaled(image.size, side)).save(file, "JPEG", quality=90)
        if file.tell() <= limit:
            return file.getvalue()
    raise PredictionError("too_large", f"no picture of use fits into {limit:,} bytes")


def _open(picture: Any) -> Any:
    """A PIL image; of encoded bytes, only the header is read."""
    from PIL import Image

    if isinstance(picture, bytes) and picture.startswith(b"\x93NUMPY"):
        import numpy as np

        picture = np.load(io.BytesIO(picture), allow_pickle=False)
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture), formats=FORMATS)
    return Image.fromarray(picture) if hasattr(picture, "dtype") else picture


def _side(picture: Any) -> int:
    """The longest side in pixels; 0 if that cannot be known here."""
    try:
        return _longest(_open(picture).size)
    except Exception:  # no Pillow, or nothing that it reads
        return 0


def _longest(size: tuple[int, int]) -> int:
    # A model looks at a panorama's middle, which must keep its height: no side counts more than double.
    return min(max(size), 2 * min(size))


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` with a longest side of `side`, or as it is if that is smaller."""
    scale = min(1, side / _longest(size))
    return tuple(max(1, round(scale * length)) for length in size)


def _upright(image: Any) -> Any:
    """Turned as its EXIF orientation says; as it lies if the EXIF block is damaged, like the server."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many kinds, too
        return image


# A plain server


def _session(url: str) -> tuple[Any, str]:
    """A requests session that tries again what is safe and useful, and the address to post to."""
    import requests
    from urllib3.util import Retry

    if not re.match("https?://.", url, re.IGNORECASE):
        raise ValueError(f"an address starts with http:// or https://, not like {url!r}")
    # POST is safe to repeat: a prediction changes nothing. A 4xx or a 500 would only come again.
    retry = Retry(
        total=4,
        connect=2,
        read=1,
        allowed_methods=None,
        status_forcelist=(502, 503, 504),
        backoff_factor=WAITS[0],
        raise_on_status=False,
    )
    retry.retry_after_max = LONGEST_WAIT  # not as an argument, which older releases do not know
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(max_retries=retry, pool_maxsize=CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    # A company's proxy cannot see this machine's own ports.
    session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
    return session, url.rstrip("/").removesuffix("/invocations") + "/invocations"


def _post(session: Any, url: str, timeout: float, body: bytes, content_type: str, attributes: str) -> bytes:
    import requests

    headers = {
        "Content-Type": content_type,
        "Accept": "application/json",
        "X-Amzn-SageMaker-Custom-Attributes": attributes,
    }
    try:
        reply = session.post(
            url, data=body, headers=headers, timeout=(CONNECT_SECONDS, timeout), allow_redirects=False
        )
    except requests.RequestException as error:
        raise _unreachable(error, url, timeout) from error
    if reply.status_code != 200:
        raise _refusal(reply.status_code, reply.content.decode(errors="replace"))
    return reply.content


def _unreachable(error: Exception, url: str, timeout: float) -> PredictionError:
    if "Read timed out" in str(error):
        return PredictionError("timeout", f"{url} did not answer within {timeout:g} s")
    root = _root(error)
    reason = getattr(root, "strerror", None) or root
    return PredictionError("unreachable", f"{url} cannot be reached ({reason}); does the server run there?")


def _root(error: Exception) -> Exception:
    """The innermost error: requests wraps urllib3's, which wrap the socket's own."""
    for inner in (getattr(error, "reason", None), error.__cause__, *error.args):
        if isinstance(inner, Exception):
            return _root(inner)
    return error


# SageMaker


def _runtime(timeout: float) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=timeout,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard"},
    )
    try:
        session = boto3.Session()  # the one that boto3.client() uses cannot be shared by threads
        return session.client("sagemaker-runtime", config=config)
    except BotoCoreError as error:
        raise _aws_error(error) from error


def _invoke(runtime: Any, endpoint: str, body: bytes, content_type: str, attributes: str) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError

    request = {
        "EndpointName": endpoint,
        "Body": body,
        "ContentType": content_type,
        "Accept": "application/json",
        "CustomAttributes": attributes,
    }
    waits = iter(WAITS)
    while True:
        try:
            return runtime.invoke_endpoint(**request)["Body"].read()
        except (BotoCoreError, ClientError) as error:
            failure = _aws_error(error)
            wait = next(waits, None)
            # boto3 itself tries again when AWS is busy, but not when the server behind it is.
            if failure.code not in ("not_loaded", "busy") or wait is None:
                raise failure from error
            time.sleep(wait)


def _aws_error(error: Any) -> PredictionError:
    """What botocore raised, in the words of the contract if the model spoke, else with advice."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, ReadTimeoutError

    if isinstance(error, ReadTimeoutError):
        return PredictionError("timeout", f"the endpoint did not answer in time: {error}")
    if isinstance(error, ConnectionError | HTTPClientError):
        return PredictionError("unreachable", f"AWS cannot be reached: {error}")
    if isinstance(error, ClientError):
        return _aws_refusal(error.response)
    return PredictionError("aws", _advise(type(error).__name__, str(error)))


def _aws_refusal(reply: dict) -> PredictionError:
    name, said = reply["Error"]["Code"], reply["Error"]["Message"]
    if name == "ModelError":
        return _refusal(reply.get("OriginalStatusCode"), reply.get("OriginalMessage") or said)
    code = {"ModelNotReadyException": "not_loaded", "413": "too_large"}.get(name, "aws")
    return PredictionError(code, _advise(name, said or name), reply["ResponseMetadata"].get("HTTPStatusCode"))


def _advise(name: str, said: str) -> str:
    advice = (text for pattern, text in ADVICE.items() if re.search(pattern, name))
    return "; ".join([said.rstrip(". "), *list(advice)[:1]])


# From a reply to an answer


def _answer(reply: bytes) -> dict:
    try:
        answer = json.loads(reply)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "class" in answer:
        return answer
    said = " ".join(reply[:200].decode(errors="replace").split())
    raise PredictionError(
        "unexpected", f"this is no prediction; is it the right endpoint? It said: {said}", 200
    )


def _refusal(status: int | None, text: str) -> PredictionError:
    """The contract's {"error": ..., "message": ...} as an exception; also what proxies and crashes say."""
    try:
        refusal = json.loads(text)
        return PredictionError(refusal["error"], refusal["message"], status)
    except (ValueError, KeyError, TypeError):
        said = " ".join(text.split())[:300] or "nothing more"
        code = "not_loaded" if status == 503 else "unexpected"
        return PredictionError(code, f"the server answered with status {status}: {said}", status)
