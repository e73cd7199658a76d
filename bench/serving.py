"""The guide's way against ours, in one run on one machine: `python bench/serving.py [--train DIR] [--json]`.

It packages one trained model three times (as fast.ai's guide of 2019 does, ours exact, ours fast), starts
each behind the servers that people put before it, asks the same photograph of all, and prints one table. A
round measures every row once; ratios are taken inside a round, because machines change their speed between
rounds. Close other programs before; `taskset -c 0,1` gives it two cores of a larger machine.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console

import prepare
import report
import stacks
from stacks import ROOT, BenchError, Row, probe, progress

SHRINK = 1280  # pixels: what ImagePredictor does unless told otherwise
STACKS = ("bare", "plain", "ray", "torchserve")


class Ground(NamedTuple):
    """What all rounds share."""

    rows: list[Row]
    photo: Path
    large: Path
    toolkit: Path
    code: Path  # our serving code
    size: list[int]  # height and width that the network takes
    seconds: float  # of each measurement


def main(argv: list[str] | None = None) -> int:
    """Compare, and print the result."""
    args = arguments(argv)
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, interrupt)
    try:
        result = compare(args)
        if args.chart:
            report.chart(result, args.chart)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: the comparison could not be made: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        report.show(result, Console(highlight=False, width=max(Console().width, 130)))
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--train", type=Path, help="folder of train/train.py; without it, a stand-in is trained once")
    add("--photo", type=Path, help="a JPEG of about 100 KB, instead of a generated one")
    add("--stacks", default=",".join(STACKS), help="of %(default)s; bare and plain must be among them")
    add("--rounds", type=int, default=3, help="how often each row is measured (%(default)s)")
    add("--seconds", type=float, default=3, help="for each measurement in a round (%(default)s)")
    add("--quick", action="store_true", help="one short round, to try the command: its numbers mean nothing")
    add("--json", action="store_true", help="print one JSON object")
    add("--chart", type=Path, help="write a bar chart there (.png)")
    add("--out", type=Path, default=ROOT / "build" / "bench", help="where everything is made (build/bench)")
    args = parser.parse_args(argv)
    args.stacks = set(args.stacks.split(","))
    if not {"bare", "plain"} <= args.stacks <= set(STACKS):
        parser.error(f"--stacks: bare and plain, and perhaps more of {', '.join(STACKS)}")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds: more than nothing")
    if args.quick:
        args.rounds, args.seconds = 1, 0.4
    return args


def interrupt(*_: object) -> None:
    """SIGTERM, and a terminal that is closed, end this as Ctrl-C does."""
    raise KeyboardInterrupt


def compare(args: argparse.Namespace) -> dict:
    """Prepare, measure round after round, and sum up."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ground, facts = prepared(args, out)
    rounds: list[report.Round] = []
    for number in range(1, args.rounds + 1):
        facts["others_percent"].append(psutil.cpu_percent(1))  # nothing of ours runs now
        rounds.append({})
        for row in ground.rows:
            progress(f"round {number} of {args.rounds}: {row.way}, {report.STACKS[row.stack]}")
            measure = measure_bare if row.stack == "bare" else measure_server
            rounds[-1][row.way, row.stack] = measure(row, ground) | {"archive_mb": archive_size(row)}
        add_floor(rounds[-1])
    return report.report(rounds, facts)


def prepared(args: argparse.Namespace, out: Path) -> tuple[Ground, dict]:
    """Everything that rounds need, and what the report says of it."""
    photo, large, photo_said, large_said = prepare.photographs(args.photo, out)
    folder = prepare.trained(args.train) if args.train else prepare.train(out)
    ways = {"guide": prepare.package_guide(folder, out)}
    ways |= {way: prepare.package(folder, way, out) for way in report.WAYS}
    torchserve = "torchserve" in args.stacks and stacks.java()
    toolkit = prepare.install_toolkit(out) if torchserve else out
    rows = [Row(way, "bare", model) for way, model in ways.items()]
    guides = ["torchserve", "torchserve-1"] if torchserve else ["plain"]
    rows += [Row("guide", stack, ways["guide"]) for stack in guides]
    ours = [stack for stack in ("plain", "ray") if stack in args.stacks]
    rows += [Row(way, stack, ways[way]) for stack in ours for way in report.WAYS]
    size = json.loads((ways["exact"] / "model.json").read_text())["input"]["shape"][1:3]
    arch = json.loads((folder / "metrics.json").read_text())["arguments"]["arch"]
    facts = {"network": f"{arch} at {size[0]} x {size[1]}", "photo": photo_said, "large": large_said}
    no_java = "TorchServe needs Java, which is not here: the guide's handlers are on a plain server."
    facts["notes"] = [no_java] if "torchserve" in args.stacks and not torchserve else []
    if torchserve:
        facts["notes"] = [f"TorchServe's packages: {', '.join(prepare.toolkit_packages())}."]
    facts["others_percent"] = []  # of all cores, before each round
    return Ground(rows, photo, large, toolkit, ways["exact"] / "code", size, args.seconds), facts


def archive_size(row: Row) -> float:
    """Megabytes of the row's model.tar.gz."""
    return (row.model.parent / "model.tar.gz").stat().st_size / 1e6


def measure_bare(row: Row, ground: Ground) -> dict:
    """The handlers in a process of their own, and right after it the chip's best rate at their precision."""
    command = stacks.probe_command(
        "handlers",
        code=row.model / "code",
        model=row.model,
        size=ground.size,
        photo=ground.photo,
        large=ground.large,
        seconds=ground.seconds,
    )
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as temp,
        stacks.running(command, Path(temp), stacks.environment(), subprocess.PIPE) as handlers,
        stacks.peak_memory(handlers.process.pid) as peak,
    ):
        read = handlers.process.stdout.readline
        answer, wake = read(), time.perf_counter() - handlers.start
        times, megabytes, rest = read(), peak(), read()
        if handlers.process.wait():
            raise BenchError(f"the handlers in {row.model} failed:\n{stacks.tail(handlers.log)}")
    said = json.loads(times) | json.loads(rest)
    result = said | {"answer": json.loads(answer), "wake_s": wake, "memory_mb": megabytes}
    result |= {key: statistics.median(said[key]) for key in ("large_ms", "model_ms")}
    result["p50_ms"] = statistics.median(said["ms"])
    rates = probe("floor", code=ground.code, precision=result["precision"], seconds=ground.seconds / 40)
    return result | {"gigaflop_per_second": rates[result["precision"]]}


def measure_server(row: Row, ground: Ground) -> dict:
    """One server from its start to its end."""
    with stacks.server(row, ground.toolkit) as server:
        wake, answer = stacks.first_answer(server, ground.photo.read_bytes())

        def load(concurrency: int = 1, photo: Path = ground.photo, seconds: float = ground.seconds) -> dict:
            return probe("load", url=server.url, photo=photo, concurrency=concurrency, seconds=seconds)

        load(4, seconds=ground.seconds / 2)  # TorchServe's second worker may still be loading
        alone, four = load(), load(4)
        # Looking at the memory costs some milliseconds, so not while the rows above are measured.
        with stacks.peak_memory(server.process.pid) as peak:
            sixteen, large = load(16), load(1, ground.large, ground.seconds / 2)
            result = {"memory_mb": peak()}
        if row.way != "guide":
            asked = {"url": server.url, "photo": ground.large, "seconds": ground.seconds / 2}
            shrunk = probe("client", code=ROOT / "client", shrink=SHRINK, **asked)
            result["shrunk_ms"] = statistics.median(shrunk["ms"])
    result |= {"answer": answer, "wake_s": wake, "ms": alone["ms"], "p50_ms": statistics.median(alone["ms"])}
    result |= {"per_second_4": four["rate"], "per_second_16": sixteen["rate"]}
    result["refused"] = sum(len(one["refused"]) for one in (alone, four, sixteen, large))
    return result | {"large_ms": statistics.median(large["ms"])}


def add_floor(measured: report.Round) -> None:
    """The least time that the network can take at the best rate of the same round, for the bare rows."""
    operations = measured["guide", "bare"]["flops"]
    for (_, stack), row in measured.items():
        if stack == "bare":
            row["floor_ms"] = operations / row["gigaflop_per_second"] / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
