"""From the graph's output for one picture to the answer in JSON: one function for each task.

To change what an answer contains, edit the function of your task.
"""

import base64
import io
import zlib

import numpy as np
from PIL import Image

from pixels import Place

UNSEEN = 255  # in a mask: the model does not see this pixel
MAX_CLASSES = 255  # of a mask, numbered from 0


def check_output(task: str, labels: list[str], shape: tuple[int, ...]) -> None:
    """Raise ValueError if the shape of the graph's output for one picture does not fit the task."""
    fits = {
        "single": shape == (len(labels),),
        "multi": shape == (len(labels),),
        "regression": len(shape) == 1,
        "points": len(shape) == 2 and shape[1:] == (2,),
        "segmentation": len(shape) == 2 and 0 < len(labels) <= MAX_CLASSES,
    }
    if task not in fits:
        raise ValueError(f"this code has no answers for the task {task!r}: package the model again")
    if not fits[task] or 0 in shape:
        raise ValueError(
            f"an output of shape {shape} and {len(labels)} labels are not {task}: package it again"
        )


def describe(
    output: np.ndarray, task: str, labels: list[str], threshold: float | None, place: Place, top_k: int
) -> dict:
    """The answer for one picture."""
    if task == "regression":
        return regression(output)
    if task == "points":
        return points(output, place)
    if task == "segmentation":
        return segmentation(output, labels, place)
    return single(output, labels, top_k) if threshold is None else multi(output, labels, threshold, top_k)


def single(output: np.ndarray, labels: list[str], top_k: int) -> dict:
    """The answer from probabilities (labels,), best first."""
    best = np.argsort(-output, kind="stable")
    ranked = [{"class": labels[i], "confidence": round(float(output[i]), 6)} for i in best[:top_k]]
    return {**ranked[0], "predictions": ranked}


def multi(output: np.ndarray, labels: list[str], threshold: float, top_k: int) -> dict:
    """The answer from probabilities (labels,), best first, and all labels above the threshold."""
    best = np.argsort(-output, kind="stable")
    above = [labels[i] for i in best if output[i] > threshold]
    return {**single(output, labels, top_k), "classes": above}


def regression(output: np.ndarray) -> dict:
    """The answer from values (values,)."""
    return {"values": [float(str(value)) for value in output]}  # 1.49, not float32's 1.4900000095367432


def points(output: np.ndarray, place: Place) -> dict:
    """The answer, in pixels of the picture, from points (points, 2): x, y from -1 to 1 across the input."""
    left, top, right, bottom = place.box
    x = left + (output[:, 0].astype(float) + 1) / 2 * (right - left)
    y = top + (output[:, 1].astype(float) + 1) / 2 * (bottom - top)
    return {
        "points": [
            [round(a, 3) + 0.0, round(b, 3) + 0.0] for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]
    }


def segmentation(output: np.ndarray, labels: list[str], place: Place) -> dict:
    """The answer from class numbers (height, width): the share of each class, and the mask as base64 PNG."""
    mask = paint(output, place)
    counts = mask.histogram()[:UNSEEN]
    seen = sum(counts)
    found = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -counts[i])
    width, height = place.size
    return {
        "classes": [{"class": labels[i], "share": round(counts[i] / seen, 6)} for i in found],
        "mask": base64.b64encode(encode_png(mask)).decode(),
        "width": width,
        "height": height,
    }


def mask_png(output: np.ndarray, place: Place) -> bytes:
    """The mask from class numbers (height, width) as a PNG of mode L."""
    return encode_png(paint(output, place))


def paint(output: np.ndarray, place: Place) -> Image.Image:
    """Class numbers (height, width) at the picture's size by nearest neighbour; UNSEEN beyond the input."""
    left, top, right, bottom = place.box
    width, height = place.size
    columns, seen = nearest(width, left, right, output.shape[1])
    wide = np.full((output.shape[0], width), UNSEEN, np.uint8)
    wide[:, seen] = output.astype(np.uint8)[:, columns]
    rows, seen = nearest(height, top, bottom, output.shape[0])
    mask = np.full((height, width), UNSEEN, np.uint8)
    np.take(wide, rows, axis=0, out=mask[seen], mode="clip")
    return Image.fromarray(mask)


def nearest(length: int, start: float, end: float, count: int) -> tuple[np.ndarray, slice]:
    """For each of `length` pixels in a row, which of `count` equal parts of start..end has its centre.

    Returns the parts, and for which of the pixels they are: the others are outside.
    """
    parts = np.floor((np.arange(length) + 0.5 - start) / max(end - start, 1e-9) * count).astype(np.int64)
    first, last = np.searchsorted(parts, (0, count))
    return parts[first:last], slice(first, last)


def encode_png(mask: Image.Image) -> bytes:
    """A mask as PNG; of zlib's strategies run lengths are the fastest, and the smallest for flat areas."""
    out = io.BytesIO()
    mask.save(out, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return out.getvalue()
