"""Which arithmetic the endpoint may use: quicker than fp32 only where the answers stay.

Every candidate answers all validation pictures beside fp32, through the packaged handlers and engine, and has
to pass the gate. What the chip here cannot do is not tried, and therefore not used.
"""

import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from graphs import digests, rounding, to_fp16, to_int8
from large import SHRINK, enlarge, shrink
from parity import brief, decide, handlers, progress

SURE = 0.2  # the margin from which an answer of fp32 is one that a candidate has to keep
CALIBRATION = 300  # training pictures
LARGE = 64  # validation pictures that are enlarged to the size of a photograph
CANDIDATES = {"exact": [], "auto": ["bf16"], "fast": ["bf16", "int8"]}
HANDICAPS = {"bf16": 1, "int8": 1.25}  # what is further from fp32 has to be clearly quicker
INSTRUCTIONS = {"bf16": "AMX or AVX512-BF16", "int8": "VNNI"}


class UntriedError(Exception):
    """Why a candidate could not be tried, in words."""


def choose(train: Path, folder: Path, spec: dict, asked: str, device: str) -> dict[str, float]:
    """Set spec["precision"] by trial, and leave in `folder` only the graphs that it uses.

    Returns the median milliseconds for one picture here, of everything that was tried.
    """
    wanted = CANDIDATES[asked] + ["cuda-fp16"] * (device == "cuda" and asked != "exact")
    record = spec["precision"] = {"asked": asked, "use": ["fp32"], "draft": False}
    ms = {}
    with handlers(folder / "code") as inference:
        if wanted:
            try:
                ms = try_all(inference, train, folder, spec, wanted)
            except UntriedError as error:
                record["candidates"] = {mode: untried(error) for mode in wanted}
        if device == "cuda":
            half = record.get("candidates", {}).get("cuda-fp16", {"passed": False})
            record["use"].insert(0, "cuda-fp16" if half["passed"] else "cuda-fp32")
        needed = {importlib.import_module("engine").MODES[mode][0] for mode in record["use"]}
    for file in folder.glob("*.onnx"):
        if file.name not in needed:
            file.unlink()
    spec["sha256"] = digests(folder)
    return ms


def try_all(
    inference: ModuleType, train: Path, folder: Path, spec: dict, wanted: list[str]
) -> dict[str, float]:
    """Fill spec["precision"] with how the modes `wanted` did. Raises UntriedError without the pictures."""
    record, threshold = spec["precision"], spec["threshold"]
    valid, training = read_split(train, CALIBRATION if "int8" in wanted else 0)
    runs, results = {"fp32": inference.load(folder, spec, "fp32").run}, {}
    for mode in wanted:
        try:
            runs[mode] = start(inference, folder, spec, mode, training)
        except UntriedError as error:
            results[mode] = untried(error)
    ways = {mode: lambda picture, run=run: run([picture])[0] for mode, run in runs.items()}
    said, ms = ask(ways, pixels(inference, spec, valid), len(valid), f"trying {', '.join(runs)}")
    truth = truths(valid, spec["labels"])
    results |= {mode: gate(said["fp32"], rows, truth, threshold) for mode, rows in said.items()}
    fp32 = {"accuracy": results["fp32"]["accuracy"]}
    record["candidates"] = {"fp32": fp32} | {mode: results[mode] for mode in wanted}
    passed = [mode for mode in CANDIDATES[record["asked"]] if results[mode]["passed"]]
    record["use"] = [*sorted(passed, key=lambda mode: ms[mode] * HANDICAPS[mode]), "fp32"]
    record["pictures"] = len(valid)
    record["sure"] = int((margins(said["fp32"], threshold) >= SURE).sum())
    if record["asked"] == "fast":
        ms |= try_large(inference, spec, runs[record["use"][0]], evenly(valid, LARGE))
    return ms


def read_split(train: Path, calibration: int) -> tuple[list[dict], list[dict]]:
    """The validation pictures, and `calibration` of the training ones: {"file": Path, "labels": [...]}."""
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


def start(
    inference: ModuleType, folder: Path, spec: dict, mode: str, training: list[dict]
) -> Callable[[list[np.ndarray]], np.ndarray]:
    """An engine's `run` in a mode, whose graph is made first. Raises UntriedError."""
    engine = importlib.import_module("engine")
    if mode in INSTRUCTIONS and not engine.can(mode):
        raise UntriedError(f"this chip has no {INSTRUCTIONS[mode]}")
    try:
        if mode == "cuda-fp16":
            to_fp16(folder)
            return half(folder / "model.fp16.onnx")
        if mode == "int8":
            pictures = progress(pixels(inference, spec, training), "calibrating int8", len(training))
            to_int8(folder, pictures)
            spec["sha256"] = digests(folder)
        return engine.load(folder, spec, mode).run
    except UntriedError:
        raise
    except Exception as error:  # the libraries raise whatever they like on a graph that they do not know
        said = brief(error).replace(str(folder), "")  # which has another name each time
        raise UntriedError(f"the model does not work as {mode}: {said}") from None


def half(file: Path) -> Callable[[list[np.ndarray]], np.ndarray]:
    """`run` for a graph in fp16, on this CPU: ONNX Runtime, with a GPU's roundings and overflows, slowly."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = rounding(file).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": np.stack(pictures)})[0]


def pixels(inference: ModuleType, spec: dict, entries: list[dict]) -> Iterator[np.ndarray]:
    """The pictures as the graph takes them. Raises UntriedError at the end if any could not be read."""
    bad = 0
    for entry in entries:
        try:
            picture = inference.open_picture(entry["file"].read_bytes())
            yield inference.to_pixels(picture, spec["input"]["steps"])
        except (OSError, ValueError):
            bad += 1
    if bad:
        raise UntriedError(f"of {len(entries)} pictures in split.json, {bad} cannot be read any more")


def ask(
    ways: dict[str, Callable], things: Iterable, count: int, what: str
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What each way answers to each of `count` things, (things, labels), and its median milliseconds.

    In turns, so that whatever else the machine does meets all ways alike.
    """
    rows, seconds = ({name: [] for name in ways} for _ in range(2))
    for thing in progress(things, what, count):
        for name, way in ways.items():
            began = time.perf_counter()
            rows[name].append(way(thing))
            seconds[name].append(time.perf_counter() - began)
    ms = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    return {name: np.stack(answers) for name, answers in rows.items()}, ms


def gate(reference: np.ndarray, candidate: np.ndarray, truth: np.ndarray, threshold: float | None) -> dict:
    """Whether `candidate` may stand in for `reference`: probabilities (pictures, labels); `truth` is bool.

    Yes, if its accuracy is at most 0.5 points lower, and at least 99 % of the answers that the reference is
    sure of are the same. Whole answers count: with several labels, all of them.
    """
    before, after = decide(reference, threshold), decide(candidate, threshold)
    lost = int((before == truth).all(1).sum()) - int((after == truth).all(1).sum())
    same = (before == after).all(1)[margins(reference, threshold) >= SURE]
    accuracy = float((after == truth).all(1).mean())
    agreement = float(same.mean()) if len(same) else None
    reason = ""
    if not np.isfinite(candidate).all():
        reason = "some of its probabilities are no numbers"
    elif 1000 * lost > 5 * len(truth):
        reason = f"accuracy {100 * lost / len(truth):.1f} points lower (0.5 at most)"
    elif not len(same):
        reason = "nothing to compare: fp32 is sure of no picture"
    elif 100 * int(same.sum()) < 99 * len(same):
        reason = f"{100 * agreement:.1f} % of the sure answers are the same (99 % at least)"
    return {"accuracy": accuracy, "agreement": agreement, "passed": not reason, "reason": reason}


def margins(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """How far each answer is from another, 0 to 1: the best label from the second, or twice the least
    distance of a label from the threshold. (pictures, labels) to (pictures,).
    """
    if threshold is not None:
        return 2 * abs(probabilities - threshold).min(1)
    best = np.sort(probabilities, 1)
    return best[:, -1] - best[:, -2]


def truths(entries: list[dict], labels: list[str]) -> np.ndarray:
    """What training was told: bool (pictures, labels)."""
    return np.array([[label in map(str, entry["labels"]) for label in labels] for entry in entries])


def try_large(inference: ModuleType, spec: dict, run: Callable, entries: list[dict]) -> dict[str, float]:
    """Whether large photographs may be decoded small, and whether the client may send them small."""
    record, steps = spec["precision"], spec["input"]["steps"]

    def answer(body: bytes, draft: bool = False) -> np.ndarray:
        return run([inference.to_pixels(inference.open_picture(body), steps, draft=draft)])[0]

    ways = {
        "large": answer,
        "draft": lambda body: answer(body, True),
        "shrink": lambda body: answer(shrink(body)),
    }
    bodies = (enlarge(inference, entry["file"].read_bytes()) for entry in entries)
    said, ms = ask(ways, bodies, len(entries), "trying large photographs")
    truth = truths(entries, spec["labels"])
    verdicts = {way: gate(said["large"], rows, truth, spec["threshold"]) for way, rows in said.items()}
    record["candidates"]["draft"], record["draft"] = verdicts["draft"], verdicts["draft"]["passed"]
    record["shrink"] = {"side": SHRINK, **verdicts["shrink"]}
    return ms


def untried(error: UntriedError) -> dict:
    """A candidate's entry in model.json, without a trial."""
    return {"passed": False, "reason": f"not tried: {error}"}


def evenly(items: list, count: int) -> list:
    """`count` of the items from all over the list, or all."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
