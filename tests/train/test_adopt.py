"""adopt.py: an export.pkl and pictures become a training result; what cannot work is one sentence."""

import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import cloudpickle
import fastai.vision.all as fv
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from PIL import Image
from torch import nn

import adopt
import synthetic_pets
from learner_file import python_of, read_pickles, unpack
from support import LABELS, run

pytestmark = [
    pytest.mark.xdist_group("adopt"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as the functions of a notebook
WARNING = "note: a pickle runs code when it is loaded: adopt only Learners of your own\n"


def kind_of(path):
    return Path(path).name.partition("_")[0]


def loaders(files, blocks=(fv.ImageBlock, fv.CategoryBlock), get_y=kind_of):
    block = fv.DataBlock(blocks, get_y=get_y, splitter=fv.RandomSplitter(0.3, 1), item_tfms=fv.Resize(32))
    return block.dataloaders(files, bs=4, num_workers=0)


def model(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, outputs))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 pictures of four classes, and a truncated one."""
    return synthetic_pets.draw(tmp_path_factory.mktemp("photos"), count=24)


@pytest.fixture(scope="module")
def export(photos, tmp_path_factory):
    """An export.pkl as notebooks leave it, and its Learner."""
    files = [path for path in sorted(photos.iterdir()) if path.name != "Cat_24.jpg"]
    learn = fv.Learner(loaders(files), model(4), path=tmp_path_factory.mktemp("notebook"))
    learn.export()
    return learn.path / "export.pkl"


def command(learner, pictures, out, labels=None):
    words = ["--learner", learner, "--pictures", pictures, "--out", out / "build/mine/train"]
    return [str(word) for word in ([*words, "--labels", labels] if labels else words)]


def refusal(capsys, *words):
    """The sentence of a refused command line; nothing may be written."""
    assert adopt.main(command(*words)) == 2
    output = capsys.readouterr()
    assert output.out == WARNING
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert not (words[2] / "build").exists() or not list((words[2] / "build/mine").iterdir())
    return output.err.removeprefix("error: ").removesuffix("\n")


def read(folder, name):
    return json.loads((folder / f"build/mine/train/{name}.json").read_text())


def predictions(export, files):
    learn = fv.load_learner(export)
    with learn.no_bar(), learn.no_logging():
        return [learn.predict(file)[0] for file in files]


# --- what is adopted


def test_a_learner_and_labelled_pictures_become_a_training_result(export, photos, tmp_path):
    done = run("train/adopt.py", *command(export, photos, tmp_path, LABELS))
    files = [path for path in sorted(photos.iterdir()) if path.name != "Cat_24.jpg"]
    answers = predictions(export, files)
    wrong = sum(answer != kind_of(file) for answer, file in zip(answers, files, strict=True)) / 24
    out = tmp_path / "build/mine/train"
    assert done.stderr == ""
    assert done.stdout == (
        f"{WARNING}Learner   single, 4 classes: Cat, Dog, Owl, Rabbit\n"
        f"pictures  24 in {photos}\n"
        "left out  Cat_24.jpg: image file is truncated (0 bytes not processed)\n".replace(
            "(0 bytes not processed)", read(tmp_path, "metrics")["left_out"][0]["reason"].partition("d ")[2]
        )
        + f"error rate {wrong:.1%} on 24 labelled pictures\n"
        f"the Learner and 24 of the pictures are in {out}; the next task is package\n"
    )
    metrics, entries, split = (read(tmp_path, name) for name in ("metrics", "validation", "split"))
    assert (out / "export.pkl").read_bytes() == export.read_bytes()
    assert torch.load(out / "models/Sequential.pth").keys() == model(4).state_dict().keys()
    assert (metrics["task"], metrics["classes"]) == ("single", ["Cat", "Dog", "Owl", "Rabbit"])
    assert metrics["error_rate"] == pytest.approx(wrong)
    assert (metrics["train_pictures"], metrics["valid_pictures"]) == (None, 24)
    assert set(metrics["versions"]) == {"python", "fastai", "torch", "torchvision", "pillow"}
    by_name = dict(zip((file.name for file in files), answers, strict=True))
    assert {entry["file"][13:]: entry["predicted"][0] for entry in entries} == by_name
    assert split == {
        "train": [],
        "valid": [{"file": str(file), "labels": [kind_of(file)]} for file in files],
    }


def test_pictures_without_labels_leave_accuracy_unknown(export, photos, tmp_path):
    done = run("train/adopt.py", *command(export, photos, tmp_path))
    assert adopt.UNLABELLED in done.stdout
    assert "error rate" not in done.stdout
    metrics, entries = read(tmp_path, "metrics"), read(tmp_path, "validation")
    assert not {"error_rate", "accuracy"} & set(metrics)
    assert [entry["labels"] for entry in entries] == [None] * 24
    assert all(entry["labels"] is None for entry in read(tmp_path, "split")["valid"])


def test_a_result_of_training_is_not_replaced(export, photos, tmp_path, capsys):
    out = tmp_path / "build/mine/train"
    out.mkdir(parents=True)
    (out / "metrics.json").write_text('{"arguments": {"epochs": 8}}')
    assert adopt.main(command(export, photos, tmp_path)) == 2
    assert "train holds what `invoke train` trained: name another project" in capsys.readouterr().err
    assert [file.name for file in out.parent.rglob("*")] == ["train", "metrics.json"]


def in_process(learn, photos, tmp_path, labels):
    """Adopt without another process."""
    learn.export(tmp_path / "export.pkl")
    args = adopt.arguments(command(tmp_path / "export.pkl", photos, tmp_path, labels))
    adopt.check_arguments(args)
    (tmp_path / "build/mine/train").mkdir(parents=True)
    adopt.adopt(args, tmp_path / "build/mine/train")
    return read(tmp_path, "metrics"), read(tmp_path, "validation")


@pytest.fixture
def files(photos):
    return [path for path in sorted(photos.iterdir()) if path.name != "Cat_24.jpg"]


def test_several_labels_from_a_table(files, photos, tmp_path):
    def labels_of(path):
        return [kind_of(path), "furry"]

    learn = fv.Learner(loaders(files, (fv.ImageBlock, fv.MultiCategoryBlock), labels_of), model(5))
    table = tmp_path / "labels.csv"
    table.write_text("name,labels\n" + "".join(f"{path.name},{kind_of(path)} furry\n" for path in files))
    metrics, entries = in_process(learn, photos, tmp_path, table)
    right = [
        (name in answer) == (name in labels_of(file))
        for answer, file in zip(predictions(tmp_path / "export.pkl", files), files, strict=True)
        for name in ("Cat", "Dog", "Owl", "Rabbit", "furry")
    ]
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert {tuple(sorted(entry["labels"])) for entry in entries} >= {("Cat", "furry"), ("Dog", "furry")}


def test_regression_has_numbers_as_labels(files, photos, tmp_path):
    learn = fv.Learner(loaders(files, (fv.ImageBlock, fv.RegressionBlock), lambda path: 1.5), model(1))
    metrics, entries = in_process(learn, photos, tmp_path, r"_(\d+)\.\w+$")
    answers = [float(answer[0]) for answer in predictions(tmp_path / "export.pkl", files)]
    numbers = [float(path.stem.partition("_")[2]) for path in files]
    wrong = [abs(a - b) for a, b in zip(answers, numbers, strict=True)]
    assert metrics["mean_absolute_error"] == pytest.approx(sum(wrong) / 24, rel=1e-5)
    assert sorted(entry["labels"][0] for entry in entries) == sorted(numbers)


def test_points_have_no_labels_here(files, photos, tmp_path):
    blocks = (fv.ImageBlock, fv.PointBlock)
    learn = fv.Learner(loaders(files, blocks, lambda path: torch.tensor([[5.0, 5.0]])), model(2))
    with pytest.raises(adopt.UsageError, match="points cannot be compared with labels here"):
        in_process(learn, photos, tmp_path, LABELS)
    shutil.rmtree(tmp_path / "build")
    metrics, entries = in_process(learn, photos, tmp_path, None)
    assert metrics["task"] == "points"
    assert all(entry["labels"] is None and len(entry["predicted"]) == 1 for entry in entries)


def test_one_folder_of_one_class_and_pictures_that_have_no_label(export, photos, tmp_path, capsys):
    (tmp_path / "photos/Cat").mkdir(parents=True)
    shutil.copy(
        photos / "Cat_0.png" if (photos / "Cat_0.png").exists() else next(photos.glob("Cat_*")),
        tmp_path / "photos/Cat",
    )
    shutil.copy(next(photos.glob("Dog_*")), tmp_path / "photos")
    learn = fv.load_learner(export)
    metrics, entries = in_process(learn, tmp_path / "photos", tmp_path, "folder")
    assert [entry["labels"] for entry in entries] == [["Cat"]]
    assert [one["reason"] for one in metrics["left_out"]] == ["no label"]


# --- what is refused before the Learner is loaded


def test_a_folder_and_a_missing_file(export, photos, tmp_path, capsys):
    assert refusal(capsys, export.parent, photos, tmp_path) == (
        f"--learner {export.parent} is a folder: name the file, such as {export}"
    )
    assert refusal(capsys, "gone.pkl", photos, tmp_path) == "--learner gone.pkl: there is no such file"


def fastai_1():
    module = types.ModuleType("fastai.basic_train")
    module.Learner = type("Learner", (), {"__module__": "fastai.basic_train"})
    sys.modules["fastai.basic_train"] = module
    try:
        return pickle.dumps({"cls": module.Learner}, 2)
    finally:
        del sys.modules["fastai.basic_train"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda export: b"", "is empty: export or copy it again"),
        (lambda export: export[: len(export) // 2], "is truncated or damaged: copy it again"),
        (
            lambda export: b"<html>404 Not Found</html>",
            "is not a pickle: name a file that learn.export() wrote",
        ),
        (lambda export: pickle.dumps((Learner, "x" * 99))[:-50], "is truncated or damaged: copy it again"),
        (lambda export: fastai_1(), "is an export of fastai 1, which fastai 2 cannot load"),
        (
            lambda export: pickle.dumps([1, 2]),
            "holds no fastai Learner: name a file",
        ),
    ],
    ids=["empty", "truncated", "no pickle", "truncated pickle", "fastai 1", "something else"],
)
def test_a_file_that_is_no_learner(content, message, export, photos, tmp_path, capsys):
    (tmp_path / "export.pkl").write_bytes(content(export.read_bytes()))
    assert refusal(capsys, tmp_path / "export.pkl", photos, tmp_path).startswith(
        f"{tmp_path}/export.pkl {message}"
    )


@pytest.mark.parametrize("old", [False, True], ids=["zip", "torch's older format"])
def test_weights_and_models_are_no_learner(old, photos, tmp_path, capsys):
    options = {"_use_new_zipfile_serialization": not old}
    for name, content in (
        ("weights", model(4).state_dict()),
        ("both", {"model": model(4).state_dict(), "opt": {}}),
    ):
        torch.save(content, tmp_path / f"{name}.pth", **options)
        assert refusal(capsys, tmp_path / f"{name}.pth", photos, tmp_path) == (
            f"{tmp_path}/{name}.pth holds weights, not a Learner: load them where it was trained "
            "(learn.load), then call hand_over or learn.export()"
        )
    torch.save(model(4), tmp_path / "model.pt", **options)
    assert "holds no fastai Learner" in refusal(capsys, tmp_path / "model.pt", photos, tmp_path)


# What Python 3.10 to 3.14 compile of `def f(x): return g(x)`, a function inside of another.
CODES = {
    "3.10 or older": b"\x88\x00|\x00\x83\x01S\x00",
    "3.11": b"\x95\x01\x97\x00\x02\x00\x89\x01|\x00\xa6\x01\x00\x00\xab\x01\x00\x00\x00\x00\x00\x00S\x00",
    "3.12": b"\x95\x01\x97\x00\x02\x00\x89\x01|\x00\xab\x01\x00\x00\x00\x00\x00\x00S\x00",
    "3.13": b">\x01\x95\x00S\x01\x22\x00U\x005\x01\x00\x00\x00\x00\x00\x00$\x00",
    "3.14": b">\x01\x80\x00]\x01!\x00V\x004\x01\x00\x00\x00\x00\x00\x00#\x00",
}


@pytest.mark.parametrize("python", CODES)
def test_a_learner_of_another_python_is_refused_with_its_version(python, photos, tmp_path, capsys):
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "export.pkl").write_bytes(pickle.dumps((Learner, "CodeType", 1, CODES[python], "latin1")))
    names, codes = read_pickles(tmp_path / "export.pkl", unpack(tmp_path / "export.pkl"))
    assert (names, codes) == ({"fastai.learner Learner"}, [CODES[python]])
    assert python_of(codes) == python
    if python != here:
        assert refusal(capsys, tmp_path / "export.pkl", photos, tmp_path) == (
            f"{tmp_path}/export.pkl was written by Python {python}, whose functions Python {here} "
            "cannot run: call hand_over and run `invoke package` where it was trained, "
            "or use the same versions here"
        )


def test_this_python_is_recognised_in_a_real_export(export):
    _, codes = read_pickles(export, unpack(export))
    assert python_of(codes) == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_no_pictures(export, tmp_path, capsys):
    missing = refusal(capsys, export, "gone", tmp_path)
    assert missing == "--pictures gone: there is no such folder"
    (tmp_path / "photos").mkdir()
    empty = refusal(capsys, export, tmp_path / "photos", tmp_path)
    assert empty == f"there are no pictures in {tmp_path}/photos: nothing could be proven"
    assert adopt.main(["--learner", str(export), "--out", str(tmp_path / "x")]) == 2
    assert "--pictures is missing: without them nothing could be proven" in capsys.readouterr().err
    assert adopt.main(["--pictures", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "--learner is missing: name the file" in capsys.readouterr().err


# --- what is refused when it is loaded


class Crash:
    """Ends the process that loads it, as code of another Python can."""

    def __reduce__(self):
        return os.abort, ()


def refused(*words):
    """The sentence of a command that is refused; nothing is written."""
    done = run("train/adopt.py", *command(*words), code=2)
    assert not list((words[2] / "build/mine").iterdir())
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").removesuffix("\n")


def test_a_crash_while_loading_is_one_sentence(photos, tmp_path):
    (tmp_path / "export.pkl").write_bytes(pickle.dumps((Learner, Crash()), 2))
    sentence = refused(tmp_path / "export.pkl", photos, tmp_path)
    assert f"{tmp_path}/export.pkl crashes here (SIGABRT), so other versions wrote it than Python" in sentence
    assert f"torch {torch.__version__.partition('+')[0]}" in sentence
    assert "call hand_over and run `invoke package` where it was trained" in sentence


@pytest.mark.parametrize("kind", ["a module", "a function of the notebook"])
def test_what_the_pickle_names_and_is_not_here(kind, files, photos, tmp_path, monkeypatch):
    name = "gone_module" if kind == "a module" else "__main__"
    module = types.ModuleType(name) if kind == "a module" else sys.modules["__main__"]
    exec("def by_kind(path): return path.name[:3]", vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    module.by_kind.__module__ = name
    learn = fv.Learner(loaders(files, get_y=module.by_kind), model(4))
    learn.export(tmp_path / "export.pkl", pickle_module=pickle)
    sentence = refused(tmp_path / "export.pkl", photos, tmp_path)
    expected = {
        "a module": "needs the module gone_module, which was not found: put its folder on PYTHONPATH",
        "a function of the notebook": (
            "needs by_kind, which was defined in the notebook: call hand_over in that notebook"
        ),
    }
    assert sentence == f"{tmp_path}/export.pkl {expected[kind]}"
    if kind != "a module":
        del module.by_kind


def test_a_tabular_learner(photos, tmp_path):
    table = pd.DataFrame({"a": [1.0, 2, 3, 4] * 4, "y": ["p", "q"] * 8})
    dls = TabularDataLoaders.from_df(table, cont_names=["a"], y_names="y", bs=4)
    tabular_learner(dls, layers=[4]).export(tmp_path / "export.pkl")
    assert "only vision Learners can be packaged" in refused(tmp_path / "export.pkl", photos, tmp_path)


def test_labels_that_the_learner_does_not_have(export, photos, tmp_path, capsys):
    args = adopt.arguments(command(export, photos, tmp_path, r"^([A-Z][a-z]+)"))
    adopt.check_arguments(args)
    names = ["Cats", "Dog", "Owl", "Rabbit"]
    with pytest.raises(adopt.UsageError) as error:
        adopt.usable_pictures(args, "single", names)
    assert str(error.value).endswith(
        "has the label Cat, which is none of the Learner's 4 classes (did you mean Cats?)"
    )
    with pytest.raises(adopt.UsageError, match=r"8 classes \(x1, x2, x3, x4, x5, x6, \.\.\.\)$"):
        adopt.usable_pictures(args, "single", [f"x{i}" for i in range(1, 9)])
    with pytest.raises(adopt.UsageError, match="has the label Cat, but the Learner predicts numbers"):
        adopt.usable_pictures(args, "regression", [])


def test_pictures_none_of_which_can_be_read(export, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"<html>")
    (tmp_path / "photos/b.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    args = adopt.arguments(command(export, tmp_path / "photos", tmp_path))
    adopt.check_arguments(args)
    with pytest.raises(adopt.UsageError, match=r"no pictures in .* can be used \(a.jpg: not a picture"):
        adopt.usable_pictures(args, "single", ["a", "b"])
    Image.new("RGB", (40, 40)).save(tmp_path / "photos/c.webp")
    usable, left_out = adopt.usable_pictures(args, "single", ["a", "b"])
    assert list(usable) == [tmp_path / "photos/c.webp"]
    assert left_out[1] == {
        "file": "b.heic",
        "reason": "HEIC and AVIF pictures cannot be read: convert them to JPEG",
    }
