"""train.py: the guide's recipe, the files for later stages, and errors of one sentence."""

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from PIL import Image

import synthetic_pets
import train
from support import LABELS, interruptible, run

TINY = {"labels": LABELS, "arch": "resnet18", "size": 32, "bs": 8, "frozen": 0, "unfrozen": 1}
TINY |= {"weights": "none", "workers": 0, "seed": 1}

pytestmark = pytest.mark.xdist_group("train")  # one worker: `trained` is a process that takes seconds


def arguments(**options: object) -> list[str]:
    """The command line of a small training, with `options` changed."""
    return [str(word) for key, value in (TINY | options).items() for word in (f"--{key}", value)]


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """40 pictures, and one that is truncated."""
    return synthetic_pets.draw(tmp_path_factory.mktemp("drawn"), count=40)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """The result of a small training in a process of its own."""
    out = tmp_path_factory.mktemp("build") / "train"
    done = run("train/train.py", *arguments(data=drawn, unfrozen=2, out=out))
    assert not done.stderr
    assert "left out  Cat_40.jpg: image file is truncated" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert done.stdout.endswith("the next task is package\n")
    return out


def test_the_defaults_are_the_guides_project():
    args = vars(train.arguments(["--out", "x"]))
    assert (args["data"], args["arch"], args["size"], args["bs"]) == ("pets", "resnet50", 299, 32)
    assert (args["frozen"], args["unfrozen"], args["valid"], args["weights"]) == (8, 3, 0.2, "imagenet")


def test_the_result_holds_the_files_that_later_stages_read(trained):
    names = {path.name for path in trained.iterdir()}
    files = {"metrics.json", "validation.json", "split.json", "history.csv", "export.pkl"}
    assert names == files | {"models", "pictures"}
    assert (trained / "models" / "resnet18.pth").stat().st_size > 40e6
    assert [path.name for path in trained.parent.iterdir()] == ["train"]


def test_history_has_a_row_per_epoch(trained):
    with (trained / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss", "error_rate", "time"]
    assert float(rows[1]["error_rate"]) == pytest.approx(read(trained, "metrics.json")["error_rate"])


def test_metrics_hold_the_scores_and_the_versions(trained):
    metrics = read(trained, "metrics.json")
    assert metrics["task"] == "single"
    assert metrics["classes"] == ["Cat", "Dog", "Owl", "Rabbit"]
    assert (metrics["train_pictures"], metrics["valid_pictures"]) == (32, 8)
    assert [picture["file"] for picture in metrics["left_out"]] == ["Cat_40.jpg"]
    assert set(metrics["versions"]) == {"python", "fastai", "torch", "torchvision", "pillow"}
    assert metrics["arguments"]["size"] == 32
    assert metrics["seconds"] > 0


def test_validation_pictures_are_copied_unchanged_with_the_learners_predictions(trained, drawn):
    answers, metrics = read(trained, "validation.json"), read(trained, "metrics.json")
    assert len(answers) == 8
    for answer in answers:
        name = answer["file"].removeprefix("pictures/")[4:]
        assert (trained / answer["file"]).read_bytes() == (drawn / name).read_bytes()
        assert answer["labels"] == [name.partition("_")[0]]
        assert 0.25 <= answer["confidence"] <= 1
        # The best class and the second have at most 1 together, and the others no more than the second.
        assert answer["margin"] >= 2 * answer["confidence"] - 1 - 1e-6
        assert 0 <= answer["margin"] <= (4 * answer["confidence"] - 1) / 3 + 1e-6
    wrong = sum(answer["predicted"] != answer["labels"] for answer in answers)
    assert wrong / 8 == metrics["error_rate"]


def test_the_split_lists_every_picture(trained, drawn):
    split, metrics = read(trained, "split.json"), read(trained, "metrics.json")
    assert (len(split["train"]), len(split["valid"])) == (
        metrics["train_pictures"],
        metrics["valid_pictures"],
    )
    entries = split["train"] + split["valid"]
    assert {entry["file"] for entry in entries} == {str(p) for p in drawn.iterdir() if p.name != "Cat_40.jpg"}
    assert all(entry["labels"] == [Path(entry["file"]).name.partition("_")[0]] for entry in entries)
    kept = {Path(answer["file"]).name[4:] for answer in read(trained, "validation.json")}
    assert kept == {Path(entry["file"]).name for entry in split["valid"]}


def test_generated_pictures_are_kept_inside_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_pets.draw, "__defaults__", (24, 0))
    assert train.main(arguments(data="sample", out=tmp_path / "train")) == 0
    entries = [entry for part in read(tmp_path / "train", "split.json").values() for entry in part]
    assert len(entries) == 24
    for entry in entries:
        assert entry["file"].startswith("sample/")
        assert (tmp_path / "train" / entry["file"]).is_file()


def test_the_exported_learner_works_without_train_on_the_path_and_applies_exif(trained, tmp_path):
    im = Image.effect_noise((60, 40), 90).convert("RGB")
    im.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    script = f"""
import json, sys
from pathlib import Path
from fastai.vision.all import load_learner
train = Path({str(trained)!r})
learn = load_learner(train / "export.pkl")
for answer in json.loads((train / "validation.json").read_text()):
    name, _, probs = learn.predict(train / answer["file"])
    assert [name] == answer["predicted"] and abs(float(max(probs)) - answer["confidence"]) < 1e-5, answer
upright, turned = (learn.predict(Path(name + ".png"))[2] for name in ("upright", "turned"))
assert upright.equal(turned)
assert learn.predict(Path("turned.png").read_bytes())[2].equal(turned)
assert "pictures" not in sys.modules
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_same_arguments_give_the_same_metrics_and_replace_the_result(drawn, tmp_path, capsys):
    results = []
    for _ in range(2):
        assert train.main(arguments(data=drawn, out=tmp_path / "train")) == 0
        metrics = read(tmp_path / "train", "metrics.json")
        results.append(
            [metrics["error_rate"], metrics["valid_loss"], read(tmp_path / "train", "validation.json")]
        )
    assert results[0] == results[1]
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_untrained_model_has_a_high_error_rate(drawn, tmp_path):
    assert train.main(arguments(data=drawn, unfrozen=0, valid=0.9, out=tmp_path / "train")) == 0
    assert read(tmp_path / "train", "metrics.json")["error_rate"] > 0.5


def test_several_labels_per_picture(drawn, tmp_path, capsys):
    rows = [f"{path.name},{path.name[:3]}{' furry' * (path.name[0] != 'O')}" for path in drawn.iterdir()]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["name,labels", *rows, "Cat_0.jpg,"]))
    assert train.main(arguments(data=drawn, labels=table, out=tmp_path / "train")) == 0
    metrics, answers = read(tmp_path / "train", "metrics.json"), read(tmp_path / "train", "validation.json")
    assert (metrics["task"], metrics["classes"]) == ("multi", ["Cat", "Dog", "Owl", "Rab", "furry"])
    assert 0 <= metrics["accuracy"] <= 1
    for answer in answers:
        assert set(answer["predicted"]) <= set(metrics["classes"])
        assert bool(answer["predicted"]) == (answer["confidence"] > 0.5)
        assert answer["margin"] <= abs(2 * answer["confidence"] - 1) + 1e-6
    assert "accuracy" in capsys.readouterr().out


def test_folders_split_like_imagenet_keep_their_split(drawn, tmp_path):
    for i, path in enumerate(sorted(drawn.glob("*_*.*"))):
        part = tmp_path / "data" / ("valid" if i % 5 == 0 else "train") / path.name.partition("_")[0]
        part.mkdir(parents=True, exist_ok=True)
        (part / path.name).symlink_to(path)
    assert train.main(arguments(data=tmp_path / "data", labels="folder", out=tmp_path / "train")) == 0
    pictures = {answer["file"][13:] for answer in read(tmp_path / "train", "validation.json")}
    assert pictures <= {path.name for path in (tmp_path / "data" / "valid").rglob("*.*")}


def test_sixteen_bit_pictures_are_scaled_and_learnt(tmp_path):
    noise = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(24):
        values = noise.normal((20000, 40000)[i % 2], 1000, (40, 40)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "data" / f"{'AB'[i % 2]}_{i}.png")
    out = tmp_path / "train"
    assert train.main(arguments(data=tmp_path / "data", bs=4, unfrozen=25, lr=3e-3, valid=0.4, out=out)) == 0
    metrics = read(out, "metrics.json")
    assert metrics["error_rate"] == 0
    black, white = metrics["levels"]
    assert black == 0
    assert 42000 < white < 46000
    answers = read(out, "validation.json")
    assert all(answer["predicted"] == answer["labels"] for answer in answers)
    script = f"""
import json, sys
from pathlib import Path
from fastai.vision.all import load_learner
train = Path({str(out)!r})
learn = load_learner(train / "export.pkl")
for answer in json.loads((train / "validation.json").read_text()):
    assert learn.predict(train / answer["file"])[0] == answer["predicted"][0]
assert "pictures" not in sys.modules
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet81"}, "--arch resnet81: neither torchvision nor timm has it (did you mean resnet"),
        ({"arch": "vit_b_16"}, "--arch vit_b_16 --size 32: fastai cannot use that"),
        ({"data": "petz"}, "no such fastai dataset (did you mean"),
        ({"labels": r"^(\d+)_"}, "gives no picture a label: for example"),
        ({"precision": "bf16"}, "--precision bf16 needs a CUDA GPU"),
        ({"valid": 0.01}, "40 pictures to train on and 0 to validate with are too few"),
        ({"lr": 1e30}, "the loss is nan, so training diverged; give a lower --lr"),
    ],
)
def test_a_user_error_is_one_sentence_and_leaves_nothing(options, message, drawn, tmp_path, capsys):
    assert train.main(arguments(**{"data": drawn, "out": tmp_path / "train", **options})) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "0"], "--size: 0 is not between 8 and"),
        (["--bs", "many"], "invalid int value: 'many'"),
        (["--epochs", "3"], "unrecognized arguments: --epochs"),
    ],
)
def test_a_wrong_flag_is_named(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--out", "x", *flags])
    assert message in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_replaced(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert train.main(arguments(out=tmp_path)) == 2
    assert "holds something else than a training result" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_download_of_weights_gives_advice(drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert train.main(arguments(data=drawn, weights="imagenet", out=tmp_path / "train")) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no ImageNet weights for resnet18")
    assert f"resnet18-f37072fd.pth into {tmp_path}/hub/checkpoints" in error
    assert error.endswith("--weights none")
    assert not (tmp_path / "train").exists()


def test_the_frozen_stage_trains_only_the_head_and_the_other_all_layers(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = torchvision.models.resnet18().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(start, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    moved = []
    for unfrozen in (0, 1):
        options = {"data": drawn, "weights": "imagenet", "frozen": 1, "unfrozen": unfrozen}
        assert train.main(arguments(**options, out=tmp_path / "train")) == 0
        body = torch.load(tmp_path / "train" / "models" / "resnet18.pth")["0.0.weight"]
        moved.append(float((body - start["conv1.weight"]).abs().max()))
    assert moved[0] == 0
    assert 0 < moved[1] < 1e-4


def test_ctrl_c_leaves_the_previous_result(trained, drawn, capsys, monkeypatch):
    before = (trained / "metrics.json").read_bytes()
    fit = train.fit

    class Interrupt(Callback):
        def after_epoch(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "fit", lambda learn, args: (learn.add_cb(Interrupt()), fit(learn, args)))
    with interruptible():
        assert train.main(arguments(data=drawn, unfrozen=2, out=trained)) == 130
    output = capsys.readouterr()
    assert output.err == f"\nstopped; {trained} is as it was\n"
    assert "epoch 2/2" not in output.out
    assert (trained / "metrics.json").read_bytes() == before
    assert [path.name for path in trained.parent.iterdir()] == ["train"]
