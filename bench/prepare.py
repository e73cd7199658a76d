"""What serving.py compares: one trained model packaged three ways, two photographs, TorchServe's toolkit.

Everything is in one folder, build/bench. What takes long is kept there for the next run: the stand-in model,
which is trained where no model is given, and the toolkit. The model is packaged again in each run, by the
scripts of this checkout.
"""

import bisect
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from servers import ROOT, BenchError, progress

# The guide's network on pictures that it learns to tell apart within minutes: a prediction takes as long as a
# better model's, and is confident enough for package to choose the precision by speed. timm's resnet50 is the
# same network as torchvision's, but starts from weights that learn from scratch in far fewer steps.
STAND_IN = {"labels": r"^(.+)_\d+\.jpg$", "arch": "resnet50.tv_in1k", "size": 299, "bs": 8, "frozen": 0}
STAND_IN |= {"unfrozen": 2, "lr": 0.001, "weights": "none", "workers": 0}
TINTS = {"red": (110, -55, -55), "green": (-55, 110, -55), "blue": (-55, -55, 110), "grey": (0, 0, 0)}
PICTURES = 40  # of each
TOOLKIT = Path(__file__).with_name("torchserve.txt")
PHOTO = (500, 375)
PHOTO_BYTES = 100_000
LARGE = (4000, 3000)
LARGE_BYTES = 4_000_000  # TorchServe takes 6.5 MB


def train_stand_in(out: Path) -> Path:
    """The stand-in model's training folder; trains it if it is not there. Raises BenchError."""
    folder, pictures = out / "train", out / "pictures"
    if not (folder / "metrics.json").is_file():
        progress("training a stand-in for the guide's model, once: some minutes")
        pictures.mkdir(exist_ok=True)
        for number in range(PICTURES * len(TINTS)):
            name, tint = list(TINTS.items())[number % len(TINTS)]
            noise_photo(320, 240, number, tint).save(pictures / f"{name}_{number}.jpg")
        run_script("train/train.py", **STAND_IN, data=pictures, out=folder)
    return folder


def check_training_folder(folder: Path) -> Path:
    """The folder's absolute path, if train/train.py wrote it and its model is the guide's kind.

    Raises BenchError.
    """
    try:
        task = json.loads((folder / "metrics.json").read_bytes()).get("task", "single")
        (folder / "export.pkl").stat()
    except (OSError, ValueError, AttributeError):
        text = f"{folder} is not a folder that train/train.py wrote: name one with --train"
        raise BenchError(text, 2) from None
    if task != "single":
        text = f"{folder} has a model of the task {task}, which the guide's handlers cannot answer"
        raise BenchError(f"{text}: name a classifier with one label", 2)
    return folder.resolve()


def package(folder: Path, precision: str, out: Path) -> Path:
    """Write the model folder out/<precision>/model, and model.tar.gz beside it. Raises BenchError."""
    progress(f"packaging the model, --precision {precision}")
    model = out / precision / "model"
    run_script("package/export.py", train=folder, out=model, precision=precision)
    run_script("package/archive.py", model=model, out=out / precision / "model.tar.gz")
    return model


def package_guide(folder: Path, out: Path) -> Path:
    """Write the guide's model folder, export.pkl and its handlers, and the archive beside it."""
    model = out / "guide" / "model"
    (model / "code").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "export.pkl", model / "export.pkl")
    shutil.copyfile(Path(__file__).with_name("guide.py"), model / "code" / "inference.py")
    with tarfile.open(out / "guide" / "model.tar.gz", "w:gz", compresslevel=6) as tar:
        for name in ("export.pkl", "code/inference.py"):
            tar.add(model / name, name)
    return model


def run_script(script: str, **options: object) -> None:
    """Run one of the project's scripts by its command line; its output goes to stderr. Raises BenchError."""
    flags = [f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode:
        raise BenchError(f"{script} exited with {done.returncode}: see above", done.returncode)


def install_toolkit(out: Path) -> Path:
    """Install TorchServe and SageMaker's toolkit into a folder of their own. Raises BenchError."""
    folder = out / "toolkit"
    installed = folder / TOOLKIT.name  # the list that it was installed from
    if installed.is_file() and installed.read_bytes() == TOOLKIT.read_bytes():
        return folder
    progress("installing TorchServe and SageMaker's toolkit")
    with tempfile.TemporaryDirectory(prefix=".toolkit-", dir=out) as temp:
        new = Path(temp) / "new"
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--no-deps"]
        command += ["--require-hashes", "--compile-bytecode", "--quiet", "--target", str(new)]
        command += ["-r", str(TOOLKIT)]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            advice = "check the network, or leave torchserve out of --stacks"
            raise BenchError(f"TorchServe could not be installed: {advice}")
        shutil.copyfile(TOOLKIT, new / TOOLKIT.name)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder


def toolkit_packages() -> list[str]:
    """The packages in the toolkit's folder, as name==version."""
    return [line.split()[0] for line in TOOLKIT.read_text().splitlines() if re.match(r"[a-z-]+==", line)]


def write_photos(given: Path | None, out: Path) -> tuple[Path, Path, str, str]:
    """Write a photograph of about 100 KB and one as large as a phone's: two files, and their descriptions.

    Raises BenchError if `given` is not a readable JPEG.
    """
    photo, large = out / "photo.jpg", out / "large.jpg"
    try:
        body = given.read_bytes() if given else encode(noise_photo(*PHOTO), PHOTO_BYTES)
        image = Image.open(io.BytesIO(body), formats=["JPEG"])
    except OSError as error:
        raise BenchError(f"{given} is not a readable JPEG ({error}): name another with --photo", 2) from None
    photo.write_bytes(body)
    with image:
        name = given.name if given else "generated"
        description = f"{name}, {image.width} x {image.height}, {len(body):,} bytes"
        enlarged = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS), np.float32)
    # Enlarging leaves no detail, so that the file would be far smaller than a phone's: add a sensor's noise.
    grain = np.random.default_rng(1).normal(0, 4, enlarged.shape[:2]).astype(np.float32)[..., None]
    body = encode(Image.fromarray((enlarged + grain).clip(0, 255).astype(np.uint8)), LARGE_BYTES)
    large.write_bytes(body)
    enlargement = f"the same enlarged, with grain, {LARGE[0]} x {LARGE[1]}, {len(body):,} bytes"
    return photo, large, description, enlargement


def noise_photo(width: int, height: int, seed: int = 0, tint: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """Noise with the spectrum of photographs (amplitudes fall with the frequency): it decodes like one."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    spectra = np.fft.rfft2(rng.normal(size=(4, height, width))) / frequency**1.2
    planes = np.fft.irfft2(spectra, (height, width))
    grey, *colours = planes / planes.std((1, 2), keepdims=True)
    pixels = [118 + 50 * grey + 15 * colour + shift for colour, shift in zip(colours, tint, strict=True)]
    return Image.fromarray(np.stack(pixels, 2).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, max_bytes: int) -> bytes:
    """A JPEG at the highest quality, of 41 to 98, that stays within `max_bytes`."""

    def jpeg(quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return file.getvalue()

    qualities = range(41, 99)
    above = bisect.bisect_right(qualities, max_bytes, lo=1, key=lambda quality: len(jpeg(quality)))
    return jpeg(qualities[above - 1])
