"""What serving.py says of its rounds: medians, ratios inside a round, the table, the dollars, the chart."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from stacks import MEMORY

# ml.c7i.large (2 vCPU) in us-east-1, USD per hour: EC2's on-demand price x 1.2, of 2026-07-20.
DOLLARS_PER_HOUR = 0.1071
QUIET = 10  # percent of the processor that other programs may use
PACKAGES = ("fastai", "torch", "pillow", "openvino", "uvicorn", "ray")
STACKS = {
    "bare": "bare handlers",
    "plain": "plain server",
    "ray": "Ray Serve",
    "torchserve": "TorchServe as it comes",
    "torchserve-1": "TorchServe, 1 worker",
}
# What a round holds, and whether more of it is better.
MEASURES = {
    "latency": ("p50_ms", False),
    "throughput": ("per_second_4", True),
    "wake": ("wake_s", False),
    "memory": ("memory_mb", False),
    "photo": ("large_ms", False),
}
COLUMNS = {
    "wake_s": ("wake\ns", 2),
    "p50_ms": ("p50\nms", 1),
    "p99_ms": ("p99\nms", 1),
    "per_second_4": ("at 4\n/s", 1),
    "per_second_16": ("at 16\n/s", 1),
    "memory_mb": ("memory\nMB", 0),
    "archive_mb": ("archive\nMB", 1),
    "large_ms": ("12 MP\nms", 0),
    "shrunk_ms": ("shrunk\nms", 0),
    "model_ms": ("model\nms", 1),
    "floor_ms": ("floor\nms", 1),
}
WAYS = ("exact", "fast")

Round = dict[tuple[str, str], dict]  # (way, stack) -> what was measured


# --- numbers


def median(values: Sequence[float | None]) -> float | None:
    """The median of what is there."""
    there = [value for value in values if value is not None]
    return round(statistics.median(there), 4) if there else None


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a `share` of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(rounds: list[Round], way: str, stack: str) -> dict:
    """One row of the table: medians over the rounds, but the 99th percentile of all requests together."""
    measured = [one[way, stack] for one in rounds]
    row = {key: median([one.get(key) for one in measured]) for key in COLUMNS if key != "p99_ms"}
    row["p99_ms"] = round(percentile([ms for one in measured for ms in one["ms"]], 0.99), 3)
    row["requests"] = sum(len(one["ms"]) for one in measured)
    row["answer"] = {key: measured[0]["answer"][key] for key in ("class", "confidence")}
    row["refused"] = sum(one.get("refused", 0) for one in measured)
    return {"way": way, "stack": stack, "name": name(way, stack, rounds[0][way, "bare"]["precision"]), **row}


def name(way: str, stack: str, precision: str | None) -> str:
    """How the table calls a row."""
    who = {"guide": "guide", "exact": "exact", "fast": f"fast ({precision})"}[way]
    return f"{who}, {STACKS[stack]}"


def ratios(rounds: list[Round], way: str, baseline: dict[str, list[str]]) -> dict[str, list[float]]:
    """How many times better our plain server is than the guide's: (median, lowest, highest) over the rounds.

    `baseline` names the guide's stacks for a measure; of several, the best one in a round counts.
    """
    found = {}
    for measure, (key, more) in MEASURES.items():
        better = max if more else min
        theirs = [better(one["guide", stack][key] for stack in baseline[measure]) for one in rounds]
        found[measure] = divide(theirs, [one[way, "plain"][key] for one in rounds], more)
        if measure == "photo":
            found["photo_shrunk"] = divide(theirs, [one[way, "plain"]["shrunk_ms"] for one in rounds], more)
    bare = [one[way, "bare"] for one in rounds]
    found["floor"] = divide([one["model_ms"] for one in bare], [one["floor_ms"] for one in bare], more=False)
    return found


def divide(theirs: list[float], ours: list[float], more: bool) -> list[float]:
    """(median, lowest, highest) of the quotients, round by round."""
    quotients = [b / a if more else a / b for a, b in zip(theirs, ours, strict=True)]
    return [round(value, 3) for value in (statistics.median(quotients), min(quotients), max(quotients))]


def report(rounds: list[Round], facts: dict) -> dict:
    """The whole result, as --json prints it."""
    first = rounds[0]
    rows = [summary(rounds, *key) for key in first]
    servers = [stack for way, stack in first if way == "guide" and stack != "bare"]
    # As it comes; but where two workers are in each other's way, the better setting counts.
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
    """Dollars for a million pictures on ml.c7i.large at each way's best rate behind its best server."""
    best = {}
    for row in rows:
        if row["stack"] not in ("bare", "ray"):
            rate = max(row["per_second_4"], row["per_second_16"])
            best[row["way"]] = max(rate, best.get(row["way"], 0))
    return {way: round(DOLLARS_PER_HOUR / 3600 / rate * 1e6, 3) for way, rate in best.items()}


def machine() -> dict:
    """The processor's name, how many cores, gigabytes of memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gigabytes = round(psutil.virtual_memory().total / 1e9, 1)
    return {"processor": model, "cores": cores, "memory_gb": gigabytes}


# --- words


LEGEND = f"""
wake: from the start of the process to its first answer. p50, p99: one request at a time. at 4, at 16:
pictures a second with so many requests at once. memory: {MEMORY} of all its processes, the peak under load.
12 MP: p50 of a phone's photograph, bytes to answer; shrunk: by ImagePredictor, which scales it down first.
model: the network alone; floor: its operations at the best rate of the engine's own kernels, measured right
after it. The requests come from this machine too, and take some of its time from every row alike."""


def show(result: dict, console: Console) -> None:
    """The whole result for people."""
    say, machine = console.print, result["machine"]
    cores = f"{machine['cores']} cores, {machine['memory_gb']} GB"
    say(f"machine   {machine['processor']}, {cores}; {result['when']}")
    say("versions  " + ", ".join(f"{package} {version}" for package, version in result["versions"].items()))
    say(f"network   {result['network']}, {result['gigaflop']} GFLOP a picture")
    say(f"pictures  {result['photo']}; as from a phone: {result['large']}")
    say(f"answers   {'; '.join(answers(result['rows']))}\n")
    say(table(result["rows"]))
    say("\n".join([LEGEND, *result["notes"]]))
    if max(result["others_percent"]) > QUIET:
        used = ", ".join(f"{percent:.0f} %" for percent in result["others_percent"])
        say(f"[bold]Not to be relied on: before the rounds, other programs used {used} of the processor.")
    better = f"the guide's way ({result['baseline']}; throughput: its better setting)"
    say(f"\nTimes better than {better}, median and range of {result['rounds']} rounds:")
    say(comparison(result))
    price = f"ml.c7i.large at ${DOLLARS_PER_HOUR} an hour, always busy and as fast as this machine"
    prices = (f"{way} ${dollars:.2f}" for way, dollars in result["dollars_per_million"].items())
    say(f"\nA million pictures ({price}): {', '.join(prices)}")


def answers(rows: list[dict]) -> list[str]:
    """What each way said of the photograph; more than one answer if its servers did not agree."""
    said: dict[str, set[str]] = {}
    for row in rows:
        answer = f"{row['answer']['class']} {row['answer']['confidence']:.3f}"
        said.setdefault(row["name"].partition(",")[0], set()).add(answer)
    return [f"{who}: {' or '.join(sorted(answer))}" for who, answer in said.items()]


def table(rows: list[dict]) -> Table:
    """The rows as a table."""
    shown = Table(box=None, header_style="bold", padding=(0, 1))
    shown.add_column("", no_wrap=True)
    for heading, _ in COLUMNS.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:.{n}f}" for key, (_, n) in COLUMNS.items()]
        shown.add_row(row["name"], *cells)
    return shown


def comparison(result: dict) -> Table:
    """The ratios as a table."""
    shown = Table(box=None, header_style="bold", padding=(0, 1))
    keys = list(result["ratios"]["exact"])
    for heading in ("", *keys):
        shown.add_column({"floor": "model/floor"}.get(heading, heading.replace("_", " ")), no_wrap=True)
    for way in WAYS:
        found, strict = result["ratios"][way], result["ratios_strict"][way]
        shown.add_row(f"[bold]{way}", *(f"[bold]{found[key]:.2f}" for key in keys))
        shown.add_row("  range", *(f"{low:.2f}-{high:.2f}" for low, high in result["ranges"][way].values()))
        shown.add_row("  against its better settings", *(f"{strict[key]:.2f}" for key in keys))
    return shown


def chart(result: dict, file: Path) -> None:
    """A bar chart of the ratios, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {
        "latency": "latency, one at a time",
        "throughput": "pictures a second, 4 at once",
        "wake": "start to first answer",
        "memory": "memory",
        "photo": "12-megapixel photograph",
    }
    figure, axes = pyplot.subplots(figsize=(9, 4.6), dpi=150, layout="constrained")
    for way, offset, colour in (("exact", -0.2, "#4c78a8"), ("fast", 0.2, "#f58518")):
        label = next(row["name"] for row in result["rows"] if row["way"] == way).partition(",")[0]
        lengths = [result["ratios"][way][key] for key in names]
        places = [place + offset for place in range(len(names))]
        bars = axes.barh(places, lengths, 0.38, label=label, color=colour)
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
    axes.set_xlabel(
        f"{result['network']}; {where}; {result['when'][:10]}; throughput: its better setting = 1"
    )
    figure.savefig(file)
    pyplot.close(figure)
