"""package/precision.py: faster arithmetic than fp32 is used where accuracy is kept, and only there.

SERVE_MODES sets which arithmetic the processor supports, so that all of this is tested on any processor.
"""

import io
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from learners import UPRIGHT, content, edit, edited, kind, package, save, spec
from PIL import Image

import archive
import export
import inference
import large_pictures
import precision
import predictor
from gates import gate, gate_classes, margins
from support import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        BCEWithLogitsLossFlat,
        CategoryBlock,
        CrossEntropyLossFlat,
        DataBlock,
        Learner,
        MultiCategoryBlock,
        RandomSplitter,
        Resize,
    )
    from torch import nn

pytestmark = pytest.mark.xdist_group("precision")  # one worker: the fixtures below take seconds

SHADES = {"Black": 30, "Dark": 95, "Light": 160, "White": 225}
ALL_MODES = "fp32 bf16 int8"


# --- the gates


def answers(right: int, wrong: int, margin: float = 0.9) -> np.ndarray:
    """Probabilities of two labels, (right + wrong, 2), for pictures whose label is the first."""
    row = np.array([0.5 + margin / 2, 0.5 - margin / 2])
    return np.array([row] * right + [row[::-1]] * wrong)


def truth(count: int) -> np.ndarray:
    return np.array([[True, False]] * count)


@pytest.mark.parametrize(
    ("count", "lost", "passed"), [(200, 1, True), (199, 1, False), (200, 2, False), (400, 2, True)]
)
def test_the_gate_allows_half_a_point_of_accuracy(count, lost, passed):
    verdict = gate_classes(answers(count, 0, 0.1), answers(count - lost, lost, 0.1), truth(count), None)
    assert verdict["reason"].startswith("nothing to compare" if passed else "accuracy ")
    confident = gate_classes(answers(count, 0), answers(count - lost, lost), truth(count), None)
    assert confident["passed"] is passed
    assert confident["accuracy"] == (count - lost) / count


@pytest.mark.parametrize(("count", "differ", "passed"), [(100, 1, True), (99, 1, False), (200, 3, False)])
def test_the_gate_requires_99_of_100_confident_answers(count, differ, passed):
    wrong, other = answers(0, count), answers(differ, count - differ)  # more are right: accuracy passes
    verdict = gate_classes(wrong, other, truth(count), None)
    assert (verdict["passed"], verdict["agreement"]) == (passed, (count - differ) / count)
    assert passed or "of the clear fp32 answers are kept (at least 99 %)" in verdict["reason"]


def test_the_gate_ignores_answers_with_a_small_margin():
    before = np.concatenate([answers(100, 0), answers(0, 50, 0.19)])
    after = np.concatenate([answers(100, 0), answers(50, 0, 0.9)])
    assert gate_classes(before, after, truth(150), None)["agreement"] == 1
    confident = np.concatenate([answers(100, 0), answers(0, 50, 0.21)])
    assert gate_classes(confident, after, truth(150), None)["agreement"] == 100 / 150


def test_the_gate_rejects_without_a_confident_answer():
    verdict = gate_classes(answers(50, 50, 0.1), answers(50, 50, 0.1), truth(100), None)
    assert (verdict["passed"], verdict["agreement"]) == (False, None)


def test_the_gate_for_a_learner_of_a_single_class():
    ones = np.ones((5, 1), np.float32)
    assert gate_classes(ones, ones, None, None)["passed"]


def test_the_gate_rejects_nan():
    broken = answers(100, 0)
    broken[7] = np.nan
    assert (
        gate_classes(answers(100, 0), broken, truth(100), None)["reason"]
        == "some of its probabilities are not numbers"
    )


@pytest.mark.parametrize(("differ", "passed"), [(1, True), (2, False)])
def test_without_labels_only_the_agreement_counts(differ, passed):
    verdict = gate_classes(answers(100, 0), answers(100 - differ, differ), None, None)
    assert (verdict["accuracy"], verdict["agreement"], verdict["passed"]) == (None, 1 - differ / 100, passed)


@pytest.mark.parametrize(
    ("away", "count", "passed"), [(0.99, 100, True), (1.01, 1, True), (1.01, 2, False), (np.nan, 1, False)]
)
def test_numbers_may_be_a_hundredth_of_their_spread_away(away, count, passed):
    reference = np.stack([np.linspace(0, 100, 101)[:100] * 100 / 99, np.linspace(5, 5.2, 100)], 1)
    candidate = reference.copy()
    candidate[:count, 0] += away
    verdict = gate({"task": "regression"}, reference, candidate, None)
    assert verdict["passed"] is passed, verdict
    assert verdict.keys() == {"agreement", "passed", "reason"}


def test_numbers_that_never_change_may_be_a_thousandth_away():
    reference = np.full((10, 1), 500.0)
    assert gate({"task": "regression"}, reference, reference + 0.4, None)["passed"]
    assert gate({"task": "regression"}, reference, reference + 0.6, None)["reason"] == (
        "0.0 % of the answers are as fp32's (at least 99 %)"
    )


@pytest.mark.parametrize(("pixels", "passed"), [(1.9, True), (2.1, False)])
def test_points_may_be_a_hundredth_of_the_longer_side_away(pixels, passed):
    facts = {"task": "points", "input": {"shape": ["batch", 100, 200, 3]}}
    reference = np.zeros((50, 2, 2))
    for side, axis in ((200, 0), (100, 1)):  # x, y
        candidate = reference.copy()
        candidate[:2, 1, axis] += 2 * pixels / side
        verdict = gate(facts, reference, candidate, None)
        assert (verdict["passed"], verdict["agreement"]) == (passed, 1 if passed else 0.98)


@pytest.mark.parametrize(("differ", "passed"), [(1000, True), (1001, False)])
def test_99_of_100_pixels_of_a_mask_must_be_the_same(differ, passed):
    reference = np.zeros((10, 100, 100))
    candidate = reference.copy()
    candidate.reshape(-1)[:differ] = 3
    assert gate({"task": "segmentation"}, reference, candidate, None)["passed"] is passed


def test_with_several_labels_the_whole_set_counts():
    before = np.array([[0.9, 0.8, 0.1], [0.9, 0.45, 0.1]])
    labels = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(margins(before, 0.5), [0.6, 0.1])
    fewer = np.array([[0.9, 0.3, 0.1], [0.9, 0.45, 0.1]])
    assert gate_classes(before, fewer, labels, 0.5) | {"reason": ""} == {
        "accuracy": 0.5,
        "agreement": 0.0,
        "passed": False,
        "reason": "",
    }
    assert gate_classes(before, before, labels, 0.5)["passed"]
    assert margins(before, 0.85)[0] == pytest.approx(0.1)


# --- candidates on real models


def levels(path: Path):  # not annotated with list[str]: fastai would use that as a conversion
    """Several labels: all shades that are darker than the picture's."""
    return list(SHADES)[: list(SHADES).index(kind(path))]


def average(*head: tuple[float, float]) -> nn.Module:
    """A network whose scores are, for each label, a factor times the picture's brightness plus an addend.

    Each kernel has one weight, so that int8 is correct on every processor: without VNNI its products are
    added in pairs to 16 bits, which overflow if both weights are large.
    """
    convolutions = [nn.Conv2d(inputs, 16, 3, 2, bias=False) for inputs in (3, 16)]
    linear = nn.Linear(16, len(head))
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.zero_()
            convolution.weight[:, 0, 1, 1] = 1
        linear.weight.zero_()
        linear.weight[:, 0] = torch.tensor([factor for factor, _ in head])
        linear.bias[:] = torch.tensor([addend for _, addend in head])
    first, second = convolutions
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def nearest() -> nn.Module:
    """Recognises the shades: the nearest c has the largest 2 c x - c², which is x² - (x - c)²."""
    shades = [shade / 255 for shade in SHADES.values()]
    return average(*((200 * c, -100 * c * c) for c in shades))


def learner(pictures, model, label=None, get_y=kind, loss=None, size=32) -> Learner:
    """A Learner with DataLoaders as train.py makes them."""
    block = label or CategoryBlock(sorted({kind(picture) for picture in pictures}))
    data = DataBlock((UPRIGHT, block), get_y=get_y, splitter=RandomSplitter(0.4, 1), item_tfms=Resize(size))
    dls = data.dataloaders(pictures, bs=4, num_workers=0)
    return Learner(dls, model, loss_func=loss or CrossEntropyLossFlat())


def save_with_split(folder: Path, learn: Learner, get_y=kind) -> Path:
    """Write into `folder` what train.py writes, with split.json."""
    parts = {"train": learn.dls.train_ds, "valid": learn.dls.valid_ds}
    save(folder, learn, list(parts["valid"].items[:4]))
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
    """A training whose model recognises the four shades; its 40 validation pictures are in split.json."""
    return save_with_split(tmp_path_factory.mktemp("build") / "train", learner(shades, nearest()))


@pytest.fixture(scope="module")
def exact(tmp_path_factory, trained) -> Path:
    """Its model folder with --precision exact."""
    return package(trained, tmp_path_factory.mktemp("build") / "model", "--precision", "exact")


@pytest.fixture
def train(trained, tmp_path) -> Path:
    """A copy of the training, to change."""
    return shutil.copytree(trained, tmp_path / "train")


@pytest.fixture
def model(exact, tmp_path) -> Path:
    """A copy of the model folder, for `choose`."""
    return shutil.copytree(exact, tmp_path / "exact")


@pytest.fixture(autouse=True)
def few_large_photographs(monkeypatch):
    """Enlarging takes a second for each."""
    monkeypatch.setattr(precision, "LARGE", 2)


@pytest.fixture
def all_modes(monkeypatch) -> None:
    """A processor with bf16 and int8."""
    monkeypatch.setenv("SERVE_MODES", ALL_MODES)


@pytest.fixture(params=["fp32", ALL_MODES])
def modes(request, monkeypatch) -> list[str]:
    """The modes that the processor supports."""
    monkeypatch.setenv("SERVE_MODES", request.param)
    return request.param.split()


def choose(train: Path, model: Path, requested: str, device: str = "cpu") -> dict:
    """What export.py does after the parity gate; returns the new content of model.json."""
    facts = spec(model)
    precision.choose(train, model, facts, requested, device)
    export.write_json(model / "model.json", facts)
    return facts


def resplit(folder: Path, part: str, change) -> None:
    """Replace the files in a part of split.json by what `change` returns for them."""
    split = json.loads((folder / "split.json").read_text())
    for entry, file in zip(split[part], change([entry["file"] for entry in split[part]]), strict=True):
        entry["file"] = str(file)
    (folder / "split.json").write_text(json.dumps(split))


def test_auto_uses_bf16_where_the_processor_has_it(trained, tmp_path, modes):
    facts = spec(package(trained, tmp_path / "model"))["precision"]
    assert facts["requested"] == "auto"
    assert facts["use"] == (["bf16", "fp32"] if "bf16" in modes else ["fp32"])
    assert facts["draft"] is False
    assert facts["candidates"]["bf16"]["passed"] is ("bf16" in modes)
    assert facts["candidates"]["fp32"] == {"accuracy": 1.0}
    assert (facts["pictures"], facts["confident"]) == (40, 40)
    assert [path.name for path in (tmp_path / "model").glob("*.onnx")] == ["model.onnx"]


def test_exact_is_fp32_and_tries_nothing(exact):
    facts = spec(exact)
    assert facts["precision"] == {"requested": "exact", "use": ["fp32"], "draft": False}
    assert list(facts["sha256"]) == ["model.onnx"]


def test_fast_uses_the_modes_that_the_processor_has(trained, model, modes):
    facts = choose(trained, model, "fast")
    assert sorted(facts["precision"]["use"]) == sorted(modes)
    assert facts["precision"]["use"][-1] == "fp32"
    assert {mode for mode in ("bf16", "int8") if facts["precision"]["candidates"][mode]["passed"]} == {
        *modes
    } - {"fp32"}
    assert facts["sha256"].keys() == {"model.onnx", *(["model.int8.onnx"] if "int8" in modes else [])}
    assert inference.model_fn(model).engine.mode == facts["precision"]["use"][0]


def test_fast_packs_and_serves_int8(trained, model, tmp_path, all_modes, monkeypatch):
    facts = choose(trained, model, "fast")["precision"]
    assert facts["candidates"]["int8"]["passed"]
    keys = {"side", "pictures", "accuracy", "agreement", "passed", "reason"}
    assert facts["shrink"].keys() == keys
    assert facts["candidates"]["draft"].keys() == keys - {"side"}
    assert facts["shrink"]["pictures"] == facts["candidates"]["draft"]["pictures"] == 2
    assert archive.main(["--model", str(model), "--out", str(tmp_path / "model.tar.gz")]) == 0
    int8, fp32 = (inference.load_model(model, mode) for mode in ("int8", "fp32"))
    for entry in json.loads((trained / "validation.json").read_text()):
        batch = (trained / entry["file"]).read_bytes()
        first, second = (
            inference.predict_fn(inference.input_fn(batch), model).outputs[0] for model in (int8, fp32)
        )
        assert first.argmax() == second.argmax()
        assert not np.array_equal(first, second)  # the arithmetic differs
    monkeypatch.setenv("SERVE_MODES", "fp32")  # a processor without the modes that were chosen
    assert inference.model_fn(model).engine.mode == "fp32"


def test_packaging_fast_again_writes_the_same_bytes(trained, tmp_path, all_modes):
    first, second = (package(trained, tmp_path / name, "--precision", "fast") for name in ("a", "b"))
    assert "model.int8.onnx" in content(first)
    files = [content(model) for model in (first, second)]
    # Which of int8 and bf16 comes first depends on the times of this machine, and on nothing else.
    facts = [json.loads(file.pop("model.json")) for file in files]
    for each in facts:
        each["precision"]["use"].sort()
    assert facts[0] == facts[1]
    assert files[0] == files[1]
    for path in (ROOT, tmp_path, sys.prefix, "/tmp"):
        assert str(path).encode() not in files[0]["model.int8.onnx"]


def test_a_bad_calibration_falls_back(train, model, tmp_path, all_modes):
    Image.new("RGB", (48, 48)).save(tmp_path / "black.png")
    resplit(train, "train", lambda files: [tmp_path / "black.png"] * len(files))
    facts = choose(train, model, "fast")
    int8 = facts["precision"]["candidates"]["int8"]
    assert not int8["passed"]
    assert re.match(r"accuracy \d+\.\d points lower \(at most 0.5\)", int8["reason"])
    assert facts["precision"]["use"] == ["bf16", "fp32"]
    assert not (model / "model.int8.onnx").exists()
    assert facts["sha256"].keys() == {"model.onnx"}


def test_what_the_processor_lacks_is_not_tried(trained, model, monkeypatch):
    monkeypatch.setenv("SERVE_MODES", "fp32")
    facts = choose(trained, model, "fast")["precision"]
    assert facts["use"] == ["fp32"]
    for mode, instructions in (("bf16", "AMX or AVX512-BF16"), ("int8", "VNNI")):
        reason = f"not tried: this processor has no {instructions}"
        assert facts["candidates"][mode] == {"passed": False, "reason": reason}


def test_a_candidate_that_breaks_the_engine_is_not_used(trained, model, all_modes):
    edit(model / "code", "engine.py", '("model.onnx", "bf16")', '("model.onnx", "bf17")')
    facts = choose(trained, model, "auto")["precision"]
    assert facts["use"] == ["fp32"]
    assert facts["candidates"]["bf16"]["reason"].startswith("not tried: the model does not work as bf16: ")


@pytest.mark.parametrize("requested", ["auto", "fast"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [(None, "are missing"), (b"no picture", "can no longer be read")],
    ids=["missing", "broken"],
)
def test_without_the_pictures_only_fp32_is_used(train, model, tmp_path, all_modes, requested, data, reason):
    if data:
        (tmp_path / "broken.png").write_bytes(data)
    resplit(train, "valid", lambda files: [*files[2:], *[tmp_path / "broken.png"] * 2])
    facts = choose(train, model, requested)["precision"]
    assert facts["use"] == ["fp32"]
    assert not facts["draft"]
    for candidate in facts["candidates"].values():
        assert re.fullmatch(rf"not tried: of \d+ pictures in split.json, 2 {reason}", candidate["reason"])


@pytest.mark.parametrize("text", [None, "{}", "[", '{"train": [{}], "valid": [1]}'])
def test_without_a_valid_split_only_fp32_is_used(train, model, all_modes, text):
    (train / "split.json").unlink()
    if text:
        (train / "split.json").write_text(text)
    facts = choose(train, model, "auto")["precision"]
    assert facts["use"] == ["fp32"]
    assert facts["candidates"]["bf16"]["reason"].startswith("not tried: split.json, with the pictures")


def test_several_labels_per_picture_are_tried_too(shades, tmp_path, all_modes):
    names = list(SHADES)[:-1]
    steps = [(100, -100 * (SHADES[name] + 32) / 255) for name in names]
    learn = learner(shades, average(*steps), MultiCategoryBlock(vocab=names), levels, BCEWithLogitsLossFlat())
    facts = spec(package(save_with_split(tmp_path / "train", learn, levels), tmp_path / "model"))
    assert (facts["task"], facts["precision"]["use"]) == ("multi", ["bf16", "fp32"])
    assert facts["precision"]["candidates"]["fp32"]["accuracy"] == 1
    assert facts["precision"]["confident"] == 40


def test_the_table_says_what_was_tried_and_what_was_chosen(trained, tmp_path, capsys, monkeypatch, modes):
    use = spec(package(trained, tmp_path / "model", "--precision", "fast"))["precision"]["use"]
    out = capsys.readouterr().out
    for name in ("fp32", "bf16", "int8", "12-megapixel photographs", "decoded at reduced size"):
        assert re.search(rf"^ +{name} ", out, re.MULTILINE), out
    assert re.search("fp32 .* reference *$", out, re.MULTILINE)
    assert ("has no VNNI" in out) is ("int8" not in modes)
    choice = "fp32" if use == ["fp32"] else f"the first of {', '.join(use)} that the processor supports"
    assert f"\nprecision fast: {choice}" in out
    assert "\ntried on 40 validation pictures, 40 of them with a clear fp32 answer; the times are" in out
    assert "\nthe 12-megapixel photographs are 2 of these pictures, enlarged\n" in out
    assert ("\nbf16 is supported by ml.c7i, " in out) is ("bf16" in modes)


# --- large photographs


class FinestDetail(nn.Module):
    """Distinguishes a checkerboard of single pixels from a plain picture."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(200.0))

    def forward(self, x):
        contrast = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([contrast - 0.05, 0.05 - contrast], 1) * self.sharpness


@pytest.fixture(scope="module")
def checks(tmp_path_factory) -> Path:
    """A training whose two classes differ only in the finest detail that 640 pixels can show."""
    folder = tmp_path_factory.mktemp("checks")
    board = np.indices((640, 640)).sum(0) % 2 * 200 + 28
    for i in range(5):
        for name, pixels in (("Checks", board), ("Plain", np.full_like(board, 128))):
            Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(folder / f"{name}_{i}.png")
    learn = learner(sorted(folder.iterdir()), FinestDetail(), size=640)
    return save_with_split(tmp_path_factory.mktemp("build") / "train", learn)


@pytest.fixture(scope="module")
def exact_checks(tmp_path_factory, checks) -> Path:
    """Its model folder with --precision exact."""
    return package(checks, tmp_path_factory.mktemp("build") / "model", "--precision", "exact")


@pytest.mark.parametrize(
    ("margin", "draft"), [("3", True), ("0.1", False)], ids=["the default", "far too small"]
)
def test_reduced_size_decoding_has_to_pass_the_gate(
    checks, exact_checks, tmp_path, monkeypatch, margin, draft
):
    monkeypatch.setattr(precision, "LARGE", 4)  # all validation pictures: both classes are among them
    model = shutil.copytree(exact_checks, tmp_path / "model")
    edit(model / "code", "pixels.py", "MARGIN = 3", f"MARGIN = {margin}")
    facts = choose(checks, model, "fast")["precision"]
    assert facts["draft"] is facts["candidates"]["draft"]["passed"] is draft
    assert inference.model_fn(model).draft is draft


def test_other_serving_code_decides_about_the_model_that_it_serves(trained, tmp_path, all_modes):
    code = edited(tmp_path / "code", "engine.py", '("model.onnx", "bf16")', '("model.onnx", "bf17")')
    facts = spec(package(trained, tmp_path / "model", "--code", code))["precision"]
    assert facts["use"] == ["fp32"]


@pytest.mark.parametrize("orientation", [1, 6])
def test_photographs_are_those_of_phones_and_of_the_client(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    photo = large_pictures.enlarge(inference, {}, (tmp_path / "a.jpg").read_bytes())
    with Image.open(io.BytesIO(photo)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (4000, 2667) if orientation == 1 else (2667, 4000))
    assert large_pictures.enlarge(inference, {}, photo) is photo
    assert large_pictures.SHRINK == predictor.SHRINK
    assert large_pictures.shrink(photo) == predictor.scale_down(
        photo, predictor.SHRINK, predictor.REALTIME_LIMIT
    )


def test_a_photograph_that_is_large_enough_is_unchanged():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 1500)).save(file, "JPEG", exif=exif)
    assert large_pictures.enlarge(inference, {}, file.getvalue()) == file.getvalue()
    assert large_pictures.shrink(file.getvalue()) == predictor.scale_down(file.getvalue(), 1280, 10**6)
    with Image.open(io.BytesIO(large_pictures.shrink(file.getvalue()))) as picture:
        assert picture.size == (1707, 640)  # not rotated; the long side counts as twice the short one


def test_a_photograph_with_damaged_exif_is_not_rotated(monkeypatch):
    def broken(picture):
        raise SyntaxError("not a TIFF file")  # one of the kinds that Pillow's EXIF reader raises

    file = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(file, "JPEG")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert large_pictures.shrink(file.getvalue()) == predictor.scale_down(file.getvalue(), 1280, 10**6)


# --- GPUs


def test_an_archive_for_gpus_has_what_they_need_and_works_without_one(trained, tmp_path, caplog, modes):
    model = package(trained, tmp_path / "model", "--device", "cuda")
    facts = spec(model)
    assert facts["precision"]["use"] == ["cuda-fp16", *["bf16"] * ("bf16" in modes), "fp32"]
    assert facts["sha256"].keys() == {"model.onnx", "model.fp16.onnx"}
    needs = (model / "code" / "requirements.txt").read_text()
    assert needs.startswith((ROOT / "serve" / "requirements.txt").read_text())
    assert re.search(r"^onnxruntime-gpu==[\d.]+$", needs, re.MULTILINE)
    assert inference.model_fn(model).engine.mode == facts["precision"]["use"][1]
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert (warning.name, "so the CPU takes over" in warning.getMessage()) == ("engine", True)


def test_exact_is_fp32_on_a_gpu_too(trained, tmp_path):
    model = package(trained, tmp_path / "model", "--device", "cuda", "--precision", "exact")
    assert spec(model)["precision"]["use"] == ["cuda-fp32", "fp32"]
    assert spec(model)["sha256"].keys() == {"model.onnx"}
    assert "onnxruntime-gpu" in (model / "code" / "requirements.txt").read_text()


class Huge(nn.Module):
    """Computes with numbers above the range of fp16."""

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


def test_numbers_too_large_for_fp16_use_fp32_on_a_gpu(shades, tmp_path):
    train = save_with_split(tmp_path / "train", learner(shades, Huge(nearest())))
    model = package(train, tmp_path / "model", "--device", "cuda")
    facts = spec(model)
    assert facts["precision"]["candidates"]["cuda-fp16"]["passed"] is False
    assert facts["precision"]["use"][0] == "cuda-fp32"
    assert facts["sha256"].keys() == {"model.onnx"}
