"""Learner -> ONNX: `python package/export.py --train build/pets/train --out build/pets/model`.

Reads train's export.pkl (the only place that does, in the environment that wrote it) and writes the folder
that becomes model.tar.gz: the graph from uint8 pixels to probabilities, model.json with all that serving
needs to know, and the serving code. Then that folder's own handlers answer the validation pictures, and
unless they agree with `learn.predict` on every one, nothing is written.
"""

import argparse
import hashlib
import importlib
import json
import logging
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from fastai.learner import Learner

SERVE = Path(__file__).resolve().parents[1] / "serve"
TOLERANCE = 1e-3  # largest difference of any probability between learn.predict and the handlers
PARITY_PICTURES = 64


class ExportError(Exception):
    """Something that the user can mend; `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Package one trained Learner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--train", type=Path, required=True, help="folder that train/train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write: model.tar.gz, unpacked")
    parser.add_argument("--code", type=Path, default=SERVE, help="folder with the serving code (serve/)")
    args = parser.parse_args(argv)
    try:
        spec = export(args.train, args.out, args.code)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    parity = spec["parity"]
    print(
        f"{args.out}: {len(spec['labels'])} labels; the handlers answer {parity['pictures']} validation "
        f"pictures as learn.predict does (largest difference {parity['max_difference']:.1e})"
    )
    return 0


def export(train: Path, out: Path, code: Path) -> dict:
    """Write the model folder `out` from train's folder; returns model.json's content.

    Raises ExportError: wrong or missing files, other versions, an unknown transform, or answers that differ.
    """
    facts = read_facts(train)
    check_versions(facts["versions"])
    learn = load(train / "export.pkl")
    with folder_beside(out) as folder:
        spec = describe(learn, facts)
        write_graph(learn, tuple(spec["input"]["shape"][1:3]), folder / "model.onnx")
        spec["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        copy_code(code, folder)
        write_json(folder / "model.json", spec)
        spec["parity"] = check_parity(learn, folder, validation_pictures(train))
        write_json(folder / "model.json", spec)
    return spec


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `out` only when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
        folder = Path(temp) / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(Path(temp) / "old")
        folder.rename(out)


def read_facts(train: Path) -> dict:
    """metrics.json, which says among others what wrote export.pkl."""
    for name in ("metrics.json", "export.pkl"):
        if not (train / name).is_file():
            raise ExportError(f"{train / name} is missing: run `invoke train` first")
    return json.loads((train / "metrics.json").read_text())


def check_versions(written: dict[str, str]) -> None:
    """Refuse a pickle from elsewhere: code pickled by another Python can crash this one without a word."""
    import fastai
    import torch

    here = {"python": platform.python_version(), "fastai": fastai.__version__, "torch": torch.__version__}
    minor = {
        name: (written.get(name, "?").split(".")[:2], version.split(".")[:2])
        for name, version in here.items()
    }
    wrong = [name for name, (theirs, ours) in minor.items() if theirs != ours]
    if wrong:
        then = ", ".join(f"{name} {written.get(name, 'of unknown version')}" for name in wrong)
        now = ", ".join(f"{name} {here[name]}" for name in wrong)
        raise ExportError(
            f"export.pkl was written with {then}, and here is {now}: run `invoke train` here, "
            "or `invoke package` in the environment that trained"
        )


def load(pkl: Path) -> "Learner":
    """The exported Learner, on the CPU and quiet."""
    from fastai.learner import load_learner

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load_learner")  # our own file, of known versions
        learn = load_learner(pkl, cpu=True)
    learn.model.eval()
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])
    return learn


def describe(learn: "Learner", facts: dict) -> dict:
    """model.json, but for what is known only once the graph is written."""
    from fastai.losses import BCEWithLogitsLossFlat

    from pipeline import UnknownTransformError, item_steps

    labels = getattr(learn.dls, "vocab", None)
    if not labels or not hasattr(learn.loss_func, "activation"):
        raise ExportError(
            "the Learner is no picture classifier: it has no labels, or a loss without activation"
        )
    multi = isinstance(learn.loss_func, BCEWithLogitsLossFlat)
    try:
        steps = item_steps(learn.dls.after_item)
    except UnknownTransformError as error:
        raise ExportError(str(error)) from None
    return {
        "labels": [str(label) for label in labels],
        "task": "multi" if multi else "single",
        "threshold": float(learn.loss_func.thresh) if multi else None,
        "input": {"shape": ["batch", *steps[-1]["size"], 3], "dtype": "uint8", "mode": "RGB", "steps": steps},
        "metrics": {key: facts[key] for key in ("error_rate", "accuracy", "valid_loss") if key in facts},
        "versions": facts["versions"],
    }


def write_graph(learn: "Learner", size: tuple[int, int], path: Path) -> None:
    """The ONNX file; `size` is the (height, width) of the pictures that serving hands in."""
    import onnx
    import torch

    from pipeline import Graph, UnknownTransformError

    try:
        graph = Graph(learn, size).eval()
    except UnknownTransformError as error:
        raise ExportError(str(error)) from None
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    names = {"input_names": ["pictures"], "output_names": ["probabilities"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision operators not used here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # nor are the exporter's own deprecations the user's
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(graph, (example,), **names, dynamic_shapes=shapes, verbose=False)
    model = program.model_proto
    for node in model.graph.node:  # the exporter notes the paths of this machine's source files
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, path)


def copy_code(code: Path, folder: Path) -> None:
    """The serving code and Ray's config.yaml, where the container looks for them."""
    (folder / "code").mkdir()
    for file in [*sorted(code.glob("*.py")), code / "requirements.txt"]:
        shutil.copyfile(file, folder / "code" / file.name)
    shutil.copyfile(code / "config.yaml", folder / "config.yaml")


def validation_pictures(train: Path) -> list[Path]:
    """The pictures that train set aside."""
    pictures = [train / entry["file"] for entry in json.loads((train / "validation.json").read_text())]
    if not pictures:
        raise ExportError(f"{train / 'validation.json'} names no picture: run `invoke train` again")
    return pictures


def check_parity(learn: "Learner", folder: Path, pictures: list[Path]) -> dict:
    """Compare the packaged handlers with learn.predict on `pictures`; ExportError names the worst of them."""
    from rich.progress import track

    sys.path.insert(0, str(folder / "code"))
    handlers = importlib.import_module("inference")
    model = handlers.model_fn(folder)
    worst, worst_of = -1.0, None
    for picture in track(pictures, "comparing with learn.predict"):
        expected = learn.predict(picture)[2].numpy()
        try:
            actual = handlers.predict_fn(handlers.input_fn(picture.read_bytes()), model).probabilities[0]
        except handlers.RequestError as error:
            text = f"learn.predict answers {picture}, but the handlers do not: {error}; nothing was written"
            raise ExportError(text, 1) from None
        difference = float(abs(expected - actual).max())
        if decide(expected, model) != decide(actual, model):
            difference += 1  # another answer is worse than any difference in confidence
        if difference > worst:
            worst, worst_of = difference, (picture, expected, actual)
    if worst > TOLERANCE:
        picture, expected, actual = worst_of
        texts = [f"{model.labels[p.argmax()]} {p.max():.4f}" for p in (expected, actual)]
        raise ExportError(
            f"{picture} is {texts[0]} for learn.predict but {texts[1]} for the handlers: nothing was written",
            1,
        )
    return {"pictures": len(pictures), "max_difference": worst, "tolerance": TOLERANCE}


def decide(probabilities: "np.ndarray", model: object) -> tuple[int, ...]:
    """The answer that probabilities stand for: the top class, and with a threshold all classes above it."""
    if model.threshold is None:
        return (int(probabilities.argmax()),)
    return (int(probabilities.argmax()), *(probabilities > model.threshold).nonzero()[0].tolist())


def write_json(path: Path, content: dict) -> None:
    """Indented, with a final newline, as people and diffs like it."""
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
