"""Images between 0 and 1, as rows: MNIST as grey values or binarized, digits, and Omniglot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.lab.datasets import data_file
from pyro_mixtures.numerics.validation import check_choice

READINGS = ("grey", "dynamic", "fixed", "digits", "omniglot")
"""Of the pixels: grey values as they are, binarized anew in each epoch, binarized once (the files
of Larochelle), the small digits that come with scikit-learn, binarized anew, and the characters of
Omniglot, binarized anew."""


@dataclass(frozen=True)
class Split:
    """Images ``(N, side * side)`` between 0 and 1, and their digits, if they are known."""

    images: Tensor
    digits: Tensor | None


@dataclass(frozen=True)
class Images:
    """Images to train with, to choose by and to judge by."""

    train: Split
    validation: Split
    test: Split
    side: int
    binarized_anew: bool

    def training_data(self) -> TensorDataset:
        """What a fit draws its batches from."""
        images = self.train.images
        return BinarizedAnew(images) if self.binarized_anew else TensorDataset(images)


class BinarizedAnew(TensorDataset):
    """Images whose pixels are drawn from their grey values each time they are looked at."""

    def __getitem__(self, index: int | Sequence[int] | slice) -> tuple[Tensor, ...]:
        return tuple(torch.bernoulli(each[index]) for each in self.tensors)


def load(reading: str) -> Images:
    """The images of a reading in :data:`READINGS`, 50,000 of MNIST to train with.

    What is judged by is binarized once, from a fixed seed, where the training data are
    binarized anew. Digits are known but for those of the fixed binarization's training data.
    Of Omniglot's twenty drawers 14 are to train with, one is to choose and five are to judge by:
    not the split of which published numbers are.

    Raises:
        ValueError: for an unknown reading, a missing file, and pixels outside of [0, 1].
    """
    check_choice("reading", reading, READINGS)
    if reading == "fixed":
        return _binarized_once()
    if reading == "omniglot":
        return _omniglot()
    if reading == "digits":
        pixels, digits = load_digits(return_X_y=True)
        rows, counts, side = _rows(pixels / 16), (1200, 300, 297), 8
    else:
        with numpy.load(data_file("mnist.npz")) as file:
            pixels = numpy.concatenate([file["x_train"], file["x_test"]])
            digits = numpy.concatenate([file["y_train"], file["y_test"]])
        rows, counts, side = _rows(pixels / numpy.float32(255)), (50_000, 10_000, 10_000), 28
    labels = torch.from_numpy(digits.astype(numpy.int64)).split(counts)
    train, *held_out = rows.split(counts)
    if reading != "grey":
        held_out = binarized(*held_out)
    splits = [Split(*each) for each in zip([train, *held_out], labels, strict=True)]
    return Images(splits[0], splits[1], splits[2], side, reading != "grey")


def binarized(*grey: Tensor) -> list[Tensor]:
    """Pixels drawn from grey values, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return [torch.bernoulli(each, generator=generator) for each in grey]


def _omniglot() -> Images:
    with numpy.load(data_file("omniglot28.npz")) as file:
        rows = _rows(file["images"] / numpy.float32(255))
        drawer = torch.from_numpy(file["drawer"])
    validation, test = binarized(rows[drawer == 15], rows[drawer > 15])
    train = Split(rows[drawer < 15], None)
    return Images(train, Split(validation, None), Split(test, None), 28, True)


def _binarized_once() -> Images:
    with numpy.load(data_file("mnist_binarized.npz")) as file:
        train, validation, test = (_rows(file[name]) for name in ("train", "valid", "test"))
    with numpy.load(data_file("mnist.npz")) as file:  # here the test images are sorted by digits
        digits = torch.from_numpy(numpy.sort(file["y_test"]).astype(numpy.int64))
    return Images(Split(train, None), Split(validation, None), Split(test, digits), 28, False)


def check_images(images: Tensor, pixels: int) -> Tensor:
    """The images, rows of as many pixels between 0 and 1.

    Raises:
        ValueError: where they are not.
    """
    if images.dim() != 2 or images.shape[1] != pixels:
        raise ValueError(f"Expected images of shape (N, {pixels}), but got {tuple(images.shape)}")
    least, greatest = float(images.amin()), float(images.amax())
    if not 0 <= least <= greatest <= 1:
        raise ValueError(
            f"Expected images of pixels in [0, 1], but they lie between {least} and {greatest}"
        )
    return images


def _rows(images: Any) -> Tensor:
    rows = torch.from_numpy(images.reshape(len(images), -1).astype(numpy.float32))
    return check_images(rows, rows.shape[1])
