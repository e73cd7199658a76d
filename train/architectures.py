"""Find the model that --arch names, and say what to do when its weights cannot be had."""

import re
from collections.abc import Callable
from difflib import get_close_matches

from pictures import UsageError

Arch = Callable | str  # torchvision's function, or the name of one of timm's models


def find_arch(name: str) -> Arch:
    """Return the model called `name`, torchvision's rather than timm's. Raises UsageError."""
    import timm
    from torchvision import models

    known = models.list_models(module=models)
    if name in known:
        return models.get_model_builder(name)
    if timm.is_model(name):
        return name
    near = get_close_matches(name, {*known, *timm.list_models()}) or ["resnet18", "resnet50", "convnext_tiny"]
    raise UsageError(f"--arch {name}: neither torchvision nor timm has it (did you mean {', '.join(near)}?)")


def advice(arch: Arch) -> str:
    """Say what to do when the ImageNet weights of `arch` cannot be downloaded."""
    import timm
    import torch
    from torchvision.models import get_model_weights

    if isinstance(arch, str):
        place = f"fetch {timm.get_pretrained_cfg(arch).hf_hub_id} into Hugging Face's cache (HF_HOME)"
    else:
        place = f"put {get_model_weights(arch).DEFAULT.url} into {torch.hub.get_dir()}/checkpoints"
    return f"try again, or {place}, or train from scratch with --weights none"


def reason(error: Exception) -> str:
    """Return the first sentence of what a library says went wrong."""
    return re.split(r"\n|\. ", str(error))[0] or type(error).__name__
