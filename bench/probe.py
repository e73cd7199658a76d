"""What serving.py runs in processes of their own: `python bench/probe.py handlers|floor|load|client|serve`.

Each imports no more than what it measures, and says its result as one line of JSON.
"""

import argparse
import http.client
import importlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

AT_LEAST = 3  # calls, however slow
JPEG = {"Content-Type": "image/jpeg", "Accept": "application/json"}


def main(argv: list[str] | None = None) -> int:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--code", type=Path, help="folder with inference.py, or with predictor.py")
    parser.add_argument("--model", type=Path, help="folder for model_fn")
    parser.add_argument("--size", type=int, nargs=2, help="height and width that the network takes")
    parser.add_argument("--photo", type=Path, help="a JPEG file")
    parser.add_argument("--large", type=Path, help="a JPEG file as phones make them")
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure each")
    parser.add_argument("--precision", nargs="+", help="fp32, bf16, int8")
    parser.add_argument("--url", help="where to post to")
    parser.add_argument("--concurrency", type=int, default=1, help="requests at once")
    parser.add_argument("--shrink", type=int, default=0, help="the client's longest side in pixels")
    parser.add_argument("--port", type=int)
    args = parser.parse_args(argv)
    PARTS[args.part](args)
    return 0


def say(result: object) -> None:
    """One line of JSON."""
    print(json.dumps(result), flush=True)


def module(folder: Path, name: str) -> ModuleType:
    """A module by its folder: of the archives compared here, each has its own `inference`."""
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of one call after another, for so long."""
    spent, end = [], time.perf_counter() + seconds
    while len(spent) < AT_LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - start))
    return spent


# --- bare handlers


def handlers(args: argparse.Namespace) -> None:
    """The four handlers without a server: a line with the first answer, one with the times, the rest."""
    inference = module(args.code, "inference")
    model = inference.model_fn(args.model)
    photo, large = args.photo.read_bytes(), args.large.read_bytes()

    def answer(body: bytes) -> str | bytes:
        prediction = inference.predict_fn(inference.input_fn(body, "image/jpeg"), model)
        return inference.output_fn(prediction, "application/json")[0]

    say(json.loads(answer(photo)))
    ms = timed(lambda: answer(photo), args.seconds)
    say({"ms": ms, "large_ms": timed(lambda: answer(large), args.seconds / 2)})
    ours = hasattr(model, "engine")
    alone = engine_alone(model, args.size) if ours else network_alone(model, args.size)
    result = {"model_ms": timed(alone, args.seconds / 2)}
    say(result | ({"precision": model.engine.mode} if ours else {"precision": "fp32", "flops": flops(alone)}))


def engine_alone(model: object, size: list[int]) -> Callable[[], object]:
    """Our engine on random pixels."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return lambda: model.engine.run([pixels])


def network_alone(learn: object, size: list[int]) -> Callable[[], object]:
    """The Learner's network on random pixels."""
    import torch

    network, pixels = learn.model.eval(), torch.rand(1, 3, *size)

    def run() -> object:
        with torch.no_grad():
            return network(pixels)

    return run


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of one call, as PyTorch counts them: multiplying and adding are two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# --- the chip's floor


def floor(args: argparse.Namespace) -> None:
    """The best rate, in GFLOP/s, of the engine's own kernels on large products and convolutions."""
    threads = module(args.code, "engine").cpus()
    shapes = [(matrix_product, (2048,)), (matrix_product, (1024,))]
    shapes += [(convolution, shape) for shape in ((256, 28, 3), (128, 56, 3), (256, 56, 3), (1024, 28, 1))]
    best = {}
    for precision in args.precision:
        rates = [rate(*kind(*shape, precision), precision, threads, args.seconds) for kind, shape in shapes]
        best[precision] = max(rates)
    say(best)


def rate(model: object, operations: int, precision: str, threads: int, seconds: float) -> float:
    """GFLOP/s of an OpenVINO model: the median of its calls."""
    import numpy as np

    sys.modules.setdefault("openvino_telemetry", None)  # as serve/engine.py
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    x = np.random.default_rng(0).random(list(model.input(0).shape), np.float32)
    request.infer({0: x}, share_inputs=True)
    spent = timed(lambda: request.infer({0: x}, share_inputs=True), seconds)
    return operations / statistics.median(spent) / 1e6


def matrix_product(side: int, precision: str) -> tuple[object, int]:
    """Two products of square matrices one after another, and their operations."""
    import numpy as np
    from openvino import Model, opset13

    x = opset13.parameter([side, side], np.float32)
    y = x
    for _ in range(2):
        y = opset13.relu(opset13.matmul(*quantised(y, (side, side), precision), False, True))
    return Model([y], [x]), 2 * 2 * side**3


def convolution(channels: int, side: int, kernel: int, precision: str) -> tuple[object, int]:
    """Four convolutions one after another, as in the middle of a network, and their operations."""
    import numpy as np
    from openvino import Model, opset13

    shape, pad = (channels, channels, kernel, kernel), [kernel // 2] * 2
    x = opset13.parameter([1, channels, side, side], np.float32)
    y = x
    for _ in range(4):
        y = opset13.relu(opset13.convolution(*quantised(y, shape, precision), [1, 1], pad, pad, [1, 1]))
    return Model([y], [x]), 4 * 2 * side**2 * channels**2 * kernel**2


def quantised(x: object, shape: tuple[int, ...], precision: str) -> tuple[object, object]:
    """`x` and random weights, for int8 both through OpenVINO's FakeQuantize, which makes the product int8."""
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
    """Post the photo from so many threads at once, each on a connection that it keeps."""
    address, body, done, refused, left = urlsplit(args.url), args.photo.read_bytes(), [], [], []
    end, enough = time.perf_counter() + args.seconds, args.concurrency + AT_LEAST

    def ask() -> None:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        while time.perf_counter() < end or len(done) < enough:
            start = time.perf_counter()
            connection.request("POST", address.path, body, JPEG)
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200:
                refused.append(reply.status)
                if len(refused) > enough:
                    break
                continue
            now = time.perf_counter()
            done.append((now, 1000 * (now - start)))
        left.append(time.perf_counter())
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(args.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # From the first answer to the last while all were asking: neither the start nor the end counts.
    times = sorted(moment for moment, _ in done if moment <= min(left))
    say({"ms": [ms for _, ms in done], "rate": (len(times) - 1) / (times[-1] - times[0]), "refused": refused})


def client(args: argparse.Namespace) -> None:
    """Send the photo through ImagePredictor, its own time to scale it down included."""
    predictor = module(args.code, "predictor").ImagePredictor(url=args.url, shrink=args.shrink)
    body = args.photo.read_bytes()
    predictor.predict(body)
    say({"ms": timed(lambda: predictor.predict(body), args.seconds)})


def serve(args: argparse.Namespace) -> None:
    """A plain server round any handlers, one request at a time: for the guide's, where there is no Java."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    inference = module(args.code, "inference")
    model = inference.model_fn(args.model)

    async def invocations(request: Request) -> Response:
        picture = inference.input_fn(await request.body(), request.headers["content-type"])
        body, kind = inference.output_fn(inference.predict_fn(picture, model), "application/json")
        return Response(body, media_type=kind)

    app = Starlette(routes=[Route("/invocations", invocations, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


PARTS = {"handlers": handlers, "floor": floor, "load": load, "client": client, "serve": serve}

if __name__ == "__main__":
    raise SystemExit(main())
