"""fastai's validation pipeline without fastai: steps for serve/pixels.py, and one torch module for the graph.

Both follow fastai 2.8 (vision/augment.py, data/transforms.py). A transform that is unknown here stops the
export with its name, unless it changes no validation picture: after a guess the endpoint would answer
differently from the Learner without a warning.
"""

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import Transform, compose_tfms
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.layers import ToTensorBase
from fastai.learner import Learner
from fastai.vision import augment as aug
from PIL import Image
from torch import nn
from torch.nn import functional as F

from learner import LearnerError, as_item

TRIES = 3  # of a random transform on each validation picture


Idle = Callable[[Transform], bool]  # whether a transform changes nothing at validation


def item_steps(tfms: Iterable[Transform], idle: Idle = lambda _: False) -> list[dict]:
    """The Learner's item transforms as model.json's `steps`; sizes are [height, width].

    Raises LearnerError for a transform that is not `idle` and cannot be repeated.
    """
    steps: list[dict] = []
    for tfm in tfms:
        if isinstance(tfm, ToTensor) or tfm.split_idx == 0:  # 0: only in training
            continue
        if type(tfm) is aug.Resize:
            steps.append(resize(tfm.size, tfm.method, tfm.pad_mode, tfm.mode))
        elif type(tfm) is aug.RatioResize:
            steps.append(ratio_resize(tfm, steps))
        elif type(tfm) is aug.RandomResizedCrop:  # squish to a larger size, crop the centre
            extra = math.ceil(max(tfm.size) * tfm.val_xtra / 8) * 8
            steps.append(resize([side + extra for side in tfm.size], "squish", "zeros", tfm.mode))
            steps.append(crop_pad(tfm.size, "zeros"))
        elif type(tfm) in (aug.CropPad, aug.RandomCrop):
            steps.append(crop_pad(tfm.size, getattr(tfm, "pad_mode", "zeros")))
        elif not idle(tfm):
            raise unknown(tfm)
    if not steps or "size" not in steps[-1]:
        raise LearnerError(
            "the Learner's pictures are not of one size: give it item_tfms=Resize(...) at the end"
        )
    return steps


def is_idle(learn: Learner, pictures: list[Path], tfm: Transform) -> bool:
    """Whether a transform of the Learner's items or batches changes none of these validation pictures.

    Of a plain function this proves too little: it may depend on the picture.
    """
    if type(tfm) is Transform:
        return False
    for picture in pictures:
        value: tuple = (as_item(learn, picture)[1],)
        for other in learn.dls.valid.after_item:
            if other is tfm:
                break
            value = compose_tfms(value, [other], split_idx=1)
        else:
            value = (value[0][None],)  # a batch of one
            for other in learn.dls.valid.after_batch:
                if other is tfm:
                    break
                value = compose_tfms(value, [other], split_idx=1)
        before = plain(value[0])
        for _ in range(TRIES):
            if not torch.equal(before, plain(compose_tfms(value, [tfm], split_idx=1)[0])):
                return False
    return True


def plain(value: torch.Tensor | Image.Image) -> torch.Tensor:
    """A copy of a tensor's or a picture's numbers."""
    return (
        value.as_subclass(torch.Tensor).clone()
        if isinstance(value, torch.Tensor)
        else torch.tensor(np.array(value))
    )


def resize(size: Iterable[int], method: str, pad: str, resample: int) -> dict:
    """A resize step of model.json; `size` is fastai's (width, height), `resample` Pillow's filter."""
    return {
        "op": "resize",
        "method": str(method),
        "size": [int(side) for side in size][::-1],
        "pad": str(pad),
        "resample": Image.Resampling(resample).name,
    }


def ratio_resize(tfm: aug.RatioResize, before: list[dict]) -> dict:
    """A step of model.json for RatioResize after the steps `before`."""
    resample = Image.Resampling(tfm.resamples[0]).name
    if not before or "size" not in before[-1]:
        return {"op": "ratio_resize", "side": int(tfm.max_sz), "resample": resample}
    height, width = before[-1]["size"]
    scale = tfm.max_sz / max(height, width)
    size = (tfm.max_sz, height * scale) if width >= height else (width * scale, tfm.max_sz)
    return resize([int(side) for side in size], "crop", "reflection", tfm.resamples[0])


def crop_pad(size: Iterable[int], pad: str) -> dict:
    """A crop_pad step of model.json; `size` is fastai's (width, height)."""
    return {"op": "crop_pad", "size": [int(side) for side in size][::-1], "pad": str(pad)}


def batch_modules(
    tfms: Iterable[Transform], size: tuple[int, int], idle: Idle = lambda _: False
) -> list[nn.Module]:
    """The Learner's batch transforms as modules on float (N, C, H, W); `size` is the input's (H, W).

    Raises LearnerError for a transform that is not `idle` and cannot be repeated.
    """
    modules: list[nn.Module] = []
    for tfm in tfms:
        # Before the test of split_idx, which AffineCoordTfm overwrites at each call.
        if isinstance(tfm, aug.AffineCoordTfm):
            if tfm.size is not None:
                modules.append(
                    Resample(size, pair(tfm.size), tfm.mode, tfm.pad_mode, align_corners=tfm.align_corners)
                )
                size = pair(tfm.size)
        elif tfm.split_idx == 0:  # only in training
            continue
        elif type(tfm) is aug.RandomResizedCropGPU:
            crop = CentreCrop(size, tfm.ratio, tfm.valid_scale)
            resample = Resample(crop.size, pair(tfm.size), tfm.mode, "reflection", align_corners=True)
            modules += [crop, resample]
            size = pair(tfm.size)
        elif type(tfm) is IntToFloatTensor:
            modules.append(Affine(torch.tensor(0.0), torch.tensor(float(tfm.div))))
        elif type(tfm) is Normalize:
            modules.append(Affine(tfm.mean, tfm.std))
        elif not idle(tfm):
            raise unknown(tfm)
    return modules


class Graph(nn.Module):
    """uint8 (N, H, W, C) to what the task says, float32: batch transforms, model and activation in one.

    Probabilities (N, labels), values (N, values), points (N, points, 2) as -1 to 1 across the picture, or
    class numbers (N, height, width).
    """

    def __init__(self, learn: Learner, task: str, size: tuple[int, int], idle: Idle) -> None:
        super().__init__()
        self.task, self.loss = task, learn.loss_func
        self.before = nn.Sequential(*batch_modules(learn.dls.valid.after_batch, size, idle))
        crops = any(isinstance(module, CentreCrop) and not module.whole for module in self.before)
        if crops and task in ("points", "segmentation"):
            # fastai does not undo this either: its points and masks are those of the crop.
            raise LearnerError(
                "RandomResizedCropGPU crops the pictures at validation, so that points and masks have no "
                "place in them: train without it"
            )
        self.model = copy.deepcopy(learn.model)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveMaxPool2d) and child.output_size in (1, (1, 1)):
                    setattr(parent, name, GlobalMax())
                elif isinstance(
                    child, ToTensorBase
                ):  # a U-Net's; the exporter cannot follow tensor subclasses
                    setattr(parent, name, nn.Identity())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pixels in Pillow's order, uint8 (N, H, W, C)."""
        scores = self.scores(pictures)
        if self.task == "regression":
            return scores.flatten(1) if scores.ndim > 1 else scores[:, None]
        if self.task == "points":
            return scores.reshape(scores.shape[0], -1, 2)
        probabilities = self.loss.activation(scores)
        if self.task == "segmentation":
            classes = self.loss.decodes(probabilities)
            return classes.reshape(scores.shape[0], *scores.shape[-2:]).float()
        return probabilities

    def scores(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the model itself returns; of a mask (N, classes, height, width)."""
        return self.model(self.before(pictures.permute(0, 3, 1, 2).float()))


class GlobalMax(nn.Module):
    """The same as AdaptiveMaxPool2d(1), which torch's ONNX exporter cannot translate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return x.amax((2, 3), keepdim=True)


def unknown(tfm: object) -> LearnerError:
    """The error for a transform, with its name."""
    name = getattr(tfm, "_name", type(tfm).__name__)  # fastai keeps the name of a plain function in _name
    return LearnerError(
        f"the transform {name} acts at validation and cannot be packaged: train without it (apply it to the "
        "picture files instead), or add it to package/pipeline.py and serve/pixels.py"
    )


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """A batch transform's size as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class Affine(nn.Module):
    """(x - mean) / std."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape that broadcasts."""
        return (x - self.mean) / self.std


class CentreCrop(nn.Module):
    """The part of the picture that RandomResizedCropGPU keeps at validation."""

    def __init__(self, size: tuple[int, int], ratio: tuple[float, float], scale: float) -> None:
        super().__init__()
        h, w = size
        if w / h < ratio[0]:
            ch, cw = int(w / ratio[0]), w
        elif w / h > ratio[1]:
            ch, cw = h, int(h * ratio[1])
        else:
            ch, cw = h, w
        self.size = int(ch * scale), int(cw * scale)
        self.whole = self.size == size
        self.top, self.left = (h - self.size[0]) // 2, (w - self.size[1]) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        return x[..., self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


class Resample(nn.Module):
    """fastai's `affine_coord` without a transform: a resize by grid_sample, after averaging by area."""

    grid: torch.Tensor

    def __init__(
        self,
        size: tuple[int, int],
        target: tuple[int, int],
        mode: str,
        pad: str,
        *,
        align_corners: bool | None,
    ) -> None:
        super().__init__()
        self.mode, self.pad, self.align_corners = mode, str(pad), bool(align_corners)
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, *target], align_corners=self.align_corners)
        self.register_buffer("grid", grid)
        # As in `_grid_sample` of fastai 2.8, bug included: it takes the last two axes of its grid, which is
        # (N, height, width, 2), for height and width.
        zoom = 2 / (grid.max() - grid.min()).item()
        shrink = min(size[0] / target[1], size[1] / 2) / 2
        self.shrink = shrink if mode == "bilinear" and shrink > 1 and shrink > zoom else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, *size) to (N, C, *target)."""
        if self.shrink:
            x = F.interpolate(x, scale_factor=1 / self.shrink, mode="area", recompute_scale_factor=True)
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        return F.grid_sample(x, grid, mode=self.mode, padding_mode=self.pad, align_corners=self.align_corners)
