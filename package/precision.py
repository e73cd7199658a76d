"""Choose the arithmetic that the endpoint may use: faster than fp32 only where accuracy is kept.

The candidates run beside fp32, through the packaged handlers and engine, and have to pass gates.py:
- bf16, int8 and cuda-fp16 on all validation pictures of split.json;
- decoding large JPEGs at reduced size ("draft") and scaling them down in the client ("shrink") on up to LARGE
  of them, evenly spaced and enlarged to 12 megapixels. More would take minutes.
What this machine's processor does not support is not tried, and therefore not used.
"""

import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from gates import CONFIDENT_MARGIN, gate, margins
from large_pictures import SHRINK, enlarge, shrink
from learner import CLASSIFIERS, one_line
from parity import handlers, progress
from quantize import digests, emulate_fp16, to_fp16, to_int8

CALIBRATION = 300  # training pictures on which the ranges of int8 are measured
MASKS = 100  # validation pictures that are compared if answers are masks, which take memory
LARGE = 64  # validation pictures that are enlarged to 12 megapixels
CANDIDATES = {"exact": [], "auto": ["bf16"], "fast": ["bf16", "int8"]}
# Factors on the times by which the modes are ranked: int8, less exact than bf16, has to be clearly faster.
HANDICAPS = {"bf16": 1, "int8": 1.25}
INSTRUCTIONS = {"bf16": "AMX or AVX512-BF16", "int8": "VNNI"}

Run = Callable[[list[np.ndarray]], np.ndarray]  # an engine's `run`: uint8 pictures to (pictures, labels)


class UntriedError(Exception):
    """A candidate that could not be tried; the message says why."""


def choose(train: Path, folder: Path, spec: dict, requested: str, device: str) -> dict[str, float]:
    """Set spec["precision"] by trial, and leave in `folder` only the graphs that it uses.

    `requested` is exact, auto or fast. Returns the median milliseconds for one picture on this machine, of
    everything that was tried.
    """
    wanted = CANDIDATES[requested] + ["cuda-fp16"] * (device == "cuda" and requested != "exact")
    record = spec["precision"] = {"requested": requested, "use": ["fp32"], "draft": False}
    ms: dict[str, float] = {}
    with handlers(folder / "code") as inference:
        if wanted:
            try:
                ms = try_all(inference, train, folder, spec, wanted)
            except UntriedError as error:
                record["candidates"] = {mode: untried(error) for mode in wanted}
        if device == "cuda":
            fp16 = record.get("candidates", {}).get("cuda-fp16", {"passed": False})
            record["use"].insert(0, "cuda-fp16" if fp16["passed"] else "cuda-fp32")
        needed = {importlib.import_module("engine").MODES[mode][0] for mode in record["use"]}
    for file in folder.glob("*.onnx"):
        if file.name not in needed:
            file.unlink()
    spec["sha256"] = digests(folder)
    return ms


def try_all(
    inference: ModuleType, train: Path, folder: Path, spec: dict, wanted: list[str]
) -> dict[str, float]:
    """Fill spec["precision"] with the results of the modes `wanted`; returns their times in milliseconds.

    Raises UntriedError without the pictures of split.json.
    """
    record = spec["precision"]
    valid, training = read_split(train, CALIBRATION if "int8" in wanted else 0)
    if spec["task"] == "segmentation":
        valid = evenly(valid, MASKS)
    runs, results = {"fp32": inference.load(folder, spec, "fp32").run}, {}
    for mode in wanted:
        try:
            runs[mode] = load_mode(inference, folder, spec, mode, training)
        except UntriedError as error:
            results[mode] = untried(error)
    ways = {mode: lambda picture, run=run: run([picture])[0] for mode, run in runs.items()}
    answers, ms = run_all(ways, pixels(inference, spec, valid), len(valid), f"trying {', '.join(runs)}")
    truth = true_labels(valid, spec)
    results |= {mode: gate(spec, answers["fp32"], rows, truth) for mode, rows in answers.items()}
    fp32 = {"accuracy": results["fp32"]["accuracy"]} if truth is not None else {}
    record["candidates"] = {"fp32": fp32} | {mode: results[mode] for mode in wanted}
    passed = [mode for mode in CANDIDATES[record["requested"]] if results[mode]["passed"]]
    record["use"] = [*sorted(passed, key=lambda mode: ms[mode] * HANDICAPS[mode]), "fp32"]
    record["pictures"] = len(valid)
    if spec["task"] in CLASSIFIERS:
        clear = margins(answers["fp32"], spec["threshold"]) >= CONFIDENT_MARGIN
        record["confident"] = int(clear.sum())
    if record["requested"] == "fast":
        ms |= try_large(inference, spec, runs[record["use"][0]], evenly(valid, LARGE))
    return ms


def read_split(train: Path, calibration: int) -> tuple[list[dict], list[dict]]:
    """All validation pictures and `calibration` of the training ones: {"file": Path, "labels": [...]}.

    Raises UntriedError if split.json or a picture is missing.
    """
    try:
        split = json.loads((train / "split.json").read_bytes())
        parts = [
            [{"file": train / entry["file"], "labels": entry["labels"]} for entry in split[part]]
            for part in ("valid", "train")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise UntriedError("split.json, with the pictures of the training, is missing or broken") from None
    valid, training = parts[0], evenly(parts[1], calibration)
    missing = sum(not entry["file"].is_file() for entry in valid + training)
    if missing or not valid:
        raise UntriedError(f"of {len(valid + training)} pictures in split.json, {missing} are missing")
    return valid, training


def load_mode(inference: ModuleType, folder: Path, spec: dict, mode: str, training: list[dict]) -> Run:
    """An engine's `run` in a mode, after writing the graph that it needs. Raises UntriedError."""
    engine = importlib.import_module("engine")
    if mode in INSTRUCTIONS and not engine.can(mode):
        raise UntriedError(f"this processor has no {INSTRUCTIONS[mode]}")
    try:
        if mode == "cuda-fp16":
            to_fp16(folder)
            return fp16_on_cpu(folder / "model.fp16.onnx")
        if mode == "int8":
            pictures = progress(pixels(inference, spec, training), "calibrating int8", len(training))
            to_int8(folder, pictures)
            spec["sha256"] = digests(folder)
        return engine.load(folder, spec, mode).run
    except UntriedError:
        raise
    except Exception as error:  # the libraries raise many kinds on a graph that they do not support
        reason = one_line(error).replace(str(folder), "")  # a temporary folder, whose name changes every time
        raise UntriedError(f"the model does not work as {mode}: {reason}") from None


def fp16_on_cpu(file: Path) -> Run:
    """`run` for a graph in fp16 on this CPU: ONNX Runtime with a GPU's rounding and overflow, slow."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = emulate_fp16(file).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": np.stack(pictures)})[0]


def pixels(inference: ModuleType, spec: dict, entries: list[dict]) -> Iterator[np.ndarray]:
    """The graph's input for each picture. Raises UntriedError at the end if any could not be read."""
    unreadable = 0
    for entry in entries:
        try:
            picture = inference.open_picture(entry["file"].read_bytes())
            yield inference.to_pixels(picture, spec["input"])
        except (OSError, ValueError):
            unreadable += 1
    if unreadable:
        raise UntriedError(f"of {len(entries)} pictures in split.json, {unreadable} can no longer be read")


def run_all(
    ways: Mapping[str, Callable[..., np.ndarray]], inputs: Iterable, count: int, title: str
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The answers of each way to each of `count` inputs, (inputs, ...), and its median milliseconds.

    The ways take turns on every input, so that other load on the machine affects all of them alike.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for item in progress(inputs, title, count):
        for name, way in ways.items():
            start = time.perf_counter()
            rows[name].append(way(item))
            seconds[name].append(time.perf_counter() - start)
    ms = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    return {name: np.stack(answers) for name, answers in rows.items()}, ms


def true_labels(entries: list[dict], spec: dict) -> np.ndarray | None:
    """The labels of a classifier's pictures: bool (pictures, labels). None if any are unknown."""
    labels = spec["labels"]
    if spec["task"] not in CLASSIFIERS or any(entry["labels"] is None for entry in entries):
        return None
    return np.array([[label in map(str, entry["labels"]) for label in labels] for entry in entries])


def try_large(inference: ModuleType, spec: dict, run: Run, entries: list[dict]) -> dict[str, float]:
    """Whether large photographs may be decoded at reduced size, and whether the client may scale them down.

    Fills spec["precision"] and returns the times in milliseconds.
    """
    record, how = spec["precision"], spec["input"]

    def answer(body: bytes, *, draft: bool = False) -> np.ndarray:
        return run([inference.to_pixels(inference.open_picture(body), how, draft=draft)])[0]

    ways = {
        "large": answer,
        "draft": lambda body: answer(body, draft=True),
        "shrink": lambda body: answer(shrink(body)),
    }
    bodies = (enlarge(inference, how, entry["file"].read_bytes()) for entry in entries)
    answers, ms = run_all(ways, bodies, len(entries), "trying large photographs")
    truth = true_labels(entries, spec)
    for way in ("draft", "shrink"):
        verdict = gate(spec, answers["large"], answers[way], truth)
        (record["candidates"] if way == "draft" else record)[way] = verdict | {"pictures": len(entries)}
    record["draft"] = record["candidates"]["draft"]["passed"]
    record["shrink"]["side"] = SHRINK
    return ms


def untried(error: UntriedError) -> dict:
    """The entry in model.json of a candidate that was not tried."""
    return {"passed": False, "reason": f"not tried: {error}"}


def evenly(items: list, count: int) -> list:
    """`count` of the items, evenly spaced over the list, or all if there are fewer."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
