"""serve/pixels.py gives the pixels that fastai's validation gives, to the byte."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pixels import MAX_PIXELS, NotAPictureError, TooLargeError, open_picture, to_pixels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastai.vision.all import CropPad, PILImage, Pipeline, RandomCrop, RandomResizedCrop, Resize

    from pipeline import item_steps

x = [io, np, pytest, assume, example, given, settings, st, Image, MAX_PIXELS, NotAPictureError, TooLargeError]
y = [open_picture, to_pixels, CropPad, PILImage, Pipeline, RandomCrop, RandomResizedCrop, Resize, item_steps]
