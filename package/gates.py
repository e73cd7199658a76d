"""Whether a candidate's answers may replace fp32's: a gate for each task.

`reference` and `candidate` are what fp32 and the candidate answered to the same pictures, (pictures, ...) in
the shape of the graph's output. What counts as the same answer is also what test-local and the smoke test of
a deployment accept (client/cli.py, deploy/lifecycle/smoke_test.py; tests/house/test_copies.py).
"""

import numpy as np

CONFIDENT_MARGIN = 0.2  # from this margin on, an answer of fp32 is one that a candidate has to keep
MAX_ERROR = 0.01  # of a value, as a share of fp32's largest value minus its smallest ...
MIN_ERROR = 1e-3  # ... but at least as a share of the value or of 1, whichever is larger
MAX_SHIFT = 0.01  # of a point, as a share of the longer side of the model's input


def gate(spec: dict, reference: np.ndarray, candidate: np.ndarray, truth: np.ndarray | None) -> dict:
    """Whether the candidate may replace fp32: `passed`, the `reason` if not, and the shares behind them.

    `spec` is model.json's content; `truth` the labels of classifiers, bool (pictures, labels), if known.
    """
    if spec["task"] == "regression":
        same = same_values(reference, candidate)
    elif spec["task"] == "points":
        same = same_points(reference, candidate, spec["input"]["shape"][1:3])
    elif spec["task"] == "segmentation":
        same = (reference == candidate).ravel()
    else:
        return gate_classes(reference, candidate, truth, spec["threshold"])
    reason = ""
    if not np.isfinite(candidate).all():
        reason = "some of its numbers are infinite or none"
    elif 100 * int(same.sum()) < 99 * len(same):
        what = "pixels" if spec["task"] == "segmentation" else "answers"
        reason = f"{100 * same.mean():.1f} % of the {what} are as fp32's (at least 99 %)"
    return {"agreement": float(same.mean()), "passed": not reason, "reason": reason}


def same_values(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Which pictures have the same values: bool (pictures,) for (pictures, values)."""
    spread = reference.max(0) - reference.min(0)
    allowed = np.maximum(MAX_ERROR * spread, MIN_ERROR * np.maximum(1, abs(reference)))
    return (abs(candidate - reference) <= allowed).all(1)


def same_points(reference: np.ndarray, candidate: np.ndarray, size: list[int]) -> np.ndarray:
    """Which points are the same: bool (pictures * points,) for (pictures, points, 2) of -1 to 1.

    `size` is the input's (height, width).
    """
    height, width = size
    distances = np.hypot(*np.moveaxis((candidate - reference) * (width / 2, height / 2), -1, 0))
    return (distances <= MAX_SHIFT * max(size)).ravel()


def gate_classes(
    reference: np.ndarray, candidate: np.ndarray, truth: np.ndarray | None, threshold: float | None
) -> dict:
    """The gate of classifiers, for probabilities (pictures, labels).

    The accuracy, if `truth` is known, may be at most 0.5 points lower, and at least 99 % of the reference's
    answers with a margin of CONFIDENT_MARGIN or more must be the same. With several labels, an answer is the
    whole set of them.
    """
    before, after = decide(reference, threshold), decide(candidate, threshold)
    accuracy, lost = None, 0
    if truth is not None:
        accuracy = float((after == truth).all(1).mean())
        lost = int((before == truth).all(1).sum()) - int((after == truth).all(1).sum())
    same = (before == after).all(1)[margins(reference, threshold) >= CONFIDENT_MARGIN]
    agreement = float(same.mean()) if len(same) else None
    reason = ""
    if not np.isfinite(candidate).all():
        reason = "some of its probabilities are not numbers"
    elif 1000 * lost > 5 * len(before):  # counted in integers, as is the agreement: floats would round
        reason = f"accuracy {100 * lost / len(before):.1f} points lower (at most 0.5)"
    elif agreement is None:
        reason = "nothing to compare: no picture has a clear fp32 answer"
    elif 100 * int(same.sum()) < 99 * len(same):
        reason = f"{100 * agreement:.1f} % of the clear fp32 answers are kept (at least 99 %)"
    return {"accuracy": accuracy, "agreement": agreement, "passed": not reason, "reason": reason}


def decide(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """The answers for probabilities (..., labels) as bool: the best label, or all above the threshold."""
    if threshold is None:
        return np.eye(probabilities.shape[-1], dtype=bool)[probabilities.argmax(-1)]
    return probabilities > threshold


def margins(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """How far each answer is from another one, 0 to 1; (pictures, labels) to (pictures,).

    With one label, the best probability minus the second, 1 if there is no second; with several, twice the
    smallest distance of a probability from the threshold. `margin` in train/handover.py is the same.
    """
    if threshold is not None:
        return 2 * abs(probabilities - threshold).min(1)
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities))
    best = np.sort(probabilities, 1)
    return best[:, -1] - best[:, -2]
