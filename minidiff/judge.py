"""Chapter 24. Judging: is a picture what it is meant to be, is it like real ones, and are many as varied as real ones?

A classifier (networks/mnist_classifier.py) reads a digit in every picture, so being read right is not enough. Its
features say whether the picture lies where real digits lie:

    read        argmax_c p(c | x)                                      the digit
    plausible   d_5(x) <= the 99th percentile of d_5 of real digits    is it among the real ones?
    Fréchet     |μ_1 − μ_2|² + tr(Σ_1 + Σ_2 − 2 (Σ_1 Σ_2)^½)           of many pictures' features          (FID Eq. 6)

d_5(x) is the distance from the features of x to the 5th nearest of the 10,000 test digits'; for the percentile each
test digit is compared with the 9,999 others. Of two digits laid over each other 45 % are plausible, so ask what is
read, too.

An illusion is scored by a matrix S, one for each picture: S_ij says how well view i reads as prompt j (a
log-probability, or a cosine of embeddings).

    alignment    min_i S_ii                                            the worst view                             (VA)
    concealment  ½ (tr softmax_rows(S/τ) + tr softmax_columns(S/τ)) / N     each prompt in its own view alone?    (VA)

VA: see views.py. FID = Heusel et al. 2017, arXiv 1706.08500.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minidiff import mnist
from minidiff.digits import load_network
from minidiff.files import load_tensors, save_tensors
from minidiff.networks.mnist_classifier import Classifier

AT_A_TIME = 500  # pictures through the network, or rows of the table of distances
NEIGHBOURS = 5


@dataclass(frozen=True)
class Reader:
    """A classifier that reads a few images at a time; what it says lies on the CPU."""

    classifier: Classifier

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the classifier decides by: images (N, 1, 28, 28) in [0, 1] -> (N, D).

        Raises ValueError for another shape or range, or numbers that are not finite.
        """
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or len(images) == 0:
            raise ValueError(f"expected images (N, 1, 28, 28), got {tuple(images.shape)}: resize or crop them")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}: map the network's range to it")
        weight = self.classifier.read.weight
        return torch.cat([self.classifier.features(part.to(weight)).float().cpu() for part in images.split(AT_A_TIME)])

    @torch.no_grad()
    def log_probs(self, features: Tensor) -> Tensor:
        """log p(c | x) of all ten digits c: features of images x (…, D) -> (…, 10)."""
        return self.classifier.read(features.to(self.classifier.read.weight)).log_softmax(-1).float().cpu()


def load_reader(name: str | Path = "mnist-classifier") -> Reader:
    """The shipped classifier, or that of a file of train.py's. Raises ValueError as `load_network` does."""
    classifier, _ = load_network(name, ("classifier",))
    return Reader(classifier.to(memory_format=torch.channels_last))  # twice as fast on a CPU


def read_as(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Whether the digit that is read is the label: (N, 10), (N,) int64 -> (N,) bool."""
    return log_probs.argmax(1) == labels


def readings(log_probs: Tensor, labels: Tensor) -> Tensor:
    """S of illusions, S_ij = log p(label j | view i): (N, V, 10), int64 (V,) or (N, V) -> (N, V, V)."""
    V = log_probs.shape[1]
    return log_probs.gather(2, labels.expand(len(log_probs), V)[:, None].expand(-1, V, -1))


@dataclass(frozen=True)
class RealDigits:
    """What pictures are compared with.

    features: (10000, D), of the test digits
    limit:    how far the 5th nearest of them may be
    floor:    the Fréchet distance of 2,000 training digits to them: about what 2,000 perfect samples would have
    """

    features: Tensor
    limit: float
    floor: float


def real_digits(reader: Reader) -> RealDigits:
    """Measure the real digits, in some eight seconds, once for each classifier: what was found is kept in a file."""
    weights = b"".join(w.detach().cpu().numpy().tobytes() for w in reader.classifier.state_dict().values())
    digest = hashlib.sha256(weights).hexdigest()[:16]
    if digest not in _measured:
        _measured[digest] = _kept(reader, cache_folder() / f"real-digits-{digest}.safetensors")
    return _measured[digest]


_measured: dict[str, RealDigits] = {}  # what this process has measured or read, by the classifier's digest


def cache_folder() -> Path:
    """Where what can be made again is kept; a machine without a home has it in the current folder."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidiff"
    return Path(".cache", "minidiff")


def _kept(reader: Reader, path: Path) -> RealDigits:
    """What the file holds; measured, and written into it, where there is none to be believed."""
    with suppress(ValueError, KeyError, TypeError):
        tensors, record = load_tensors(path)
        return RealDigits(tensors["features"], float(record["limit"]), float(record["floor"]))
    test, some = (reader.features(mnist.to_pixels(x, 0, 1)) for x in (mnist.load(False)[0], mnist.load(True)[0][:2000]))
    to_others = to_nearest(test, test, NEIGHBOURS + 1)  # the nearest is the digit itself
    real = RealDigits(test, float(to_others.quantile(0.99)), frechet(some, test))
    with suppress(OSError):  # a home that cannot be written: measured again next time
        save_tensors({"features": test}, path, {"limit": real.limit, "floor": real.floor})
    return real


def to_nearest(features: Tensor, others: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The distance to the k-th nearest of the others: (N, D), (M, D) -> (N,) float64.

    Raises ValueError unless 1 <= k <= M.
    """
    if not 1 <= k <= len(others):
        raise ValueError(f"k must be between 1 and the {len(others)} others, got {k}")
    return torch.cat(
        [torch.cdist(part.double(), others.double()).kthvalue(k).values for part in features.split(AT_A_TIME)]
    )


def plausible(features: Tensor, real: RealDigits) -> Tensor:
    """Which pictures lie where real digits do: (N, D) -> (N,) bool."""
    return to_nearest(features, real.features) <= real.limit


def rank_digits(seen: Tensor, labels: list[int], lifelike: int) -> Tensor:
    """A score for each illusion of digits, higher is better: (N, V, 1, 28, 28) in [0, 1], V labels -> (N,).

    The log-probability of the worst view (`alignment`), less how far the least lifelike of the first `lifelike` views
    is from real digits, where 1 is as far as real digits are at most (`plausible`).
    """
    reader = load_reader()
    real = real_digits(reader)
    features = reader.features(seen.flatten(0, 1)).view(*seen.shape[:2], -1)
    distance = to_nearest(features[:, :lifelike].flatten(0, 1), real.features).view(len(seen), lifelike) / real.limit
    return alignment(readings(reader.log_probs(features), torch.tensor(labels))) - distance.amax(1)


def psnr(x: Tensor, wanted: Tensor) -> float:
    """In dB, the mean over images of −10 log10 of the mean squared error, pixels in [0, 1]: (B, C, H, W) both."""
    return float((-10 * (x - wanted).square().flatten(1).mean(1).clamp(min=1e-10).log10()).mean())


def alignment(S: Tensor) -> Tensor:
    """The score of the worst view: (B, N, N) -> (B,), in the units of S. Raises ValueError when S is not square."""
    return _square(S).diagonal(dim1=-2, dim2=-1).amin(-1)


def concealment(S: Tensor, temperature: float = 1.0) -> Tensor:
    """How surely views and prompts find each other, both ways: (B, N, N) -> (B,), from 0 over 1/N (by chance) to 1.

    temperature: τ; 1 for log-probabilities, 0.01 for CLIP's cosines. Raises ValueError when S is not square, or τ not
                 above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}")
    scaled = _square(S) / temperature
    return (scaled.softmax(-1) + scaled.softmax(-2)).diagonal(dim1=-2, dim2=-1).mean(-1) / 2


def frechet(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of two sets of features, (N, D) and (M, D). Computed in float64, on the CPU.

    With Σ = RᵀR (R of a QR decomposition of the centred features) tr (Σ_1 Σ_2)^½ is the sum of the singular values of
    R_1 R_2ᵀ: no root of a matrix is taken, and a set against itself gives 0. Few pictures, fewer than D + 1 above all,
    bias it upwards: compare like with like. Raises ValueError unless both are finite, have one D, and at least 2 rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features must be (N, D) and (M, D) with at least 2 rows each, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double().cpu(), b.double().cpu()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite, got inf or nan: check the images and the network that reads them")
    R = [torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5).R for x in (a, b)]
    spread = R[0].square().sum() + R[1].square().sum() - 2 * torch.linalg.svdvals(R[0] @ R[1].T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def _square(S: Tensor) -> Tensor:
    if S.ndim != 3 or S.shape[1] != S.shape[2]:
        raise ValueError(f"scores must be (B, N, N), one row a view and one column a prompt, got {tuple(S.shape)}")
    return S
