"""fastai's validation pipeline without fastai: steps for serve/pixels.py, and one torch module for the graph.

Both follow fastai 2.8 (vision/augment.py, data/transforms.py). A transform that is unknown here stops the
export with its name: after a guess the endpoint would answer differently from the Learner without a warning.
"""

import copy
import math
from collections.abc import Iterable

import torch
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.learner import Learner
from fastai.vision import augment as aug
from PIL import Image
from torch import nn
from torch.nn import functional as F


class UnknownTransformError(ValueError):
    """A transform of the Learner that the endpoint cannot repeat."""


def item_steps(tfms: Iterable) -> list[dict]:
    """The Learner's item transforms as model.json's `steps`; sizes are [height, width]."""
    steps = []
    for tfm in tfms:
        if isinstance(tfm, ToTensor) or tfm.split_idx == 0:  # 0: only in training
            continue
        if type(tfm) is aug.Resize:
            steps.append(resize(tfm.size, tfm.method, tfm.pad_mode, tfm.mode))
        elif type(tfm) is aug.RandomResizedCrop:  # squish to a larger size, crop the centre
            extra = math.ceil(max(tfm.size) * tfm.val_xtra / 8) * 8
            steps.append(resize([side + extra for side in tfm.size], "squish", "zeros", tfm.mode))
            steps.append(crop_pad(tfm.size, "zeros"))
        elif type(tfm) in (aug.CropPad, aug.RandomCrop):
            steps.append(crop_pad(tfm.size, getattr(tfm, "pad_mode", "zeros")))
        else:
            raise unknown(tfm)
    if not steps:
        raise UnknownTransformError("the Learner does not resize its pictures: give it item_tfms=Resize(...)")
    return steps


def resize(size: Iterable[int], method: str, pad: str, resample: int) -> dict:
    """A resize step of model.json; `size` is fastai's (width, height), `resample` Pillow's filter."""
    return {
        "op": "resize",
        "method": str(method),
        "size": [int(side) for side in size][::-1],
        "pad": str(pad),
        "resample": Image.Resampling(resample).name,
    }


def crop_pad(size: Iterable[int], pad: str) -> dict:
    """A crop_pad step of model.json; `size` is fastai's (width, height)."""
    return {"op": "crop_pad", "size": [int(side) for side in size][::-1], "pad": str(pad)}


def batch_modules(tfms: Iterable, size: tuple[int, int]) -> list[nn.Module]:
    """The Learner's batch transforms as modules on float (N, 3, H, W); `size` is the input's (H, W)."""
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
        else:
            raise unknown(tfm)
    return modules


class Graph(nn.Module):
    """uint8 (N, H, W, 3) to probabilities (N, labels): batch transforms, model and activation in one."""

    def __init__(self, learn: Learner, size: tuple[int, int]) -> None:
        super().__init__()
        self.before = nn.Sequential(*batch_modules(learn.dls.valid.after_batch, size))
        self.model = copy.deepcopy(learn.model)
        self.activation = learn.loss_func.activation
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveMaxPool2d) and child.output_size in (1, (1, 1)):
                    setattr(parent, name, GlobalMax())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pixels in Pillow's order, uint8 (N, H, W, 3)."""
        return self.activation(self.model(self.before(pictures.permute(0, 3, 1, 2).float())))


class GlobalMax(nn.Module):
    """The same as AdaptiveMaxPool2d(1), which torch's ONNX exporter cannot translate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return x.amax((2, 3), keepdim=True)


def unknown(tfm: object) -> UnknownTransformError:
    """The error for a transform, with its name."""
    name = getattr(tfm, "_name", type(tfm).__name__)  # fastai keeps the name of a plain function in _name
    return UnknownTransformError(
        f"the transform {name} acts at validation and cannot be packaged: "
        "leave it out of the Learner, or add it to package/pipeline.py"
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
