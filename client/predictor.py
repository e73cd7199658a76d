"""Ask a picture of an endpoint: on SageMaker by name, anywhere else by address.

    from predictor import ImagePredictor

    predictor = ImagePredictor("pets")                          # SageMaker (any kind), needs boto3
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
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REALTIME_LIMIT = 25_000_000  # bytes in one request; a few Regions may still have the former 6 MB
SERVERLESS_LIMIT = 4_000_000
INLINE_LIMIT = 128_000  # bytes that an asynchronous endpoint takes without S3
KINDS = {  # of endpoints on SageMaker: bytes in one request, seconds that one is waited for
    "real-time": (REALTIME_LIMIT, 7.5),
    "serverless": (SERVERLESS_LIMIT, 240),  # a cold start may take three minutes
    "async": (REALTIME_LIMIT, 1200),  # S3 would take more, the server would not; none may be running yet
}
CONNECT_SECONDS = 5
CONNECTIONS = 32
FIRST_WAIT = 0.5  # seconds until the second try while a model is loading or busy; then twice that, ...
LONGEST_WAIT = 10  # ... up to this, whatever a server's Retry-After asks for
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
    "AccessDenied": (
        "your AWS identity needs sagemaker:InvokeEndpoint on this endpoint; for an asynchronous one "
        "sagemaker:InvokeEndpointAsync, and s3:PutObject and s3:GetObject in its bucket"
    ),
    "Validation": (
        "`aws sagemaker list-endpoints` shows those that exist in this Region; "
        "if this one is asynchronous and you may not describe it, say so (kind)"
    ),
    "Throttl|TooManyRequests": "the endpoint is busy; ask fewer at once or give it more instances",
    "ModelNotReady|ServiceUnavailable|Internal": "try again in a minute",
}


CODES = {  # AWS's error codes in the words of the contract
    "ModelNotReadyException": "not_loaded",
    "ServiceUnavailable": "not_loaded",
    "ThrottlingException": "busy",
    "413": "too_large",
}


class PredictionError(Exception):
    """No answer for this picture; `str(error)` is one sentence that says why.

    `code` is the server's word ("not_a_picture", "address_refused", "not_loaded", ...) or one of ours:
    "unreadable", "not_a_picture" and "too_large" before anything is sent; "unreachable", "timeout", "aws",
    "stopped" (`close` was called) and "unexpected" (whoever answered is no such server). `status` is the HTTP
    status, None without one.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class ImagePredictor:
    """Asks one endpoint; may be shared by threads.

    Give either `endpoint`, the name of a SageMaker endpoint, or `url`, the base address of a plain server.
    A picture with a longest side over `shrink` pixels is sent as a JPEG of that size: fewer bytes, less time;
    `shrink=0` sends it as it is. One of more bytes than the endpoint takes (or `limit`, if that is less) is
    scaled down further, or with `shrink=0` refused. `timeout` is in seconds, for each try; SageMaker itself
    gives up after 60.

    The rest is for SageMaker. `kind` is one of KINDS; without it AWS is asked, here and once, by
    DescribeEndpoint and DescribeEndpointConfig, and an endpoint that you may not describe is taken for
    real-time. `patience` is for how many seconds (else as in KINDS) one that is busy or still starts is asked
    again, and an asynchronous one's answer waited for; `on_wait` is called with a sentence where that takes
    long. To an asynchronous endpoint pictures of at most INLINE_LIMIT bytes travel inside the request, others
    through S3: under `inputs` ("s3://bucket/prefix"; else "in" beside the endpoint's own "out"), where they
    are deleted afterwards. `session` is a boto3.Session of your own, for another Region or other credentials.

    `predictor.kind` and `predictor.where` say who is asked. Raises ValueError for arguments that make no
    sense; PredictionError if AWS is not set up here.
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
        inputs: str | None = None,
        patience: float | None = None,
        on_wait: Callable[[str], None] | None = None,
        session: Any = None,
    ) -> None:
        if bool(endpoint) == bool(url):
            raise ValueError("give either endpoint= (a SageMaker endpoint) or url= (a plain server)")
        if isinstance(shrink, bool) or shrink < 0:
            raise ValueError(f"shrink is a number of pixels, or 0 to send pictures as they are, not {shrink}")
        if kind and (url or kind not in KINDS):
            kinds = f"kind (one of {', '.join(KINDS)}) is for an endpoint on SageMaker"
            raise ValueError(f"{kinds}; it was {kind!r} for {endpoint or url}")
        if endpoint:
            self._server = _SageMaker(endpoint, session, timeout, kind, inputs, patience, on_wait)
        else:
            self._server = _Plain(url, timeout)
        self.kind, self.where = self._server.kind, self._server.where
        self.shrink, self.limit = shrink, min(limit or self._server.limit, self._server.limit)

    def close(self) -> None:
        """Wait no longer, in any thread: what is not answered becomes a PredictionError, "stopped"."""
        self._server.stopped.set()

    def predict(self, picture: Any, top_k: int = 5) -> dict:
        """The answer for one picture, its `top_k` predictions best first.

        `picture`: an encoded picture's bytes, a path, an http(s) address (which the endpoint fetches), a PIL
        image, or an array of uint8, shape (height, width, 3), RGB. Raises PredictionError.
        """
        body, content_type = pack(picture, self.shrink, self.limit)
        return _answer(self._server.send(body, content_type, f"top_k={top_k}"))

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


class _Plain:
    """A server at an address of its own."""

    kind, limit = None, REALTIME_LIMIT

    def __init__(self, url: str, timeout: float) -> None:
        if not re.match("https?://.", url, re.IGNORECASE):
            raise ValueError(f"an address starts with http:// or https://, not like {url!r}")
        self.where, self.timeout = url.rstrip("/").removesuffix("/invocations"), timeout
        self.url, self.session, self.stopped = f"{self.where}/invocations", _session(url), threading.Event()

    def send(self, body: bytes, content_type: str, attributes: str) -> bytes:
        """The body of the answer. Raises PredictionError."""
        import requests

        headers = {
            "Content-Type": content_type,
            "Accept": "application/json",
            "X-Amzn-SageMaker-Custom-Attributes": attributes,
        }
        options = {"timeout": (CONNECT_SECONDS, self.timeout), "allow_redirects": False}
        try:
            reply = self.session.post(self.url, data=body, headers=headers, **options)
        except requests.RequestException as error:
            raise _unreachable(error, self.url, self.timeout) from error
        if reply.status_code != 200:
            raise _refusal(reply.status_code, reply.content.decode(errors="replace"))
        return reply.content


def _session(url: str) -> Any:
    """A requests session that tries again what is safe and useful."""
    import requests
    from urllib3.util import Retry

    # POST is safe to repeat: a prediction changes nothing. A 4xx or a 500 would only come again.
    retry = Retry(
        total=4,
        connect=2,
        read=1,
        allowed_methods=None,
        status_forcelist=(502, 503, 504),
        backoff_factor=FIRST_WAIT,
        raise_on_status=False,
    )
    retry.retry_after_max = LONGEST_WAIT  # not as an argument, which older releases do not know
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(max_retries=retry, pool_maxsize=CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    # A company's proxy cannot see this machine's own ports.
    session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
    return session


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


class _SageMaker:
    """An endpoint on SageMaker, asked as its kind wants to be; the arguments are ImagePredictor's."""

    def __init__(self, name, session, timeout, kind, inputs, patience, on_wait) -> None:
        import boto3

        self.name, self.on_wait, self.stopped = name, on_wait or (lambda sentence: None), threading.Event()
        with _in_our_words():
            session = session or boto3.Session()  # threads cannot share the one that boto3.client() uses
            self.runtime = session.client("sagemaker-runtime", config=_config(read_timeout=timeout))
            enough = kind and (inputs or kind != "async")
            said, place = (kind, inputs) if enough else _describe(session, self.runtime, name)
            self.kind, self.inputs = kind or said or "real-time", (inputs or place or "").rstrip("/")
            self.s3 = session.client("s3", config=_config()) if self.kind == "async" else None
        self.limit, usual = KINDS[self.kind]
        self.patience = usual if patience is None else patience
        operation = self.runtime.meta.service_model.operation_model("InvokeEndpointAsync")
        self.inline = INLINE_LIMIT if "Body" in operation.input_shape.members else 0  # an older boto3
        if self.kind == "async" and not self.inputs:
            self.limit = self.inline
        self.where = _where(name, self.runtime.meta, f"{'' if kind or said else 'taken for '}{self.kind}")

    def send(self, body: bytes, content_type: str, attributes: str) -> bytes:
        """The body of the answer, within `patience`. Raises PredictionError."""
        request = {
            "EndpointName": self.name,
            "ContentType": content_type,
            "Accept": "application/json",
            "CustomAttributes": attributes,
        }
        end = time.monotonic() + self.patience
        pauses = self._pauses(end)
        while True:
            try:
                with _in_our_words():
                    return self._later(request, body, end) if self.s3 else self._now(request, body)
            except PredictionError as failure:
                # boto3 itself tries again when AWS is busy, but not when the server behind it is.
                cold = self.kind == "serverless" and failure.code == "timeout"
                if failure.code not in ("not_loaded", "busy") and not cold:
                    raise
                state = "busy" if failure.code == "busy" else "still starting"
                self.on_wait(f"{self.name} is {state}: it is asked again for up to {self.patience:.0f} s")
                if next(pauses, None) is None:
                    raise

    def _pauses(self, end: float) -> Iterator[float]:
        """Wait, twice as long each time, and yield how long, until it is `end`."""
        pause = FIRST_WAIT
        while (left := end - time.monotonic()) > 0:
            if self.stopped.wait(min(pause, left)):
                raise PredictionError("stopped", "nobody waited for the answer any longer")
            yield pause
            pause = min(2 * pause, LONGEST_WAIT)

    def _now(self, request: dict, body: bytes) -> bytes:
        return self.runtime.invoke_endpoint(**request, Body=body)["Body"].read()

    def _later(self, request: dict, body: bytes, end: float) -> bytes:
        """Hand the picture in, inside the request or through S3, and fetch the answer from S3."""
        # What nobody waits for any more need not be computed.
        request = request | {"RequestTTLSeconds": min(max(int(self.patience), 60), 21600)}
        if len(body) <= self.inline:
            return self._fetch(self.runtime.invoke_endpoint_async(**request, Body=body), end)
        place = f"{self.inputs}/{uuid.uuid4()}"
        self.s3.put_object(**_in_s3(place), Body=body)
        try:
            return self._fetch(self.runtime.invoke_endpoint_async(**request, InputLocation=place), end)
        finally:
            with contextlib.suppress(Exception):  # it may be forbidden, and the answer is what counts
                self.s3.delete_object(**_in_s3(place))

    def _fetch(self, places: dict, end: float) -> bytes:
        """The answer from where AWS says that it will be, or what it says of a failure."""
        place = places["OutputLocation"]
        for pause in self._pauses(end):
            if (answer := self._read(place)) is not None:
                return answer
            if (failure := self._read(places.get("FailureLocation"))) is not None:
                raise _failure(failure.decode(errors="replace"))
            if pause >= LONGEST_WAIT / 2:
                more = f"an instance may have to start; it is waited for up to {self.patience:.0f} s"
                self.on_wait(f"{self.name} has not answered yet: {more}")
        raise PredictionError("timeout", f"{self.name} wrote no {place} within {self.patience:g} s")

    def _read(self, place: str | None) -> bytes | None:
        """An object in S3; None if it is not there."""
        from botocore.exceptions import ClientError

        try:
            return self.s3.get_object(**_in_s3(place))["Body"].read() if place else None
        except ClientError as error:
            code = error.response["Error"]["Code"]
            # Who may not list a bucket is told "denied" of what is not there.
            if code == "NoSuchKey" or (code == "AccessDenied" and "s3:GetObject" not in str(error)):
                return None
            raise


def _config(**options: Any) -> Any:
    from botocore.config import Config

    usual = {"connect_timeout": CONNECT_SECONDS, "max_pool_connections": CONNECTIONS}
    return Config(**usual | {"retries": {"mode": "standard"}} | options)


def _describe(session: Any, runtime: Any, name: str) -> tuple[str | None, str | None]:
    """An endpoint's kind, and for an asynchronous one where in S3 its inputs go; None where AWS won't say."""
    from botocore.exceptions import BotoCoreError, ClientError

    sagemaker = session.client(
        "sagemaker", config=_config(read_timeout=10, retries={"total_max_attempts": 2})
    )
    if runtime.meta.endpoint_url.replace("//runtime", "//api") != sagemaker.meta.endpoint_url:
        return None, None  # something stands in for the runtime alone, and AWS knows nothing of it
    try:
        config = sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        config = sagemaker.describe_endpoint_config(EndpointConfigName=config)
    except (BotoCoreError, ClientError):  # above all: not allowed; what else is wrong, asking will tell
        return None, None
    if asynchronous := config.get("AsyncInferenceConfig"):
        out = asynchronous["OutputConfig"].get("S3OutputPath")
        return "async", f"{out.rstrip('/').removesuffix('/out')}/in" if out else None
    return ("serverless" if config["ProductionVariants"][0].get("ServerlessConfig") else "real-time"), None


def _where(name: str, runtime: Any, kind: str) -> str:
    """Who is asked, in a few words; with the address, if that is not AWS's own."""
    own = re.match(r"https://runtime[\w-]*\.sagemaker", runtime.endpoint_url)
    return f"endpoint {name} in {runtime.region_name} ({kind})" + f" at {runtime.endpoint_url}" * (not own)


def _in_s3(place: str) -> dict[str, str]:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Whatever botocore raises becomes a PredictionError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _aws_error(error) from error


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
    code = CODES.get(name, "aws")
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


def _failure(text: str) -> PredictionError:
    """What an asynchronous endpoint left at its failure location: AWS's sentence round the server's words."""
    found = re.search(r'\((\d+)\) from [^"]*"(.*?)"(?:\. See |\.?\s*$)', text, re.DOTALL)
    return _refusal(int(found[1]), found[2]) if found else _refusal(None, text)


def _refusal(status: int | None, text: str) -> PredictionError:
    """The contract's {"error": ..., "message": ...} as an exception; also what proxies and crashes say."""
    try:
        refusal = json.loads(text)
        return PredictionError(refusal["error"], refusal["message"], status)
    except (ValueError, KeyError, TypeError):
        said = " ".join(text.split())[:300] or "nothing more"
        code = {503: "not_loaded", 0: "timeout"}.get(status, "unexpected")  # 0: SageMaker gave up waiting
        how = f"answered with status {status}" if status else "failed"
        return PredictionError(code, f"the server {how}: {said}", status)
