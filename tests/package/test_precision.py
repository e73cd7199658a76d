"""package/precision.py: what is quicker than fp32 is used where it keeps the answers, and nowhere else."""

import io
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import call, content, finish, spec, tampered

import archive
import engine
import export
import inference
import large
import precision
import predictor
from precision import gate, margins
from support import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        BCEWithLogitsLossFlat,
        CategoryBlock,
        CrossEntropyLossFlat,
        DataBlock,
        IntToFloatTensor,
        Learner,
        MultiCategoryBlock,
        RandomSplitter,
        Resize,
        TransformBlock,
    )
    from torch import nn

    from pictures import upright

PIXELS = TransformBlock(type_tfms=upright, batch_tfms=IntToFloatTensor)
SHADES = {"Black": 30, "Dark": 95, "Light": 160, "White": 225}
BF16 = pytest.mark.skipif(not engine.can("bf16"), reason="this chip has no bf16")
INT8 = pytest.mark.skipif(not engine.can("int8"), reason="this chip has no int8")


# --- the gate


def answers(right: int, wrong: int, margin: float = 0.9) -> np.ndarray:
    """Probabilities of two labels for pictures whose label is the first: so many right, the others wrong."""
    row = np.array([0.5 + margin / 2, 0.5 - margin / 2])
    return np.array([row] * right + [row[::-1]] * wrong)


def truth(count: int) -> np.ndarray:
    return np.array([[True, False]] * count)


@pytest.mark.parametrize(
    ("count", "lost", "passed"), [(200, 1, True), (199, 1, False), (200, 2, False), (400, 2, True)]
)
def test_the_gate_lets_half_a_point_of_accuracy_pass_and_no_more(count, lost, passed):
    verdict = gate(answers(count, 0, 0.1), answers(count - lost, lost, 0.1), truth(count), None)
    assert verdict["reason"].startswith("nothing to compare" if passed else "accuracy ")
    sure = gate(answers(count, 0), answers(count - lost, lost), truth(count), None)
    assert sure["passed"] is passed
    assert sure["accuracy"] == (count - lost) / count


@pytest.mark.parametrize(("count", "differ", "passed"), [(100, 1, True), (99, 1, False), (200, 3, False)])
def test_the_gate_wants_99_of_100_sure_answers(count, differ, passed):
    wrong, other = answers(0, count), answers(differ, count - differ)  # more are right: accuracy is no matter
    verdict = gate(wrong, other, truth(count), None)
    assert (verdict["passed"], verdict["agreement"]) == (passed, (count - differ) / count)
    assert passed or "of the sure answers are the same (99 % at least)" in verdict["reason"]


def test_the_gate_forgives_other_answers_where_fp32_was_not_sure():
    before = np.concatenate([answers(100, 0), answers(0, 50, 0.19)])
    after = np.concatenate([answers(100, 0), answers(50, 0, 0.9)])
    assert gate(before, after, truth(150), None)["agreement"] == 1
    sure = np.concatenate([answers(100, 0), answers(0, 50, 0.21)])
    assert gate(sure, after, truth(150), None)["agreement"] == 100 / 150


def test_the_gate_lets_nothing_pass_on_no_evidence():
    verdict = gate(answers(50, 50, 0.1), answers(50, 50, 0.1), truth(100), None)
    assert (verdict["passed"], verdict["agreement"]) == (False, None)


def test_the_gate_refuses_what_is_no_number():
    broken = answers(100, 0)
    broken[7] = np.nan
    assert (
        gate(answers(100, 0), broken, truth(100), None)["reason"]
        == "some of its probabilities are no numbers"
    )


def test_with_several_labels_the_whole_answer_counts():
    before = np.array([[0.9, 0.8, 0.1], [0.9, 0.45, 0.1]])
    labels = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(margins(before, 0.5), [0.6, 0.1])
    fewer = np.array([[0.9, 0.3, 0.1], [0.9, 0.45, 0.1]])
    assert gate(before, fewer, labels, 0.5) | {"reason": ""} == {
        "accuracy": 0.5,
        "agreement": 0.0,
        "passed": False,
        "reason": "",
    }
    assert gate(before, before, labels, 0.5)["passed"]
    assert margins(before, 0.85)[0] == pytest.approx(0.1)


# --- candidates on real models


def kind(path: Path) -> str:
    """The picture's only label."""
    return path.name.partition("_")[0]


def levels(path: Path):  # no list[str]: fastai would take it for a conversion
    """Several labels: every shade that the picture is brighter than."""
    return list(SHADES)[: list(SHADES).index(kind(path))]


def average(*head: tuple[float, float]) -> nn.Module:
    """Convolutions that only average, and for each label a factor and an addend on the brightness."""
    convolutions = [nn.Conv2d(inputs, 16, 3, 2, bias=False) for inputs in (3, 16)]
    linear = nn.Linear(16, len(head))
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.fill_(1 / convolution.weight[0].numel())
        linear.weight[:] = torch.tensor([[factor / 16] * 16 for factor, _ in head])
        linear.bias[:] = torch.tensor([addend for _, addend in head])
    first, second = convolutions
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def nearest() -> nn.Module:
    """Tells the shades: the nearest has the largest 2 c x - c², which is x² - (x - c)²."""
    shades = [shade / 255 for shade in SHADES.values()]
    return average(*((200 * c, -100 * c * c) for c in shades))


def learner(pictures, model, label=None, get_y=kind, loss=None, size=32) -> Learner:
    """A Learner with DataLoaders as train.py's."""
    block = label or CategoryBlock(sorted({kind(picture) for picture in pictures}))
    data = DataBlock((PIXELS, block), get_y=get_y, splitter=RandomSplitter(0.4, 1), item_tfms=Resize(size))
    dls = data.dataloaders(pictures, bs=4, num_workers=0)
    return Learner(dls, model, loss_func=loss or CrossEntropyLossFlat())


def done(folder: Path, learn: Learner, get_y=kind) -> Path:
    """What train.py leaves, split.json among it."""
    parts = {"train": learn.dls.train_ds, "valid": learn.dls.valid_ds}
    finish(folder, learn, list(parts["valid"].items[:4]))
    split = {
        part: [{"file": str(path), "labels": np.atleast_1d(get_y(path)).tolist()} for path in ds.items]
        for part, ds in parts.items()
    }
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> list[Path]:
    """A hundred noisy pictures of one shade each."""
    folder, rng = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for i in range(100):
        name, shade = list(SHADES.items())[i % 4]
        noisy = shade + rng.normal(0, 12, (48, 48, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{name}_{i:02d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shades) -> Path:
    """A model that is sure of the four shades; its 40 validation pictures are in split.json."""
    return done(tmp_path_factory.mktemp("build") / "train", learner(shades, nearest()))


@pytest.fixture
def mine(trained, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(trained, tmp_path / "train")


@pytest.fixture(autouse=True)
def few_large_photographs(monkeypatch):
    """Enlarging takes a second for each."""
    monkeypatch.setattr(precision, "LARGE", 4)


def resplit(folder: Path, part: str, change) -> None:
    """Write what `change` makes of the files in a part of split.json."""
    split = json.loads((folder / "split.json").read_text())
    for entry, file in zip(split[part], change([entry["file"] for entry in split[part]]), strict=True):
        entry["file"] = str(file)
    (folder / "split.json").write_text(json.dumps(split))


def test_auto_takes_bf16_where_the_chip_has_it(trained, tmp_path, capsys):
    facts = spec(call(capsys, trained, tmp_path / "model"))["precision"]
    assert facts["asked"] == "auto"
    assert facts["use"] == (["bf16", "fp32"] if engine.can("bf16") else ["fp32"])
    assert facts["draft"] is False
    assert facts["candidates"]["bf16"]["passed"] is engine.can("bf16")
    assert facts["candidates"]["fp32"] == {"accuracy": 1.0}
    assert (facts["pictures"], facts["sure"]) == (40, 40)
    assert [path.name for path in (tmp_path / "model").glob("*.onnx")] == ["model.onnx"]


def test_exact_is_fp32_and_tries_nothing(trained, tmp_path, capsys):
    facts = spec(call(capsys, trained, tmp_path / "model", "--precision", "exact"))
    assert facts["precision"] == {"asked": "exact", "use": ["fp32"], "draft": False}
    assert list(facts["sha256"]) == ["model.onnx"]


@INT8
def test_fast_takes_int8_serves_it_and_packs_it(trained, tmp_path, capsys):
    model = call(capsys, trained, tmp_path / "model", "--precision", "fast")
    facts = spec(model)
    assert sorted(facts["precision"]["use"]) == sorted(["int8", "fp32", *["bf16"] * engine.can("bf16")])
    assert facts["precision"]["use"][-1] == "fp32"
    assert facts["precision"]["candidates"]["int8"]["passed"]
    assert facts["precision"]["shrink"].keys() == {"side", "accuracy", "agreement", "passed", "reason"}
    assert facts["sha256"].keys() == {"model.onnx", "model.int8.onnx"}
    assert archive.main(["--model", str(model), "--out", str(tmp_path / "model.tar.gz")]) == 0
    assert inference.model_fn(model).engine.mode == facts["precision"]["use"][0]
    quick, exact = (inference.model_fn(model, mode) for mode in ("int8", "fp32"))
    for entry in json.loads((trained / "validation.json").read_text()):
        batch = (trained / entry["file"]).read_bytes()
        one, other = (
            inference.predict_fn(inference.input_fn(batch), m).probabilities for m in (quick, exact)
        )
        assert one.argmax() == other.argmax()
        assert not np.array_equal(one, other)  # it is another arithmetic


@INT8
def test_packaging_fast_again_writes_the_same_bytes(trained, tmp_path, capsys):
    one, other = (call(capsys, trained, tmp_path / name, "--precision", "fast") for name in ("a", "b"))
    assert "model.int8.onnx" in content(one)
    assert content(one) == content(other)
    for place in (ROOT, tmp_path, sys.prefix, "/tmp"):
        assert str(place).encode() not in (one / "model.int8.onnx").read_bytes()


@INT8
def test_a_sabotaged_calibration_falls_back(mine, tmp_path, capsys):
    Image.new("RGB", (48, 48)).save(tmp_path / "black.png")
    resplit(mine, "train", lambda files: [tmp_path / "black.png"] * len(files))
    model = call(capsys, mine, tmp_path / "model", "--precision", "fast")
    facts = spec(model)["precision"]
    assert not facts["candidates"]["int8"]["passed"]
    assert re.match(r"accuracy \d+\.\d points lower \(0.5 at most\)", facts["candidates"]["int8"]["reason"])
    assert facts["use"] == (["bf16", "fp32"] if engine.can("bf16") else ["fp32"])
    assert not (model / "model.int8.onnx").exists()
    assert spec(model)["sha256"].keys() == {"model.onnx"}


def test_a_chip_without_bf16_does_not_try_it(trained, tmp_path, capsys):
    code = tampered(
        tmp_path / "code", "engine.py", 'mode == "bf16":', 'mode == "bf16":\n        return False'
    )
    facts = spec(call(capsys, trained, tmp_path / "model", "--code", code))["precision"]
    assert facts["use"] == ["fp32"]
    reason = "not tried: this chip has no AMX or AVX512-BF16"
    assert facts["candidates"]["bf16"] == {"passed": False, "reason": reason}


@BF16
def test_a_candidate_that_breaks_the_engine_is_not_used(trained, tmp_path, capsys):
    code = tampered(tmp_path / "code", "engine.py", '("model.onnx", "bf16")', '("model.onnx", "bf17")')
    facts = spec(call(capsys, trained, tmp_path / "model", "--code", code))["precision"]
    assert facts["use"] == ["fp32"]
    assert facts["candidates"]["bf16"]["reason"].startswith("not tried: the model does not work as bf16: ")


@pytest.mark.parametrize("asked", ["auto", "fast"])
@pytest.mark.parametrize(
    ("data", "says"),
    [(None, "are missing"), (b"no picture", "cannot be read any more")],
    ids=["gone", "broken"],
)
def test_without_the_pictures_it_stays_with_fp32(mine, tmp_path, capsys, asked, data, says):
    if data:
        (tmp_path / "broken.png").write_bytes(data)
    resplit(mine, "valid", lambda files: [*files[2:], *[tmp_path / "broken.png"] * 2])
    facts = spec(call(capsys, mine, tmp_path / "model", "--precision", asked))["precision"]
    assert facts["use"] == ["fp32"]
    assert not facts["draft"]
    for candidate in facts["candidates"].values():
        assert re.fullmatch(rf"not tried: of \d+ pictures in split.json, 2 {says}", candidate["reason"])


@pytest.mark.parametrize("text", [None, "{}", "[", '{"train": [{}], "valid": [1]}'])
def test_a_training_that_does_not_say_its_pictures_stays_with_fp32(mine, tmp_path, capsys, text):
    (mine / "split.json").unlink()
    if text:
        (mine / "split.json").write_text(text)
    facts = spec(call(capsys, mine, tmp_path / "model"))["precision"]
    assert facts["use"] == ["fp32"]
    assert facts["candidates"]["bf16"]["reason"].startswith("not tried: split.json, with the pictures")


@BF16
def test_several_labels_a_picture_are_tried_too(shades, tmp_path, capsys):
    names = list(SHADES)[:-1]
    steps = [(100, -100 * (SHADES[name] + 32) / 255) for name in names]
    learn = learner(shades, average(*steps), MultiCategoryBlock(vocab=names), levels, BCEWithLogitsLossFlat())
    facts = spec(call(capsys, done(tmp_path / "train", learn, levels), tmp_path / "model"))
    assert (facts["task"], facts["precision"]["use"]) == ("multi", ["bf16", "fp32"])
    assert facts["precision"]["candidates"]["fp32"]["accuracy"] == 1
    assert facts["precision"]["sure"] == 40


def test_the_table_says_what_was_tried_and_what_was_chosen(trained, tmp_path, capsys):
    words = ["--train", str(trained), "--out", str(tmp_path / "model"), "--precision", "fast"]
    assert export.main(words) == 0
    out = capsys.readouterr().out
    for name in ("fp32", "bf16", "int8", "12-megapixel photographs", "decoded small by the server"):
        assert re.search(rf"^ +{name} ", out, re.MULTILINE), out
    use = ", ".join(spec(tmp_path / "model")["precision"]["use"])
    assert f"precision fast: the first of {use} that the chip can do" in out
    assert "tried on 40 validation pictures, of which fp32 is sure of 40" in out


# --- large photographs


class Finest(nn.Module):
    """Tells a checkerboard of single pixels from a plain picture."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(200.0))

    def forward(self, x):
        contrast = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([contrast - 0.05, 0.05 - contrast], 1) * self.sharpness


@pytest.fixture(scope="module")
def checks(tmp_path_factory) -> Path:
    """A training whose two classes differ in the finest detail that its 640 pixels can show."""
    folder = tmp_path_factory.mktemp("checks")
    board = np.indices((640, 640)).sum(0) % 2 * 200 + 28
    for i in range(5):
        for name, pixels in (("Checks", board), ("Plain", np.full_like(board, 128))):
            Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(folder / f"{name}_{i}.png")
    learn = learner(sorted(folder.iterdir()), Finest(), size=640)
    return done(tmp_path_factory.mktemp("build") / "train", learn)


@pytest.mark.parametrize(
    ("margin", "draft"), [("3", True), ("0.1", False)], ids=["as it is", "far too little"]
)
def test_draft_decoding_is_used_only_if_it_keeps_the_answers(checks, tmp_path, capsys, margin, draft):
    code = tampered(tmp_path / "code", "pixels.py", "MARGIN = 3", f"MARGIN = {margin}")
    model = call(capsys, checks, tmp_path / "model", "--precision", "fast", "--code", code)
    facts = spec(model)["precision"]
    assert facts["draft"] is facts["candidates"]["draft"]["passed"] is draft
    assert inference.model_fn(model).draft is draft


@pytest.mark.parametrize("orientation", [1, 6])
def test_photographs_are_made_as_phones_and_the_client_send_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    photo = large.enlarge(inference, (tmp_path / "a.jpg").read_bytes())
    with Image.open(io.BytesIO(photo)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (4000, 2667) if orientation == 1 else (2667, 4000))
    assert large.enlarge(inference, photo) is photo
    assert large.SHRINK == predictor.SHRINK
    assert large.shrink(photo) == predictor.scale_down(photo, predictor.SHRINK, predictor.REALTIME_LIMIT)


def test_a_photograph_that_is_large_enough_keeps_its_orientation():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 1500)).save(file, "JPEG", exif=exif)
    assert large.enlarge(inference, file.getvalue()) == file.getvalue()
    assert large.shrink(file.getvalue()) == predictor.scale_down(file.getvalue(), 1280, 10**6)
    with Image.open(io.BytesIO(large.shrink(file.getvalue()))) as picture:
        assert picture.size == (640, 1707)  # no side counts more than double the other


# --- GPUs


def test_for_a_gpu_the_archive_has_what_it_needs_and_works_without_one(trained, tmp_path, capsys, caplog):
    model = call(capsys, trained, tmp_path / "model", "--device", "cuda")
    facts = spec(model)
    assert facts["precision"]["use"] == ["cuda-fp16", *["bf16"] * engine.can("bf16"), "fp32"]
    assert facts["sha256"].keys() == {"model.onnx", "model.fp16.onnx"}
    needs = (model / "code" / "requirements.txt").read_text()
    assert needs.startswith((ROOT / "serve" / "requirements.txt").read_text())
    assert re.search(r"^onnxruntime-gpu==[\d.]+$", needs, re.MULTILINE)
    assert inference.model_fn(model).engine.mode == facts["precision"]["use"][1]
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert (warning.name, "so the CPU takes over" in warning.getMessage()) == ("engine", True)


def test_exact_is_fp32_on_a_gpu_too(trained, tmp_path, capsys):
    model = call(capsys, trained, tmp_path / "model", "--device", "cuda", "--precision", "exact")
    assert spec(model)["precision"]["use"] == ["cuda-fp32", "fp32"]
    assert spec(model)["sha256"].keys() == {"model.onnx"}
    assert "onnxruntime-gpu" in (model / "code" / "requirements.txt").read_text()


class Huge(nn.Module):
    """Passes through numbers that fp16 has not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        y = self.model(x)
        for _ in range(3):
            y = y * 5000
        for _ in range(3):
            y = y / 5000
        return y


def test_numbers_too_large_for_fp16_stay_with_fp32_on_a_gpu(shades, tmp_path, capsys):
    train = done(tmp_path / "train", learner(shades, Huge(nearest())))
    model = call(capsys, train, tmp_path / "model", "--device", "cuda")
    facts = spec(model)
    assert facts["precision"]["candidates"]["cuda-fp16"]["passed"] is False
    assert facts["precision"]["use"][0] == "cuda-fp32"
    assert facts["sha256"].keys() == {"model.onnx"}
