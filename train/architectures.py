"""Look up the model that --arch names, and say how to get its weights when the download fails."""

import re
from collections.abc import Callable
from difflib import get_close_matches

from pictures import UsageError

Arch = Callable | str  # torchvision's builder function, or the name of a timm model


def find_arch(name: str) -> Arch:
    """Return the model called `name`; torchvision wins where timm has the same name. Raises UsageError."""
    import timm
    from torchvision import models

    names = models.list_models(module=models)
    if name in names:
        return models.get_model_builder(name)
    if timm.is_model(name):
        return name
    near = get_close_matches(name, {*names, *timm.list_models()}) or ["resnet18", "resnet50", "convnext_tiny"]
    raise UsageError(f"--arch {name}: neither torchvision nor timm has it (did you mean {', '.join(near)}?)")


def download_advice(arch: Arch) -> str:
    """Say what to do when the ImageNet weights of `arch` cannot be downloaded."""
    import timm
    import torch
    from torchvision.models import get_model_weights

    if isinstance(arch, str):
        config = timm.get_pretrained_cfg(arch)
        repository = config.hf_hub_id if config else arch
        by_hand = f"fetch {repository} into Hugging Face's cache (HF_HOME)"
    else:
        by_hand = f"put {get_model_weights(arch).DEFAULT.url} into {torch.hub.get_dir()}/checkpoints"
    return f"try again, or {by_hand}, or train from scratch with --weights none"


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's error message, or the exception's name if there is none."""
    return re.split(r"\n|\. ", str(error))[0] or type(error).__name__
