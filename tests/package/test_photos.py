"""Real photographs, unchanged and at 12 megapixels: both servers answer as the Learner does."""

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image, ImageOps

from support import run, serving

pytestmark = pytest.mark.xdist_group("ray")  # one worker, alone with Ray: the fixtures take a minute

TWELVE_MEGAPIXELS = 4000, 3000
LARGE = 12  # of the photographs: enlarging them all would take minutes


@pytest.fixture(scope="module")
def exact(project, tmp_path_factory) -> Path:
    """The project, packaged with `--precision exact`."""
    folder = tmp_path_factory.mktemp("exact")
    shutil.copytree(project / "train", folder / "train")
    run("package/export.py", "--train", folder / "train", "--out", folder / "model", "--precision", "exact")
    return folder


@pytest.fixture(scope="module")
def photos(pets, tmp_path_factory) -> list[Path]:
    """The photographs, and some of them enlarged to 12 megapixels, with a sensor's noise."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).normal(0, 6, (*TWELVE_MEGAPIXELS[::-1], 3)).astype(np.int16)
    large = []
    for path in pets[:: len(pets) // LARGE]:
        with Image.open(path) as picture:
            enlarged = ImageOps.fit(picture.convert("RGB"), TWELVE_MEGAPIXELS, Image.Resampling.LANCZOS)
        grainy = (np.asarray(enlarged) + noise).clip(0, 255).astype(np.uint8)
        large.append(folder / f"{path.stem}.jpg")
        Image.fromarray(grainy).save(large[-1], quality=92)
    return [*pets, *large]


@pytest.fixture(scope="module")
def expected(exact, photos) -> np.ndarray:
    """The probabilities of `learn.predict` for each of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from learner import read_learner

        learn = read_learner(exact / "train" / "export.pkl")
        return np.stack([learn.predict(photo)[2].numpy() for photo in photos])


@pytest.mark.parametrize("stack", ["plain", "ray"])
def test_an_exact_package_answers_as_the_learner(exact, photos, expected, stack):
    with serving(exact, stack) as endpoint, requests.Session() as session:
        session.headers.update({"Content-Type": "image/jpeg", "Accept": "application/x-npy"})
        replies = [
            session.post(f"{endpoint.url}/invocations", photo.read_bytes(), timeout=60) for photo in photos
        ]
    answers = np.concatenate([np.load(io.BytesIO(reply.content)) for reply in replies])
    assert len(answers) >= 120 + LARGE
    assert abs(answers - expected).max() < 1e-3
