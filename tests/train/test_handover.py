"""handover.py: notebooks' Learners of every kind become what packaging reads, and stay as they were."""

import ast
import io
import json
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import fastai.vision.all as fv
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from PIL import Image
from torch import nn

import handover
import synthetic_pets
from handover import LearnerError, hand_over
from support import ROOT

pytestmark = [
    pytest.mark.xdist_group("handover"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # fastai's, about pickles and masks
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """24 pictures of four classes, of which 8 are for validation."""
    folder = synthetic_pets.draw(tmp_path_factory.mktemp("drawn"), count=24)
    (folder / "Cat_24.jpg").unlink()  # the truncated one
    return sorted(folder.iterdir())


def kind_of(path):
    return Path(path).name.partition("_")[0]


class Tiny(nn.Module):
    """A model that is fast; its answer depends on the picture."""

    def __init__(self, outputs, channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, outputs))

    def forward(self, x):
        return self.body(x)


def loaders(items, blocks=(fv.ImageBlock, fv.CategoryBlock), get_y=kind_of, size=32, **options):
    block = fv.DataBlock(
        blocks, get_y=get_y, splitter=fv.RandomSplitter(1 / 3, 1), item_tfms=fv.Resize(size), **options
    )
    return block.dataloaders(items, bs=4, num_workers=0)


def learner(dls, outputs=4, channels=3, **options):
    torch.manual_seed(0)
    return fv.Learner(dls, Tiny(outputs, channels), **options)


def read(folder, name):
    return json.loads((folder / name).read_text())


def quietly(learn, item):
    with learn.no_bar(), learn.no_logging():
        return learn.predict(item)


def test_a_notebooks_learner_becomes_what_packaging_reads(drawn, tmp_path, capsys):
    learn = learner(loaders(drawn), metrics=[fv.error_rate, fv.accuracy])
    out = hand_over(learn, tmp_path / "build/mine/train")
    names = {path.name for path in out.iterdir()}
    assert names == {"export.pkl", "metrics.json", "models", "pictures", "split.json", "validation.json"}
    assert [path.name for path in (out / "models").iterdir()] == ["Tiny.pth"]
    metrics, entries, split = (read(out, f"{name}.json") for name in ("metrics", "validation", "split"))
    assert (metrics["task"], metrics["classes"]) == ("single", ["Cat", "Dog", "Owl", "Rabbit"])
    assert (metrics["train_pictures"], metrics["valid_pictures"]) == (16, 8)
    assert set(metrics["versions"]) == {"python", "fastai", "torch", "torchvision", "pillow"}
    assert metrics["error_rate"] == pytest.approx(1 - metrics["accuracy"])
    wrong = [entry["predicted"] != entry["labels"] for entry in entries]
    assert np.mean(wrong) == pytest.approx(metrics["error_rate"])
    for entry in entries:
        name, _, probabilities = quietly(learn, out / entry["file"])
        best, second = probabilities.topk(2).values.tolist()
        assert entry["predicted"] == [name]
        assert (entry["confidence"], entry["margin"]) == pytest.approx((best, best - second), abs=1e-6)
        assert entry["labels"] == [kind_of(entry["file"].removeprefix("pictures/")[4:])]
        assert (out / entry["file"]).read_bytes() == (drawn[0].parent / entry["file"][13:]).read_bytes()
    valid = [drawn[i] for i in fv.RandomSplitter(1 / 3, 1)(drawn)[1]]
    assert split["valid"] == [{"file": str(path), "labels": [kind_of(path)]} for path in valid]
    assert {one["file"] for part in split.values() for one in part} == {str(path) for path in drawn}
    said = capsys.readouterr().out
    assert f"error_rate {metrics['error_rate']:.4f}" in said
    copy = "next: copy this folder to build/mine/train in the repository, and there: "
    assert said.endswith(f"{copy}INVOKE_PROJECT=mine invoke package\n")


def snapshot(learn):
    """All of a Learner and of this process that could be touched."""
    recorder = learn.recorder
    return {
        "attributes": {key: id(value) for key, value in vars(learn).items()},
        "callbacks": [(id(cb), {key: id(value) for key, value in vars(cb).items()}) for cb in learn.cbs],
        "loaders": [{key: id(value) for key, value in vars(dl).items()} for dl in learn.dls.loaders],
        "optimizer": str(learn.opt.state_dict()),
        "hypers": str(learn.opt.hypers),
        "weights": str(learn.model.state_dict()),
        "training": [module.training for module in learn.model.modules()],
        "recorded": str([recorder.values, recorder.losses, recorder.lrs, recorder.iters]),
        "metrics": [str(vars(metric)) for metric in learn.metrics],
        "random": [
            random.getstate(),
            str(np.random.get_state()),
            torch.get_rng_state().tolist(),
            [dl.rng.getstate() for dl in learn.dls.loaders],
        ],
        "files": {path: path.stat().st_mtime_ns for path in Path(learn.path).rglob("*")},
    }


def test_the_learner_and_the_process_stay_as_they_were(drawn, tmp_path):
    class Own(fv.Callback):
        def after_validate(self):
            _ = self.learn.recorder.log

    cbs = [fv.SaveModelCallback(), fv.EarlyStoppingCallback(), fv.CSVLogger(), Own()]
    home = tmp_path / "notebook"
    home.mkdir()
    learn = learner(loaders(drawn), metrics=fv.error_rate, cbs=cbs, path=home)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    learn.model.train()
    method, before = Own.after_validate, snapshot(learn)
    hand_over(learn, tmp_path / "build/mine/train")
    after = snapshot(learn)
    for key, value in before.items():
        assert after[key] == value, key
    assert Own.after_validate is method
    assert {path.name for path in tmp_path.iterdir()} == {"notebook", "build"}
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)  # goes on


def test_it_needs_fastai_alone_and_no_file_of_this_repository(drawn, tmp_path):
    source = (ROOT / "train/handover.py").read_text()
    ast.parse(source, feature_version=(3, 10))
    shutil.copy(ROOT / "train/handover.py", tmp_path)
    (tmp_path / "notebook.py").write_text(f"""
import sys
from fastai.vision.all import *
from handover import hand_over

def is_cat(path): return path.name[0] == "C"

files = get_image_files({str(drawn[0].parent)!r})
dls = ImageDataLoaders.from_path_func(".", files, is_cat, item_tfms=Resize(32), bs=4, num_workers=0)
model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
learn = Learner(dls, model, metrics=error_rate)
before = is_cat
hand_over(learn, "build/cats/train")
assert is_cat is before
assert not {{"pictures", "reporting", "train", "learner"}} & set(sys.modules)
""")
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "build/cats/train", "metrics.json")["classes"] == ["False", "True"]


# --- items and labels of other kinds


def table_learner(drawn):
    table = pd.DataFrame({"name": [path.name for path in drawn], "kind": [kind_of(path) for path in drawn]})
    dls = fv.ImageDataLoaders.from_df(
        table, drawn[0].parent, valid_pct=1 / 3, seed=1, item_tfms=fv.Resize(32), bs=4, num_workers=0
    )
    return learner(dls)


def array_learner(drawn):
    arrays = [np.asarray(Image.open(path).convert("RGB").resize((40, 30))) for path in drawn]
    pairs = list(zip(arrays, map(kind_of, drawn), strict=True))
    return learner(loaders(pairs, get_y=fv.ItemGetter(1), get_x=fv.ItemGetter(0)))


def bytes_learner(drawn):
    pairs = [(path.read_bytes(), kind_of(path)) for path in drawn]
    return learner(loaders(pairs, get_y=fv.ItemGetter(1), get_x=fv.ItemGetter(0)))


def text_learner(drawn):
    return learner(loaders([str(path) for path in drawn]))


def grey_learner(drawn):
    return learner(loaders(drawn, (fv.ImageBlock(cls=fv.PILImageBW), fv.CategoryBlock)), channels=1)


@pytest.mark.parametrize("make", [table_learner, array_learner, bytes_learner, text_learner, grey_learner])
def test_pictures_come_from_tables_arrays_bytes_and_text(make, drawn, tmp_path):
    learn = make(drawn)
    out = hand_over(learn, tmp_path / "train")
    entries, split = read(out, "validation.json"), read(out, "split.json")
    by_input = learn.dls.valid_ds.tls[0]
    assert len(entries) == 8
    with learn.no_bar(), learn.no_logging():
        probabilities, targets = learn.get_preds()
    answers = sorted((learn.dls.vocab[p.argmax()], float(p.max())) for p in probabilities)
    found = sorted((entry["predicted"][0], entry["confidence"]) for entry in entries)
    assert [name for name, _ in found] == [name for name, _ in answers]
    assert [value for _, value in found] == pytest.approx([value for _, value in answers], abs=1e-5)
    wanted = sorted(learn.dls.vocab[target] for target in targets)
    assert sorted(entry["labels"][0] for entry in entries) == wanted
    if make in (array_learner, bytes_learner):
        assert split["train"] == []
        assert {one["file"] for one in split["valid"]} == {entry["file"] for entry in entries}
        assert entries[0]["file"].endswith("_picture.png")
        assert len(by_input) == 8
    else:
        assert {one["file"] for part in split.values() for one in part} == {str(path) for path in drawn}


def test_several_labels(drawn, tmp_path):
    dls = loaders(drawn, (fv.ImageBlock, fv.MultiCategoryBlock), lambda path: [kind_of(path)[:1], "furry"])
    learn = learner(dls, 5, metrics=fv.accuracy_multi)
    out = hand_over(learn, tmp_path / "train")
    metrics = read(out, "metrics.json")
    assert (metrics["task"], metrics["classes"]) == ("multi", ["C", "D", "O", "R", "furry"])
    assert "accuracy_multi" in metrics
    for entry in read(out, "validation.json"):
        names, _, probabilities = quietly(learn, out / entry["file"])
        assert entry["predicted"] == list(names)
        assert entry["margin"] == pytest.approx(2 * float((probabilities - 0.5).abs().min()), abs=1e-6)
        assert entry["labels"][-1] == "furry"


@pytest.mark.parametrize("numbers", [1, 2])
def test_regression(numbers, drawn, tmp_path):
    dls = loaders(
        drawn,
        (fv.ImageBlock, fv.RegressionBlock(n_out=numbers)),
        lambda path: [1.5] * numbers if numbers > 1 else 1.5,
    )
    learn = learner(dls, numbers, metrics=fv.mae)
    out = hand_over(learn, tmp_path / "train")
    metrics = read(out, "metrics.json")
    assert (metrics["task"], metrics["classes"]) == ("regression", [])
    assert metrics["mae"] > 0
    for entry in read(out, "validation.json"):
        assert set(entry) == {"file", "labels", "predicted"}
        assert entry["labels"] == [1.5] * numbers
        assert entry["predicted"] == pytest.approx(quietly(learn, out / entry["file"])[2].tolist(), abs=1e-6)


class Constant(nn.Module):
    """A model that always answers the same."""

    def __init__(self, answer):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x):
        return self.answer.expand(len(x), *self.answer.shape)


@pytest.mark.parametrize("y_first", [False, True])
def test_points_are_in_pixels_of_the_picture(y_first, drawn, tmp_path):
    block = fv.TransformBlock(type_tfms=fv.TensorPoint.create, item_tfms=fv.PointScaler(y_first=y_first))
    dls = loaders(drawn, (fv.ImageBlock, block), lambda path: torch.tensor([[5.0, 6.0], [9.0, 8.0]]))
    learn = fv.Learner(dls, Constant(torch.tensor([-1.0, -1, 1, 1, 0, 0])), loss_func=fv.MSELossFlat())
    learn.validate = lambda *_, **__: fv.L(0.5)  # a constant model has no matching number of points
    out = hand_over(learn, tmp_path / "train")
    assert read(out, "metrics.json")["task"] == "points"
    for entry in read(out, "validation.json"):
        assert entry["labels"] == ([[6, 5], [8, 9]] if y_first else [[5, 6], [9, 8]])
        with Image.open(out / entry["file"]) as picture:
            width, height = picture.size
        side = min(width, height)  # fastai's Resize crops the middle
        left, top = (width - side) / 2, (height - side) / 2
        assert entry["size"] == [width, height]
        # fastai crops at whole pixels of the picture.
        corners = [[left, top], [left + side, top + side], [width / 2, height / 2]]
        assert np.abs(np.array(entry["predicted"]) - corners).max() < 2


def test_masks_have_the_size_of_the_picture(drawn, tmp_path):
    def mask(path):
        return np.array(Image.open(path).convert("L")) // 128

    dls = loaders(drawn, (fv.ImageBlock, fv.MaskBlock(codes=["left", "right"])), mask)
    scores = torch.zeros(2, 32, 32)
    scores[0, :, :16] = scores[1, :, 16:] = 5
    learn = fv.Learner(dls, Constant(scores), metrics=fv.DiceMulti())
    out = hand_over(learn, tmp_path / "train")
    metrics, entries, split = (read(out, f"{name}.json") for name in ("metrics", "validation", "split"))
    assert (metrics["task"], metrics["classes"]) == ("segmentation", ["left", "right"])
    assert "dice_multi" in metrics
    assert all(entry["labels"] is None for entry in [*entries, *split["train"], *split["valid"]])
    for entry in entries:
        with Image.open(out / entry["file"]) as picture, Image.open(out / entry["mask"]) as found:
            assert (found.mode, found.size) == ("L", picture.size)
            pixels, side = np.array(found), min(found.size)
        assert entry["predicted"] == pytest.approx({"left": 0.5, "right": 0.5}, abs=0.01)
        assert (pixels == 255).sum() == pytest.approx(pixels.size - side * side, abs=3 * max(pixels.shape))
        row = pixels[len(pixels) // 2]
        seen = row[row != 255]
        assert list(seen) == sorted(seen)


def test_a_unet_of_fastai(drawn, tmp_path):
    def mask(path):
        return np.array(Image.open(path).convert("L")) // 128

    dls = loaders(drawn[:6], (fv.ImageBlock, fv.MaskBlock(codes=np.array(["dark", "light"]))), mask)
    learn = fv.unet_learner(dls, fv.resnet18, pretrained=False)
    out = hand_over(learn, tmp_path / "train")
    assert [path.name for path in (out / "models").iterdir()] == ["resnet18.pth"]
    for entry in read(out, "validation.json"):
        assert set(entry["predicted"]) <= {"dark", "light"}
        decoded = np.array(quietly(learn, out / entry["file"])[0])
        pixels = np.array(Image.open(out / entry["mask"]))
        share = np.mean(pixels[pixels != 255])
        assert share == pytest.approx(decoded.mean(), abs=0.02)


# --- names of files


@pytest.mark.parametrize(
    "name",
    [
        "x" * 251 + ".jpg",
        "猫" * 83 + "ab.jpg",
        "a\udcff" + "\udc80.jpg",
        "no suffix",
        "x" * 200 + "." + "y" * 54,
    ],
)
def test_a_copys_name_fits_into_255_bytes_and_keeps_its_suffix(name, tmp_path):
    copy = handover.copy_name(7, name)
    assert copy.startswith("007_")
    assert len(copy.encode()) <= 255  # and has no undecodable bytes
    assert Path(copy).suffix in (Path(name).suffix, "." + "y" * 50)
    (tmp_path / copy).touch()


def test_pictures_with_the_longest_names_are_handed_over(drawn, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(drawn):
        suffix = path.suffix.encode()
        stem = [b"Cat_" + b"x" * (251 - len(suffix)), b"Cat_" + "猫".encode() * 82, b"Cat_\xff\x80"][i % 3]
        stem = stem[: 255 - len(suffix) - 2] + f"{i:02}".encode()
        shutil.copy(path, bytes(folder) + b"/" + stem + suffix)
    files = sorted(folder.iterdir())
    out = hand_over(learner(loaders(files, get_y=lambda path: path.suffix), 3), tmp_path / "train")
    assert len(read(out, "validation.json")) == 8
    assert all((out / entry["file"]).is_file() for entry in read(out, "validation.json"))
    assert {one["file"] for part in read(out, "split.json").values() for one in part} == set(map(str, files))


# --- what it refuses


def without_validation(drawn):
    block = fv.DataBlock(
        (fv.ImageBlock, fv.CategoryBlock),
        get_y=kind_of,
        splitter=fv.RandomSplitter(0),
        item_tfms=fv.Resize(32),
    )
    return learner(block.dataloaders(drawn, bs=4, num_workers=0))


def tabular(drawn):
    table = pd.DataFrame({"a": [1.0, 2, 3, 4] * 4, "y": ["p", "q"] * 8})
    return tabular_learner(TabularDataLoaders.from_df(table, cont_names=["a"], y_names="y", bs=4), layers=[4])


def two_labels(drawn):
    blocks = (fv.ImageBlock, fv.CategoryBlock, fv.CategoryBlock)
    return learner(loaders(drawn, blocks, [kind_of, kind_of], n_inp=1))


def unpicklable(drawn):
    learn = learner(loaders(drawn))
    learn.cbs[-1].stream = (line for line in ())
    return learn


def diverged(drawn):
    learn = learner(loaders(drawn))
    nn.init.constant_(learn.model.body[2].weight, float("nan"))
    return learn


def failing_metric(drawn):
    def metric(predictions, targets):
        raise RuntimeError("no such score")

    return learner(loaders(drawn), metrics=metric)


def raw_loss(drawn):
    return learner(loaders(drawn), loss_func=lambda x, y: x.sum())


def no_codes(drawn):
    blocks = (fv.ImageBlock, fv.MaskBlock)
    return fv.Learner(
        loaders(drawn, blocks, lambda p: np.zeros((9, 9), np.uint8)), Constant(torch.zeros(2, 32, 32))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_validation, "the Learner has no validation pictures, so nothing could be proven"),
        (tabular, "only vision Learners can be packaged"),
        (two_labels, "the Learner predicts 2 sets of labels for a picture"),
        (unpicklable, "learn.cbs[3].stream (generator) cannot be pickled: remove it from the Learner"),
        (diverged, "the loss is nan, so training diverged; train with a lower learning rate"),
        (failing_metric, "event `after_batch`: no such score"),
        (raw_loss, "does not define which label wins"),
        (no_codes, "the Learner's classes have no names: give them to MaskBlock(codes=[...])"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_handed_over_is_one_sentence_and_leaves_all_as_it_was(make, message, drawn, tmp_path):
    learn = make(drawn)
    dls, cbs = learn.dls, list(learn.cbs)
    with pytest.raises(LearnerError) as refusal:
        hand_over(learn, tmp_path / "train")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
    assert (learn.dls is dls, list(learn.cbs)) == (True, cbs)


def test_a_learner_that_fails_on_a_single_picture(drawn, tmp_path):
    class Picky(Tiny):
        def forward(self, x):
            if len(x) == 1:
                raise ValueError("a batch of one")
            return super().forward(x)

    learn = fv.Learner(loaders(drawn), Picky(4))
    with pytest.raises(
        LearnerError, match=f"learn.predict fails on {drawn[0].parent}/[^0].*: a batch of one"
    ):
        hand_over(learn, tmp_path / "train")
    assert not list(tmp_path.iterdir())


def test_metrics_with_the_names_of_other_facts_do_not_replace_them(drawn, tmp_path):
    def levels(predictions, targets):
        return torch.tensor(0.5)

    def classes(predictions, targets):
        return torch.tensor(0.5)

    out = hand_over(learner(loaders(drawn), metrics=[levels, classes]), tmp_path / "train")
    metrics = read(out, "metrics.json")
    assert (metrics["classes"], "levels" in metrics) == (list(synthetic_pets.PETS), False)


@pytest.mark.parametrize("folder", ["/train", "/build/train", "/data/mine"])
def test_a_folder_without_a_project_gets_one(folder):
    assert handover.next_command(Path(folder)).startswith("next: copy this folder to build/NAME/train")


def test_a_full_disk_is_one_sentence_and_leaves_the_result_before(drawn, tmp_path):
    learn = learner(loaders(drawn))
    out = hand_over(learn, tmp_path / "train")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(LearnerError, match=r"train cannot be written .*: free some space"):
            hand_over(learn, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_folder_with_other_files_is_refused(drawn, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LearnerError, match="holds something else than a training result"):
        hand_over(learner(loaders(drawn)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_metrics_that_are_not_one_number(drawn, tmp_path):
    def pair(predictions, targets):
        return torch.tensor([0.25, 0.75])

    def words(predictions, targets):
        return "good"

    metrics = [fv.AccumMetric(pair, flatten=False), fv.AccumMetric(words, flatten=False), fv.accuracy]
    out = hand_over(learner(loaders(drawn), metrics=metrics), tmp_path / "train")
    found = read(out, "metrics.json")
    assert found["pair"] == [0.25, 0.75]
    assert "words" not in found
    assert 0 <= found["accuracy"] <= 1


def test_half_precision_weights_and_sixteen_bit_pictures(tmp_path, capsys):
    files = []
    for i in range(12):
        files.append(tmp_path / f"{'AB'[i % 2]}_{i}.png")
        Image.fromarray(np.full((40, 40), 20000 * (i % 2 + 1), np.uint16)).save(files[-1])
    learn = learner(loaders(files), 2)
    learn.model.half()
    out = hand_over(learn, tmp_path / "build/deep/train")
    assert "note: 4 of the validation pictures have more than 8 bits a pixel" in capsys.readouterr().out
    assert {weights.dtype for weights in learn.model.parameters()} == {torch.float16}
    assert len(read(out, "validation.json")) == 4


def test_methods_of_classes_are_pickled_by_their_name():
    """fastai 2.7 cannot run copies of their code, which cloudpickle would make."""
    for dump, copied in ((cloudpickle.Pickler, True), (handover.pickler().Pickler, False)):
        file = io.BytesIO()
        dump(file).dump(fv.PILImage.create)
        assert (b"CodeType" in file.getvalue()) == copied
    assert pickle.loads(file.getvalue()) == fv.PILImage.create


def test_without_cloudpickle_hand_over_says_so(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(LearnerError, match="run `pip install cloudpickle`"):
        hand_over(learner(loaders(drawn)), tmp_path / "train")
    assert not list(tmp_path.iterdir())
