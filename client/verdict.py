"""Compare an endpoint's answers with training's predictions in validation.json: cli.py's --expect."""

import math
from pathlib import Path, PurePath
from typing import Any

from predictor import read_mask

MIN_AGREEMENT = 0.99  # of the answers (of a classifier's: those where training was sure), or of all pixels
MAX_SHIFT = 0.01  # of a point, as a share of the picture's longer side
MAX_ERROR = 0.01  # of a value, as a share of its largest prediction minus its smallest ...
MIN_ERROR = 1e-3  # ... but at least as a share of the value or of 1, whichever is larger

KINDS = {"class": "classes", "values": "values", "points": "points", "mask": "a mask"}  # by an answer's key
DIFFERENCES = {
    "class": "in confidence {:.1e}",
    "values": "in a value {:.1e}",
    "points": "{:.1f} pixels",
    "mask": "{:.2%} of a picture's pixels",
}


def kind_of(answer: dict) -> str:
    """The key of KINDS for an answer that `predictor.predict` returned."""
    return next(kind for kind in KINDS if kind in answer)


def tolerances(predicted: list[list[float]]) -> list[list[float]]:
    """How far each value of each picture may be from the one that was predicted.

    Raises ValueError if the pictures have different numbers of values.
    """
    spreads = [max(column) - min(column) for column in zip(*predicted, strict=True)]
    return [
        [
            max(MAX_ERROR * spread, MIN_ERROR * max(1, abs(value)))
            for value, spread in zip(values, spreads, strict=True)
        ]
        for values in predicted
    ]


def judge(rows: list[dict], expected: dict[str, dict], source: Path) -> dict:
    """Compare the answers with training's; adds `training` to the rows that it has, by file name.

    MIN_AGREEMENT must agree, and no answer may be missing. Of a classifier's, only those count where training
    was sure (all, if it never was); of masks, the pixels of all pictures together. Raises ValueError if no
    picture is in `expected`, an answer is of another kind, or a file with a mask cannot be read.
    """
    by_name = {PurePath(file).name: entry for file, entry in expected.items()}
    compared = [row for row in rows if PurePath(row["file"]).name in by_name]
    if not compared:
        raise ValueError(f"none of these pictures is in {source}")
    for row in compared:
        row["training"] = compare(row, by_name[PurePath(row["file"]).name])
    results = [row["training"] for row in compared]
    answered = [row["training"] for row in compared if "error" not in row]
    sure = [result for result in answered if result.get("sure", True)] or answered
    agree = sum(result["agrees"] for result in answered)
    labelled = [result["right"] for result in results if result["right"] is not None]
    verdict = {
        "passed": enough(sure) and len(answered) == len(compared),
        "compared": len(compared),
        "sure": len(sure),
        "agree": agree,
        "near_ties": len(answered) - agree - sum(not result["agrees"] for result in sure),
        "labelled": len(labelled),
        "right": sum(labelled) if labelled else None,
        "largest_difference": max((result["difference"] for result in answered), default=0),
    }
    return verdict | {"sentence": sentence(verdict, results[0]["kind"])}


def enough(results: list[dict]) -> bool:
    """Whether MIN_AGREEMENT of the answers agree, or of the pixels of all masks."""
    agree = sum(result.get("same", result["agrees"]) for result in results)
    return agree >= MIN_AGREEMENT * sum(result.get("pixels", 1) for result in results)


def sentence(verdict: dict, kind: str) -> str:
    """The verdict as a sentence; of labels only where there are some."""
    ties, right, labelled = (verdict[key] for key in ("near_ties", "right", "labelled"))
    others = f"; {ties} other{'s were near ties' if ties > 1 else ' was a near tie'}" if ties else ""
    match = f"; {right} of {labelled} ({100 * right / labelled:.0f} %) match the label" if labelled else ""
    return (
        f"{'passed' if verdict['passed'] else 'failed'}: {verdict['agree']} of {verdict['compared']} answers "
        f"agree with training{others}; largest difference "
        f"{DIFFERENCES[kind].format(verdict['largest_difference']).replace('%', ' %')}{match}"
    )


def compare(row: dict, entry: dict) -> dict:
    """Training's prediction for this picture, and how the answer differs; raises ValueError as `judge` does.

    `agrees`; `right`, whether it is the picture's label (None if that is unknown, or no class); `difference`
    as in DIFFERENCES. Of masks also `pixels` and how many are the `same`.
    """
    kind = entry["kind"]
    right = False if kind == "class" and entry["labels"] is not None else None
    if "error" in row:
        return {**entry, "agrees": False, "right": right}
    if kind_of(row) != kind:
        kinds = f"the endpoint answers with {KINDS[kind_of(row)]}, but training predicted {KINDS[kind]}"
        raise ValueError(f"{kinds}: name the validation.json of this endpoint's model")
    compare_kind = {"values": compare_values, "points": compare_points, "mask": compare_masks}
    found = compare_classes(row, entry) if kind == "class" else compare_kind[kind](row, entry)
    return {**entry, "right": right, **found}


def compare_classes(row: dict, entry: dict) -> dict[str, Any]:
    """Whether the same classes are in the answer, and the difference of confidences."""
    classes = set(row.get("classes", [row["class"]]))
    return {
        "agrees": classes == set(entry["predicted"]),
        "right": None if entry["labels"] is None else classes == set(entry["labels"]),
        "difference": round(abs(row["confidence"] - entry["confidence"]), 6),
    }


def compare_values(row: dict, entry: dict) -> dict[str, Any]:
    """Whether each value is within the entry's tolerance, and the largest difference."""
    check_length(row["values"], entry["predicted"], "values")
    differences = [abs(a - b) for a, b in zip(row["values"], entry["predicted"], strict=True)]
    agrees = all(d <= most for d, most in zip(differences, entry["tolerance"], strict=True))
    return {"agrees": agrees, "difference": max(differences)}


def compare_points(row: dict, entry: dict) -> dict[str, Any]:
    """Whether each point is near enough, and the largest distance in pixels."""
    check_length(row["points"], entry["predicted"], "points")
    pairs = zip(row["points"], entry["predicted"], strict=True)
    shift = round(max(math.dist(*pair) for pair in pairs), 3)
    return {"agrees": shift <= MAX_SHIFT * max(entry["size"]), "difference": shift}


def check_length(answer: list, predicted: list, name: str) -> None:
    """Raise ValueError if an answer has another number of values or points."""
    if len(answer) != len(predicted):
        text = f"the endpoint answers with {len(answer)} {name}, but training predicted {len(predicted)}"
        raise ValueError(f"{text}: name the validation.json of this endpoint's model")


def compare_masks(row: dict, entry: dict) -> dict[str, Any]:
    """How many pixels are the same as in the mask that training wrote; none if it has another size."""
    from PIL import Image, ImageChops

    mask = read_mask(row)
    try:
        with Image.open(entry["mask"], formats=("PNG",)) as expected:
            expected.load()
    except OSError as error:
        raise ValueError(f"cannot read the mask {entry['mask']}: {error}") from error
    pixels = expected.width * expected.height
    alike = (mask.mode, mask.size) == (expected.mode, expected.size)
    same = ImageChops.difference(mask, expected).histogram()[0] if alike else 0
    agrees = same >= MIN_AGREEMENT * pixels
    return {"agrees": agrees, "difference": round(1 - same / pixels, 6), "same": same, "pixels": pixels}
