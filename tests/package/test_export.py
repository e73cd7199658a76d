"""package/export.py: Learners become packages that answer as learn.predict does, or are rejected."""

import csv
import importlib
import json
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from learners import KINDS, UPRIGHT, content, edited, kind, loaders, network, package, rejected, save, spec
from PIL import Image

import export
import inference
import reporting
import synthetic_pets
import train
from pictures import upright
from support import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        BCEWithLogitsLossFlat,
        CategoryBlock,
        CropPad,
        CrossEntropyLossFlat,
        FocalLossFlat,
        ImageBlock,
        LabelSmoothingCrossEntropy,
        LabelSmoothingCrossEntropyFlat,
        Learner,
        MultiCategoryBlock,
        Normalize,
        RandomResizedCrop,
        Resize,
        TensorImage,
        Transform,
        aug_transforms,
        imagenet_stats,
        vision_learner,
    )
    from torch import nn


class Sharpen(Transform):
    """An unknown batch transform."""

    order = 35

    def encodes(self, x: TensorImage):
        return x * 2


class Mystery(Transform):
    """An unknown item transform."""

    def encodes(self, x: Image.Image):
        return x.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


class FixedBatch(nn.Module):
    """A model that takes only two pictures at a time."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.mean((2, 3)).reshape(2, 3))


def kinds(path: Path):  # not annotated with list[str]: fastai would use that as a conversion
    """The same as several labels."""
    return [kind(path)]


def orientation(path: Path) -> int:
    """EXIF's, 1 to 8."""
    with Image.open(path) as picture:
        return picture.getexif().get(0x0112, 1)


def number(path: Path) -> int:
    """0, 1, 2 or 3."""
    return list(synthetic_pets.PETS).index(kind(path))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Sixteen pictures of various sizes, modes and orientations."""
    folder = synthetic_pets.draw(tmp_path_factory.mktemp("photos"), 16)
    return sorted(path for path in folder.iterdir() if not path.stem.endswith("_16"))


@pytest.fixture
def packaged(tmp_path, photos):
    """A function that packages a Learner and returns the content of model.json."""
    return lambda learn: spec(package(save(tmp_path / "train", learn, photos), tmp_path / "model"))


@pytest.fixture
def refusal(tmp_path, photos, capsys):
    """A function that expects export.py to reject a Learner and returns its message."""

    def refusal(learn: Learner, code: int, pictures: list[Path] = photos) -> str:
        train = save(tmp_path / "train", learn, pictures)
        return rejected(capsys, train, tmp_path / "model", code=code)

    return refusal


# --- the project that all tests share


def test_model_json_has_all_that_serving_needs(project):
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


def test_the_graph_is_valid_and_has_no_paths_of_this_machine(project):
    onnx.checker.check_model(project / "model" / "model.onnx", full_check=True)
    graph = (project / "model" / "model.onnx").read_bytes()
    for path in (ROOT, project, sys.prefix, "site-packages", "pipeline.py", os.path.expanduser("~/")):
        assert str(path).encode() not in graph


def test_exporting_again_writes_the_same_bytes(project, tmp_path):
    again = package(project / "train", tmp_path / "model")
    assert content(again) == content(project / "model")


def test_any_batch_size_gives_the_same_rows(project):
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
def test_the_learners_transforms_are_repeated(photos, packaged, item_tfms, batch_tfms):
    dls = loaders(photos, item_tfms=item_tfms, batch_tfms=batch_tfms)
    assert packaged(Learner(dls, network(), loss_func=CrossEntropyLossFlat()))["parity"]["pictures"] == 16


@pytest.mark.parametrize("loss", [LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, FocalLossFlat])
def test_fastais_losses_for_one_label_are_known(photos, packaged, loss):
    facts = packaged(Learner(loaders(photos), network(), loss_func=loss()))
    assert (facts["task"], facts["threshold"]) == ("single", None)


@pytest.mark.parametrize("arch", ["test_resnet", "squeezenet1_0"], ids=["timm", "torchvision"])
def test_other_architectures_agree(photos, packaged, arch):
    learn = vision_learner(loaders(photos), train.find_arch(arch), pretrained=False)
    assert packaged(learn)["parity"]["max_difference"] < 1e-4


def test_labels_may_be_numbers(photos, packaged):
    dls = loaders(photos, (UPRIGHT, CategoryBlock([0, 1, 2, 3])), get_y=number)
    facts = packaged(Learner(dls, network(), loss_func=CrossEntropyLossFlat()))
    assert facts["labels"] == ["0", "1", "2", "3"]


def test_several_labels_per_picture_from_training_to_answer(photos, tmp_path):
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "labels"])
        table.writerows([photo.name, f"{kind(photo)} {photo.suffix[1:]}"] for photo in photos)
    options = {"data": photos[0].parent, "labels": labels, "arch": "test_resnet", "size": 32, "bs": 4}
    options |= {"frozen": 0, "unfrozen": 1, "weights": "none", "workers": 0, "valid": 0.5}
    options |= {"out": tmp_path / "train"}
    assert train.main([str(word) for key, value in options.items() for word in (f"--{key}", value)]) == 0
    model = inference.model_fn(package(tmp_path / "train", tmp_path / "model"))
    assert (spec(tmp_path / "model")["task"], model.threshold) == ("multi", 0.5)
    for entry in json.loads((tmp_path / "train" / "validation.json").read_text()):
        body = (tmp_path / "train" / entry["file"]).read_bytes()
        answer = json.loads(inference.handle(model, body, {}).body)
        assert sorted(answer["classes"]) == sorted(entry["predicted"])
        assert answer["confidence"] == pytest.approx(entry["confidence"], abs=1e-3)


def test_the_learners_threshold_is_kept(photos, packaged):
    dls = loaders(photos, (UPRIGHT, MultiCategoryBlock(vocab=list(synthetic_pets.PETS))), get_y=kinds)
    learn = Learner(dls, network(), loss_func=BCEWithLogitsLossFlat(thresh=0.3))
    assert packaged(learn)["threshold"] == 0.3


# --- the parity gate


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos) -> Path:
    """What train.py would have written for a small network."""
    learn = Learner(loaders(photos), network(), loss_func=CrossEntropyLossFlat())
    return save(tmp_path_factory.mktemp("build") / "train", learn, photos)


def test_handlers_that_resize_differently_stop_the_export(trained, tmp_path, capsys):
    before = content(package(trained, tmp_path / "model"))
    code = edited(
        tmp_path / "code", "pixels.py", 'Image.Resampling[step["resample"]]', "Image.Resampling.NEAREST"
    )
    message = rejected(capsys, trained, tmp_path / "model", "--code", code, code=1)
    assert re.search(
        r"pictures/\S+: learn.predict gives \w+ 0\.\d{4}, but the handlers 0\.\d{4}; nothing", message
    )
    assert content(tmp_path / "model") == before


def test_the_picture_with_the_largest_difference_is_named(trained, photos, tmp_path, capsys):
    old, size = "decoded = apply_step(decoded, step)", upright(photos[5]).size
    new = f"decoded = apply_step(ImageOps.invert(decoded) if decoded.size == {size} else decoded, step)"
    code = edited(tmp_path / "code", "pixels.py", old, new)
    assert photos[5].name in rejected(capsys, trained, tmp_path / "model", "--code", code, code=1)


def test_handlers_that_answer_nan_stop_the_export(trained, tmp_path, capsys):
    code = edited(tmp_path / "code", "inference.py", "outputs[good] = ", "outputs[good] = np.nan * ")
    assert "the handlers nan" in rejected(capsys, trained, tmp_path / "model", "--code", code, code=1)
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fastai's open files
def test_a_learner_that_ignores_exif_is_rejected(photos, refusal):
    learn = Learner(loaders(photos, (ImageBlock, KINDS)), network(), loss_func=CrossEntropyLossFlat())
    turned = [photo for photo in photos if orientation(photo) > 1]
    assert turned
    message = refusal(learn, code=1)
    assert any(photo.name in message for photo in turned)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fastai's open files
def test_a_picture_that_the_handlers_reject_is_named(photos, refusal, tmp_path):
    odd = tmp_path / "odd.ppm"
    Image.new("RGB", (40, 40)).save(odd)
    learn = Learner(loaders(photos, (ImageBlock, KINDS)), network(), loss_func=CrossEntropyLossFlat())
    message = refusal(learn, code=1, pictures=[photos[0], odd])
    assert "odd.ppm, but the handlers do not (this is not a picture that can be read" in message


# --- Learners that cannot be packaged


def test_an_unknown_batch_transform_is_named(photos, refusal):
    dls = loaders(photos, batch_tfms=[Sharpen()])
    message = refusal(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "the transform Sharpen acts at validation" in message


def test_an_unknown_item_transform_is_named(photos, refusal):
    dls = loaders(photos, item_tfms=[Resize(32), Mystery()])
    message = refusal(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "the transform Mystery acts at validation" in message


def test_a_learner_without_resize_is_rejected(photos, refusal):
    dls = loaders(photos, item_tfms=[])
    message = refusal(Learner(dls, network(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "are not of one size: give it item_tfms=Resize(...)" in message


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            network(outputs=5),
            "output for two pictures has the shape (2, 5), not one number for each of 4 labels: give",
        ),
        (network(inputs=1), "the model does not take RGB pictures of 32 x 32 pixels"),
        (FixedBatch(), "the model has a fixed batch size"),
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)),
            "torch cannot write the model as ONNX: Error when translating node %adaptive_max_pool2d",
        ),
    ],
    ids=["another number of labels", "grey pictures", "a fixed batch", "an operator that ONNX lacks"],
)
def test_a_model_that_does_not_fit_is_rejected(photos, refusal, model, message):
    assert message in refusal(Learner(loaders(photos), model, loss_func=CrossEntropyLossFlat()), code=2)


def test_packages_that_are_not_installed_are_named(tmp_path, capsys, monkeypatch):
    for name in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    message = rejected(capsys, tmp_path / "train", tmp_path / "model", code=2)
    assert message == "error: packaging needs onnx, openvino: run `pip install onnx openvino`\n"


@pytest.fixture
def older_torch(monkeypatch):
    """As with torch before 2.9, of which this torch still has the exporter."""
    monkeypatch.setattr(export, "translate_graph", export.trace_graph)


@pytest.mark.usefixtures("older_torch")
def test_the_exporter_of_older_torch_writes_the_same_for_any_batch(project, tmp_path):
    model = package(project / "train", tmp_path / "model")
    assert spec(model)["parity"]["max_difference"] < 1e-5
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    traced, translated = (
        onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"pictures": pixels})[0]
        for folder in (model, project / "model")
    )
    np.testing.assert_allclose(traced, translated, atol=1e-5)


@pytest.mark.usefixtures("older_torch")
def test_the_exporter_of_older_torch_rejects_a_fixed_batch(photos, refusal):
    message = refusal(Learner(loaders(photos), FixedBatch(), loss_func=CrossEntropyLossFlat()), code=2)
    assert "the model has a fixed batch size" in message


@pytest.fixture
def user_module(photos, tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with train/, whose Learner has a transform of a user's module that is gone."""
    (tmp_path / "mine.py").write_text(
        "from fastai.vision.all import Transform\nclass Mine(Transform): split_idx = 0\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        dls = loaders(photos, item_tfms=[Resize(32), importlib.import_module("mine").Mine()])
        save(tmp_path / "train", Learner(dls, network(), loss_func=CrossEntropyLossFlat()), photos)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_module_that_is_missing_is_named(user_module, capsys):
    del sys.modules["mine"]
    message = rejected(capsys, user_module / "train", user_module / "model", code=2)
    assert "export.pkl needs the module mine, which was not found: put its folder on PYTHONPATH" in message


def test_a_class_that_is_missing_is_named(user_module, capsys):
    del sys.modules["mine"].Mine
    assert "Can't get attribute 'Mine'" in rejected(
        capsys, user_module / "train", user_module / "model", code=2
    )


@pytest.fixture
def bare(tmp_path) -> Path:
    """A training folder with an empty export.pkl."""
    folder = tmp_path / "train"
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"versions": reporting.versions()}))
    (folder / "validation.json").write_text(json.dumps([{"file": "pictures/a.jpg"}]))
    (folder / "pictures" / "a.jpg").touch()
    (folder / "export.pkl").touch()
    return folder


@pytest.mark.parametrize("name", ["metrics.json", "validation.json", "export.pkl", "pictures/a.jpg"])
def test_a_missing_file_is_named(bare, tmp_path, capsys, name):
    (bare / name).unlink()
    message = rejected(capsys, bare, tmp_path / "model", code=2)
    assert name in message
    assert ("run `invoke train` first, or for a Learner" if "/" not in name else "write it again") in message


def test_a_missing_learner_names_the_projects_that_have_one(tmp_path, capsys):
    for path in ("build/mine/train", "build/other/train", "elsewhere/mine/train"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "metrics.json").write_text("{}")
    missing = tmp_path / "build/pets/train"
    message = rejected(capsys, missing, tmp_path / "model", code=2)
    assert message.endswith("; build/ has mine, other: is it INVOKE_PROJECT=mine?\n")
    itself = rejected(capsys, tmp_path / "build/mine/train", tmp_path / "model", code=2)
    assert itself.endswith("; build/ has other: is it INVOKE_PROJECT=other?\n")
    assert "; build/ has" not in rejected(
        capsys, tmp_path / "elsewhere/pets/train", tmp_path / "model", code=2
    )


def test_a_training_without_validation_pictures_is_rejected(bare, tmp_path, capsys):
    (bare / "validation.json").write_text("[]")
    assert "lacks every validation picture" in rejected(capsys, bare, tmp_path / "model", code=2)


@pytest.mark.parametrize("name", ["python", "fastai", "torch"])
def test_a_pickle_of_another_version_is_not_opened(bare, tmp_path, capsys, name):
    versions = reporting.versions() | {name: "1.2.3"}
    (bare / "metrics.json").write_text(json.dumps({"versions": versions}))
    message = rejected(capsys, bare, tmp_path / "model", code=2)
    assert (
        f"export.pkl was written with {name} 1.2.3, and here is {name} {reporting.versions()[name]}"
        in message
    )
    assert "run `invoke train` here, or `invoke package` in the environment that trained" in message


def test_a_pickle_of_unknown_version_is_not_opened(bare, tmp_path, capsys):
    (bare / "metrics.json").write_text("{}")
    assert "torch of unknown version" in rejected(capsys, bare, tmp_path / "model", code=2)


class Bomb:
    """A pickle that raises when it is loaded."""

    def __reduce__(self):
        return divmod, (1, 0)


@pytest.mark.parametrize(
    "what",
    [b"", b"no pickle", pickle.dumps("text"), {"weights": 1}, Bomb()],
    ids=["empty", "no pickle", "a string", "a dictionary", "a bomb"],
)
def test_a_file_that_is_not_a_learner_is_rejected(bare, tmp_path, capsys, what):
    if isinstance(what, bytes):
        (bare / "export.pkl").write_bytes(what)
    else:
        torch.save(what, bare / "export.pkl")
    message = rejected(capsys, bare, tmp_path / "model", code=2)
    assert re.search(r"export\.pkl (cannot be loaded: .+|holds a dict, not a Learner)", message)


# --- the output folder, and the environment


def test_a_folder_with_other_files_is_left_alone(trained, tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    assert "holds something else than a model" in rejected(capsys, trained, tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_that_cannot_be_written_is_an_error(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "was not written" in rejected(capsys, trained, tmp_path / "file" / "model", code=3)


def test_an_unknown_mode_in_serve_modes_is_an_error(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SERVE_MODES", "fp32 fp8")
    message = rejected(capsys, trained, tmp_path / "model", code=2)
    assert message == "error: SERVE_MODES may name fp32, bf16 and int8, not 'fp8': correct or unset it\n"
    assert not (tmp_path / "model").exists()
