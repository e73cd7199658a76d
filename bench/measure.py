"""Measurements of serving.py, each in its own process: `python bench/measure.py handlers|kernels|load|...`.

Each part imports no more than what it measures, and prints its result as one line of JSON.
"""

import argparse
import http.client
import importlib
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import urlsplit

MIN_CALLS = 3  # of what is timed, however slow
JPEG = {"Content-Type": "image/jpeg", "Accept": "application/json"}


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run one of the parts."""
    parser = Parser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--code", type=Path, help="folder with inference.py, engine.py or predictor.py")
    parser.add_argument("--model", type=Path, help="folder for model_fn")
    parser.add_argument("--size", type=int, nargs=2, help="the network's input: height and width")
    parser.add_argument("--photo", type=Path, help="a JPEG file")
    parser.add_argument("--large", type=Path, help="a JPEG file as large as a phone's")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement")
    parser.add_argument("--precision", nargs="+", help="fp32, bf16, int8")
    parser.add_argument("--url", help="address of POST requests")
    parser.add_argument("--concurrency", type=int, default=1, help="requests in flight")
    parser.add_argument("--shrink", type=int, default=0, help="ImagePredictor's longest side in pixels")
    parser.add_argument("--port", type=int, help="port to listen on")
    args = parser.parse_args(argv)
    PARTS[args.part](args)
    return 0


def emit(result: object) -> None:
    """Print one line of JSON."""
    print(json.dumps(result), flush=True)


def load_module(folder: Path, name: str) -> ModuleType:
    """Import a module from a folder: each of the archives compared here has its own `inference`."""
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, one after another, for `seconds` and at least MIN_CALLS times."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def percentile(ordered: list[float], percent: int) -> float | None:
    """Percentile of ascending values by nearest rank, as client/cli.py computes it; None if empty."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


# --- bare handlers


def handlers(args: argparse.Namespace) -> None:
    """Time the four handlers without a server: prints the first answer, the times, those of the network."""
    inference = load_module(args.code, "inference")
    model = inference.model_fn(args.model)
    photo, large = args.photo.read_bytes(), args.large.read_bytes()

    def answer(body: bytes) -> str | bytes:
        prediction = inference.predict_fn(inference.input_fn(body, "image/jpeg"), model)
        return inference.output_fn(prediction, "application/json")[0]

    emit(json.loads(answer(photo)))
    ms = timed(lambda: answer(photo), args.seconds)
    emit({"ms": ms, "large_ms": timed(lambda: answer(large), args.seconds / 2)})
    ours = hasattr(model, "engine")
    run = engine_only(model, args.size) if ours else network_only(model, args.size)
    result: dict[str, Any] = {"model_ms": timed(run, args.seconds / 2)}
    emit(result | ({"precision": model.engine.mode} if ours else {"precision": "fp32", "flops": flops(run)}))


def engine_only(model: Any, size: list[int]) -> Callable[[], object]:
    """A call of our inference engine on random pixels, without decoding or JSON."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return lambda: model.engine.run([pixels])


def network_only(learn: Any, size: list[int]) -> Callable[[], object]:
    """A call of the Learner's network on random pixels, without fastai's pipeline."""
    import torch

    network, pixels = learn.model.eval(), torch.rand(1, 3, *size)

    def run() -> object:
        with torch.no_grad():
            return network(pixels)

    return run


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of one call, as PyTorch counts them: a multiply-add is two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# --- the fastest kernels of this processor


def kernels(args: argparse.Namespace) -> None:
    """Print the GFLOP/s of OpenVINO's fastest kernel for each precision: large matmuls and convolutions."""
    threads = load_module(args.code, "engine").cpus()
    shapes: list[tuple[Callable[..., tuple[Any, int]], tuple[int, ...]]]
    shapes = [(matrix_product, (2048,)), (matrix_product, (1024,))]
    shapes += [(convolution, shape) for shape in ((256, 28, 3), (128, 56, 3), (256, 56, 3), (1024, 28, 1))]
    best = {}
    for precision in args.precision:
        best[precision] = max(
            gflops_per_second(*build(*shape, precision), precision, threads, args.seconds)
            for build, shape in shapes
        )
    emit(best)


def gflops_per_second(model: Any, operations: int, precision: str, threads: int, seconds: float) -> float:
    """GFLOP/s of an OpenVINO model that does `operations` a call: by the median of its calls."""
    import numpy as np

    # serve/engine.py keeps OpenVINO's telemetry out in the same way: None makes the import fail.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # typeshed lacks None
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    x = np.random.default_rng(0).random(tuple(model.input(0).shape), np.float32)
    request.infer({0: x}, share_inputs=True)
    times = timed(lambda: request.infer({0: x}, share_inputs=True), seconds)
    return operations / statistics.median(times) / 1e6


def matrix_product(side: int, precision: str) -> tuple[Any, int]:
    """Two products of square matrices, one after another: the model and its operations."""
    import numpy as np
    from openvino import Model, opset13

    x = opset13.parameter([side, side], np.float32)
    y = x
    for _ in range(2):
        factors = quantized(y, (side, side), precision)
        y = opset13.relu(opset13.matmul(*factors, transpose_a=False, transpose_b=True))
    return Model([y], [x]), 2 * 2 * side**3


def convolution(channels: int, side: int, kernel: int, precision: str) -> tuple[Any, int]:
    """Four convolutions in sequence, as in the middle of a network: the model and its operations."""
    import numpy as np
    from openvino import Model, opset13

    shape, pad = (channels, channels, kernel, kernel), [kernel // 2] * 2
    x = opset13.parameter([1, channels, side, side], np.float32)
    y = x
    for _ in range(4):
        y = opset13.relu(opset13.convolution(*quantized(y, shape, precision), [1, 1], pad, pad, [1, 1]))
    return Model([y], [x]), 4 * 2 * side**2 * channels**2 * kernel**2


def quantized(x: Any, shape: tuple[int, ...], precision: str) -> tuple[Any, Any]:
    """`x` and random weights; for int8, both behind FakeQuantize, from which OpenVINO makes int8 kernels."""
    import numpy as np
    from openvino import opset13

    weights = opset13.constant(np.random.default_rng(0).normal(0, 0.05, shape).astype(np.float32))
    if precision != "int8":
        return x, weights
    limit, scale = np.float32(2.55), np.float32(0.127)
    x = opset13.fake_quantize(x, np.float32(0), limit, np.float32(0), limit, 256)
    return x, opset13.fake_quantize(weights, -scale, scale, -scale, scale, 255)


# --- requests


def load(args: argparse.Namespace) -> None:
    """Post the photo from `concurrency` threads, each on a connection that it keeps open."""
    address, body = urlsplit(args.url), args.photo.read_bytes()
    done: list[tuple[float, float]] = []  # when an answer came, and its milliseconds
    refused: list[int] = []  # HTTP statuses
    finished: list[float] = []  # when each thread sent its last request
    end, enough = time.perf_counter() + args.seconds, args.concurrency + MIN_CALLS

    def post() -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
        while time.perf_counter() < end or len(done) < enough:
            start = time.perf_counter()
            connection.request("POST", address.path, body, JPEG)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                refused.append(response.status)
                if len(refused) > enough:
                    break
                continue
            now = time.perf_counter()
            done.append((now, 1000 * (now - start)))
        finished.append(time.perf_counter())
        connection.close()

    threads = [threading.Thread(target=post) for _ in range(args.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # From the first answer to the last one while all threads were sending: no ramp-up, no ramp-down.
    times = sorted(moment for moment, _ in done if moment <= min(finished))
    rate = (len(times) - 1) / (times[-1] - times[0])
    emit({"ms": [ms for _, ms in done], "rate": rate, "refused": refused})


def client(args: argparse.Namespace) -> None:
    """Send the photo through ImagePredictor; the time to scale it down counts."""
    predictor = load_module(args.code, "predictor").ImagePredictor(url=args.url, shrink=args.shrink)
    body = args.photo.read_bytes()
    predictor.predict(body)
    emit({"ms": timed(lambda: predictor.predict(body), args.seconds)})


def serve(args: argparse.Namespace) -> None:
    """Put any handlers behind a plain server, one request at a time: the guide's, where there is no Java."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    inference = load_module(args.code, "inference")
    model = inference.model_fn(args.model)

    async def invocations(request: Request) -> Response:
        picture = inference.input_fn(await request.body(), request.headers["content-type"])
        body, content_type = inference.output_fn(inference.predict_fn(picture, model), "application/json")
        return Response(body, media_type=content_type)

    app = Starlette(routes=[Route("/invocations", invocations, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


PARTS = {"handlers": handlers, "kernels": kernels, "load": load, "client": client, "serve": serve}

if __name__ == "__main__":
    raise SystemExit(main())
