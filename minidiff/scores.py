"""Scores: which of many pictures is the best, and how near are many pictures to the real ones?

An illusion is scored by a matrix S, one for each picture: S_ij says how well view i reads as prompt j. Any reader will do: the
log-probabilities of a classifier for the labels in question, or cosines of image and text embeddings.

    alignment    min_i S_ii                                    the worst view: is every prompt there?                  (VA, metrics)
    concealment  ½ (tr softmax_rows(S/τ) + tr softmax_columns(S/τ)) / N   is each prompt seen in its own view alone?     (VA, metrics)

    Fréchet distance of two sets of features, as if Gaussian: |μ_1 − μ_2|² + tr(Σ_1 + Σ_2 − 2 (Σ_1 Σ_2)^½)                (FID Eq. 6)

VA: see illusions.py. FID = Heusel et al. 2017, arXiv 1706.08500.
"""

import torch
from torch import Tensor


def psnr(x: Tensor, wanted: Tensor) -> float:
    """In dB, the mean over images of −10 log10 of the mean squared error, pixels in [0, 1]: (B, C, H, W) both."""
    return float((-10 * (x - wanted).square().flatten(1).mean(1).clamp(min=1e-10).log10()).mean())


def alignment(S: Tensor) -> Tensor:
    """The score of the worst view: (B, N, N) -> (B,), in the units of S. Raises ValueError when S is not square."""
    return _checked(S).diagonal(dim1=-2, dim2=-1).amin(-1)


def concealment(S: Tensor, temperature: float = 1.0) -> Tensor:
    """How surely views and prompts find each other, both ways: (B, N, N) -> (B,), from 0 over 1/N (by chance) to 1.

    temperature: τ; 1 for log-probabilities, 0.01 for CLIP's cosines. Raises ValueError when S is not square, or τ not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}")
    scaled = _checked(S) / temperature
    return (scaled.softmax(-1) + scaled.softmax(-2)).diagonal(dim1=-2, dim2=-1).mean(-1) / 2


def frechet(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of two sets of features, (N, D) and (M, D). Computed in float64, on the CPU.

    With Σ = RᵀR (R of a QR decomposition of the centred features) tr (Σ_1 Σ_2)^½ is the sum of the singular values of R_1 R_2ᵀ: no
    root of a matrix is taken, and a set against itself gives 0. Fewer features than D + 1, or few pictures, bias it upwards:
    compare like with like. Raises ValueError unless both are finite, have one D, and at least 2 rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D) with at least 2 rows each, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double().cpu(), b.double().cpu()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite, got inf or nan: check the images and the network that reads them")
    R = [torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5).R for x in (a, b)]
    spread = R[0].square().sum() + R[1].square().sum() - 2 * torch.linalg.svdvals(R[0] @ R[1].T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def _checked(S: Tensor) -> Tensor:
    if S.ndim != 3 or S.shape[1] != S.shape[2]:
        raise ValueError(f"scores must be (B, N, N), one row a view and one column a prompt, got {tuple(S.shape)}")
    return S
