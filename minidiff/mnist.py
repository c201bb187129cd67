"""MNIST, the handwritten digits: 60,000 for training and 10,000 for testing, offline.

The four canonical files are checked against torchvision's md5 sums and read compressed. Nothing is downloaded or
unpacked, so several processes can read them at once, from a read-only folder too. `data/README.md` says where they come
from.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity

from minidiff.shipped import DATA


def load(train: bool, root: Path = DATA) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64. Raises ValueError when a file is missing or damaged."""
    raw = Path(root) / "MNIST" / "raw"
    for name, md5 in MNIST.resources:
        if not check_integrity(str(raw / name), md5):
            state = "is damaged (its md5 is wrong)" if (raw / name).exists() else "is missing"
            remedy = "restore it with `git checkout -- data`, or copy the canonical MNIST file there"
            raise ValueError(f"{raw / name} {state}: {remedy}")
    images, labels = (name for name, _ in MNIST.resources if name.startswith("train") == train)
    return _read(raw / images, 16).view(-1, 1, 28, 28), _read(raw / labels, 8).long()


def _read(path: Path, header: int) -> Tensor:
    """The bytes of an IDX file after its header."""
    return torch.from_numpy(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy())


def test_digits(count: int, digits: list[int]) -> tuple[Tensor, Tensor]:
    """The first `count` images of these digits in the test set, (count, 1, 28, 28) uint8, and their labels (count,).

    Raises ValueError when there are fewer.
    """
    images, labels = load(train=False)
    chosen = torch.isin(labels, torch.tensor(digits)).nonzero()[:, 0]
    if not count <= len(chosen):
        named = ", ".join(map(str, digits))
        raise ValueError(f"the test set has {len(chosen)} of the digits {named}, asked for {count}: ask for fewer")
    return images[chosen[:count]], labels[chosen[:count]]


def to_pixels(images: Tensor, low: float = -1, high: float = 1) -> Tensor:
    """uint8 0 … 255 -> float32 in [low, high], of the same shape, such as (N, 1, 28, 28)."""
    return images.to(torch.float32) / 255 * (high - low) + low
