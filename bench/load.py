"""How much an endpoint can take: more and more requests at a time, until answers come too late.

    python bench/load.py --url http://127.0.0.1:8080 --p99 200ms
    python bench/load.py --endpoint pets --out build/pets/bench.json

Each step keeps that many requests under way for some seconds, and tries none again. The first with a p99 over
the limit, or with more than ERRORS of its requests failed, is the last. `--out` is a JSON object:

    endpoint   the address or the name
    picture    {"from": "generated" or where it lies, "files": 1, "bytes": 99871 (on average)}
    when       the start, in UTC
    limit      {"p99_ms": 200.0 or null, "errors": 0.05}
    steps      [{"concurrency": 4, "seconds": 10.1, "requests": 243, "pictures_per_second": 24.0,
                 "p50_ms": 161.5, "p90_ms": 180.2, "p99_ms": 198.7, "errors": {"503 busy": 1}}, ...]
    best       the first step within the limit that comes NEAR the most pictures per second of any such:
               {"concurrency", "pictures_per_second", "p99_ms"}; or null

Exit codes: 0 done · 1 no step was within the limit, or you said no · 2 usage · 3 the endpoint does not answer
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

from stacks import BenchError, progress
from targets import TIMEOUT, Ask, on_sagemaker, over_http

ERRORS = 0.05
NEAR = 0.97  # where more at a time only wait longer, rates differ by chance
WARM_UPS = 5
PAUSE_SECONDS = 0.1  # after a failure: nobody would ask a full server again at once
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MOST_FILES = 200  # held in memory


def main(argv: list[str] | None = None) -> int:
    """Load, show, and say which step was best; returns the exit code."""
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
        print("stopped; waiting for what is under way", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0 if result["best"] else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--endpoint", metavar="NAME", help="an endpoint on SageMaker")
    where.add_argument("--url", help="a plain server, such as http://127.0.0.1:8080")
    parser.add_argument("--pictures", nargs="+", type=Path, metavar="PATH", help="files or a folder")
    parser.add_argument(
        "--concurrency", type=counts, default="1,2,4,8,16,32,64", metavar="N,N,...", help="(%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10, help="for each step (%(default)s)")
    parser.add_argument("--p99", type=milliseconds, default="1s", help="such as 200ms, or none (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--yes", action="store_true", help="load an endpoint on SageMaker without asking")
    return parser.parse_args(argv)


def counts(text: str) -> list[int]:
    """Whole numbers from 1, between commas."""
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1,2,4,8")
    return [int(number) for number in text.split(",")]


def milliseconds(text: str) -> float | None:
    """A duration such as 200ms or 1.5s; None of "none"."""
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
    ask = on_sagemaker(args.endpoint, connections) if args.endpoint else over_http(args.url, connections)
    if args.endpoint and not args.yes:
        confirm(args)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    warm_up(ask, pictures, args.endpoint or args.url)
    steps = []
    for concurrency in args.concurrency:
        step = run_step(ask, pictures, concurrency, args.seconds)
        steps.append(step)
        p99 = f", p99 {step['p99_ms']} ms" if step["p99_ms"] else ""
        progress(f"{concurrency:4} at a time: {step['pictures_per_second']} pictures/s{p99}")
        if why := over(step, args.p99):
            progress(f"no further: {why}")
            break
    return {
        "endpoint": args.endpoint or args.url,
        "picture": picture,
        "when": when,
        "limit": {"p99_ms": args.p99, "errors": ERRORS},
        "steps": steps,
        "best": find_best([step for step in steps if not over(step, args.p99)]),
    }


def find_best(within: list[dict]) -> dict | None:
    """What the result says of the best step."""
    most = max((step["pictures_per_second"] for step in within), default=0)
    for step in within:
        if step["pictures_per_second"] >= NEAR * most:
            return {key: step[key] for key in ("concurrency", "pictures_per_second", "p99_ms")}
    return None


def read_pictures(paths: list[Path] | None) -> tuple[list[bytes], dict]:
    """What to send, and what the result says of it. Raises BenchError or OSError."""
    if paths:
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        files = [file for file in files if file in paths or file.suffix.lower() in SUFFIXES]
        pictures = [file.read_bytes() for file in files[:: math.ceil(len(files) / MOST_FILES) or 1]]
    else:
        from prepare import PHOTO, PHOTO_BYTES, clouds, encode

        pictures = [encode(clouds(*PHOTO), PHOTO_BYTES)]
    source = ", ".join(map(str, paths)) if paths else "generated"
    if not pictures:
        raise BenchError(f"there is no picture in {source}", 2)
    size = round(sum(map(len, pictures)) / len(pictures))
    return pictures, {"from": source, "files": len(pictures), "bytes": size}


def confirm(args: argparse.Namespace) -> None:
    """Ask before money is spent. Raises BenchError unless the user says yes."""
    if not sys.stdin.isatty():
        raise BenchError("this load may cost money, and there is nobody to ask: give --yes to go on", 2)
    most, seconds = max(args.concurrency), len(args.concurrency) * args.seconds
    progress(
        f"{args.endpoint} on SageMaker will have up to {most} requests under way for up to {seconds:.0f} s.\n"
        "A serverless endpoint is billed for each, and others may add instances. Go on? [y/N]"
    )
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BenchError("nothing was asked", 1)


# --- the load


def warm_up(ask: Ask, pictures: list[bytes], where: str) -> None:
    """The first requests, which do not count. Raises BenchError if the very first fails."""
    progress(f"asking {where}")
    if why := ask(pictures[0]):
        raise BenchError(f"{where} does not answer a picture ({why}): see that it runs, and try again")
    for picture in itertools.islice(itertools.cycle(pictures), WARM_UPS):
        ask(picture)


def run_step(ask: Ask, pictures: list[bytes], concurrency: int, seconds: float) -> dict:
    """Keep `concurrency` requests under way for `seconds`: one step of the result."""
    done: list[tuple[float, float, str | None]] = []  # start, end, what went wrong
    together = threading.Barrier(concurrency)
    stopped = threading.Event()

    def worker(number: int) -> None:
        turn = itertools.islice(itertools.cycle(pictures), number % len(pictures), None)
        ask(next(turn))  # opens the connection
        together.wait(2 * TIMEOUT)
        end = time.perf_counter() + seconds
        while not stopped.is_set():
            start = time.perf_counter()
            why = ask(next(turn))
            done.append((start, time.perf_counter(), why))
            if not time.perf_counter() < end:
                break
            if why:
                stopped.wait(PAUSE_SECONDS)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            list(pool.map(worker, range(concurrency)))
        finally:
            stopped.set()
    return summarise(done, concurrency)


def summarise(done: list[tuple[float, float, str | None]], concurrency: int) -> dict:
    """One step: latencies in milliseconds (nearest rank, of the answers), answers per second, errors."""
    starts, ends, whys = zip(*done, strict=True)
    taken = sorted(1000 * (end - start) for start, end, why in done if not why)
    elapsed = max(ends) - min(starts)
    ranks = {f"p{p}_ms": taken and round(taken[math.ceil(len(taken) * p / 100) - 1], 1) for p in (50, 90, 99)}
    return {
        "concurrency": concurrency,
        "seconds": round(elapsed, 2),
        "requests": len(done),
        "pictures_per_second": round(len(taken) / elapsed, 2),
        **{name: rank or None for name, rank in ranks.items()},
        "errors": dict(Counter(why for why in whys if why).most_common()),
    }


def over(step: dict, p99: float | None) -> str:
    """What makes a step too much, in words; nothing if it is within the limit."""
    failed = sum(step["errors"].values()) / step["requests"]
    if failed > ERRORS:
        return f"{100 * failed:.0f} % of the requests failed ({', '.join(step['errors'])})"
    if p99 is not None and step["p99_ms"] > p99:
        return f"p99 of {step['p99_ms']} ms is over {p99:g} ms"
    return ""


# --- what comes of it


def write(out: Path, result: dict) -> None:
    """The result as JSON, whole or not at all."""
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def show(result: dict) -> None:
    """The steps as a table, with a bar for their rate, and the best in words."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    best, steps = result["best"], result["steps"]
    table = Table(box=SIMPLE_HEAD, header_style="dim")
    for name in ("at a time", "pictures/s", "", "p50 ms", "p90 ms", "p99 ms", "errors"):
        table.add_column(name, justify="left" if name in ("", "errors") else "right")
    most = max(step["pictures_per_second"] for step in steps)
    for step in steps:
        bar = ProgressBar(most or 1, step["pictures_per_second"], 20, complete_style="green")
        ranks = [str(step[f"p{p}_ms"] or "") for p in (50, 90, 99)]
        errors = ", ".join(f"{count} x {why}" for why, count in step["errors"].items())
        style = "bold" if best and step["concurrency"] == best["concurrency"] else ""
        rate = str(step["pictures_per_second"])
        table.add_row(str(step["concurrency"]), rate, bar, *ranks, errors, style=style)
    Console(highlight=False).print(table)
    if not best:
        print(f"no step was within the limit: {over(steps[0], result['limit']['p99_ms'])}")
        return
    concurrency, rate, p99 = best.values()
    print(f"best: {concurrency} at a time, {rate} pictures/s, p99 {p99} ms")


if __name__ == "__main__":
    raise SystemExit(main())
