"""Cold start of the container image under limits of memory and processors, as on a serverless endpoint.

    python bench/cold_start.py --model build/pets/model --memory 1024,2048,4096 --cpus 1,2

Runs `docker run` with these limits and a read-only root file system, sends a picture until it is answered,
then 20 more for the latency. What a serverless endpoint does before that on AWS (placing the container,
fetching the image and the archive) cannot be measured here and comes on top. Needs a Docker engine; without
--image, takes the newest image that `invoke local --docker` has built.

Exit codes: 0 success · 2 usage or configuration · 3 external failure (Docker, a container fails)
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
from typing import NoReturn

import requests
from rich.console import Console
from rich.table import Table

from prepare import PHOTO, PHOTO_BYTES, encode, noise_photo
from report import machine
from servers import HOST, BenchError, first_answer, free_ports, progress, running

REPOSITORY = "fastai-sagemaker"
REQUESTS = 20


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Measure every pair of limits and print a table."""
    args = arguments(argv)
    try:
        if not (args.model / "model.json").is_file():
            raise BenchError(f"{args.model} is not a packaged model: run `invoke package` first", 2)
        image = args.image or newest_image()
        rows = [
            measure(image, args.model.resolve(), memory, cpus, args.rounds)
            for memory in args.memory
            for cpus in args.cpus
        ]
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    result = {"machine": machine(), "image": image, "megabytes": image_size(image), "rows": rows}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that package/export.py wrote")
    add("--image", help="image to run; default: the newest one built here")
    add("--memory", type=numbers, default=[1024, 2048, 3072, 4096, 5120, 6144], help="limits in MB")
    add("--cpus", type=numbers, default=[2], help="limits, such as 0.5,1,2")
    add("--rounds", type=positive, default=5, help="starts of each pair; medians are shown (%(default)s)")
    add("--json", action="store_true", help="print JSON and nothing else")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def numbers(text: str) -> list[float]:
    """An argument that is positive numbers between commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers like 1024,2048")
    return values


def measure(image: str, model: Path, memory: float, cpus: float, rounds: int) -> dict:
    """One row: medians of `rounds` starts. Raises BenchError."""
    progress(f"{memory:g} MB, {cpus:g} cpus")
    starts = [measure_start(image, model, memory, cpus) for _ in range(rounds)]
    medians = {key: statistics.median(one[key] for one in starts) for key in starts[0]}
    return {"memory": memory, "cpus": cpus, **medians}


def measure_start(image: str, model: Path, memory: float, cpus: float) -> dict[str, float]:
    """One start: its cold start in seconds, later latency in milliseconds, MB in use. Raises BenchError."""
    name, (port,) = f"cold-{uuid.uuid4().hex[:8]}", free_ports(1)
    limits = ["--memory", f"{memory:g}m", "--memory-swap", f"{memory:g}m", "--cpus", f"{cpus:g}"]
    sealed = ["--read-only", "--tmpfs", "/tmp"]  # noqa: S108 - inside the container
    mount = ["--mount", f"type=bind,source={model},target=/opt/ml/model,readonly"]
    command = ["docker", "run", "--rm", "--name", name, *limits, *sealed, *mount, *published(port), image]
    photo = encode(noise_photo(*PHOTO), PHOTO_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="cold-") as folder,
        running([*command, "serve"], Path(folder), dict(os.environ)) as server,
        requests.Session() as session,
    ):
        server.url = f"http://{HOST}:{port}/invocations"
        cold_start = first_answer(server, photo)[0]
        times = []
        for _ in range(REQUESTS):
            start = time.perf_counter()
            response = session.post(server.url, photo, headers={"Content-Type": "image/jpeg"}, timeout=60)
            if response.status_code != 200:
                raise BenchError(f"the container answers {response.status_code}: {response.text[:200]}")
            times.append(time.perf_counter() - start)
        megabytes = memory_used(name)
    return {"cold_start_s": cold_start, "p50_ms": 1000 * statistics.median(times), "used_mb": megabytes}


# --- Docker


def docker(*words: str) -> str:
    """Run a docker command; returns what it prints. Raises BenchError."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError("docker was not found: install Docker, or skip this measurement") from None
    if done.returncode:
        raise BenchError(f"docker {words[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def newest_image() -> str:
    """The image that was built last. Raises BenchError."""
    images = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).splitlines()
    if not images:
        raise BenchError("no image was built here yet: run `invoke test-local --docker` first", 2)
    return images[0]


def image_size(image: str) -> int:
    """An image's size unpacked, in MB."""
    return round(int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6)


def published(port: int) -> list[str]:
    """The flags that publish the container's port 8080 as `port`.

    An engine without a bridge network, as in some sandboxes, cannot: its container uses the host's network.
    """
    if "bridge" in docker("network", "ls", "--format", "{{.Name}}").split():
        return ["--publish", f"{HOST}:{port}:8080"]
    return ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"]


def memory_used(name: str) -> int:
    """MB of memory that a container uses, as counted against its limit."""
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name).partition(" ")[0]
    factor = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[used[-3:]]
    return round(float(used[:-3]) * factor / 1e6)


def show(result: dict) -> None:
    """Print the result for people."""
    table = Table("memory\nMB", "cpus", "cold start\ns", "p50\nms", "in use\nMB", box=None, padding=(0, 1))
    for column in table.columns:
        column.justify = "right"
    for row in result["rows"]:
        latencies = f"{row['cold_start_s']:.2f}", f"{row['p50_ms']:.1f}"
        table.add_row(f"{row['memory']:g}", f"{row['cpus']:g}", *latencies, f"{row['used_mb']:g}")
    facts = result["machine"]
    console = Console()
    console.print(f"machine   {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB")
    console.print(f"image     {result['image']}, {result['megabytes']} MB unpacked")
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
