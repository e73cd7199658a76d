"""Learners as people make them in notebooks: handed over, then packaged to answer as learn.predict does."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from learners import KINDS, UPRIGHT, kind, loaders, network, package, rejected, save, spec
from PIL import Image

import inference
import synthetic_pets
from handover import hand_over
from pictures import Upright

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        BBoxBlock,
        BBoxLblBlock,
        BCEWithLogitsLossFlat,
        Callback,
        CategoryBlock,
        CropPad,
        CrossEntropyLossFlat,
        DataBlock,
        EarlyStoppingCallback,
        ImageBlock,
        IntToFloatTensor,
        Learner,
        MaskBlock,
        MixUp,
        MSELossFlat,
        MultiCategoryBlock,
        Normalize,
        PILImage,
        PILImageBW,
        PointBlock,
        RandomResizedCrop,
        RandomResizedCropGPU,
        RandomSplitter,
        RandTransform,
        RatioResize,
        ReduceLROnPlateau,
        RegressionBlock,
        Resize,
        SaveModelCallback,
        SigmoidRange,
        TensorImage,
        Transform,
        TransformBlock,
        accuracy,
        aug_transforms,
        error_rate,
        imagenet_stats,
        resnet18,
        unet_learner,
    )
    from torch import nn
    from torch.nn import functional as F

PETS = list(synthetic_pets.PETS)
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # fastai's open files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Sixteen pictures of various sizes and modes that are stored upright: fastai ignores EXIF."""
    folder = synthetic_pets.draw(tmp_path_factory.mktemp("pictures"), 32)
    usable = []
    for path in sorted(folder.iterdir()):
        try:
            with Image.open(path) as picture:
                picture.load()
                usable += [path] if picture.getexif().get(0x0112, 1) == 1 else []
        except OSError:  # one is truncated
            continue
    return usable[:16]


@pytest.fixture
def packed(tmp_path, capsys):
    """A function that hands a Learner over and packages it: the model folder."""

    def packed(learn: Learner, *flags: object) -> Path:
        hand_over(learn, tmp_path / "train")
        return package(tmp_path / "train", tmp_path / "model", *flags)

    return packed


@pytest.fixture
def refusal(tmp_path, capsys):
    """A function that hands a Learner over and expects package to refuse it: the sentence."""

    def refusal(learn: Learner, *flags: object, code: int = 2) -> str:
        hand_over(learn, tmp_path / "train")
        return rejected(capsys, tmp_path / "train", tmp_path / "model", *flags, code=code)

    return refusal


def classifier(dls, loss=None, model=None, **options) -> Learner:
    """A Learner with the smallest model."""
    return Learner(dls, model or network(), loss_func=loss or CrossEntropyLossFlat(), **options)


def images(pictures, blocks=(ImageBlock, KINDS), **options):
    """DataLoaders as in a notebook."""
    return loaders(pictures, blocks, **options)


class ReadsRecorder(Callback):
    """A callback of the user's own."""

    def before_validate(self):
        _ = self.learn.recorder.values


class OnlyInTraining(RandTransform):
    """A random transform that fastai also calls at validation, where it does nothing."""

    split_idx, order = None, 2

    def before_call(self, b, split_idx):
        self.index = split_idx

    def encodes(self, x: PILImage):
        return PILImage.create(255 - np.array(x)) if self.index == 0 else x


class OnlyInTrainingOfBatches(OnlyInTraining):
    """The same for batches."""

    order = 40

    def encodes(self, x: TensorImage):
        return 1 - x if self.index == 0 else x


class Sometimes(RandTransform):
    """A random transform that also acts at validation."""

    split_idx, order = None, 2

    def encodes(self, x: PILImage):
        return x.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


# --- what a notebook's Learner has beside its model


@pytest.mark.parametrize(
    "callbacks",
    [
        [SaveModelCallback],
        [lambda: EarlyStoppingCallback(monitor="valid_loss")],
        [ReduceLROnPlateau],
        [ReadsRecorder],
        [MixUp],
    ],
    ids=["SaveModelCallback", "EarlyStoppingCallback", "ReduceLROnPlateau", "reads the recorder", "MixUp"],
)
def test_callbacks_stay(pictures, packed, callbacks):
    learn = classifier(images(pictures), metrics=[error_rate, accuracy], cbs=[make() for make in callbacks])
    facts = spec(packed(learn))
    assert facts["parity"]["max_difference"] < 1e-5
    assert facts["metrics"].keys() == {"error_rate", "accuracy", "valid_loss"}


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")  # two warnings of to_fp16 without a GPU
def test_after_mixed_precision(pictures, packed):
    learn = classifier(images(pictures), cbs=MixUp()).to_fp16()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert spec(packed(learn))["parity"]["max_difference"] < 1e-5


def test_weights_in_half_precision_are_made_float(pictures, packed):
    learn = classifier(images(pictures))
    learn.model.half()
    assert spec(packed(learn))["parity"]["max_difference"] < 1e-5


@pytest.mark.parametrize(
    ("loss", "model", "task"),
    [
        (nn.CrossEntropyLoss(), network(), "single"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), network(), "single"),
        (F.cross_entropy, network(), "single"),
        (nn.NLLLoss(), nn.Sequential(network(), nn.LogSoftmax(1)), "single"),
        (nn.BCEWithLogitsLoss(), network(), "multi"),
        (F.binary_cross_entropy_with_logits, network(), "multi"),
        (nn.BCELoss(), nn.Sequential(network(), nn.Sigmoid()), "multi"),
    ],
    ids=[
        "CrossEntropyLoss",
        "smoothed",
        "cross_entropy",
        "NLLLoss",
        "BCEWithLogitsLoss",
        "bce_with",
        "BCELoss",
    ],
)
def test_losses_of_torch_are_what_they_are(pictures, packed, loss, model, task):
    several = (ImageBlock, MultiCategoryBlock(vocab=PETS))
    dls = images(pictures) if task == "single" else images(pictures, several, get_y=lambda path: [kind(path)])
    folder = packed(classifier(dls, loss, model))
    assert spec(folder)["task"] == task
    body = pictures[0].read_bytes()
    answer = json.loads(inference.handle(inference.model_fn(folder), body, {"accept": "*/*"}).body)
    with torch.no_grad():
        scores = model.eval()(dls.test_dl([pictures[0]], num_workers=0).one_batch()[0])[0]
    if isinstance(loss, nn.BCELoss):
        expected = scores
    else:
        expected = scores.softmax(0) if task == "single" else scores.sigmoid()
    assert answer["confidence"] == pytest.approx(float(expected.max()), abs=2e-3)


def test_a_loss_that_does_not_say_which_label_wins_is_refused(pictures, tmp_path):
    def own(scores, labels):
        return F.cross_entropy(scores, labels)

    with pytest.raises(ValueError, match="the loss own does not define which label wins: train with one"):
        hand_over(classifier(images(pictures), own), tmp_path / "train")
    assert not list(tmp_path.iterdir())


# --- how it opens and transforms pictures


@pytest.mark.parametrize(
    "transforms",
    [
        {"item_tfms": Resize(60), "batch_tfms": aug_transforms(size=32, min_scale=0.75)},
        {"item_tfms": [Resize(32), OnlyInTraining()]},
        {"item_tfms": Resize(32), "batch_tfms": [OnlyInTrainingOfBatches()]},
        {"item_tfms": [RatioResize(48), CropPad(32)]},
        {"item_tfms": [RatioResize(48), Resize(32)]},
    ],
    ids=[
        "presizing",
        "a random item transform",
        "a random batch transform",
        "crop and ratio",
        "ratio and resize",
    ],
)
def test_transforms_that_do_nothing_or_are_known(pictures, packed, transforms):
    assert spec(packed(classifier(images(pictures, **transforms))))["parity"]["max_difference"] < 1e-4


def test_a_transform_that_acts_at_validation_is_refused_by_name(pictures, refusal):
    message = refusal(classifier(images(pictures, item_tfms=[Resize(32), Sometimes(p=0.5)])))
    assert "the transform Sometimes acts at validation and cannot be packaged: train without it" in message


def test_a_function_as_transform_is_refused_by_name(pictures, refusal):
    def to_square(picture: PILImage):
        return picture.resize((32, 32))

    message = refusal(classifier(images(pictures, item_tfms=[to_square])))
    assert "to_square acts at validation and cannot be packaged: train without it (apply it to the" in message


@pytest.mark.parametrize("statistics", [[], [Normalize.from_stats([0.4], [0.3], cuda=False)]], ids=len)
def test_one_channel(pictures, packed, statistics):
    dls = images(pictures, (ImageBlock(cls=PILImageBW), KINDS), batch_tfms=statistics)
    folder = packed(classifier(dls, model=network(inputs=1)), "--precision", "fast")
    facts = spec(folder)
    assert facts["input"]["shape"] == ["batch", 32, 32, 1]
    assert facts["input"]["mode"] == "L"
    assert facts["parity"]["max_difference"] < 1e-5


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> list[Path]:
    """Photographs of a phone that was held sideways: the rotation is in their EXIF."""
    folder, exif = tmp_path_factory.mktemp("rotated"), Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0)
    for i in range(12):
        pixels = noise.integers(0, 255, (6, 8, 3), np.uint8).repeat(10, 0).repeat(10, 1)
        Image.fromarray(pixels).save(folder / f"{PETS[i % 4]}_{i}.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_a_learner_that_ignores_exif_is_refused_with_both_ways_out(rotated, refusal):
    message = refusal(classifier(images(rotated)), code=1)
    assert "opens pictures as they are stored, without the rotation in their EXIF, but the" in message
    assert "train on upright pictures" in message
    assert "or package with --exif ignore" in message


def test_an_endpoint_may_ignore_exif_too(rotated, packed):
    folder = packed(classifier(images(rotated)), "--exif", "ignore")
    assert spec(folder)["input"]["exif"] == "ignore"
    assert spec(folder)["parity"]["max_difference"] < 1e-5


def test_a_learner_that_rotates_is_not_packaged_to_ignore_exif(rotated, refusal):
    dls = loaders(rotated, (UPRIGHT, KINDS))
    assert "rotates pictures by their EXIF: leave out --exif ignore" in refusal(
        classifier(dls), "--exif", "ignore", code=1
    )


def test_pictures_of_16_bits_are_scaled_as_in_training(tmp_path):
    noise, files = np.random.default_rng(0), []
    for i in range(12):
        values = noise.normal(20_000 * (1 + i % 2), 2_000, (40, 50)).astype(np.uint16)
        files.append(tmp_path / f"{PETS[i % 2]}_{i}.png")
        Image.fromarray(values).save(files[-1])
    levels = [0, 48_000]
    block = TransformBlock(type_tfms=Upright(levels), batch_tfms=IntToFloatTensor)
    learn = classifier(loaders(files, (block, KINDS)))
    train = save(tmp_path / "train", learn, files)
    metrics = json.loads((train / "metrics.json").read_text())
    (train / "metrics.json").write_text(json.dumps(metrics | {"levels": levels}))
    facts = spec(package(train, tmp_path / "model"))
    assert facts["input"]["levels"] == levels
    assert facts["parity"]["max_difference"] < 1e-5
    pixels = inference.to_pixels(inference.open_picture(files[1].read_bytes()), facts["input"])
    assert abs(pixels.mean() - 255 * 40_000 / 48_000) < 2  # without levels it would be white


def test_odd_labels(pictures, packed):
    names = {
        "Cat": 'Müller\u2019s "cat" \\ 猫\n\x1b[31mred',
        "Dog": "",
        "Owl": "🐶 dog, big",
        "Rabbit": "False",
    }
    dls = images(pictures, (ImageBlock, CategoryBlock(list(names.values()))), get_y=lambda p: names[kind(p)])
    assert set(spec(packed(classifier(dls)))["labels"]) == set(names.values())


# --- other tasks


def coordinates(path: Path) -> torch.Tensor:
    """Two points in pixels."""
    with Image.open(path) as picture:
        return torch.tensor([[5.0, 6.0], [picture.width / 2, picture.height / 3]])


@pytest.mark.parametrize(
    "item_tfms",
    [Resize(32), Resize((24, 40), "pad", "zeros"), Resize(32, "squish"), [RatioResize(48), Resize(32)]],
    ids=["crop", "pad", "squish", "ratio"],
)
def test_points(pictures, packed, item_tfms):
    dls = images(pictures, (ImageBlock, PointBlock), get_y=coordinates, item_tfms=item_tfms)
    folder = packed(classifier(dls, MSELossFlat(), nn.Sequential(network(4), SigmoidRange(-1, 1))))
    facts = spec(folder)
    assert (facts["task"], facts["labels"]) == ("points", [])
    assert facts["parity"]["max_difference"] < 0.01
    model = inference.load_model(folder, "fp32")
    for entry in json.loads((folder.parent / "train" / "validation.json").read_text()):
        body = (folder.parent / "train" / entry["file"]).read_bytes()
        answer = json.loads(inference.handle(model, body, {}).body)
        np.testing.assert_allclose(answer["points"], entry["predicted"], atol=0.1)


@pytest.mark.parametrize(
    ("count", "loss"),
    [(1, MSELossFlat()), (3, nn.L1Loss())],
    ids=["one, fastai's loss", "three, torch's loss"],
)
def test_regression(pictures, packed, count, loss):
    def number(path: Path):
        return PETS.index(kind(path)) + 0.5 if count == 1 else [float(i) for i in range(count)]

    dls = images(pictures, (ImageBlock, RegressionBlock(n_out=count)), get_y=number)
    model = nn.Sequential(network(count), SigmoidRange(0, 500))
    folder = packed(classifier(dls, loss, model), "--precision", "fast")
    facts = spec(folder)
    assert (facts["task"], facts["labels"]) == ("regression", [])
    assert facts["precision"]["candidates"]["int8"].keys() >= {"passed", "reason"}
    answer = json.loads(inference.handle(inference.model_fn(folder), pictures[0].read_bytes(), {}).body)
    assert len(answer["values"]) == count


class Doubled(Transform):
    """A transform of numbers that learn.predict undoes."""

    def encodes(self, x: torch.Tensor):
        return x * 2

    def decodes(self, x: torch.Tensor):
        return x / 2


def test_numbers_that_learn_predict_changes_are_refused(pictures, refusal):
    block = TransformBlock(type_tfms=[lambda value: torch.tensor([value]), Doubled()])
    dls = images(pictures, (ImageBlock, block), get_y=lambda path: float(PETS.index(kind(path))))
    message = refusal(classifier(dls, MSELossFlat(), network(1)))
    assert "learn.predict changes the model's numbers" in message


def test_numbers_with_a_loss_for_classes_are_refused(pictures, tmp_path):
    dls = images(pictures, (ImageBlock, RegressionBlock(n_out=2)), get_y=lambda path: [1.0, 0.0])
    with pytest.raises(
        ValueError, match="is for classes, but the labels are numbers: use a CategoryBlock or"
    ):
        hand_over(classifier(dls, nn.BCEWithLogitsLoss(), network(2)), tmp_path / "train")


def test_pictures_that_only_the_learner_can_read_are_refused(pictures, refusal, tmp_path):
    (tmp_path / "arrays").mkdir()
    for path in pictures:
        with Image.open(path) as picture:
            np.save(tmp_path / "arrays" / path.stem, np.array(picture.convert("RGB")))
    arrays = sorted((tmp_path / "arrays").iterdir())
    block = TransformBlock(type_tfms=[np.load, PILImage.create], batch_tfms=IntToFloatTensor)
    dls = images(arrays, (block, KINDS))
    assert "save the pictures as PNG or JPEG and train on these" in refusal(classifier(dls), code=1)


def mask(path: Path) -> np.ndarray:
    """Dark and light pixels."""
    with Image.open(path) as picture:
        return np.array(picture.convert("L")) // 128


@pytest.mark.parametrize("attention", [False, True], ids=["plain", "self-attention"])
def test_segmentation(pictures, packed, attention):
    torch.manual_seed(0)
    tfms = [*aug_transforms(size=32), Normalize.from_stats(*imagenet_stats)]
    dls = masks(pictures, item_tfms=Resize(48), batch_tfms=tfms)
    folder = packed(unet_learner(dls, resnet18, pretrained=False, self_attention=attention))
    facts = spec(folder)
    assert (facts["task"], facts["labels"]) == ("segmentation", ["dark", "light"])
    assert facts["parity"] | {"max_difference": 0} == {
        "pictures": 8,
        "max_difference": 0,
        "tolerance": 1e-4,
        "unit": " of a mask's pixels",
    }
    model = inference.load_model(folder, "fp32")
    entry = json.loads((folder.parent / "train" / "validation.json").read_text())[0]
    body = (folder.parent / "train" / entry["file"]).read_bytes()
    reply = inference.handle(model, body, {"accept": "image/png"})
    (folder / "mask.png").write_bytes(reply.body)
    with (
        Image.open(folder / "mask.png") as ours,
        Image.open(folder.parent / "train" / entry["mask"]) as theirs,
    ):
        assert ours.size == theirs.size
        assert (np.array(ours) == np.array(theirs)).mean() >= 0.9999


def masks(pictures, **options):
    """DataLoaders of pictures with masks of two classes."""
    return images(pictures, (ImageBlock, MaskBlock(codes=["dark", "light"])), get_y=mask, **options)


def test_a_mask_of_one_number_for_each_pixel(pictures, packed, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1))
    folder = packed(classifier(masks(pictures), BCEWithLogitsLossFlat(), model))
    assert spec(folder)["task"] == "segmentation"
    entries = json.loads((tmp_path / "train" / "validation.json").read_text())
    assert {name for entry in entries for name in entry["predicted"]} == {"dark", "light"}


def test_masks_of_a_part_of_the_picture_are_refused(pictures, refusal):
    dls = masks(pictures, item_tfms=Resize((32, 64)), batch_tfms=[RandomResizedCropGPU(16, valid_scale=0.5)])
    learn = classifier(dls, CrossEntropyLossFlat(axis=1), nn.Conv2d(3, 2, 3, padding=1))
    assert "so that points and masks have no place in them: train without it" in refusal(learn)


def test_masks_of_a_random_crop_lie_in_the_middle_at_validation(pictures, packed):
    dls = masks(pictures, item_tfms=RandomResizedCrop(32))
    folder = packed(classifier(dls, CrossEntropyLossFlat(axis=1), nn.Conv2d(3, 2, 3, padding=1)))
    assert [step["op"] for step in spec(folder)["input"]["steps"]] == ["resize", "crop_pad"]


def test_a_class_of_a_mask_without_a_name_is_refused(pictures, tmp_path):
    model = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.constant_(model.bias, 0)
    model.bias.data[3] = 99
    learn = classifier(masks(pictures), CrossEntropyLossFlat(axis=1), model)
    with pytest.raises(ValueError, match="predicts class number 3, but MaskBlock's codes have 2 names"):
        hand_over(learn, tmp_path / "train")


def test_a_mask_with_a_class_without_a_name_that_no_picture_has_is_refused(pictures, refusal):
    model = nn.Conv2d(3, 4, 3, padding=1)
    model.bias.data[2:] = -99
    message = refusal(classifier(masks(pictures), CrossEntropyLossFlat(axis=1), model))
    assert "the model has 4 classes, but MaskBlock's codes have 2 names: name every class" in message


def test_masks_without_names_of_classes_are_refused(pictures, tmp_path):
    dls = images(pictures, (ImageBlock, MaskBlock()), get_y=mask)
    learn = classifier(dls, CrossEntropyLossFlat(axis=1), nn.Conv2d(3, 2, 3, padding=1))
    with pytest.raises(ValueError, match="classes have no names: give them to MaskBlock"):
        hand_over(learn, tmp_path / "train")


# --- what cannot be packaged


def test_two_sets_of_labels_are_refused(pictures, tmp_path):
    block = DataBlock(
        (ImageBlock, CategoryBlock, CategoryBlock),
        n_inp=1,
        get_y=[kind, lambda path: path.suffix],
        splitter=RandomSplitter(0.5, 1),
        item_tfms=Resize(32),
    )
    with pytest.raises(ValueError, match="predicts 2 sets of labels for a picture: it must have one"):
        hand_over(classifier(block.dataloaders(pictures, bs=4, num_workers=0)), tmp_path / "train")


def test_boxes_are_refused(pictures, tmp_path):
    block = DataBlock(
        (ImageBlock, BBoxBlock, BBoxLblBlock),
        n_inp=1,
        get_y=[lambda path: [[0, 0, 9, 9]], lambda path: [kind(path)]],
        splitter=RandomSplitter(0.5, 1),
        item_tfms=Resize(32),
    )
    with pytest.raises(ValueError, match="object detection cannot be packaged"):
        hand_over(classifier(block.dataloaders(pictures, bs=4, num_workers=0)), tmp_path / "train")


def test_several_inputs_are_refused(pictures, tmp_path):
    block = DataBlock(
        (ImageBlock, ImageBlock, CategoryBlock),
        n_inp=2,
        get_x=[lambda path: path, lambda path: path],
        get_y=kind,
        splitter=RandomSplitter(0.5, 1),
        item_tfms=Resize(32),
    )
    with pytest.raises(ValueError, match="takes 2 pictures at a time: only one can be packaged"):
        hand_over(classifier(block.dataloaders(pictures, bs=4, num_workers=0)), tmp_path / "train")
