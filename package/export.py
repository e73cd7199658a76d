"""Export a Learner as ONNX: `python package/export.py --train build/pets/train --out build/pets/model`.

Reads export.pkl, in the environment that wrote it, and writes the folder that becomes model.tar.gz: the graph
from uint8 pixels to answers, model.json with all that serving needs, and the serving code. Then the handlers
in that folder answer the validation pictures that train copied (up to 64); nothing is written unless they
agree with `learn.predict` on every one. Faster arithmetic than fp32 is used only if accuracy is kept
(precision.py).
"""

import argparse
import importlib.util
import io
import json
import logging
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from learner import CLASSIFIERS, LearnerError, as_item, class_names, find_task, one_line, read_learner
from parity import DifferentError, check_parity, handlers
from precision import CANDIDATES, choose
from quantize import digests

if TYPE_CHECKING:
    from fastai.learner import Learner
    from onnx import ModelProto
    from torch import Tensor, nn

SERVE = Path(__file__).resolve().parents[1] / "serve"
OUTPUTS = {
    "single": "probabilities",
    "multi": "probabilities",
    "regression": "values",
    "points": "points",
    "segmentation": "classes",
}
CHANNELS = {"RGB": 3, "L": 1}  # by Pillow's mode
FIRST = "run `invoke train` first, or for a Learner out of a notebook `invoke adopt` (train/README.md)"
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "rich")  # fastai brings the others
FIXED_BATCH = "the model has a fixed batch size: make it use x.shape[0] instead"
OPSET = 18  # of ONNX, for the older exporter: tried with torch 2.5, 2.6, 2.8 and 2.10


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
    add(
        "--exif",
        choices=("upright", "ignore"),
        default="upright",
        help="rotate pictures by EXIF (%(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="what will serve (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = arguments(argv)
    try:
        spec, ms = export(args)
    except (ExportError, LearnerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DifferentError as error:
        print(f"error: {error}; nothing was written: {error.advice}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {args.out} was not written: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} is as it was", file=sys.stderr)
        return 130
    from precision_report import show  # needs rich, which check_packages has found

    show(spec, ms)
    print(f"{args.out}: {summary(spec)}")
    return 0


def summary(spec: dict) -> str:
    """What was packaged, and how it was proven."""
    parity, labels = spec["parity"], len(spec["labels"])
    what = f"{labels} labels" if spec["task"] in CLASSIFIERS else spec["task"]
    return (
        f"{what}; the handlers answer as learn.predict does on {parity['pictures']} validation pictures "
        f"(largest difference {parity['max_difference']:.1e}{parity.get('unit', '')})"
    )


def export(args: argparse.Namespace) -> tuple[dict, dict[str, float]]:
    """Write the model folder args.out from train's folder; return model.json's content and `choose`'s times.

    Raises ExportError (wrong or missing files, other versions), LearnerError or DifferentError.
    """
    check_packages()
    warnings.filterwarnings("ignore", "`torch.jit.script`")  # torch 2.15 warns of what fastai and timm use
    import torch

    metrics, pictures = read_training(args.train)
    check_versions(metrics.get("versions", {}))
    learn = read_learner(args.train / "export.pkl")
    torch.set_num_threads(1)  # more do not help with one small picture at a time
    with atomic_folder(args.out) as folder:
        copy_code(args.code, folder, args.device)
        check_environment(folder)
        spec = describe(learn, metrics, pictures, args.exif)
        write_graph(build_graph(learn, spec, pictures), spec, folder / "model.onnx")
        spec |= {"sha256": digests(folder), "precision": {"use": ["fp32"], "draft": False}}
        write_json(folder / "model.json", spec)
        spec["parity"] = check_parity(learn, folder, spec, pictures)
        ms = choose(args.train, folder, spec, args.precision, args.device)
        write_json(folder / "model.json", spec)
    return spec, ms


def check_packages() -> None:
    """Raise ExportError if the environment that trained lacks what packaging needs besides."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"packaging needs {', '.join(missing)}: run `pip install {' '.join(missing)}`")


def read_training(train: Path) -> tuple[dict, list[Path]]:
    """The content of metrics.json, and the validation pictures that train copied. Raises ExportError."""
    for name in ("metrics.json", "validation.json", "export.pkl"):
        if not (train / name).is_file():
            raise ExportError(f"{train / name} is missing: {FIRST}{other_projects(train)}")
    try:
        metrics, entries = (
            json.loads((train / f"{name}.json").read_bytes()) for name in ("metrics", "validation")
        )
        pictures = [train / entry["file"] for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{train} holds JSON that training did not write: write it again") from None
    missing = [str(picture) for picture in pictures if not picture.is_file()]
    if missing or not pictures:
        what = missing[0] if missing else "every validation picture"
        raise ExportError(f"{train} lacks {what}: write it again")
    return metrics, pictures


def other_projects(train: Path) -> str:
    """Name the other projects in build/ that have a Learner, in case the project's name was forgotten."""
    project, build = train.parent, train.parent.parent
    folders = [file.parents[1] for file in build.glob("*/train/metrics.json") if build.name == "build"]
    found = sorted(folder.name for folder in folders if folder != project)
    return f"; build/ has {', '.join(found)}: is it INVOKE_PROJECT={found[0]}?" if found else ""


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


def describe(learn: "Learner", metrics: dict, pictures: list[Path], exif: str) -> dict:
    """The content of model.json, except for what is known only after the graph is written."""
    from pipeline import is_idle, item_steps

    task, threshold = find_task(learn)
    mode = as_item(learn, pictures[0])[1].mode
    if mode not in CHANNELS:
        raise ExportError(
            f"the Learner opens pictures in Pillow's mode {mode}: only RGB and L can be packaged"
        )
    steps = item_steps(learn.dls.valid.after_item, partial(is_idle, learn, pictures))
    how = {"dtype": "uint8", "mode": mode, "steps": steps}
    if exif == "ignore":
        how["exif"] = exif
    if levels := metrics.get("levels"):
        how["levels"] = levels
    return {
        "labels": class_names(learn),
        "task": task,
        "threshold": threshold,
        "input": {"shape": ["batch", *steps[-1]["size"], CHANNELS[mode]], **how},
        "metrics": numbers(metrics),
        "versions": metrics["versions"],
    }


def numbers(metrics: dict) -> dict:
    """What was measured in training: metrics.json's fractions, by the metrics' names."""
    other = ("seconds",)
    return {key: value for key, value in metrics.items() if isinstance(value, float) and key not in other}


def build_graph(learn: "Learner", spec: dict, pictures: list[Path]) -> "nn.Module":
    """The torch module from pixels to answers, tested on two pictures. Raises ExportError."""
    import torch

    from pipeline import Graph, is_idle

    (height, width, channels), labels = spec["input"]["shape"][1:], len(spec["labels"])
    try:
        graph = Graph(learn, spec["task"], (height, width), partial(is_idle, learn, pictures)).eval()
        black = torch.zeros((2, height, width, channels), dtype=torch.uint8)
        with torch.no_grad():
            shape = tuple(graph(black).shape)
            scores = graph.scores(black)
    except LearnerError:
        raise
    except Exception as error:  # a model can raise any kind
        kind = "RGB" if channels == 3 else "grey"
        text = f"the model does not take {kind} pictures of {width} x {height} pixels: {one_line(error)}"
        raise ExportError(text) from None
    if spec["task"] in CLASSIFIERS and shape != (2, labels):
        raise ExportError(
            f"the model's output for two pictures has the shape {shape}, not one number for each of "
            f"{labels} labels: give it {labels} outputs (n_out)"
        )
    if spec["task"] == "segmentation" and scores.ndim == 4 and scores.shape[1] > labels:
        text = f"the model has {scores.shape[1]} classes, but MaskBlock's codes have {labels} names"
        raise ExportError(f"{text}: name every class of the model")
    return graph


def write_graph(graph: "nn.Module", spec: dict, path: Path) -> None:
    """Write the ONNX file, without paths of this machine. Raises ExportError if torch cannot write it."""
    import onnx
    import torch

    example = torch.zeros((2, *spec["input"]["shape"][1:]), dtype=torch.uint8)
    names = {"input_names": ["pictures"], "output_names": [OUTPUTS[spec["task"]]]}
    older = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision operators not used here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            model = (trace_graph if older else translate_graph)(graph, example, names)
    except ExportError:
        raise
    except Exception as error:
        cause = one_line(error.__cause__ or error)
        raise ExportError(f"torch cannot write the model as ONNX: {cause}") from None
    for node in model.graph.node:  # the exporter records the paths of this machine's source files
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, path)


def translate_graph(graph: "nn.Module", example: "Tensor", names: dict) -> "ModelProto":
    """The graph as ONNX, for any batch size. Raises ExportError if the model allows only one."""
    import torch

    any_batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(graph, (example,), dynamic_shapes=any_batch, verbose=False, **names)
    assert program is not None  # torch returns None only with dynamo=False
    if not program.model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(FIXED_BATCH)
    return program.model_proto


def trace_graph(graph: "nn.Module", example: "Tensor", names: dict) -> "ModelProto":
    """The same by the exporter that was the default before torch 2.9; the newer one of 2.5 and 2.6 fails.

    It does not notice a fixed batch size.
    """
    import onnx
    import onnxruntime
    import torch.onnx.utils

    file = io.BytesIO()
    any_batch = {name: {0: "batch"} for name in names["input_names"] + names["output_names"]}
    torch.onnx.utils.export(
        graph,
        (example,),
        file,  # type: ignore[arg-type]
        dynamic_axes=any_batch,
        opset_version=OPSET,
        **names,
    )
    with suppress(Exception):  # of a graph for two pictures
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        if len(session.run(None, {"pictures": example[:1].numpy()})[0]) == 1:
            return onnx.load_from_string(file.getvalue())
    raise ExportError(FIXED_BATCH)


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
