"""Chapter 10. Illusions: how can one image be two?

Ask several denoisers about the same image, and sample with a combination of their answers, of one of two kinds:

    anagram   ε = Σ_i w_i A_i⁻¹ ε_i(A_i x_t),  Σ w_i = 1      each prompt has its own view A_i of the image         (VA)
    hybrid    ε = Σ_i f_i(ε_i(x_t)),           Σ f_i = id     each prompt draws one part: coarse, fine, colour      (FD)

v interpolates between two variances, which have no sign: a view permutes it back and never negates it.

VA: see views.py. FD = Geng, Park and Owens 2024, "Factorized Diffusion", arXiv 2404.11615.
Left out: latent diffusion (rotating a latent does not rotate the decoded image). Next: editing.py, which can also fix
one part to that of a photo.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.views import View, rms

Part = Callable[[Tensor], Tensor]  # a linear map of images, (B, C, H, W) -> (B, C, H, W)


def anagram(
    denoisers: Sequence[Denoiser],
    views: Sequence[View],
    weights: Sequence[float] | None = None,
    alternate: Sequence[int] | None = None,
) -> Denoiser:
    """One image (B, C, H, W) that denoiser i sees through view i: ε = Σ w_i A_i⁻¹ ε_i(A_i x_t); v likewise (VA).

    weights:   one per view, >= 0, normalised to sum to 1; raise that of a prompt that does not show. None: equal
    alternate: the timesteps of the walk, to ask one view per level, in turn, instead of all: the cost of one view
    Raises ValueError unless the lists fit; when called, if a view is not orthogonal or the level not in `alternate`.
    """
    n = len(views)
    w = [1.0] * n if weights is None else list(weights)
    if len(denoisers) != n or n == 0:
        raise ValueError(f"expected one view for each denoiser, got {len(denoisers)} denoisers and {n} views")
    if len(w) != n or not all(weight >= 0 for weight in w) or not 0 < sum(w) < math.inf:
        raise ValueError(
            f"weights must be {n} finite numbers >= 0, not all 0, got {w}: leave them out for equal weights"
        )
    if weights is not None and alternate is not None:
        raise ValueError(f"weights can be used only without `alternate`, got {w}: leave out one of the two")
    check = cache(lambda shape: [view.check(shape) for view in views])
    position = {t: i for i, t in enumerate(alternate or ())}

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        if alternate is not None and t not in position:
            raise ValueError(
                f"{t} is not one of the {len(position)} levels of `alternate`: pass the timesteps of the walk"
            )
        asked = range(n) if alternate is None else [position[t] % n]
        eps, v = zip(*[denoisers[i](views[i].apply(x_t), t) for i in asked])
        eps = [views[i].undo(e) for i, e in zip(asked, eps)]
        v = [e if e is None else views[i].unpermute(e) for i, e in zip(asked, v)]
        return _mean(eps, [w[i] for i in asked]), _mean(v, [w[i] for i in asked])

    return denoise


def factorised(denoisers: Sequence[Denoiser], parts: Sequence[Part]) -> Denoiser:
    """Denoiser i draws part i of the image (B, C, H, W): ε = Σ f_i(ε_i), and v is the mean of the v_i (FD, method).

    Raises ValueError unless there is one part per denoiser; when called, if the parts do not sum to the identity.
    """
    if len(denoisers) != len(parts) or len(parts) == 0:
        raise ValueError(f"expected one part for each denoiser, got {len(denoisers)} denoisers and {len(parts)} parts")

    @cache
    def check(shape: torch.Size) -> None:
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if not (missing := rms(sum(part(x) for part in parts) - x)) <= 1e-6:
            got = f"a sum that differs from its input by {missing:.2g}, expected at most 1e-06"
            raise ValueError(f"the parts must sum to the identity, got {got}: use `bands`, or x and x − f(x)")

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        eps, v = zip(*[denoiser(x_t, t) for denoiser in denoisers])
        return sum(part(e) for part, e in zip(parts, eps)), _mean(v, [1.0] * len(v))

    return denoise


def gaussian(sigma: float) -> Part:
    """Low pass: a Gaussian blur with a standard deviation of `sigma` pixels. Raises ValueError unless sigma > 0.

    A blur of images (B, C, H, W) is a matrix for the columns and one for the rows, G_H x G_Wᵀ. Borders are reflected
    (the outermost pixel is not repeated). The kernel reaches 8σ: the course's 33 pixels for σ = 2 at 64 pixels.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a number of pixels above 0, got {sigma}")

    @cache
    def blur(n: int) -> Tensor:
        offset = torch.arange(-math.ceil(8 * sigma), math.ceil(8 * sigma) + 1)
        weight = torch.exp(-((offset.double() / sigma) ** 2) / 2)
        period = max(2 * (n - 1), 1)  # 0 1 2 3 2 1 0 1 …
        pixel = (torch.arange(n)[:, None] + offset) % period
        pixel = torch.where(pixel < n, pixel, period - pixel)
        return torch.zeros(n, n, dtype=torch.float64).scatter_add(1, pixel, (weight / weight.sum()).expand(n, -1))

    return lambda x: blur(x.shape[-2]).to(x) @ x @ blur(x.shape[-1]).to(x).T


def bands(*low_passes: Part) -> list[Part]:
    """The parts of an image (B, C, H, W) between low passes, coarsest first: L_1 x, L_2 x − L_1 x, …, x − L_n x."""
    edges = pairwise([torch.zeros_like, *low_passes, _identity])
    return [lambda x, low=low, high=high: high(x) - low(x) for low, high in edges]


def grey(x: Tensor) -> Tensor:
    """Each channel becomes the mean of all: (B, C, H, W) -> (B, C, H, W)."""
    return x.mean(1, keepdim=True).expand_as(x)


def hybrid(far: Denoiser, near: Denoiser, low_pass: Part) -> Denoiser:
    """One prompt from afar, one close up: low(ε_far) + ε_near − low(ε_near) (FD). Wide blurs favour near."""
    return factorised([far, near], bands(low_pass))


def triple_hybrid(far: Denoiser, middle: Denoiser, near: Denoiser, coarse: Part, fine: Part) -> Denoiser:
    """Three prompts, for three viewing distances. `coarse` is the wider blur."""
    return factorised([far, middle, near], bands(coarse, fine))


def colour_hybrid(without: Denoiser, colour: Denoiser) -> Denoiser:
    """One prompt in the greys, which is what dim light leaves, another in what the colours add: (B, 3, H, W)."""
    return factorised([without, colour], [grey, lambda x: x - grey(x)])


def _mean(terms: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    if any(term is None for term in terms):
        return None
    return sum(w * term for w, term in zip(weights, terms)) / sum(weights)


def _identity(x: Tensor) -> Tensor:
    return x
