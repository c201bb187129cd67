"""Chapter 10. Illusions: how can one image be two?

Ask several denoisers about the same image, and walk along a combination of their answers. There are two ways to combine:

    anagram   ε = Σ_i w_i A_i⁻¹ ε_i(A_i x_t),  Σ w_i = 1      every prompt has its own view A_i of the image     (VA)
    hybrid    ε = Σ_i f_i(ε_i(x_t)),           Σ f_i = id     every prompt draws one part: coarse, fine, colour  (FD)

v is a share between two variances, which know no sign: it is moved back through a view and never negated.

VA: see views.py. FD = Geng, Park and Owens 2024, "Factorized Diffusion", arXiv 2404.11615.
Left out: latents (an autoencoder does not turn with its picture). One part fixed to that of a photo is an edit.
Next: editing.py.
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
    """One image that denoiser i sees through view i: ε = Σ w_i A_i⁻¹ ε_i(A_i x_t), and v = Σ w_i v_i, permuted back (VA, method).

    weights:   one a view, >= 0, scaled to sum 1; more for a prompt that is lost. None: equal
    alternate: the levels of the walk; at each level one view is asked, in turn, in place of the mean of all: the price of one
    Raises ValueError unless all lists fit; when first called, if a view is not orthogonal; and at a level that `alternate` lacks.
    """
    n = len(views)
    w = [1.0] * n if weights is None else list(weights)
    if len(denoisers) != n or n == 0:
        raise ValueError(f"got {len(denoisers)} prompts and {n} views: give one view for each prompt")
    if (
        len(w) != n
        or not all(weight >= 0 for weight in w)
        or not 0 < sum(w) < math.inf
        or (weights is not None and alternate is not None)
    ):
        raise ValueError(
            f"weights must be {n} finite numbers >= 0 that are not all 0, and only without `alternate`; got {w}: leave them out for equal parts"
        )
    check = cache(lambda shape: [view.check(shape) for view in views])
    position = {t: i for i, t in enumerate(alternate or ())}

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        if alternate is not None and t not in position:
            raise ValueError(
                f"level {t} is none of the {len(position)} levels of `alternate`: give it the list that is walked"
            )
        asked = range(n) if alternate is None else [position[t] % n]
        eps, v = zip(*[denoisers[i](views[i].apply(x_t), t) for i in asked])
        eps = [views[i].undo(e) for i, e in zip(asked, eps)]
        v = [e if e is None else views[i].unpermute(e) for i, e in zip(asked, v)]
        return _mean(eps, [w[i] for i in asked]), _mean(v, [w[i] for i in asked])

    return denoise


def factorised(denoisers: Sequence[Denoiser], parts: Sequence[Part]) -> Denoiser:
    """Denoiser i draws part i: ε = Σ f_i(ε_i), and v is the mean of theirs (FD, method).

    Raises ValueError unless there is one part for each denoiser; when first called, if the parts do not sum to the identity.
    """
    if len(denoisers) != len(parts) or len(parts) == 0:
        raise ValueError(f"got {len(denoisers)} prompts and {len(parts)} parts: give one part for each prompt")

    @cache
    def check(shape: torch.Size) -> None:
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if not (missing := rms(sum(part(x) for part in parts) - x)) <= 1e-6:
            raise ValueError(
                f"the parts of noise differ from it, summed, by {missing:.2g}, wanted at most 1e-06: make them sum to the identity"
            )

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        eps, v = zip(*[denoiser(x_t, t) for denoiser in denoisers])
        return sum(part(e) for part, e in zip(parts, eps)), _mean(v, [1.0] * len(v))

    return denoise


def gaussian(sigma: float) -> Part:
    """Low pass: a blur with standard deviation `sigma` pixels, for every image size. Raises ValueError unless sigma > 0.

    A blur is a matrix along columns and one along rows, G_H x G_Wᵀ. Borders mirror (the outermost pixel stands once). The kernel
    reaches 8σ: the course's 33 pixels for σ = 2 at 64 pixels, which is σ = 0.9 at 28.
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
    """Parts of an image between low passes, coarsest first: L_1 x, L_2 x − L_1 x, …, x − L_n x. They sum to x."""
    return [
        lambda x, low=low, high=high: high(x) - low(x) for low, high in pairwise([torch.zeros_like, *low_passes, _identity])
    ]


def grey(x: Tensor) -> Tensor:
    """The mean of the channels, in each of them."""
    return x.mean(1, keepdim=True).expand_as(x)


def hybrid(far: Denoiser, near: Denoiser, low_pass: Part) -> Denoiser:
    """One prompt from afar, one near by: low(ε_far) + ε_near − low(ε_near) (FD, hybrid images). A wider blur favours `near`."""
    return factorised([far, near], bands(low_pass))


def triple_hybrid(far: Denoiser, middle: Denoiser, near: Denoiser, coarse: Part, fine: Part) -> Denoiser:
    """Three prompts at three distances. `coarse` is the wider blur."""
    return factorised([far, middle, near], bands(coarse, fine))


def colour_hybrid(without: Denoiser, colour: Denoiser) -> Denoiser:
    """One prompt in the greys, as in dim light, another in what the colours add to them."""
    return factorised([without, colour], [grey, lambda x: x - grey(x)])


def _mean(terms: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    if any(term is None for term in terms):
        return None
    return sum(w * term for w, term in zip(weights, terms)) / sum(weights)


def _identity(x: Tensor) -> Tensor:
    return x
