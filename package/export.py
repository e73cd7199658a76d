"""Learner -> ONNX: `python package/export.py --train build/pets/train --out build/pets/model`.

Reads train's export.pkl (the only place that does, in the environment that wrote it) and writes the folder
that becomes model.tar.gz: the graph from uint8 pixels to probabilities, model.json with all that serving
needs to know, and the serving code. Then that folder's own handlers answer the validation pictures, and
unless they agree with `learn.predict` on every one, nothing is written. What is quicker than fp32 is used
only if it keeps the answers (precision.py).
"""

import argparse
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

from graphs import digests
from parity import DifferentError, brief, check_parity
from precision import CANDIDATES, choose
from verdicts import show

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import nn

SERVE = Path(__file__).resolve().parents[1] / "serve"


class ExportError(Exception):
    """A Learner that cannot be packaged, or not here; the message says what to do."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    add = parser.add_argument
    add("--train", type=Path, required=True, help="folder that train/train.py wrote")
    add("--out", type=Path, required=True, help="folder to write: model.tar.gz, unpacked")
    add("--code", type=Path, default=SERVE, help="folder with the serving code (serve/)")
    levels = (
        "exact: fp32; auto: bf16, if it keeps the answers; fast: int8 and quicker decoding too, if they do"
    )
    add("--precision", choices=CANDIDATES, default="auto", help=f"{levels} (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="what is to serve (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Package one trained Learner."""
    args = arguments(argv)
    try:
        spec, ms = export(args.train, args.out, args.code, args.precision, args.device)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DifferentError as error:
        print(
            f"error: {error}; nothing was written: compare how the Learner opens and changes pictures with "
            f"{args.code / 'pixels.py'}",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"error: {args.out} was not written: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} is as it was", file=sys.stderr)
        return 130
    show(spec, ms)
    parity = spec["parity"]
    print(
        f"{args.out}: {len(spec['labels'])} labels; the handlers answer {parity['pictures']} validation "
        f"pictures as learn.predict does (largest difference {parity['max_difference']:.1e})"
    )
    return 0


def export(train: Path, out: Path, code: Path, precision: str, device: str) -> tuple[dict, dict[str, float]]:
    """Write the model folder `out` from train's folder; returns model.json's content, and times (`choose`).

    Raises ExportError (wrong or missing files, other versions, an unknown transform) or DifferentError.
    """
    facts, pictures = read_facts(train)
    check_versions(facts.get("versions", {}))
    learn = load(train / "export.pkl")
    with folder_beside(out) as folder:
        spec = describe(learn, facts)
        write_graph(build_graph(learn, spec), spec, folder / "model.onnx")
        copy_code(code, folder, device)
        spec |= {"sha256": digests(folder), "precision": {"use": ["fp32"], "draft": False}}
        write_json(folder / "model.json", spec)
        spec["parity"] = check_parity(learn, folder, pictures)
        ms = choose(train, folder, spec, precision, device)
        write_json(folder / "model.json", spec)
    return spec, ms


def read_facts(train: Path) -> tuple[dict, list[Path]]:
    """What train says of export.pkl (metrics.json), and the validation pictures that it set aside."""
    for name in ("metrics.json", "validation.json", "export.pkl"):
        if not (train / name).is_file():
            raise ExportError(f"{train / name} is missing: run `invoke train` first")
    try:
        facts, entries = (
            json.loads((train / f"{name}.json").read_bytes()) for name in ("metrics", "validation")
        )
        pictures = [train / entry["file"] for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{train} holds JSON that train did not write: run `invoke train` again") from None
    missing = [str(picture) for picture in pictures if not picture.is_file()]
    if missing or not pictures:
        lack = missing[0] if missing else "every validation picture"
        raise ExportError(f"{train} lacks {lack}: run `invoke train` again")
    return facts, pictures


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
    """The exported Learner, on the CPU and quiet. Raises ExportError when it cannot be loaded here."""
    import torch
    from fastai.learner import load_learner

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "load_learner")  # our own file, of known versions
            learn = load_learner(pkl, cpu=True)
    except UnboundLocalError:  # load_learner forgets which import failed (fastai issue 4115)
        try:
            torch.load(pkl, map_location="cpu", weights_only=False)
        except ImportError as error:
            text = f"{pkl} needs the module {error.name}, which is not here: put its folder on PYTHONPATH"
            raise ExportError(text) from None
    except Exception as error:  # a broken pickle raises anything
        raise ExportError(f"{pkl} cannot be loaded: {brief(error)}; run `invoke train` again") from None
    torch.set_num_threads(1)  # one small picture at a time gains nothing from more
    learn.model.eval()
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])
    return learn


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `out` only when all went well."""
    out = out.resolve()
    if out.exists() and not (out / "model.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ExportError(f"{out} holds something else than a model: name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
        folder = Path(temp) / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(Path(temp) / "old")
        folder.rename(out)


def describe(learn: "Learner", facts: dict) -> dict:
    """model.json, but for what is known only once the graph is written."""
    from pipeline import UnknownTransformError, item_steps

    labels = getattr(learn.dls, "vocab", None)
    if not labels:
        raise ExportError("the Learner has no labels: only picture classifiers can be packaged")
    task, threshold = find_task(learn.loss_func)
    try:
        steps = item_steps(learn.dls.valid.after_item)
    except UnknownTransformError as error:
        raise ExportError(str(error)) from None
    return {
        "labels": [str(label) for label in labels],
        "task": task,
        "threshold": threshold,
        "input": {"shape": ["batch", *steps[-1]["size"], 3], "dtype": "uint8", "mode": "RGB", "steps": steps},
        "metrics": {key: facts[key] for key in ("error_rate", "accuracy", "valid_loss") if key in facts},
        "versions": facts["versions"],
    }


def find_task(loss: object) -> tuple[str, float | None]:
    """("single", None) or ("multi", threshold), as the loss turns scores into answers; else ExportError."""
    import torch
    from fastai.losses import BCEWithLogitsLossFlat

    if isinstance(loss, BCEWithLogitsLossFlat):
        return "multi", float(loss.thresh)
    scores = torch.tensor([[0.0, 1.0, 0.0]])
    if hasattr(loss, "activation") and loss.decodes(scores).tolist() == [1]:
        return "single", None
    raise ExportError(
        f"the loss {type(loss).__name__} does not say which label wins: train with one of fastai's "
        "for classes, such as CrossEntropyLossFlat or BCEWithLogitsLossFlat"
    )


def build_graph(learn: "Learner", spec: dict) -> "nn.Module":
    """The module from pixels to probabilities, tried once. Raises ExportError if it is none."""
    import torch

    from pipeline import Graph, UnknownTransformError

    height, width = spec["input"]["shape"][1:3]
    try:
        graph = Graph(learn, (height, width)).eval()
        with torch.no_grad():
            shape = tuple(graph(torch.zeros((2, height, width, 3), dtype=torch.uint8)).shape)
    except UnknownTransformError as error:
        raise ExportError(str(error)) from None
    except Exception as error:  # a model raises whatever it likes
        text = f"the model does not take RGB pictures of {width} x {height} pixels: {brief(error)}"
        raise ExportError(text) from None
    if shape != (2, len(spec["labels"])):
        raise ExportError(
            f"the model answers two pictures with {shape} numbers, not with one for each of "
            f"{len(spec['labels'])} labels: only picture classifiers can be packaged"
        )
    return graph


def write_graph(graph: "nn.Module", spec: dict, path: Path) -> None:
    """The ONNX file, free of this machine's paths. Raises ExportError if torch cannot write the model."""
    import onnx
    import torch

    example = torch.zeros((2, *spec["input"]["shape"][1:]), dtype=torch.uint8)
    names = {"input_names": ["pictures"], "output_names": ["probabilities"]}
    shapes = ({0: torch.export.Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision operators not used here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # nor are the exporter's own deprecations the user's
            program = torch.onnx.export(graph, (example,), **names, dynamic_shapes=shapes, verbose=False)
    except Exception as error:
        cause = brief(error.__cause__ or error)
        raise ExportError(f"torch cannot write the model as ONNX: {cause}") from None
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            "the model fixes how many pictures it takes at once: make it use x.shape[0] instead"
        )
    for node in model.graph.node:  # the exporter notes the paths of this machine's source files
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, path)


def copy_code(code: Path, folder: Path, device: str) -> None:
    """The serving code and Ray's config.yaml, where the container looks for them."""
    (folder / "code").mkdir()
    for file in sorted(code.glob("*.py")):
        shutil.copyfile(file, folder / "code" / file.name)
    needs = ["requirements.txt"] + ["requirements-cuda.txt"] * (device == "cuda")
    (folder / "code" / "requirements.txt").write_text("".join((code / name).read_text() for name in needs))
    shutil.copyfile(code / "config.yaml", folder / "config.yaml")


def write_json(path: Path, content: dict) -> None:
    """Indented, with a final newline, as people and diffs like it."""
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
