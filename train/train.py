"""Train a picture classifier by the fast.ai guide's recipe: pictures in, build/<project>/train out.

    python train/train.py --data pets --out build/pets/train
    python train/train.py --data ~/photos --labels folder --out build/mine/train
    python train/train.py --data sample --arch resnet18 --size 64 --weights none --out build/local/train

The defaults are the guide's project: 37 breeds of pets, resnet50 at 299 pixels, 8 + 3 epochs.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pictures
import reporting
from architectures import Arch, download_advice, find_arch, first_sentence
from download import locate
from handover import LearnerError, atomic_folder, write_json
from pictures import UsageError

if TYPE_CHECKING:
    from fastai.vision.all import DataLoaders, Learner, TransformBlock


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def find_precision(wanted: str) -> str:
    """Return fp32, fp16 or bf16: `wanted`, or the choice of "auto" for this machine. Raises UsageError."""
    import torch

    cuda = torch.cuda.is_available()
    if wanted in ("fp16", "bf16") and not cuda:
        raise UsageError(f"--precision {wanted} needs a CUDA GPU; use auto or fp32 here")
    return {"auto": "fp16" if cuda else "fp32"}.get(wanted, wanted)


def splitter(folder: Path, args: argparse.Namespace) -> Callable:
    """Return fastai's splitter into training and validation pictures: by folder if --labels is folder and
    there is a validation folder, else random.
    """
    from fastai.vision.all import FuncSplitter, RandomSplitter

    if args.labels == "folder" and (valid := pictures.valid_folder(folder)):
        return FuncSplitter(lambda item: valid in item[0].parents)
    return RandomSplitter(args.valid, args.seed)


def picture_block(levels: list[float] | None) -> TransformBlock:
    """Return what opens pictures. Not fastai's ImageBlock: it ignores EXIF, so phones' stay rotated."""
    from fastai.vision.all import IntToFloatTensor, TransformBlock

    opener = pictures.Upright(levels) if levels else pictures.upright
    return TransformBlock(type_tfms=opener, batch_tfms=IntToFloatTensor)


def dataloaders(
    items: list, levels: list[float] | None, folder: Path, arch: Arch, args: argparse.Namespace
) -> DataLoaders:
    """Return ImageDataLoaders of (path, label) or (path, [label, ...]) pairs. UsageError if too few."""
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        ImageDataLoaders,
        ItemGetter,
        MultiCategoryBlock,
        Normalize,
        Resize,
        aug_transforms,
        imagenet_stats,
    )

    split = splitter(folder, args)
    train, valid = (len(part) for part in split(items))
    if min(train, valid) < 2:
        raise UsageError(f"{train} pictures to train on and {valid} to validate with are too few")
    names = pictures.classes(dict(items))
    # fastai's vision_learner adds the normalisation of timm's weights by itself.
    timm_stats = isinstance(arch, str) and args.weights == "imagenet"
    block = DataBlock(
        blocks=(
            picture_block(levels),
            MultiCategoryBlock(vocab=names) if reporting.multi_label(items) else CategoryBlock(vocab=names),
        ),
        getters=[ItemGetter(0), ItemGetter(1)],
        splitter=split,
        item_tfms=Resize(args.size),
        batch_tfms=[*aug_transforms(), *([] if timm_stats else [Normalize.from_stats(*imagenet_stats)])],
    )
    # On macOS and Windows worker processes are spawned, which takes longer than they save.
    workers = min(args.workers, os.cpu_count() or 1) if sys.platform == "linux" else 0
    bs = min(args.bs, train)
    return ImageDataLoaders.from_dblock(block, items, path=folder, bs=bs, num_workers=workers)


def learner(dls: DataLoaders, arch: Arch, precision: str, out: Path, args: argparse.Namespace) -> Learner:
    """Return a vision_learner.

    Raises UsageError if `arch` does not work at this size, OSError if its weights cannot be downloaded.
    """
    import torch
    from fastai.vision.all import ProgressCallback, accuracy_multi, error_rate, vision_learner

    metric = accuracy_multi if reporting.multi_label(dls.train_ds.items) else error_rate
    try:
        learn = vision_learner(dls, arch, metrics=metric, path=out, pretrained=False)
        learn.model.eval()(torch.zeros(2, 3, args.size, args.size))
    except Exception as error:
        why = f"fastai cannot use that ({first_sentence(error)}); name another model or size"
        raise UsageError(f"--arch {args.arch} --size {args.size}: {why}") from error
    if args.weights == "imagenet":
        try:
            learn = vision_learner(dls, arch, metrics=metric, path=out)
        except Exception as error:
            why = f"no ImageNet weights for {args.arch} ({first_sentence(error)})"
            raise OSError(f"{why}; {download_advice(arch)}") from error
    learn.remove_cb(ProgressCallback)
    learn.model.to(dls.device)
    if dls.device.type == "cuda":
        learn.to_channelslast(use_amp=precision != "fp32", amp_mode=precision)
    return learn


def fit(learn: Learner, args: argparse.Namespace) -> None:
    """Train the new head on the frozen body, then all layers, the early ones at lower rates."""
    pretrained = args.weights == "imagenet"
    if args.frozen:
        learn.fit_one_cycle(args.frozen, slice(args.lr) if pretrained else args.lr)
    learn.unfreeze()
    if args.unfrozen:
        # A low rate protects pretrained weights; random ones need no protection.
        learn.fit_one_cycle(args.unfrozen, slice(1e-6, 1e-4) if pretrained else args.lr)


def train(out: Path, args: argparse.Namespace) -> None:
    """Train from --data and write all files of the result into `out`. Raises UsageError or OSError."""
    from fastai.vision.all import set_seed

    started = time.monotonic()
    arch, precision = find_arch(args.arch), find_precision(args.precision)
    folder = locate(args.data, out / "sample", args.seed)
    items, left_out, levels = pictures.check(pictures.label(folder, args.labels), folder)
    set_seed(args.seed)
    dls = dataloaders(items, levels, folder, arch, args)
    learn = learner(dls, arch, precision, out, args)
    reporting.print_plan(dls, left_out, args)
    with reporting.progress_shown(learn, args.frozen + args.unfrozen) as rows:
        fit(learn, args)
    learn.to_contiguous(to_fp32=True)
    metrics = reporting.measure(learn, args) | {"left_out": left_out}
    metrics = reporting.save(learn, rows, args) | metrics | ({"levels": levels} if levels else {})
    metrics["seconds"] = round(time.monotonic() - started, 1)
    write_json(out / "metrics.json", metrics)
    reporting.print_result(metrics, args)


def number(kind: type, low: float, high: float = math.inf) -> Callable:
    """Return an argparse type: an int or a float from `low` to `high`."""

    def parse(text: str) -> float:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    parse.__name__ = kind.__name__
    return parse


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the defaults are the guide's pets."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", default="pets", help="fastai dataset name, address of a .tgz, folder, or 'sample'")
    add("--labels", default=r"^(.+)_\d+\.jpg$", help="regex on the file name, 'folder', or a .csv file")
    add("--arch", default="resnet50", help="any torchvision or timm model (%(default)s)")
    add("--size", type=number(int, 8), default=299, help="width and height in pixels (%(default)s)")
    add("--bs", type=number(int, 2), default=32, help="batch size (%(default)s)")
    add("--frozen", type=number(int, 0), default=8, help="epochs of training only the head (%(default)s)")
    add("--unfrozen", type=number(int, 0), default=3, help="epochs of training everything (%(default)s)")
    add("--lr", type=number(float, 0), default=3e-3, help="the head's highest learning rate (%(default)s)")
    add("--seed", type=number(int, 0), default=42, help="same seed, same result on a CPU (%(default)s)")
    add("--valid", type=number(float, 0, 1), default=0.2, help="share for validation (%(default)s)")
    add("--workers", type=number(int, 0), default=8, help="loading processes, at most 1 a core (%(default)s)")
    add("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="auto: fp16 on CUDA")
    add("--weights", choices=("imagenet", "none"), default="imagenet", help="initial weights (%(default)s)")
    add("--out", type=Path, required=True, help="folder for the result; an older result is replaced")
    return parser.parse_args(argv)


def configure_environment() -> None:
    """Environment defaults; call before importing torch. Also hides warnings that no user can act on."""
    # OpenMP's threads spin while they wait: training is 2 to 5 times slower if another process runs, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF and palettes, and sizes that `upright` checks
    warnings.filterwarnings("ignore", module="torchvision.models._utils")  # fastai passes `pretrained`


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = arguments(argv)
    configure_environment()
    try:
        with atomic_folder(args.out.absolute()) as out:
            train(out, args)
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} is as it was", file=sys.stderr)
        return 130
    except (UsageError, LearnerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, OSError) else 2
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print("error: the GPU's memory is full; give a lower --bs or --size", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
