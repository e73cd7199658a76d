"""What the tests of package/export.py and precision.py share: small Learners, and calls of `export.main`."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import export
import inference
import reporting
import synthetic_pets
from pictures import upright
from support import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        AdaptiveConcatPool2d,
        CategoryBlock,
        DataBlock,
        IntToFloatTensor,
        Learner,
        RandomSplitter,
        Resize,
        TransformBlock,
    )
    from torch import nn

UPRIGHT = TransformBlock(type_tfms=upright, batch_tfms=IntToFloatTensor)
KINDS = CategoryBlock(list(synthetic_pets.PETS))


def kind(path: Path) -> str:
    """The label of Cat_1.jpg: Cat."""
    return path.name.partition("_")[0]


def network(outputs: int = 4, inputs: int = 3) -> nn.Module:
    """The smallest classifier with fastai's pooling."""
    torch.manual_seed(0)
    pool = [AdaptiveConcatPool2d(), nn.Flatten()]
    return nn.Sequential(
        nn.Conv2d(inputs, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *pool, nn.Linear(16, outputs)
    )


def loaders(pictures, blocks=(UPRIGHT, KINDS), get_y=kind, item_tfms=Resize(32), batch_tfms=None):  # noqa: B008
    """DataLoaders as train.py makes them."""
    block = DataBlock(
        blocks, get_y=get_y, splitter=RandomSplitter(0.5, 1), item_tfms=item_tfms, batch_tfms=batch_tfms
    )
    return block.dataloaders(pictures, bs=4, num_workers=0)


def save(folder: Path, learn: Learner, pictures: list[Path]) -> Path:
    """Write into `folder` what train.py writes, except split.json; the parity gate gets `pictures`."""
    (folder / "pictures").mkdir(parents=True)
    learn.export(folder / "export.pkl")
    for picture in pictures:
        shutil.copyfile(picture, folder / "pictures" / picture.name)
    entries = [{"file": f"pictures/{picture.name}"} for picture in pictures]
    (folder / "validation.json").write_text(json.dumps(entries))
    (folder / "metrics.json").write_text(json.dumps({"error_rate": 0.5, "versions": reporting.versions()}))
    return folder


def package(train: Path, out: Path, *flags: object) -> Path:
    """Run export.main in this process, expect success and no leftovers, and return the model folder `out`."""
    assert export.main(["--train", str(train), "--out", str(out), *map(str, flags)]) == 0
    check_clean(out)
    assert not (out / "code" / "__pycache__").exists()
    return out


def rejected(capsys, train: Path, out: Path, *flags: object, code: int) -> str:
    """Run export.main in this process, expect exit code `code` and no leftovers, and return its message."""
    capsys.readouterr()
    assert export.main(["--train", str(train), "--out", str(out), *map(str, flags)]) == code
    check_clean(out)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message


def check_clean(out: Path) -> None:
    """No temporary folder is left, and the packaged modules are not the ones that are imported."""
    assert not list(out.parent.glob(f".{out.name}-*"))
    assert sys.modules["inference"] is inference
    assert not any(f".{out.name}-" in folder for folder in sys.path)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name, without Python's bytecode."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def spec(folder: Path) -> dict:
    """The content of model.json."""
    return json.loads((folder / "model.json").read_text())


def edited(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of serve/ in `folder` with `old` replaced by `new` in one file."""
    shutil.copytree(ROOT / "serve", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return edit(folder, file, old, new)


def edit(folder: Path, file: str, old: str, new: str) -> Path:
    """Replace `old`, which has to occur once, by `new` in a file of `folder`."""
    code = (folder / file).read_text()
    assert code.count(old) == 1
    (folder / file).write_text(code.replace(old, new))
    return folder
