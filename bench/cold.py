"""How long the image takes to its first answer, by memory and processors, as serverless starts it.

    python bench/cold.py --model build/pets/model --memory 1024,2048,4096 --cpus 1,2

`docker run` with these limits and a read-only root file system, asked for a picture until it answers; then
20 times more for the latency. What serverless does before that on AWS (finding a place, fetching the image
and the archive) cannot be had here and comes on top. Needs a Docker engine; without --image, the newest image
that `invoke local --docker` has built.

Exit codes: 0 done · 2 usage or configuration · 3 the world failed
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import requests
from rich.console import Console
from rich.table import Table

from prepare import PHOTO, PHOTO_BYTES, clouds, encode
from report import machine
from stacks import HOST, BenchError, first_answer, free_ports, progress, running

REPOSITORY = "fastai-sagemaker"
ANSWERS = 20


def main(argv: list[str] | None = None) -> int:
    """Measure every pair of limits and print a table."""
    args = arguments(argv)
    try:
        if not (args.model / "model.json").is_file():
            raise BenchError(f"{args.model} is not a packaged model: run `invoke package` first", 2)
        image = args.image or newest()
        rows = [
            measure(image, args.model.resolve(), memory, cpus, args.rounds)
            for memory in args.memory
            for cpus in args.cpus
        ]
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    result = {"machine": machine(), "image": image, "megabytes": size(image), "rows": rows}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that package/export.py wrote")
    add("--image", help="to run; default: the newest one built here")
    add("--memory", type=numbers, default=[1024, 2048, 3072, 4096, 5120, 6144], help="limits in MB")
    add("--cpus", type=numbers, default=[2], help="limits, such as 0.5,1,2")
    add(
        "--rounds",
        type=positive,
        default=5,
        help="starts of each; the median is shown (%(default)s)",
    )
    add("--json", action="store_true", help="print JSON and nothing else")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def numbers(text: str) -> list[float]:
    """Positive numbers between commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1024,2048")
    return found


def measure(image: str, model: Path, memory: float, cpus: float, rounds: int) -> dict:
    """One row: medians of so many starts. Raises BenchError."""
    progress(f"{memory:g} MB, {cpus:g} cpus")
    starts = [start_and_ask(image, model, memory, cpus) for _ in range(rounds)]
    medians = {key: statistics.median(one[key] for one in starts) for key in starts[0]}
    return {"memory": memory, "cpus": cpus, **medians}


def start_and_ask(image: str, model: Path, memory: float, cpus: float) -> dict[str, float]:
    """One start: seconds to the first answer, milliseconds of later ones, MB in use. Raises BenchError."""
    name, (port,) = f"cold-{uuid.uuid4().hex[:8]}", free_ports(1)
    limits = ["--memory", f"{memory:g}m", "--memory-swap", f"{memory:g}m", "--cpus", f"{cpus:g}"]
    sealed = ["--read-only", "--tmpfs", "/tmp"]  # noqa: S108 - the container's own
    mount = ["--mount", f"type=bind,source={model},target=/opt/ml/model,readonly"]
    command = ["docker", "run", "--rm", "--name", name, *limits, *sealed, *mount, *published(port), image]
    photo = encode(clouds(*PHOTO), PHOTO_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="cold-") as folder,
        running([*command, "serve"], Path(folder), dict(os.environ)) as server,
        requests.Session() as session,
    ):
        server.url = f"http://{HOST}:{port}/invocations"
        cold = first_answer(server, photo)[0]
        times = []
        for _ in range(ANSWERS):
            begin = time.perf_counter()
            asked = session.post(server.url, photo, headers={"Content-Type": "image/jpeg"}, timeout=60)
            if asked.status_code != 200:
                raise BenchError(f"the container answers with {asked.status_code}: {asked.text[:200]}")
            times.append(time.perf_counter() - begin)
        megabytes = in_use(name)
    return {"cold_s": cold, "p50_ms": 1000 * statistics.median(times), "used_mb": megabytes}


# --- Docker


def docker(*words: str) -> str:
    """What a command of Docker's prints. Raises BenchError."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError("there is no Docker here: install it, or leave this measurement out") from None
    if done.returncode:
        raise BenchError(f"Docker says: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def newest() -> str:
    """The image that was built last. Raises BenchError."""
    found = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).splitlines()
    if not found:
        raise BenchError("no image was built here yet: run `invoke test-local --docker` first", 2)
    return found[0]


def size(image: str) -> float:
    """Unpacked, in MB."""
    return round(int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6)


def published(port: int) -> list[str]:
    """The flags that make the container answer on a port here, also where the engine has no network."""
    if "bridge" in docker("network", "ls", "--format", "{{.Name}}").split():
        return ["--publish", f"{HOST}:{port}:8080"]
    return ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"]


def in_use(name: str) -> float:
    """MB of a container's memory, as the limit counts them."""
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name).partition(" ")[0]
    factor = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[used[-3:]]
    return round(float(used[:-3]) * factor / 1e6)


def show(result: dict) -> None:
    """The table, for people."""
    table = Table("memory\nMB", "cpus", "first answer\ns", "p50\nms", "in use\nMB", box=None, padding=(0, 1))
    for column in table.columns:
        column.justify = "right"
    for row in result["rows"]:
        latencies = f"{row['cold_s']:.2f}", f"{row['p50_ms']:.1f}"
        table.add_row(f"{row['memory']:g}", f"{row['cpus']:g}", *latencies, f"{row['used_mb']:g}")
    facts = result["machine"]
    console = Console()
    console.print(f"machine   {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB")
    console.print(f"image     {result['image']}, {result['megabytes']} MB unpacked")
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
