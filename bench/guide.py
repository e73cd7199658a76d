"""The handlers of fast.ai's guide of 2019, rewritten for fastai 2.8: what its users would deploy today.

Faithful in what costs time: fastai is imported whole, `load_learner` reads export.pkl, and every request goes
through `learn.predict`. In the guide's archive this file is code/inference.py.
"""

import io
import json
import logging
from pathlib import Path

import requests
from fastai.vision.all import Learner, PILImage, load_learner

logger = logging.getLogger(__name__)


def model_fn(model_dir: str | Path) -> Learner:
    """Load the Learner that `learn.export` wrote."""
    logger.info("loading the Learner in %s", model_dir)
    return load_learner(Path(model_dir) / "export.pkl")


def input_fn(body: bytes, content_type: str = "image/jpeg") -> PILImage:
    """Read the picture of a request: its bytes, or those at the address in its JSON."""
    if content_type.startswith("image/"):
        return PILImage.create(io.BytesIO(body))
    if content_type == "application/json":
        response = requests.get(json.loads(body)["url"], timeout=10)
        return PILImage.create(io.BytesIO(response.content))
    raise ValueError(f"unsupported Content-Type {content_type}")


def predict_fn(picture: PILImage, model: Learner) -> dict:
    """The best class and its probability."""
    with model.no_bar():
        label, index, probabilities = model.predict(picture)
    return {"class": str(label), "confidence": float(probabilities[index])}


def output_fn(prediction: dict, accept: str = "application/json") -> tuple[str, str]:
    """The prediction as JSON, and its Content-Type."""
    if accept != "application/json":
        raise ValueError(f"unsupported Accept {accept}")
    return json.dumps(prediction), accept
