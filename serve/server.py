"""A plain server around the handlers: `python server.py [--model DIR] [--host 127.0.0.1] [--port 8080]`.

It listens at once, prints its address, and answers 503 until the model is loaded and has made a warm-up
prediction; so GET /ping is 200 exactly when POST /invocations can be answered. Exits 1 with the reason if the
port cannot be bound or the model cannot be loaded.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from inference import (
    DECODE_SLOTS,
    FETCH_SLOTS,
    MAX_BODY,
    Answer,
    Model,
    RequestError,
    handle,
    model_fn,
    refuse,
    warm_up,
)

if TYPE_CHECKING:
    import uvicorn

# In the archive this file is code/server.py, and the folder above is the model.
MODEL_DIR = Path(os.environ.get("SM_MODEL_DIR", Path(__file__).resolve().parents[1]))
REQUEST_SLOTS = 64  # requests at the same time: each may hold a body of 25 MB, and waits for those before it
BODY_SECONDS = 30  # to receive a body
QUICK_SECONDS = 1  # after these, a body that is still arriving needs one of the SLOW_SLOTS as well
SLOW_SLOTS = REQUEST_SLOTS // 2  # so that clients that send slowly leave room for the others
KEEP_ALIVE_SECONDS = 75  # longer than load balancers (AWS's: 60 s), or they reuse a closed connection
CLOSING_SECONDS = 1  # after SIGTERM, to send "Connection: close" to the clients on open connections
DRAIN_SECONDS = 25  # after that, to finish requests in flight; SageMaker sends SIGKILL 30 s after SIGTERM
M_MMAP_THRESHOLD = -3  # mallopt(3), malloc.h
MMAP_BYTES = 4 * 2**20

request_slots = asyncio.Semaphore(REQUEST_SLOTS)
slow_slots = asyncio.Semaphore(SLOW_SLOTS)
# Handler threads: every request that may fetch addresses, and as many as may decode.
threads = anyio.CapacityLimiter(FETCH_SLOTS + DECODE_SLOTS)
log = logging.getLogger("server")
access_log = logging.getLogger("access")


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


async def answer(model: Model | None, request: Request) -> Response:
    """Run the handlers for one HTTP request, on another thread: the event loop stays free for /ping.

    503 if all REQUEST_SLOTS are taken, 400, 408 and 503 as `receive` says. Sets `request.state.id`, which a
    status 500 repeats, and `request.state.bytes`, the length of the body.
    """
    state = request.state
    given = request.headers.get("x-amzn-sagemaker-inference-id", "")[:64]
    state.id = given if given.isascii() and given.isprintable() and given else uuid.uuid4().hex[:12]
    state.bytes = 0
    if request_slots.locked():
        return reply(refuse(RequestError(503, "busy", "too many requests at once: try again in a second")))
    async with request_slots:
        try:
            body = await receive(request)
        except ClientDisconnect:
            return Response(status_code=400)  # only for the log: the connection is closed
        except RequestError as error:
            return reply(refuse(error), Connection="close")
        state.bytes = len(body)
        work = partial(handle, model, body, request.headers, state.id)
        return reply(await anyio.to_thread.run_sync(work, limiter=threads))


async def receive(request: Request) -> bytes:
    """The request's body. Raises ClientDisconnect, or RequestError: the connection is then to be closed.

    400 if its length is ambiguous, 408 if it takes over BODY_SECONDS, 503 if it takes over QUICK_SECONDS
    while as many as SLOW_SLOTS others do.
    """
    check_length(request.headers)
    reading = asyncio.create_task(read_body(request))
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await asyncio.wait({reading}, timeout=QUICK_SECONDS)
            if reading.done():
                return reading.result()
            if slow_slots.locked():
                text = "too many bodies arrive slowly: try again in a second, or send a smaller picture"
                raise RequestError(503, "busy", text)
            async with slow_slots:
                return await reading
    except TimeoutError:
        text = f"the body was not received within {BODY_SECONDS} s: send a smaller picture"
        raise RequestError(408, "slow_body", text) from None
    finally:
        reading.cancel()


def check_length(headers: Headers) -> None:
    """Raise RequestError 400 unless every HTTP parser finds the same end of the body (RFC 9112, 6.3).

    The container image has h11, which takes both headers, and development httptools, which does not.
    """
    encodings = headers.getlist("transfer-encoding")
    if encodings and ("content-length" in headers or [text.lower() for text in encodings] != ["chunked"]):
        text = "a body has either a Content-Length or Transfer-Encoding: chunked: send one of them"
        raise RequestError(400, "bad_length", text)


def reply(answer: Answer, **headers: str) -> Response:
    """The handlers' answer as a response of starlette."""
    if answer.status == 503:
        headers["Retry-After"] = "1"
    return Response(answer.body, answer.status, headers, answer.content_type)


async def read_body(request: Request) -> bytes:
    """The request's body, cut just above MAX_BODY, which input_fn rejects; uvicorn discards the rest."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY:
            break
    return b"".join(chunks)


async def ping(request: Request) -> Response:
    """SageMaker's health check. After a status 500 it makes a new warm-up prediction first."""
    state = request.app.state
    if state.suspect:
        state.suspect = not await anyio.to_thread.run_sync(can_answer, state.model)
    return Response(status_code=200 if state.model and not state.suspect and not state.draining else 503)


def can_answer(model: Model) -> bool:
    """Whether the warm-up prediction succeeds."""
    try:
        warm_up(model)
    except Exception:
        log.exception("the model fails")
        return False
    return True


async def invocations(request: Request) -> Response:
    """SageMaker's request for a prediction; writes a line to the access log."""
    state, start = request.app.state, time.perf_counter()
    response = await answer(state.model, request)
    log_access(request, response.status_code, time.perf_counter() - start)
    state.suspect |= response.status_code == 500
    if state.draining:
        response.headers["Connection"] = "close"
    return response


def log_access(request: Request, status: int, seconds: float) -> None:
    """Write one JSON line, without the request's content: pictures and addresses are private."""
    state = request.state
    line = {"id": state.id, "status": status, "ms": round(1000 * seconds, 1), "bytes": state.bytes}
    access_log.info(json.dumps(line))


def application() -> Starlette:
    """The ASGI application; its user sets `state.model` once loaded, and `state.draining` before the stop."""
    app = Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", invocations, methods=["POST"]),
        ]
    )
    app.state.model, app.state.suspect, app.state.draining = None, False, False
    return app


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; finish requests in flight first. Returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder with model.json and model.onnx")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one; the log names it")
    args = parser.parse_args(argv)
    set_up_logging()
    return_large_blocks()
    try:
        listener = bind(args.host, args.port)
    except OSError as error:
        log.error("cannot listen on %s port %s: %s", args.host, args.port, error.strerror or error)
        return 1
    app = application()
    loading = ThreadPoolExecutor(1).submit(load, args.model)
    try:
        http_server(app, loading).run(sockets=[listener])
    except KeyboardInterrupt:
        return 0
    return 0 if app.state.model else 1


def set_up_logging() -> None:
    """Log to stdout: a line of JSON for each request, a line of text for everything else."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter("%(message)s"))
    access_log.addHandler(lines)
    access_log.propagate = False


def return_large_blocks() -> bool:
    """Make malloc return freed pixels to the system at once; False where there is no glibc.

    By default glibc raises this threshold to the largest block that was ever freed, and keeps smaller ones in
    a heap for each thread (man 3 mallopt): large pictures would stay in memory once for each decoding thread.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:  # glibc's own variable: someone chose a value
        return True
    with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS and Windows lack mallopt
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES))
    return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; its address is the log's first line. Raises OSError."""
    if not 0 <= port <= 65_535:
        raise OSError("a port is a number from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    log.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, listener.getsockname()[1])
    return listener


def load(model_dir: Path) -> Model:
    """Load the model and warm it up."""
    start = time.perf_counter()
    model = model_fn(model_dir)
    seconds = time.perf_counter() - start
    labels = f"{len(model.labels)} labels" if model.labels else model.task
    log.info("ready after %.2f s: %s, %s", seconds, labels, model.engine.mode)
    return model


def http_server(app: Starlette, loading: Future) -> "uvicorn.Server":
    """The server of `app`, which stops on a signal, or if loading the model fails."""
    import uvicorn  # here, because the model loads in the meantime

    class Server(uvicorn.Server):
        """Serves for CLOSING_SECONDS after a signal, to close open connections with their next answer."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.draining = True
            delay = CLOSING_SECONDS if self.server_state.connections else 0
            threading.Timer(delay, super().handle_exit, (sig, frame)).start()

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = Server(config)

    def loaded(loading: Future) -> None:
        try:
            app.state.model = loading.result()
        except Exception as error:
            log.error("the model cannot be served: %s", error)
            server.should_exit = True

    loading.add_done_callback(loaded)
    return server


if __name__ == "__main__":
    raise SystemExit(main())
