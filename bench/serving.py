"""Compare serving as in fast.ai's guide of 2019 with ours, on this machine: `python bench/serving.py`.

It packages one trained model three times (the guide's way, ours exact, ours fast), puts each behind the
servers that people use for it, sends the same photographs to all, and prints one table. A round measures
every row once; ratios are taken inside a round, because machines change their speed between rounds. The model
is a classifier with one label of pictures in colour, as the guide's is.

Run it on an idle machine; `taskset -c 0,1 python bench/serving.py` takes two cores of a larger one. On two
cores three rounds take about 12 minutes, and the first run some more, to train a stand-in model and to
install TorchServe (which needs Java). `--stacks bare,plain` leaves out the rows of Ray Serve and TorchServe.
The result is also written to result.json in --out. The table and the picture of bench/README.md:

    python bench/serving.py --chart bench/serving.png

Exit codes: 0 success · 2 usage or configuration · 3 external failure (network, disk, a server fails)
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, NoReturn

import psutil
from rich.console import Console

import prepare
import report
import servers
from servers import ROOT, BenchError, Row, measure_in_subprocess, progress

SHRINK = 1280  # pixels: client/predictor.py's default
STACKS = ("bare", "plain", "ray", "torchserve")


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


class Setup(NamedTuple):
    """What all rounds share."""

    rows: list[Row]
    photo: Path
    large: Path
    toolkit: Path  # TorchServe's folder
    code: Path  # our serving code
    size: list[int]  # the network's input: height and width
    seconds: float  # of each measurement


def main(argv: list[str] | None = None) -> int:
    """Compare and print the result; returns the exit code."""
    args = arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        result = compare(args)
        if args.chart:
            report.chart(result, args.chart)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: the comparison failed: {error}", file=sys.stderr)
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
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--train", type=Path, help="folder of train/train.py; default: a stand-in model, trained once")
    add("--photo", type=Path, help="a JPEG of about 100 KB; default: a generated one")
    add("--stacks", default=",".join(STACKS), help="which rows, of %(default)s; bare and plain are required")
    add("--rounds", type=int, default=3, help="measurements of each row (%(default)s)")
    add("--seconds", type=float, default=3, help="duration of each measurement in a round (%(default)s)")
    add(
        "--quick",
        action="store_true",
        help="one short round, to try the command: its numbers are not reliable",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--chart", type=Path, help="write a bar chart there (.png)")
    add(
        "--out",
        type=Path,
        default=ROOT / "build" / "bench",
        help="folder for everything that is made (build/bench)",
    )
    args = parser.parse_args(argv)
    args.stacks = set(args.stacks.split(","))
    if not {"bare", "plain"} <= args.stacks <= set(STACKS):
        parser.error(f"--stacks: bare and plain, and any others of {', '.join(STACKS)}")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds must be at least 1, --seconds more than 0")
    if args.quick:
        args.rounds, args.seconds = 1, 0.4
    return args


def interrupt(*_: object) -> None:
    """Treat SIGTERM, and the SIGHUP of a closed terminal, as Ctrl-C."""
    raise KeyboardInterrupt


def compare(args: argparse.Namespace) -> dict:
    """Prepare, measure round after round, and write the result; returns it."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    setup, facts = set_up(args, out)
    rounds: list[report.Round] = []
    for number in range(1, args.rounds + 1):
        facts["others_percent"].append(psutil.cpu_percent(1))  # nothing of ours runs at this moment
        rounds.append({})
        for row in setup.rows:
            progress(f"round {number} of {args.rounds}: {row.way}, {report.STACKS[row.stack]}")
            measure = measure_bare if row.stack == "bare" else measure_server
            rounds[-1][row.way, row.stack] = measure(row, setup) | {"archive_mb": archive_size(row)}
        add_theoretical_minimum(rounds[-1])
    result = report.report(rounds, facts)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def set_up(args: argparse.Namespace, out: Path) -> tuple[Setup, dict[str, Any]]:
    """Make everything that the rounds need; returns it, and facts for the report."""
    given = prepare.check_training_folder(args.train) if args.train else None  # first: it fails at once
    photo, large, photo_description, large_description = prepare.write_photos(args.photo, out)
    folder = given or prepare.train_stand_in(out)
    models = {"guide": prepare.package_guide(folder, out)}
    models |= {way: prepare.package(folder, way, out) for way in report.WAYS}
    torchserve = "torchserve" in args.stacks and servers.has_java()
    toolkit = prepare.install_toolkit(out) if torchserve else out
    rows = [Row(way, "bare", model) for way, model in models.items()]
    guide_stacks = ["torchserve", "torchserve-1"] if torchserve else ["plain"]
    rows += [Row("guide", stack, models["guide"]) for stack in guide_stacks]
    our_stacks = [stack for stack in ("plain", "ray") if stack in args.stacks]
    rows += [Row(way, stack, models[way]) for stack in our_stacks for way in report.WAYS]
    size = json.loads((models["exact"] / "model.json").read_text())["input"]["shape"][1:3]
    arch = json.loads((folder / "metrics.json").read_text())["arguments"]["arch"]
    notes = []
    if torchserve:
        notes = [f"TorchServe's packages: {', '.join(prepare.toolkit_packages())}."]
    elif "torchserve" in args.stacks:
        notes = ["TorchServe needs Java, which was not found: the guide's handlers are on a plain server."]
    facts = {
        "network": f"{arch} at {size[0]} x {size[1]}",
        "photo": photo_description,
        "large": large_description,
        "notes": notes,
        "others_percent": [],  # CPU use of other programs, of all cores, before each round
    }
    return Setup(rows, photo, large, toolkit, models["exact"] / "code", size, args.seconds), facts


def archive_size(row: Row) -> float:
    """Megabytes of the row's model.tar.gz."""
    return (row.model.parent / "model.tar.gz").stat().st_size / 1e6


def measure_bare(row: Row, setup: Setup) -> dict:
    """Measure the handlers without a server, and right after them the fastest kernel of their precision."""
    command = servers.measure_command(
        "handlers",
        code=row.model / "code",
        model=row.model,
        size=setup.size,
        photo=setup.photo,
        large=setup.large,
        seconds=setup.seconds,
    )
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as temp,
        servers.running(command, Path(temp), servers.row_environment(row), subprocess.PIPE) as handlers,
        servers.peak_memory(handlers.process.pid) as peak,
    ):
        assert handlers.process.stdout  # a pipe
        read_line = handlers.process.stdout.readline
        answer, cold_start = read_line(), perf_counter() - handlers.start
        times, megabytes, network = read_line(), peak(), read_line()
        if handlers.process.wait():
            raise BenchError(f"the handlers in {row.model} failed:\n{servers.tail(handlers.log)}")
    measured = json.loads(times) | json.loads(network)
    result = measured | {"answer": json.loads(answer), "cold_start_s": cold_start, "memory_mb": megabytes}
    result |= {key: statistics.median(measured[key]) for key in ("large_ms", "model_ms")}
    result["p50_ms"] = statistics.median(measured["ms"])
    options = {"precision": result["precision"], "seconds": setup.seconds / 40}
    kernels = measure_in_subprocess("kernels", code=setup.code, **options)
    return result | {"gflops_per_second": kernels[result["precision"]]}


def measure_server(row: Row, setup: Setup) -> dict:
    """Measure one server from its start until it is stopped."""
    with servers.server(row, setup.toolkit) as server:
        cold_start, answer = servers.first_answer(server, setup.photo.read_bytes())

        def load(concurrency: int, photo: Path = setup.photo, seconds: float = setup.seconds) -> dict:
            options = {"concurrency": concurrency, "seconds": seconds}
            return measure_in_subprocess("load", url=server.url, photo=photo, **options)

        load(4, seconds=setup.seconds / 2)  # TorchServe's second worker may still be loading
        alone, four = load(1), load(4)
        # Reading the memory costs some milliseconds, so not while latency and throughput are measured.
        with servers.peak_memory(server.process.pid) as peak:
            sixteen, large = load(16), load(1, setup.large, setup.seconds / 2)
            memory_mb = peak()
        shrunk_ms = None if row.way == "guide" else measure_shrunk(server.url, setup)
    return {
        "answer": answer,
        "cold_start_s": cold_start,
        "ms": alone["ms"],
        "p50_ms": statistics.median(alone["ms"]),
        "per_second_4": four["rate"],
        "per_second_16": sixteen["rate"],
        "memory_mb": memory_mb,
        "large_ms": statistics.median(large["ms"]),
        "shrunk_ms": shrunk_ms,
        "refused": sum(len(one["refused"]) for one in (alone, four, sixteen, large)),
    }


def measure_shrunk(url: str, setup: Setup) -> float:
    """Median milliseconds of the large photograph through ImagePredictor, which scales it down first."""
    options = {"photo": setup.large, "shrink": SHRINK, "seconds": setup.seconds / 2}
    times = measure_in_subprocess("client", code=ROOT / "client", url=url, **options)["ms"]
    return statistics.median(times)


def add_theoretical_minimum(measured: report.Round) -> None:
    """Add to bare rows the network's operations divided by the fastest kernel's rate in the same round."""
    operations = measured["guide", "bare"]["flops"]
    for (_, stack), row in measured.items():
        if stack == "bare":
            row["theoretical_minimum_ms"] = operations / row["gflops_per_second"] / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
