"""Load test of an endpoint: more and more concurrent requests, until its latency is over a limit.

    python bench/load.py --url http://127.0.0.1:8080 --p99 200ms
    python bench/load.py --endpoint pets --out build/pets/bench.json

Each step keeps a number of requests in flight for some seconds, without retries. The first step with a p99
over the limit, or with more than MAX_ERRORS of its requests failed, is the last. The model may have any task:
an answer is whatever has status 200 and is a JSON object without an error. `--out` is a JSON object:

    endpoint   the address or the name
    picture    {"from": "generated" or the paths, "files": 1, "bytes": 99871 (on average)}
    when       the start, in UTC
    limit      {"p99_ms": 200.0 or null, "errors": 0.05}
    steps      [{"concurrency": 4, "seconds": 10.1, "requests": 243, "pictures_per_second": 24.0,
                 "p50_ms": 161.5, "p90_ms": 180.2, "p99_ms": 198.7, "errors": {"503 busy": 1}}, ...]
    best       the first step within the limit that comes NEAR the highest throughput of any such:
               {"concurrency", "pictures_per_second", "p99_ms"}; or null

Exit codes: 0 success · 1 no step was within the limit, or not confirmed · 2 usage · 3 external failure
"""

import argparse
import itertools
import json
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from clients import TIMEOUT, Send, http_client, sagemaker_client
from measure import percentile
from servers import BenchError, progress

MAX_ERRORS = 0.05  # of the requests of a step
NEAR = 0.97  # of the highest throughput, which varies by chance where more requests only wait longer
WARM_UPS = 5
PAUSE_SECONDS = 0.1  # after a failed request: no client should retry at once when a server is full
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_FILES = 200  # held in memory


Request = tuple[float, float, str | None]  # start, end, what went wrong


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Load an endpoint, and show the steps and the best one; returns the exit code."""
    args = parse(argv)
    try:
        result = measure(args)
        if args.out:
            write(args.out, result)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}: name another file", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; waiting for the requests in flight", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0 if result["best"] else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--endpoint", metavar="NAME", help="an endpoint on SageMaker")
    where.add_argument("--url", help="a plain server, such as http://127.0.0.1:8080")
    parser.add_argument(
        "--pictures",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files or a folder; default: a generated photograph",
    )
    parser.add_argument(
        "--concurrency",
        type=counts,
        default="1,2,4,8,16,32,64",
        metavar="N,N,...",
        help="requests in flight, step by step (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=10, help="duration of each step (%(default)s)")
    parser.add_argument(
        "--p99", type=milliseconds, default="1s", help="the limit, such as 200ms, or none (%(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument(
        "--yes", action="store_true", help="load an endpoint on SageMaker without confirmation"
    )
    return parser.parse_args(argv)


def counts(text: str) -> list[int]:
    """An argument that is whole numbers from 1, between commas."""
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1,2,4,8")
    return [int(number) for number in text.split(",")]


def milliseconds(text: str) -> float | None:
    """An argument that is a duration such as 200ms or 1.5s; None for "none"."""
    if text == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 200ms, 1.5s or none")
    return float(found[1]) * {"ms": 1, "s": 1000}[found[2]]


def measure(args: argparse.Namespace) -> dict:
    """The whole result, as the head of this file describes it. Raises BenchError."""
    pictures, picture = read_pictures(args.pictures)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)  # fails before the load rather than after it
    connections = max(args.concurrency)
    send = (sagemaker_client if args.endpoint else http_client)(args.endpoint or args.url, connections)
    if args.endpoint and not args.yes:
        confirm(args)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    warm_up(send, pictures, args.endpoint or args.url)
    steps = []
    for concurrency in args.concurrency:
        step = run_step(send, pictures, concurrency, args.seconds)
        steps.append(step)
        p99 = f", p99 {step['p99_ms']} ms" if step["p99_ms"] else ""
        progress(f"concurrency {concurrency}: {step['pictures_per_second']} pictures/s{p99}")
        if reason := over_limit(step, args.p99):
            progress(f"last step: {reason}")
            break
    return {
        "endpoint": args.endpoint or args.url,
        "picture": picture,
        "when": when,
        "limit": {"p99_ms": args.p99, "errors": MAX_ERRORS},
        "steps": steps,
        "best": find_best([step for step in steps if not over_limit(step, args.p99)]),
    }


def find_best(within: list[dict]) -> dict | None:
    """The `best` of the result, out of the steps within the limit."""
    highest = max((step["pictures_per_second"] for step in within), default=0)
    for step in within:
        if step["pictures_per_second"] >= NEAR * highest:
            return {key: step[key] for key in ("concurrency", "pictures_per_second", "p99_ms")}
    return None


def read_pictures(paths: list[Path] | None) -> tuple[list[bytes], dict]:
    """The pictures to send, and the `picture` of the result. Raises BenchError or OSError."""
    if paths:
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        files = [file for file in files if file in paths or file.suffix.lower() in SUFFIXES]
        pictures = [file.read_bytes() for file in files[:: math.ceil(len(files) / MAX_FILES) or 1]]
    else:
        from prepare import PHOTO, PHOTO_BYTES, encode, noise_photo

        pictures = [encode(noise_photo(*PHOTO), PHOTO_BYTES)]
    source = ", ".join(map(str, paths)) if paths else "generated"
    if not pictures:
        raise BenchError(f"there is no picture in {source}", 2)
    size = round(sum(map(len, pictures)) / len(pictures))
    return pictures, {"from": source, "files": len(pictures), "bytes": size}


def confirm(args: argparse.Namespace) -> None:
    """Ask the user before money is spent. Raises BenchError unless the answer is yes."""
    if not sys.stdin.isatty():
        raise BenchError("this load may cost money, and stdin is not a terminal: pass --yes to confirm", 2)
    concurrency, seconds = max(args.concurrency), len(args.concurrency) * args.seconds
    load = f"up to {concurrency} requests in flight for up to {seconds:.0f} s"
    progress(
        f"{args.endpoint} on SageMaker will have {load}.\n"
        "A serverless endpoint is billed for each request, and others may scale out. Continue? [y/N]"
    )
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BenchError("not confirmed: no request was sent", 1)


# --- the load


def warm_up(send: Send, pictures: list[bytes], name: str) -> None:
    """Send the first requests, which do not count. Raises BenchError if the very first fails."""
    progress(f"loading {name}")
    if reason := send(pictures[0]):
        raise BenchError(f"{name} does not answer a picture ({reason}): check that it runs, and try again")
    for picture in itertools.islice(itertools.cycle(pictures), WARM_UPS):
        send(picture)


def run_step(send: Send, pictures: list[bytes], concurrency: int, seconds: float) -> dict:
    """Keep `concurrency` requests in flight for `seconds`: one step of the result."""
    done: list[Request] = []
    together = threading.Barrier(concurrency)
    stopped = threading.Event()

    def worker(number: int) -> None:
        turn = itertools.islice(itertools.cycle(pictures), number % len(pictures), None)
        send(next(turn))  # opens the connection
        together.wait(2 * TIMEOUT)
        end = time.perf_counter() + seconds
        while not stopped.is_set():
            start = time.perf_counter()
            error = send(next(turn))
            done.append((start, time.perf_counter(), error))
            if not time.perf_counter() < end:
                break
            if error:
                stopped.wait(PAUSE_SECONDS)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            list(pool.map(worker, range(concurrency)))
        finally:
            stopped.set()
    return summarise(done, concurrency)


def summarise(done: list[Request], concurrency: int) -> dict:
    """One step: latency percentiles of the answers in milliseconds, answers per second, errors."""
    starts, ends, errors = zip(*done, strict=True)
    latencies = sorted(1000 * (end - start) for start, end, error in done if not error)
    elapsed = max(ends) - min(starts)
    ranks = {f"p{percent}_ms": percentile(latencies, percent) for percent in (50, 90, 99)}
    return {
        "concurrency": concurrency,
        "seconds": round(elapsed, 2),
        "requests": len(done),
        "pictures_per_second": round(len(latencies) / elapsed, 2),
        **{name: None if rank is None else round(rank, 1) for name, rank in ranks.items()},
        "errors": dict(Counter(error for error in errors if error).most_common()),
    }


def over_limit(step: dict, p99: float | None) -> str:
    """Why a step is over the limit; empty if it is within."""
    failed = sum(step["errors"].values()) / step["requests"]
    if failed > MAX_ERRORS:
        return f"{100 * failed:.0f} % of the requests failed ({', '.join(step['errors'])})"
    if p99 is not None and step["p99_ms"] > p99:
        return f"p99 of {step['p99_ms']} ms is over {p99:g} ms"
    return ""


# --- the result


def write(out: Path, result: dict) -> None:
    """Write the result as JSON, atomically."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def show(result: dict) -> None:
    """Print the steps as a table, with a bar for their throughput, and the best one."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    best, steps = result["best"], result["steps"]
    table = Table(box=SIMPLE_HEAD, header_style="dim")
    for name in ("concurrency", "pictures/s", "", "p50 ms", "p90 ms", "p99 ms", "errors"):
        table.add_column(name, justify="left" if name in ("", "errors") else "right")
    highest = max(step["pictures_per_second"] for step in steps)
    for step in steps:
        bar = ProgressBar(highest or 1, step["pictures_per_second"], 20, complete_style="green")
        ranks = [str(step[f"p{p}_ms"] or "") for p in (50, 90, 99)]
        errors = ", ".join(f"{count} x {error}" for error, count in step["errors"].items())
        style = "bold" if best and step["concurrency"] == best["concurrency"] else ""
        rate = str(step["pictures_per_second"])
        table.add_row(str(step["concurrency"]), rate, bar, *ranks, errors, style=style)
    Console(highlight=False).print(table)
    if not best:
        print(f"no step was within the limit: {over_limit(steps[0], result['limit']['p99_ms'])}")
        return
    concurrency, rate, p99 = best.values()
    print(f"best: concurrency {concurrency}, {rate} pictures/s, p99 {p99} ms")


if __name__ == "__main__":
    raise SystemExit(main())
