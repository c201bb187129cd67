"""A reader of digits: is a picture what it is to be, and does it look like a digit at all?

A classifier (networks/mnist_classifier.py) names a digit for every picture, so being read right is not enough. Its features say
whether the picture lies where real digits lie:

    read        argmax_c p(c | x)                                                 the name
    plausible   d_5(x) <= the 99th percentile of d_5 of real digits                is it among the real ones?
    Fréchet     of the features of many pictures against those of real digits      are they as varied?            (scores.py)

d_5(x) is the Euclidean distance from the features of x to the 5th nearest of the 10,000 test digits'. For the percentile each
test digit is set against the 9,999 others: neither the classifier nor a denoiser was trained on either side. So 1 % of real digits are
not plausible; and of two digits laid over each other 45 % are plausible, so ask for the name as well.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minidiff import mnist
from minidiff.networks.mnist_classifier import Classifier
from minidiff.pretrained import load_digits
from minidiff.scores import frechet

AT_A_TIME = 500  # pictures through the network, or rows of the table of distances
NEIGHBOURS = 5


@dataclass(frozen=True)
class Reader:
    """A classifier that reads a few images at a time; what it says lies on the CPU."""

    classifier: Classifier

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the classifier decides by: images (N, 1, 28, 28) in [0, 1] -> (N, D). Raises ValueError for another shape or range, or numbers that are not finite."""
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or len(images) == 0:
            raise ValueError(f"the reader wants images (N, 1, 28, 28), got {tuple(images.shape)}: resize or crop them")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"the reader wants pixels in [0, 1], got {low:g} to {high:g}: map the network's range to it, and check that all are finite")
        weight = self.classifier.read.weight
        return torch.cat([self.classifier.features(part.to(weight)).float().cpu() for part in images.split(AT_A_TIME)])

    @torch.no_grad()
    def log_probs(self, features: Tensor) -> Tensor:
        """log p(c | x) of all ten digits c: features of images x (…, D) -> (…, 10)."""
        return self.classifier.read(features.to(self.classifier.read.weight)).log_softmax(-1).float().cpu()


def load_reader(name: str | Path = "mnist-classifier") -> Reader:
    """The shipped classifier, or that of a file of train.py's. Raises ValueError as `load_digits` does."""
    return Reader(load_digits(name, ("classifier",)).unet.to(memory_format=torch.channels_last))  # twice as fast on a CPU


def read_as(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Whether the digit that is read is the label: (N, 10), (N,) int64 -> (N,) bool."""
    return log_probs.argmax(1) == labels


def readings(log_probs: Tensor, labels: Tensor) -> Tensor:
    """S of scores.py for illusions, S_ij = log p(label j | view i): (N, V, 10), int64 (V,) or (N, V) -> (N, V, V)."""
    V = log_probs.shape[1]
    return log_probs.gather(2, labels.expand(len(log_probs), V)[:, None].expand(-1, V, -1))


@dataclass(frozen=True)
class RealDigits:
    """What pictures are held against.

    features: (10000, D), of the test digits
    limit:    how far the 5th nearest of them may be
    """

    features: Tensor
    limit: float


def real_digits(reader: Reader) -> RealDigits:
    """Measure the real digits, in some eight seconds."""
    test = reader.features(mnist.to_pixels(mnist.load(train=False)[0], 0, 1))
    to_others = to_nearest(test, test, NEIGHBOURS + 1)  # the nearest is the digit itself
    return RealDigits(test, float(to_others.quantile(0.99)))


def real_floor(reader: Reader, real: RealDigits) -> float:
    """The Fréchet distance of the first 2,000 training digits to the test digits: about what 2,000 perfect samples would have."""
    return frechet(reader.features(mnist.to_pixels(mnist.load(train=True)[0][:2000], 0, 1)), real.features)


def to_nearest(features: Tensor, others: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The distance to the k-th nearest of the others: (N, D), (M, D) -> (N,) float64. Raises ValueError unless 1 <= k <= M."""
    if not 1 <= k <= len(others):
        raise ValueError(f"k must be between 1 and the {len(others)} others, got {k}")
    return torch.cat([torch.cdist(part.double(), others.double()).kthvalue(k).values for part in features.split(AT_A_TIME)])


def plausible(features: Tensor, real: RealDigits) -> Tensor:
    """Which pictures lie where real digits do: (N, D) -> (N,) bool."""
    return to_nearest(features, real.features) <= real.limit
