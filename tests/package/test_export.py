"""package/export.py: Learners become packages that answer as learn.predict does, or are refused in words."""

import csv
import importlib
import json
import os
import pickle
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import export
import inference
import results
import sample
import train
from pictures import upright
from support import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        AdaptiveConcatPool2d,
        BCEWithLogitsLossFlat,
        CategoryBlock,
        CropPad,
        CrossEntropyLossFlat,
        DataBlock,
        FocalLossFlat,
        ImageBlock,
        IntToFloatTensor,
        LabelSmoothingCrossEntropy,
        LabelSmoothingCrossEntropyFlat,
        Learner,
        MSELossFlat,
        MultiCategoryBlock,
        Normalize,
        RandomResizedCrop,
        RandomSplitter,
        RegressionBlock,
        Resize,
        TensorImage,
        Transform,
        TransformBlock,
        aug_transforms,
        imagenet_stats,
        vision_learner,
    )
    from torch import nn

UPRIGHT = TransformBlock(type_tfms=upright, batch_tfms=IntToFloatTensor)
KINDS = CategoryBlock(list(sample.PETS))


class Sharpen(Transform):
    """A batch transform that nobody knows."""

    order = 35

    def encodes(self, x: TensorImage):
        return x * 2


class Mystery(Transform):
    """An item transform that nobody knows."""


class Rigid(nn.Module):
    """A model for two pictures at a time."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.mean((2, 3)).reshape(2, 3))


def kind(path: Path) -> str:
    """Cat, Dog, Owl or Rabbit."""
    return path.name.partition("_")[0]


def kinds(path: Path):  # no list[str]: fastai would take it for a conversion
    """The same as several labels."""
    return [kind(path)]


def orientation(path: Path) -> int:
    """EXIF's, 1 to 8."""
    with Image.open(path) as picture:
        return picture.getexif().get(0x0112, 1)


def number(path: Path) -> int:
    """0, 1, 2 or 3."""
    return list(sample.PETS).index(kind(path))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Sixteen pictures of all sizes, modes and orientations."""
    folder = sample.draw(tmp_path_factory.mktemp("photos"), 16)
    return sorted(path for path in folder.iterdir() if not path.stem.endswith("_16"))


def network(outputs: int = 4, inputs: int = 3) -> nn.Module:
    """The smallest classifier with fastai's pooling."""
    torch.manual_seed(0)
    pool = [AdaptiveConcatPool2d(), nn.Flatten()]
    return nn.Sequential(
        nn.Conv2d(inputs, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *pool, nn.Linear(16, outputs)
    )


def loaders(photos, blocks=(UPRIGHT, KINDS), get_y=kind, item_tfms=Resize(32), batch_tfms=None):  # noqa: B008
    """DataLoaders as train.py's."""
    block = DataBlock(
        blocks, get_y=get_y, splitter=RandomSplitter(0.5, 1), item_tfms=item_tfms, batch_tfms=batch_tfms
    )
    return block.dataloaders(photos, bs=4, num_workers=0)


def finish(folder: Path, learn: Learner, photos: list[Path]) -> Path:
    """Leave in `folder` what train.py leaves."""
    (folder / "pictures").mkdir(parents=True)
    learn.export(folder / "export.pkl")
    for photo in photos:
        shutil.copyfile(photo, folder / "pictures" / photo.name)
    entries = [{"file": f"pictures/{photo.name}"} for photo in photos]
    (folder / "validation.json").write_text(json.dumps(entries))
    (folder / "metrics.json").write_text(json.dumps({"error_rate": 0.5, "versions": results.versions()}))
    return folder


@pytest.fixture
def package(tmp_path, photos, capsys):
    """A function that exports a Learner, insists on the exit code and returns the folder or the sentence."""

    def package(learn: Learner, code: int = 0, photos: list[Path] = photos) -> Path | str:
        done = finish(tmp_path / "train", learn, photos)
        return call(capsys, done, tmp_path / "model", code=code)

    return package


def call(capsys, done: Path, out: Path, *words: object, code: int = 0) -> Path | str:
    """export.main in this process; it leaves nothing behind, and a refusal is one sentence."""
    capsys.readouterr()
    assert export.main(["--train", str(done), "--out", str(out), *map(str, words)]) == code
    said = capsys.readouterr().err
    assert not list(out.parent.glob(f".{out.name}-*"))
    assert sys.modules["inference"] is inference
    assert not any(f".{out.name}-" in place for place in sys.path)
    if code == 0:
        assert not (out / "code" / "__pycache__").exists()
        return out
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    return said


def content(folder: Path) -> dict[str, bytes]:
    """All the files below a folder, but for what Python puts there when it serves them."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def spec(folder: Path) -> dict:
    """model.json."""
    return json.loads((folder / "model.json").read_text())


# --- the project of all tests


def test_the_package_says_all_that_serving_needs(project):
    facts = spec(project / "model")
    assert facts["labels"] == ["Cat", "Dog", "Owl", "Rabbit"]
    assert (facts["task"], facts["threshold"]) == ("single", None)
    assert facts["input"]["shape"] == ["batch", 48, 48, 3]
    assert facts["input"]["steps"] == [
        {"op": "resize", "method": "crop", "size": [48, 48], "pad": "reflection", "resample": "BILINEAR"}
    ]
    assert facts["metrics"].keys() == {"error_rate", "valid_loss"}
    assert facts["versions"].keys() == {"python", "fastai", "torch", "torchvision", "pillow"}
    assert facts["parity"]["pictures"] == 64
    assert facts["parity"]["max_difference"] < 1e-4


def test_the_graph_is_sound_and_silent_about_this_machine(project):
    onnx.checker.check_model(project / "model" / "model.onnx", full_check=True)
    graph = (project / "model" / "model.onnx").read_bytes()
    for place in (ROOT, project, sys.prefix, "site-packages", "pipeline.py", os.path.expanduser("~/")):
        assert str(place).encode() not in graph


def test_exporting_again_writes_the_same_bytes(project, tmp_path, capsys):
    again = call(capsys, project / "train", tmp_path / "model")
    assert content(again) == content(project / "model")


def test_any_number_of_pictures_at_once_gives_the_same_rows(project):
    session = onnxruntime.InferenceSession(project / "model" / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), np.uint8)
    rows = session.run(None, {"pictures": pixels})[0]
    assert rows.shape == (32, 4)
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    for count in (1, 3):
        np.testing.assert_allclose(
            session.run(None, {"pictures": pixels[:count]})[0], rows[:count], atol=1e-5
        )


# --- Learners of all kinds


@pytest.mark.parametrize(
    ("item_tfms", "batch_tfms"),
    [
        (
            Resize((40, 56), "pad", "zeros"),
            [*aug_transforms(size=(24, 32)), Normalize.from_stats(*imagenet_stats)],
        ),
        (RandomResizedCrop(48, min_scale=0.35), [*aug_transforms(size=12), Normalize()]),
        ([CropPad(200, "border"), Resize(32, "squish")], [Sharpen(split_idx=0)]),
    ],
    ids=["padded, then resized in the batch", "random crop, own statistics", "cropped, then squished"],
)
def test_the_learners_transforms_are_repeated(photos, package, item_tfms, batch_tfms):
    dls = loaders(photos, item_tfms=item_tfms, batch_tfms=batch_tfms)
    assert (
        spec(package(Learner(dls, network(), loss_func=CrossEntropyLossFlat())))["parity"]["pictures"] == 16
    )


@pytest.mark.parametrize("loss", [LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, FocalLossFlat])
def test_fastais_losses_for_one_label_are_known(photos, package, loss):
    facts = spec(package(Learner(loaders(photos), network(), loss_func=loss())))
    assert (facts["task"], facts["threshold"]) == ("single", None)


@pytest.mark.parametrize("arch", ["test_resnet", "squeezenet1_0"], ids=["timm", "torchvision"])
def test_other_architectures_agree(photos, package, arch):
    learn = vision_learner(loaders(photos), train.find_arch(arch), pretrained=False)
    assert spec(package(learn))["parity"]["max_difference"] < 1e-4


def test_labels_may_be_numbers(photos, package):
    facts = spec(
        package(
            Learner(
                loaders(photos, (UPRIGHT, CategoryBlock([0, 1, 2, 3])), get_y=number),
                network(),
                loss_func=CrossEntropyLossFlat(),
            )
        )
    )
    assert facts["labels"] == ["0", "1", "2", "3"]


def test_several_labels_a_picture_go_the_whole_road(photos, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "labels"])
        table.writerows([photo.name, f"{kind(photo)} {photo.suffix[1:]}"] for photo in photos)
    words = {
        "data": photos[0].parent,
        "labels": labels,
        "arch": "test_resnet",
        "size": 32,
        "bs": 4,
        "frozen": 0,
    }
    words |= {"unfrozen": 1, "weights": "none", "workers": 0, "valid": 0.5, "out": tmp_path / "train"}
    assert train.main([str(word) for key, value in words.items() for word in (f"--{key}", value)]) == 0
    model = inference.model_fn(call(capsys, tmp_path / "train", tmp_path / "model"))
    assert (spec(tmp_path / "model")["task"], model.threshold) == ("multi", 0.5)
    for entry in json.loads((tmp_path / "train" / "validation.json").read_text()):
        body = (tmp_path / "train" / entry["file"]).read_bytes()
        answer = json.loads(inference.handle(model, body, {}).body)
        assert sorted(answer["classes"]) == sorted(entry["predicted"])
        assert answer["confidence"] == pytest.approx(entry["confidence"], abs=1e-3)


def test_the_learners_own_threshold_is_kept(photos, package):
    dls = loaders(photos, (UPRIGHT, MultiCategoryBlock(vocab=list(sample.PETS))), get_y=kinds)
    learn = Learner(dls, network(), loss_func=BCEWithLogitsLossFlat(thresh=0.3))
    assert spec(package(learn))["threshold"] == 0.3


# --- the parity gate


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos) -> Path:
    """A finished training."""
    learn = Learner(loaders(photos), network(), loss_func=CrossEntropyLossFlat())
    return finish(tmp_path_factory.mktemp("build") / "train", learn, photos)


def tampered(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of serve/ with another line in it."""
    shutil.copytree(ROOT / "serve", folder)
    code = (folder / file).read_text()
    assert code.count(old) == 1
    (folder / file).write_text(code.replace(old, new))
    return folder


def test_handlers_that_resize_otherwise_stop_the_export(trained, tmp_path, capsys):
    before = content(call(capsys, trained, tmp_path / "model"))
    code = tampered(
        tmp_path / "code", "pixels.py", 'Image.Resampling[step["resample"]]', "Image.Resampling.NEAREST"
    )
    said = call(capsys, trained, tmp_path / "model", "--code", code, code=1)
    assert re.search(
        r"pictures/\S+: learn.predict gives \w+ 0\.\d{4}, but the handlers 0\.\d{4}; nothing", said
    )
    assert content(tmp_path / "model") == before


def test_the_worst_picture_is_named(trained, photos, tmp_path, capsys):
    old, size = "rgb = apply_step(rgb, step)", upright(photos[5]).size
    new = f"rgb = apply_step(ImageOps.invert(rgb) if rgb.size == {size} else rgb, step)"
    code = tampered(tmp_path / "code", "pixels.py", old, new)
    assert photos[5].name in call(capsys, trained, tmp_path / "model", "--code", code, code=1)


def test_handlers_that_answer_no_number_stop_the_export(trained, tmp_path, capsys):
    code = tampered(
        tmp_path / "code", "inference.py", "probabilities[good] = ", "probabilities[good] = np.nan * "
    )
    assert "the handlers nan" in call(capsys, trained, tmp_path / "model", "--code", code, code=1)
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fastai's open files
def test_a_learner_that_ignores_exif_is_caught(photos, package):
    learn = Learner(loaders(photos, (ImageBlock, KINDS)), network(), loss_func=CrossEntropyLossFlat())
    turned = [photo for photo in photos if orientation(photo) > 1]
    assert turned
    said = package(learn, code=1)
    assert any(photo.name in said for photo in turned)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fastai's open files
def test_a_picture_that_the_handlers_refuse_is_named(photos, package, tmp_path):
    odd = tmp_path / "odd.ppm"
    Image.new("RGB", (40, 40)).save(odd)
    learn = Learner(loaders(photos, (ImageBlock, KINDS)), network(), loss_func=CrossEntropyLossFlat())
    said = package(learn, code=1, photos=[photos[0], odd])
    assert "odd.ppm, but the handlers do not (this is not a picture that can be read" in said


# --- what cannot be packaged


def test_an_unknown_batch_transform_is_named(photos, package):
    dls = loaders(photos, batch_tfms=[Sharpen()])
    said = package(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "the transform Sharpen acts at validation" in said


def test_an_unknown_item_transform_is_named(photos, package):
    dls = loaders(photos, item_tfms=[Resize(32), Mystery()])
    said = package(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "the transform Mystery acts at validation" in said


def test_a_learner_without_resize_is_refused(photos, package):
    dls = loaders(photos, item_tfms=[])
    said = package(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "does not resize its pictures: give it item_tfms=Resize(...)" in said


def test_a_regression_is_refused(photos, package):
    dls = loaders(photos, (UPRIGHT, RegressionBlock), get_y=number)
    assert "the Learner has no labels" in package(Learner(dls, network(1), loss_func=MSELossFlat()), code=2)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), MSELossFlat()], ids=["torch's", "of numbers"])
def test_a_loss_that_names_no_label_is_refused(photos, package, loss):
    said = package(Learner(loaders(photos), network(), loss_func=loss), code=2)
    assert f"the loss {type(loss).__name__} does not say which label wins" in said


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (network(outputs=5), "answers two pictures with (2, 5) numbers, not with one for each of 4 labels"),
        (network(inputs=1), "the model does not take RGB pictures of 32 x 32 pixels"),
        (Rigid(), "the model fixes how many pictures it takes at once"),
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)),
            "torch cannot write the model as ONNX: Error when translating node %adaptive_max_pool2d",
        ),
    ],
    ids=["another number of labels", "grey pictures", "a fixed batch", "an operator without translation"],
)
def test_a_model_that_does_not_fit_is_refused(photos, package, model, sentence):
    assert sentence in package(Learner(loaders(photos), model, loss_func=CrossEntropyLossFlat()), code=2)


@pytest.fixture
def mine(photos, tmp_path, monkeypatch) -> Path:
    """A finished training whose Learner has a transform out of the user's own module, imported no more."""
    (tmp_path / "mine.py").write_text(
        "from fastai.vision.all import Transform\nclass Mine(Transform): split_idx = 0\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        dls = loaders(photos, item_tfms=[Resize(32), importlib.import_module("mine").Mine()])
        finish(tmp_path / "train", Learner(dls, network(), loss_func=CrossEntropyLossFlat()), photos)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_module_that_is_missing_is_named(mine, capsys):
    del sys.modules["mine"]
    said = call(capsys, mine / "train", mine / "model", code=2)
    assert "export.pkl needs the module mine, which is not here: put its folder on PYTHONPATH" in said


def test_a_class_that_is_missing_is_named(mine, capsys):
    del sys.modules["mine"].Mine
    assert "Can't get attribute 'Mine'" in call(capsys, mine / "train", mine / "model", code=2)


@pytest.fixture
def bare(tmp_path) -> Path:
    """A training folder whose export.pkl nobody has opened yet."""
    folder = tmp_path / "train"
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"versions": results.versions()}))
    (folder / "validation.json").write_text(json.dumps([{"file": "pictures/a.jpg"}]))
    (folder / "pictures" / "a.jpg").touch()
    (folder / "export.pkl").touch()
    return folder


@pytest.mark.parametrize("name", ["metrics.json", "validation.json", "export.pkl", "pictures/a.jpg"])
def test_a_missing_file_is_named(bare, tmp_path, capsys, name):
    (bare / name).unlink()
    said = call(capsys, bare, tmp_path / "model", code=2)
    assert name in said
    assert "run `invoke train`" in said


def test_a_training_without_validation_pictures_is_refused(bare, tmp_path, capsys):
    (bare / "validation.json").write_text("[]")
    assert "lacks every validation picture" in call(capsys, bare, tmp_path / "model", code=2)


@pytest.mark.parametrize("name", ["python", "fastai", "torch"])
def test_a_pickle_of_another_version_is_not_opened(bare, tmp_path, capsys, name):
    versions = results.versions() | {name: "1.2.3"}
    (bare / "metrics.json").write_text(json.dumps({"versions": versions}))
    said = call(capsys, bare, tmp_path / "model", code=2)
    assert f"export.pkl was written with {name} 1.2.3, and here is {name} {results.versions()[name]}" in said
    assert "run `invoke train` here, or `invoke package` in the environment that trained" in said


def test_a_pickle_of_unknown_version_is_not_opened(bare, tmp_path, capsys):
    (bare / "metrics.json").write_text("{}")
    assert "torch of unknown version" in call(capsys, bare, tmp_path / "model", code=2)


class Bomb:
    """What a hostile pickle does."""

    def __reduce__(self):
        return divmod, (1, 0)


@pytest.mark.parametrize("what", [b"", b"no pickle", pickle.dumps("text"), {"weights": 1}, Bomb()], ids=repr)
def test_a_file_that_is_no_learner_is_refused(bare, tmp_path, capsys, what):
    if isinstance(what, bytes):
        (bare / "export.pkl").write_bytes(what)
    else:
        torch.save(what, bare / "export.pkl")
    said = call(capsys, bare, tmp_path / "model", code=2)
    assert re.search(r"export\.pkl cannot be loaded: .+; run `invoke train` again", said)


# --- where it goes


def test_a_folder_of_something_else_is_left_alone(project, tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    assert "holds something else than a model" in call(capsys, project / "train", tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_a_sentence(project, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "was not written" in call(capsys, project / "train", tmp_path / "file" / "model", code=3)
