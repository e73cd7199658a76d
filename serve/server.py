"""A plain server round the handlers: `python server.py [--model DIR] [--host 127.0.0.1] [--port 8080]`.

It listens at once, and answers 503 until the model is loaded and has made a warm-up prediction; so GET /ping
is 200 exactly when POST /invocations can answer. Exits 1 with the reason if the model cannot be loaded.
"""

import argparse
import logging
import os
import sys
import threading
import time
from pathlib import Path

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from inference import MAX_BODY, Model, handle, model_fn

# In the archive this file is code/server.py, and the folder above is the model.
MODEL_DIR = Path(os.environ.get("SM_MODEL_DIR", Path(__file__).resolve().parents[1]))
DRAIN_SECONDS = 25  # SageMaker sends SIGTERM, and SIGKILL 30 s later
threads = anyio.CapacityLimiter(64)  # in the handlers at once; those that decode are fewer (inference.py)
log = logging.getLogger("server")


async def answer(model: Model | None, request: Request) -> Response:
    """One HTTP request through the handlers, on another thread: the event loop stays free for /ping."""
    try:
        body = await read_body(request)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    status, content_type, body = await anyio.to_thread.run_sync(
        handle, model, body, request.headers, limiter=threads
    )
    return Response(body, status, media_type=content_type)


async def read_body(request: Request) -> bytes:
    """The request's body, cut off after MAX_BODY + 1 bytes: enough for input_fn to refuse it."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        body += chunk[: MAX_BODY + 1 - len(body)]
        size += len(chunk)
        # Read on up to here: many clients listen for an answer only after they have sent.
        if size > 4 * MAX_BODY:
            break
    return bytes(body)


async def ping(request: Request) -> Response:
    """SageMaker's health check."""
    return Response(status_code=200 if request.app.state.model else 503)


async def invocations(request: Request) -> Response:
    """SageMaker's request for a prediction."""
    return await answer(request.app.state.model, request)


def application() -> Starlette:
    """The ASGI application; set `.state.model` when the model is loaded."""
    app = Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", invocations, methods=["POST"]),
        ]
    )
    app.state.model = None
    return app


def load(server: uvicorn.Server, app: Starlette, model_dir: Path) -> None:
    """Load the model while the server listens already; stop the server if that fails."""
    start = time.perf_counter()
    try:
        app.state.model = model_fn(model_dir)
        log.info("ready after %.2f s: %s labels", time.perf_counter() - start, len(app.state.model.labels))
    except Exception as error:
        log.error("the model in %s cannot be served: %s", model_dir, error)
        server.should_exit = True


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder with model.json and model.onnx")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
    app = application()
    config = uvicorn.Config(
        app,
        args.host,
        args.port,
        log_config=None,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    threading.Thread(target=load, args=(server, app, args.model), daemon=True).start()
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    return 0 if app.state.model else 1


if __name__ == "__main__":
    raise SystemExit(main())
