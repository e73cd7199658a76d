"""A plain server round the handlers: `python server.py [--model DIR] [--host 127.0.0.1] [--port 8080]`.

It listens at once, and answers 503 until the model is loaded and has made a warm-up prediction; so GET /ping
is 200 exactly when POST /invocations can answer. Exits 1 with the reason if the model cannot be loaded.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from inference import (
    ADDRESSED,
    DECODERS,
    MAX_BODY,
    Answer,
    Model,
    RequestError,
    handle,
    model_fn,
    refuse,
    warm_up,
)

# In the archive this file is code/server.py, and the folder above is the model.
MODEL_DIR = Path(os.environ.get("SM_MODEL_DIR", Path(__file__).resolve().parents[1]))
PLACES = 64  # requests at once: each may hold a body of 25 MB, and waits for all that came before it
BODY_SECONDS = 30  # for a body to arrive
KEEP_ALIVE_SECONDS = 75  # longer than load balancers keep idle connections, or they ask one that just closed
LEAVE_SECONDS = 1  # after SIGTERM, to tell the clients on open connections that these close
DRAIN_SECONDS = 25  # after that, for the last answers; SageMaker sends SIGKILL 30 s after SIGTERM

places = asyncio.Semaphore(PLACES)
# In the handlers at once: all that may wait for addresses, and enough pictures besides.
threads = anyio.CapacityLimiter(ADDRESSED + DECODERS)
log = logging.getLogger("server")
asked = logging.getLogger("asked")


async def answer(model: Model | None, request: Request) -> Response:
    """One HTTP request through the handlers, on another thread: the event loop stays free for /ping.

    503 at once if PLACES requests are here already, 408 if the body comes too slowly. Leaves the request's
    `id`, which a failure of ours repeats, and the `bytes` of its body in `request.state`.
    """
    state = request.state
    given = request.headers.get("x-amzn-sagemaker-inference-id", "")[:64]
    state.id = given if given.isascii() and given.isprintable() and given else uuid.uuid4().hex[:12]
    state.bytes = 0
    if places.locked():
        return reply(refuse(RequestError(503, "busy", "too many requests at once: try again in a second")))
    async with places:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except TimeoutError:
            text = f"the body did not arrive within {BODY_SECONDS} s: send a smaller picture"
            return reply(refuse(RequestError(408, "slow_body", text)), Connection="close")
        state.bytes = len(body)
        work = partial(handle, model, body, request.headers, state.id)
        return reply(await anyio.to_thread.run_sync(work, limiter=threads))


def reply(answer: Answer, **headers: str) -> Response:
    """The handlers' answer as a response."""
    if answer.status == 503:
        headers["Retry-After"] = "1"
    return Response(answer.body, answer.status, headers, answer.content_type)


async def read_body(request: Request) -> bytes:
    """The request's body, or as much of it as input_fn needs to refuse it: HTTP's server drops the rest."""
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY:
            break
    return b"".join(chunks)


async def ping(request: Request) -> Response:
    """SageMaker's health check. After a failure of ours the model must prove again that it can answer."""
    state = request.app.state
    if state.suspect:
        state.suspect = not await anyio.to_thread.run_sync(can_answer, state.model)
    return Response(status_code=200 if state.model and not state.suspect and not state.leaving else 503)


def can_answer(model: Model) -> bool:
    """Whether the warm-up prediction still works."""
    try:
        warm_up(model)
    except Exception:
        log.exception("the model fails")
        return False
    return True


async def invocations(request: Request) -> Response:
    """SageMaker's request for a prediction, and a line about it in the log."""
    state, start = request.app.state, time.perf_counter()
    response = await answer(state.model, request)
    note(request, response.status_code, time.perf_counter() - start)
    state.suspect |= response.status_code == 500
    if state.leaving:
        response.headers["Connection"] = "close"
    return response


def note(request: Request, status: int, seconds: float) -> None:
    """One JSON line on an answer: nothing of what was asked about, for pictures and addresses are private."""
    state = request.state
    line = {"id": state.id, "status": status, "ms": round(1000 * seconds, 1), "bytes": state.bytes}
    asked.info(json.dumps(line))


def application() -> Starlette:
    """The ASGI application; set `.state.model` when there is one, and `.state.leaving` before the end."""
    app = Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", invocations, methods=["POST"]),
        ]
    )
    app.state.model, app.state.suspect, app.state.leaving = None, False, False
    return app


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder with model.json and model.onnx")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args(argv)
    set_up_logging()
    app = application()
    loading = ThreadPoolExecutor(1).submit(load, args.model)
    try:
        listen(app, args.host, args.port, loading)
    except KeyboardInterrupt:
        return 0
    return 0 if app.state.model else 1


def set_up_logging() -> None:
    """To stdout: a JSON line for each request, and in words all else."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter("%(message)s"))
    asked.addHandler(lines)
    asked.propagate = False


def load(model_dir: Path) -> Model:
    """The model, warm."""
    start = time.perf_counter()
    model = model_fn(model_dir)
    seconds = time.perf_counter() - start
    log.info("ready after %.2f s: %s labels, %s", seconds, len(model.labels), model.engine.mode)
    return model


def listen(app: Starlette, host: str, port: int, loading: Future) -> None:
    """Listen until a signal, or until the model cannot be loaded."""
    import uvicorn  # here, because the model loads meanwhile

    config = uvicorn.Config(
        app,
        host,
        port,
        log_config=None,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)

    def loaded(loading: Future) -> None:
        try:
            app.state.model = loading.result()
        except Exception as error:
            log.error("the model cannot be served: %s", error)
            server.should_exit = True

    def leave(*signal: object, end: Callable = server.handle_exit) -> None:
        app.state.leaving = True
        threading.Timer(LEAVE_SECONDS if server.server_state.connections else 0, end, signal).start()

    loading.add_done_callback(loaded)
    server.handle_exit = leave
    server.run()


if __name__ == "__main__":
    raise SystemExit(main())
