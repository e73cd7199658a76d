"""package/pipeline.py repeats fastai's transforms at validation, and rejects those that it does not know."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import (
        AffineCoordTfm,
        CropPad,
        DataLoader,
        Dihedral,
        Flip,
        Hue,
        IntToFloatTensor,
        Normalize,
        OldRandomCrop,
        Pipeline,
        RandomErasing,
        RandomResizedCropGPU,
        RatioResize,
        Resize,
        Saturation,
        TensorImage,
        ToTensor,
        Transform,
        Zoom,
        aug_transforms,
        imagenet_stats,
    )
    from torch import nn

    from learner import LearnerError
    from pipeline import batch_modules, item_steps

STATS = Normalize.from_stats(*imagenet_stats, cuda=False)
SHAPES = [(64, 64), (48, 80), (81, 47)]  # height and width of the input

KNOWN = {
    "only scaling": [],
    "augmentation of the same size": aug_transforms(),
    "ImageNet statistics": [STATS],
    "statistics of the first batch": [Normalize()],
    "smaller": [*aug_transforms(size=32), STATS],
    "much smaller, averaged before": aug_transforms(size=8),
    "much smaller, not square": aug_transforms(size=(6, 10)),
    "larger": aug_transforms(size=150),
    "wide": aug_transforms(size=(24, 96)),
    "tall": [*aug_transforms(size=(96, 24)), STATS],
    "nearest": aug_transforms(size=40, mode="nearest"),
    "much smaller, nearest": aug_transforms(size=9, mode="nearest"),
    "bicubic": aug_transforms(size=40, mode="bicubic"),
    "padded with zeros": aug_transforms(size=40, pad_mode="zeros"),
    "padded with the border": aug_transforms(size=40, pad_mode="border"),
    "corners not aligned": aug_transforms(size=40, align_corners=False),
    "corners not aligned, zeros": aug_transforms(size=100, align_corners=False, pad_mode="zeros"),
    "corners not aligned by default": [AffineCoordTfm(size=40)],
    "no warp": aug_transforms(size=32, max_warp=0),
    "vertical flips": aug_transforms(size=32, flip_vert=True),
    "two resizes": [Flip(size=40), Zoom(size=24)],
    "of the same size, many": [Dihedral(), Zoom(), Saturation(), Hue(), RandomErasing(), STATS],
    "random crop": [RandomResizedCropGPU(32), STATS],
    "random crop, not square, smaller part": [RandomResizedCropGPU((20, 40), valid_scale=0.7)],
    "random crop, averaged before": [RandomResizedCropGPU(7)],
    "random crop, nearest": [RandomResizedCropGPU(32, mode="nearest")],
    "random crop, narrow ratio": [RandomResizedCropGPU(32, ratio=(1, 1)), *aug_transforms()],
    "augmentation with min_scale": aug_transforms(size=32, min_scale=0.75),
    "random crop in training only": [RandomResizedCropGPU(16, split_idx=0), STATS],
}


@pytest.mark.filterwarnings("ignore:Default (grid_sample|upsampling):UserWarning")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_batch_transforms_give_fastais_values(name, shape):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, *shape), dtype=torch.uint8)
    pipeline = Pipeline([IntToFloatTensor(), *KNOWN[name]], split_idx=0)
    pipeline.setup(DataLoader([(picture,) for picture in TensorImage(pixels).float() / 255], bs=3))
    pipeline(TensorImage(pixels))  # training changes state, such as an AffineCoordTfm's split_idx
    pipeline.split_idx = 1
    expected = pipeline(TensorImage(pixels))
    actual = nn.Sequential(*batch_modules(pipeline, shape))(pixels.float())
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() < 1e-4


class Sharpen(Transform):
    """An unknown transform."""

    order = 35

    def encodes(self, x: TensorImage):
        return x * 2


def brighten(x):
    """A plain function as a transform."""
    return x


TRAINING_ONLY = Sharpen(split_idx=0)


@pytest.mark.parametrize(
    ("tfm", "name"),
    [(Sharpen(), "Sharpen"), (Sharpen(split_idx=1), "Sharpen"), (brighten, "brighten")],
    ids=["always", "at validation", "a function"],
)
def test_an_unknown_batch_transform_is_an_error_with_its_name(tfm, name):
    with pytest.raises(LearnerError, match=f"the transform {name} acts at validation"):
        batch_modules(Pipeline([IntToFloatTensor(), tfm]), (8, 8))


@pytest.mark.parametrize(
    ("tfm", "name"),
    [(OldRandomCrop(64), "OldRandomCrop"), (Sharpen(), "Sharpen"), (brighten, "brighten")],
    ids=["fastai's", "a user's", "a function"],
)
def test_an_unknown_item_transform_is_an_error_with_its_name(tfm, name):
    with pytest.raises(LearnerError, match=f"the transform {name} acts at validation"):
        item_steps(Pipeline([Resize(64), tfm, ToTensor()]))


def test_an_unknown_transform_for_training_is_ignored():
    assert len(batch_modules(Pipeline([IntToFloatTensor(), TRAINING_ONLY]), (8, 8))) == 1
    assert len(item_steps(Pipeline([Resize(64), TRAINING_ONLY, ToTensor()]))) == 1


@pytest.mark.parametrize("tfms", [[], [RatioResize(64)], [RatioResize(64), RatioResize(32)]], ids=len)
def test_a_learner_whose_pictures_keep_different_sizes_is_rejected(tfms):
    with pytest.raises(LearnerError, match=r"not of one size: give it item_tfms=Resize\(...\)"):
        item_steps(Pipeline([*tfms, ToTensor()]))


def test_ratio_resize_is_a_step_before_the_size_is_fixed_and_a_resize_after_it():
    bilinear = {"resample": "BILINEAR"}
    assert item_steps(Pipeline([RatioResize(96), Resize(64)])) == [
        {"op": "ratio_resize", "side": 96, **bilinear},
        {"op": "resize", "method": "crop", "size": [64, 64], "pad": "reflection", **bilinear},
    ]
    assert item_steps(Pipeline([CropPad((20, 30)), RatioResize(96)])) == [
        {"op": "crop_pad", "size": [20, 30], "pad": "zeros"},
        {"op": "resize", "method": "crop", "size": [64, 96], "pad": "reflection", **bilinear},
    ]


def test_sizes_are_written_as_height_and_width():
    assert item_steps(Pipeline([CropPad((20, 30), "border"), Resize((40, 60), "pad", "zeros")])) == [
        {"op": "crop_pad", "size": [20, 30], "pad": "border"},
        {"op": "resize", "method": "pad", "size": [40, 60], "pad": "zeros", "resample": "BILINEAR"},
    ]
