"""The report of serving.py: medians over rounds, ratios inside a round, the table, the price, the chart."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from measure import percentile
from servers import MEMORY

# ml.c7i.large (2 vCPU) in us-east-1, USD per hour: EC2's on-demand price of 2026-07-20 x 1.2, as in
# cost/prices.json, which is not read here: bench/ works without cost/.
DOLLARS_PER_HOUR = 0.1071
MAX_OTHERS = 10  # percent of the processor that other programs may use before the numbers are not reliable
PACKAGES = ("fastai", "torch", "pillow", "openvino", "uvicorn", "ray")
STACKS = {
    "bare": "bare handlers",
    "plain": "plain server",
    "ray": "Ray Serve",
    "torchserve": "TorchServe (default)",
    "torchserve-1": "TorchServe (1 worker)",
}
# What is compared: the key in a row's measurements, and whether higher is better.
MEASURES = {
    "latency": ("p50_ms", False),
    "throughput": ("per_second_4", True),
    "cold_start": ("cold_start_s", False),
    "memory": ("memory_mb", False),
    "photo": ("large_ms", False),
}
COLUMNS = {  # of the table: heading and decimals
    "cold_start_s": ("cold\nstart s", 2),
    "p50_ms": ("p50\nms", 1),
    "p99_ms": ("p99\nms", 1),
    "per_second_4": ("img/s at\n4 clients", 1),
    "per_second_16": ("img/s at\n16 clients", 1),
    "memory_mb": ("memory\nMB", 0),
    "archive_mb": ("archive\nMB", 1),
    "large_ms": ("12 MP\nms", 0),
    "shrunk_ms": ("shrunk\nms", 0),
    "model_ms": ("model\nms", 1),
    "theoretical_minimum_ms": ("theoretical\nminimum ms", 1),
}
WAYS = ("exact", "fast")

Round = dict[tuple[str, str], dict]  # (way, stack) -> what was measured


# --- numbers


def median(values: Sequence[float | None]) -> float | None:
    """The median of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return round(statistics.median(present), 4) if present else None


def summary(rounds: list[Round], way: str, stack: str) -> dict[str, Any]:
    """One row of the table: medians over the rounds, but the 99th percentile of all requests together."""
    measured = [measurements[way, stack] for measurements in rounds]
    latencies = sorted(ms for one in measured for ms in one["ms"])
    row: dict[str, Any] = {key: median([one.get(key) for one in measured]) for key in COLUMNS}
    row["p99_ms"] = median([percentile(latencies, 99)])
    row["requests"] = len(latencies)
    row["answer"] = {key: measured[0]["answer"][key] for key in ("class", "confidence")}
    row["refused"] = sum(one.get("refused", 0) for one in measured)
    precision = rounds[0][way, "bare"]["precision"]
    return {"way": way, "stack": stack, "name": row_name(way, stack, precision), **row}


def row_name(way: str, stack: str, precision: str | None) -> str:
    """A row's name in the table."""
    prefix = {"guide": "guide", "exact": "exact", "fast": f"fast ({precision})"}[way]
    return f"{prefix}, {STACKS[stack]}"


def ratios(rounds: list[Round], way: str, baseline: dict[str, list[str]]) -> dict[str, list[float]]:
    """How many times better our plain server is than the guide's: [median, lowest, highest] over the rounds.

    `baseline` names the guide's stacks for each measure; of several, the best one in a round counts.
    """
    found: dict[str, list[float]] = {}
    for measure, (key, higher) in MEASURES.items():
        best = max if higher else min
        theirs = [best(one["guide", stack][key] for stack in baseline[measure]) for one in rounds]
        ours = [one[way, "plain"][key] for one in rounds]
        found[measure] = quotients(theirs, ours, higher_is_better=higher)
        if measure == "photo":
            shrunk = [one[way, "plain"]["shrunk_ms"] for one in rounds]
            found["photo_shrunk"] = quotients(theirs, shrunk, higher_is_better=higher)
    bare = [one[way, "bare"] for one in rounds]
    models, minimums = [one["model_ms"] for one in bare], [one["theoretical_minimum_ms"] for one in bare]
    found["theoretical_minimum"] = quotients(models, minimums, higher_is_better=False)
    return found


def quotients(theirs: list[float], ours: list[float], *, higher_is_better: bool) -> list[float]:
    """[median, lowest, highest] of how many times better ours is, round by round."""
    values = [b / a if higher_is_better else a / b for a, b in zip(theirs, ours, strict=True)]
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def report(rounds: list[Round], facts: dict) -> dict:
    """The whole result, as --json prints it."""
    first = rounds[0]
    rows = [summary(rounds, *key) for key in first]
    servers = [stack for way, stack in first if way == "guide" and stack != "bare"]
    # TorchServe's default is a worker per processor. For throughput the better setting counts, because two
    # workers, each with a thread per processor, slow each other down.
    settings = {measure: servers if measure == "throughput" else servers[:1] for measure in MEASURES}
    usual = {way: ratios(rounds, way, settings) for way in WAYS}
    strict = {way: ratios(rounds, way, dict.fromkeys(MEASURES, servers)) for way in WAYS}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        **facts,
        "gigaflop": round(first["guide", "bare"]["flops"] / 1e9, 2),
        "rounds": len(rounds),
        "baseline": STACKS[servers[0]],
        "rows": rows,
        "ratios": {way: {key: middle for key, (middle, *_) in usual[way].items()} for way in WAYS},
        "ranges": {way: {key: spread for key, (_, *spread) in usual[way].items()} for way in WAYS},
        "ratios_strict": {way: {key: middle for key, (middle, *_) in strict[way].items()} for way in WAYS},
        "dollars_per_million": dollars(rows),
    }


def dollars(rows: list[dict]) -> dict[str, float]:
    """Price of a million pictures on ml.c7i.large, at each way's best rate behind its best server."""
    best: dict[str, float] = {}
    for row in rows:
        if row["stack"] not in ("bare", "ray"):
            rate = max(row["per_second_4"], row["per_second_16"])
            best[row["way"]] = max(rate, best.get(row["way"], 0))
    return {way: round(DOLLARS_PER_HOUR / 3600 / rate * 1e6, 3) for way, rate in best.items()}


def machine() -> dict[str, Any]:
    """The processor's name, the number of its cores, gigabytes of memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gigabytes = round(psutil.virtual_memory().total / 1e9, 1)
    return {"processor": model, "cores": cores, "memory_gb": gigabytes}


# --- the page


LEGEND = f"""
cold start: from the start of the process to its first answer. p50, p99: latency, one request at a time.
img/s at 4, 16 clients: pictures per second with as many requests in flight. memory: {MEMORY} of all processes
of the server, the peak under load. 12 MP: p50 of a phone's photograph, from bytes to answer; shrunk: the same
through ImagePredictor, which scales it down first. model: the network alone; theoretical minimum: its GFLOP
divided by the fastest kernel's measured GFLOP/s. The clients run on this machine too, and take some of its
time from every row alike."""


def show(result: dict[str, Any], console: Console) -> None:
    """Print the whole result for people."""
    line, machine = console.print, result["machine"]
    cores = f"{machine['cores']} cores, {machine['memory_gb']} GB"
    line(f"machine   {machine['processor']}, {cores}; {result['when']}")
    line("versions  " + ", ".join(f"{package} {version}" for package, version in result["versions"].items()))
    line(f"network   {result['network']}, {result['gigaflop']} GFLOP a picture")
    line(f"pictures  {result['photo']}; as from a phone: {result['large']}")
    line(f"answers   {'; '.join(answers(result['rows']))}\n")
    line(table(result["rows"]))
    line("\n".join([LEGEND, *result["notes"]]))
    if max(result["others_percent"]) > MAX_OTHERS:
        used = ", ".join(f"{percent:.0f} %" for percent in result["others_percent"])
        line(f"[bold]Not reliable: before the rounds, other programs used {used} of the processor.")
    baseline = f"the guide's way ({result['baseline']}; throughput: its better setting)"
    line(f"\nTimes better than {baseline}, median and range of {result['rounds']} rounds:")
    line(comparison(result))
    price = f"ml.c7i.large at ${DOLLARS_PER_HOUR} an hour, always busy and as fast as this machine"
    prices = (f"{way} ${dollars:.2f}" for way, dollars in result["dollars_per_million"].items())
    line(f"\nA million pictures ({price}): {', '.join(prices)}")


def answers(rows: list[dict]) -> list[str]:
    """What each way answered for the photograph; more than one answer if its servers disagree."""
    found: dict[str, set[str]] = {}
    for row in rows:
        answer = f"{row['answer']['class']} {row['answer']['confidence']:.3f}"
        found.setdefault(row["name"].partition(",")[0], set()).add(answer)
    return [f"{way}: {' or '.join(sorted(different))}" for way, different in found.items()]


def table(rows: list[dict]) -> Table:
    """The rows as a table."""
    grid = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    grid.add_column("", no_wrap=True)
    for heading, _ in COLUMNS.values():
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:.{n}f}" for key, (_, n) in COLUMNS.items()]
        grid.add_row(row["name"], *cells)
    return grid


def comparison(result: dict[str, Any]) -> Table:
    """The ratios as a table."""
    grid = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    keys = list(result["ratios"]["exact"])
    headings = {"theoretical_minimum": "model / theo-\nretical minimum"}
    for key in ("", *keys):
        grid.add_column(headings.get(key, key.replace("_", "\n")), no_wrap=True)
    for way in WAYS:
        usual, strict = result["ratios"][way], result["ratios_strict"][way]
        grid.add_row(f"[bold]{way}", *(f"[bold]{usual[key]:.2f}" for key in keys))
        grid.add_row("  range", *(f"{low:.2f}-{high:.2f}" for low, high in result["ranges"][way].values()))
        grid.add_row("  against its better settings", *(f"{strict[key]:.2f}" for key in keys))
    return grid


def chart(result: dict[str, Any], file: Path) -> None:
    """Write a bar chart of the ratios, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {
        "latency": "latency, one client",
        "throughput": "throughput, 4 clients",
        "cold_start": "cold start",
        "memory": "memory",
        "photo": "12-megapixel photograph",
    }
    figure, axes = pyplot.subplots(figsize=(9, 4.6), dpi=150, layout="constrained")
    for way, offset, colour in (("exact", -0.2, "#4c78a8"), ("fast", 0.2, "#f58518")):
        label = next(row["name"] for row in result["rows"] if row["way"] == way).partition(",")[0]
        lengths = [result["ratios"][way][key] for key in names]
        positions = [position + offset for position in range(len(names))]
        bars = axes.barh(positions, lengths, 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f x", padding=4)
    axes.axvline(1, color="#555555", linewidth=1, linestyle="--")
    axes.text(1, len(names) - 0.45, " the guide", va="top", color="#555555")
    axes.set_yticks(range(len(names)), names.values())
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.margins(x=0.12)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"Times better than the guide's way ({result['baseline']} = 1)", loc="left")
    where = "{processor}, {cores} cores".format_map(result["machine"])
    facts = f"{result['network']}; {where}; {result['when'][:10]}; throughput: its better setting = 1"
    axes.set_xlabel(facts, labelpad=12)
    figure.savefig(file)
    pyplot.close(figure)
