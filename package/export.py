"""Export a Learner as ONNX: `python package/export.py --train build/pets/train --out build/pets/model`.

Reads train's export.pkl (the only script that does, in the environment that wrote it) and writes the folder
that becomes model.tar.gz: the graph from uint8 pixels to probabilities, model.json with all that serving
needs, and the serving code. Then the handlers in that folder answer the validation pictures that train copied
(up to 64); nothing is written unless they agree with `learn.predict` on every one. Faster arithmetic than
fp32 is used only if accuracy is kept (precision.py).
"""

import argparse
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
from typing import TYPE_CHECKING, Any, NoReturn

from parity import DifferentError, brief, check_parity, handlers
from precision import CANDIDATES, choose
from precision_report import show
from quantize import digests

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import nn

SERVE = Path(__file__).resolve().parents[1] / "serve"


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


class ExportError(Exception):
    """A Learner that cannot be packaged, or not on this machine; the message says what to do."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description="Export a Learner as ONNX and check its answers.")
    add = parser.add_argument
    add("--train", type=Path, required=True, help="folder that train/train.py wrote")
    add("--out", type=Path, required=True, help="folder to write: model.tar.gz, unpacked")
    add("--code", type=Path, default=SERVE, help="folder with the serving code (serve/)")
    levels = "exact: fp32; auto: bf16, if accuracy is kept; fast: also int8 and decoding at reduced size"
    add("--precision", choices=CANDIDATES, default="auto", help=f"{levels} (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="what will serve (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = arguments(argv)
    try:
        spec, ms = export(args.train, args.out, args.code, args.precision, args.device)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DifferentError as error:
        print(
            f"error: {error}; nothing was written: compare how the Learner opens and transforms pictures "
            f"with {args.code / 'pixels.py'}",
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
        f"{args.out}: {len(spec['labels'])} labels; the handlers answer as learn.predict does on "
        f"{parity['pictures']} validation pictures (largest difference {parity['max_difference']:.1e})"
    )
    return 0


def export(train: Path, out: Path, code: Path, precision: str, device: str) -> tuple[dict, dict[str, float]]:
    """Write the model folder `out` from train's folder; return model.json's content and `choose`'s times.

    Raises ExportError (wrong or missing files, other versions, an unknown transform) or DifferentError.
    """
    metrics, pictures = read_training(train)
    check_versions(metrics.get("versions", {}))
    learn = load(train / "export.pkl")
    with atomic_folder(out) as folder:
        copy_code(code, folder, device)
        check_environment(folder)
        spec = describe(learn, metrics)
        write_graph(build_graph(learn, spec), spec, folder / "model.onnx")
        spec |= {"sha256": digests(folder), "precision": {"use": ["fp32"], "draft": False}}
        write_json(folder / "model.json", spec)
        spec["parity"] = check_parity(learn, folder, pictures)
        ms = choose(train, folder, spec, precision, device)
        write_json(folder / "model.json", spec)
    return spec, ms


def read_training(train: Path) -> tuple[dict, list[Path]]:
    """The content of metrics.json, and the validation pictures that train copied. Raises ExportError."""
    for name in ("metrics.json", "validation.json", "export.pkl"):
        if not (train / name).is_file():
            raise ExportError(f"{train / name} is missing: run `invoke train` first")
    try:
        metrics, entries = (
            json.loads((train / f"{name}.json").read_bytes()) for name in ("metrics", "validation")
        )
        pictures = [train / entry["file"] for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{train} holds JSON that train did not write: run `invoke train` again") from None
    missing = [str(picture) for picture in pictures if not picture.is_file()]
    if missing or not pictures:
        what = missing[0] if missing else "every validation picture"
        raise ExportError(f"{train} lacks {what}: run `invoke train` again")
    return metrics, pictures


def check_versions(written: dict[str, str]) -> None:
    """Raise ExportError for a pickle of other versions: another Python's pickled code can crash this one."""
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
    """The exported Learner, on the CPU and without output. Raises ExportError if it cannot be loaded here."""
    import torch
    from fastai.learner import load_learner

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "load_learner")  # of untrusted pickles: this is our own file
            learn = load_learner(pkl, cpu=True)
    except UnboundLocalError:  # load_learner loses the ImportError (fastai issue 4115)
        try:
            torch.load(pkl, map_location="cpu", weights_only=False)
        except ImportError as error:
            text = f"{pkl} needs the module {error.name}, which was not found: put its folder on PYTHONPATH"
            raise ExportError(text) from None
    except Exception as error:  # a broken pickle can raise any kind
        raise ExportError(f"{pkl} cannot be loaded: {brief(error)}; run `invoke train` again") from None
    torch.set_num_threads(1)  # more do not help with one small picture at a time
    learn.model.eval()
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])
    return learn


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A new folder that replaces `out` at the end, or is removed if anything fails.

    Raises ExportError if `out` holds something else than a model.
    """
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


def describe(learn: "Learner", metrics: dict) -> dict:
    """The content of model.json, except for what is known only after the graph is written."""
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
        "metrics": {key: metrics[key] for key in ("error_rate", "accuracy", "valid_loss") if key in metrics},
        "versions": metrics["versions"],
    }


def find_task(loss: Any) -> tuple[str, float | None]:
    """("single", None) or ("multi", threshold), by the loss function, which turns scores into answers.

    Raises ExportError for other kinds of loss.
    """
    import torch
    from fastai.losses import BCEWithLogitsLossFlat

    if isinstance(loss, BCEWithLogitsLossFlat):
        return "multi", float(loss.thresh)
    scores = torch.tensor([[0.0, 1.0, 0.0]])
    if hasattr(loss, "activation") and loss.decodes(scores).tolist() == [1]:
        return "single", None
    raise ExportError(
        f"the loss {type(loss).__name__} does not define which label wins: train with one of fastai's "
        "for classes, such as CrossEntropyLossFlat or BCEWithLogitsLossFlat"
    )


def build_graph(learn: "Learner", spec: dict) -> "nn.Module":
    """The torch module from pixels to probabilities, tested on two pictures. Raises ExportError."""
    import torch

    from pipeline import Graph, UnknownTransformError

    height, width = spec["input"]["shape"][1:3]
    try:
        graph = Graph(learn, (height, width)).eval()
        with torch.no_grad():
            shape = tuple(graph(torch.zeros((2, height, width, 3), dtype=torch.uint8)).shape)
    except UnknownTransformError as error:
        raise ExportError(str(error)) from None
    except Exception as error:  # a model can raise any kind
        text = f"the model does not take RGB pictures of {width} x {height} pixels: {brief(error)}"
        raise ExportError(text) from None
    if shape != (2, len(spec["labels"])):
        raise ExportError(
            f"the model's output for two pictures has the shape {shape}, not one number for each of "
            f"{len(spec['labels'])} labels: only picture classifiers can be packaged"
        )
    return graph


def write_graph(graph: "nn.Module", spec: dict, path: Path) -> None:
    """Write the ONNX file, without paths of this machine. Raises ExportError if torch cannot write it."""
    import onnx
    import torch

    example = torch.zeros((2, *spec["input"]["shape"][1:]), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision operators not used here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=["pictures"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        cause = brief(error.__cause__ or error)
        raise ExportError(f"torch cannot write the model as ONNX: {cause}") from None
    assert program is not None  # torch returns None only with dynamo=False
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError("the model has a fixed batch size: make it use x.shape[0] instead")
    for node in model.graph.node:  # the exporter records the paths of this machine's source files
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, path)


def copy_code(code: Path, folder: Path, device: str) -> None:
    """Copy the serving code and Ray's config.yaml to where the container looks for them."""
    (folder / "code").mkdir()
    for file in sorted(code.glob("*.py")):
        shutil.copyfile(file, folder / "code" / file.name)
    names = ["requirements.txt"] + ["requirements-cuda.txt"] * (device == "cuda")
    (folder / "code" / "requirements.txt").write_text("".join((code / name).read_text() for name in names))
    shutil.copyfile(code / "config.yaml", folder / "config.yaml")


def check_environment(folder: Path) -> None:
    """Raise ExportError if the environment has a setting that the packaged engine rejects (SERVE_MODES)."""
    with handlers(folder / "code"):
        try:
            importlib.import_module("engine").can("fp32")
        except ValueError as error:
            raise ExportError(str(error)) from None


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, indented and with a final newline, for people and diffs."""
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
