"""Chapter 3. Sampling: how does a denoiser become an image?

Start from x_T ~ N(0, I). At every level predict ε, estimate x_0 from it, and step to the next cleaner level:

    DDPM     draw from q(x_t′ | x_t, x_0), a Gaussian                                        (DDPM Eq. 7, Alg. 2)
    DDIM     x_t′ = √ᾱ_t′ x_0 + √(1 − ᾱ_t′ − σ²) ε + σ z,  σ² = η² β̃; η = 0 draws nothing       (DDIM Eq. 12, 16)
    DPM++    the ODE of DDIM, second order from the last two estimates of x_0                 (DPM++ Alg. 2)

A step is a pure function of an image, its predicted noise and two values of ᾱ: it knows no schedule, so any decreasing
list of levels will do. The last step, to ᾱ = 1, adds no noise. `sample` is a generator: the caller may keep frames,
show a progress bar, or stop early.

DDPM, iDDPM: see schedule.py. DDIM = Song et al. 2021, arXiv 2010.02502. DPM++ = Lu et al. 2022, arXiv 2211.01095.
Left out: Heun's method and other predictor-correctors, continuous time. Next: networks/mnist_unet.py, a network.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.diffusion import posterior, predict_eps, predict_x0, reverse_std, unclipped
from minidiff.schedule import check_timesteps


class Asked(NamedTuple):
    """Where the previous step started: the image (B, C, H, W), the noise predicted in it, and its ᾱ."""

    x_t: Tensor
    eps: Tensor
    alpha_bar_t: Tensor


Noise = Callable[[Tensor], Tensor]  # like torch.randn_like: N(0, I) of the shape, dtype and device of its argument
Clip = Callable[[Tensor], Tensor]  # keeps an estimate of x_0 in the range of pixels
Step = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Clip, Noise, Asked | None], Tensor]  # like ddpm_step


def ddpm_step(
    x_t: Tensor,
    eps: Tensor,
    v: Tensor | None,
    alpha_bar_t: Tensor,
    alpha_bar_prev: Tensor,
    clip: Clip = unclipped,
    noise: Noise = torch.randn_like,
    before: Asked | None = None,
) -> Tensor:
    """One ancestral step from level t to t′ (DDPM Alg. 2, lines 3-4): returns the image (B, C, H, W) at t′.

    eps, v: the denoiser's answer for x_t. The variance is β̃ when v is None, otherwise learned (iDDPM Eq. 15)
    alpha_bar_t, alpha_bar_prev: 0-dim float64, ᾱ_t < ᾱ_t′
    before: where the previous step started, None at the start of a walk; only `dpm_step` uses it
    All steps take these arguments.
    """
    x_0 = clip(predict_x0(x_t, eps, alpha_bar_t))
    mean, beta_tilde, beta = posterior(x_t, x_0, alpha_bar_t, alpha_bar_prev)
    if alpha_bar_prev == 1:
        return mean  # Alg. 2: z = 0 on the last step
    return mean + reverse_std(v, beta_tilde, beta) * noise(x_t)


def ddpm_large_step(x_t, eps, v, alpha_bar_t, alpha_bar_prev, clip=unclipped, noise=torch.randn_like, before=None):
    """`ddpm_step` with variance β, whatever v is: the course's choice, exact for N(0, I) data (DDPM section 3.2)."""
    return ddpm_step(x_t, eps, torch.ones_like(eps), alpha_bar_t, alpha_bar_prev, clip, noise)


def ddim_step(
    x_t, eps, v, alpha_bar_t, alpha_bar_prev, clip=unclipped, noise=torch.randn_like, before=None, *, eta: float = 0.0
):
    """DDIM's step (Eq. 12) with σ² = η² β̃: η = 0 draws no noise, η = 1 is `ddpm_step` with β̃.

    ε is recomputed from the clipped x_0, so that the two agree on x_t. For another η: `partial(ddim_step, eta=0.5)`.
    Returns (B, C, H, W). Raises ValueError unless 0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}: 0 adds no noise, 1 is DDPM")
    x_0 = clip(predict_x0(x_t, eps, alpha_bar_t))
    if alpha_bar_prev == 1:
        return x_0
    eps = predict_eps(x_t, x_0, alpha_bar_t)
    var = eta**2 * posterior(x_t, x_0, alpha_bar_t, alpha_bar_prev).beta_tilde
    x_prev = alpha_bar_prev.sqrt() * x_0 + (1 - alpha_bar_prev - var).sqrt() * eps
    return x_prev + var.sqrt() * noise(x_t) if eta > 0 else x_prev


def dpm_step(x_t, eps, v, alpha_bar_t, alpha_bar_prev, clip=unclipped, noise=torch.randn_like, before=None):
    """A step of DPM-Solver++(2M) (DPM++ Alg. 2), which also uses the previous step's x_0. It draws no noise.

        λ = ½ log(ᾱ / (1 − ᾱ)),  h = λ_t′ − λ_t,  r = (λ_t − λ_before) / h
        D = (1 + 1/2r) x_0 − 1/2r x_0,before        x_t′ = σ_t′/σ_t x_t − √ᾱ_t′ (e^−h − 1) D,  σ² = 1 − ᾱ

    First order (D = x_0) at the start of a walk, and on the last step, where λ_t′ = ∞. Returns (B, C, H, W).
    """
    x_0 = clip(predict_x0(x_t, eps, alpha_bar_t))
    if alpha_bar_prev == 1:
        return x_0
    log_snr = _half_log_snr(alpha_bar_t)
    h = _half_log_snr(alpha_bar_prev) - log_snr
    D = x_0
    if before is not None:
        r = (log_snr - _half_log_snr(before.alpha_bar_t)) / h
        D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * clip(predict_x0(*before))
    return ((1 - alpha_bar_prev) / (1 - alpha_bar_t)).sqrt() * x_t - alpha_bar_prev.sqrt() * torch.expm1(-h) * D


@torch.no_grad()
def sample(
    denoise: Denoiser,
    x: Tensor,
    timesteps: list[int],
    alpha_bar: Tensor,
    *,
    step: Step = ddpm_step,
    clip: Clip = unclipped,
    constrain: Callable[[Tensor, int], Tensor] | None = None,
    noise: Noise = torch.randn_like,
) -> Iterator[tuple[int, Tensor]]:
    """Walk down the noise levels (DDPM Alg. 2 on any decreasing list). Yields (t, x_t) after every step.

    x:         (B, C, H, W) at level timesteps[0]; N(0, I) when that is T
    timesteps: decreasing levels, T >= … >= 0, with 0 at the end for a clean image
    alpha_bar: (T + 1,) float64, the schedule that the denoiser's network was trained with
    step:      ddpm_step, ddpm_large_step, ddim_step, dpm_step, or a function of your own with the same arguments
    constrain: (x_t, t) -> x_t, applied after every step (inpainting)
    Raises ValueError when the levels do not decrease, and when an image is no longer finite.
    """
    check_timesteps(timesteps, len(alpha_bar) - 1)
    before = None
    for t, t_prev in pairwise(timesteps):
        x, before = one_step(denoise, x, t, t_prev, alpha_bar, step, clip, noise, before)
        if constrain is not None:
            x = constrain(x, t_prev)
        yield t_prev, x


def one_step(
    denoise: Denoiser,
    x_t: Tensor,
    t: int,
    t_prev: int,
    alpha_bar: Tensor,
    step: Step = ddpm_step,
    clip: Clip = unclipped,
    noise: Noise = torch.randn_like,
    before: Asked | None = None,
) -> tuple[Tensor, Asked]:
    """The image (B, C, H, W) at level t_prev, and the `before` of the next step.

    Raises ValueError when the image is no longer finite, and when the step returns anything but the next image.
    """
    eps, v = denoise(x_t, t)
    x = step(x_t, eps, v, alpha_bar[t], alpha_bar[t_prev], clip, noise, before)
    if not isinstance(x, Tensor) or x.shape != x_t.shape:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"a step must return the next image, {tuple(x_t.shape)}, got {got}: see ddpm_step")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"the image is not finite after the step {t} -> {t_prev}: use float32, and check the weights")
    return x, Asked(x_t, eps, alpha_bar[t])


def last(steps: Iterator[tuple[int, Tensor]]) -> Tensor:
    """The final image (B, C, H, W) of a walk. Raises ValueError for a walk without steps."""
    x = None
    for _, x in steps:
        pass
    if x is None:
        raise ValueError("a walk needs at least one step, got none: a generator of `sample` can be used only once")
    return x


def noise_per_image(generators: list[torch.Generator]) -> Noise:
    """A source of noise (B, C, H, W) with one CPU generator per image: image k is the same in any batch, on any device.

    It raises ValueError unless there are B generators.
    """

    def noise(like: Tensor) -> Tensor:
        if len(generators) != len(like):
            raise ValueError(f"got {len(generators)} generators for {len(like)} images: pass one generator per image")
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)

    return noise


def seeded(seed: int, first: int, count: int) -> list[torch.Generator]:
    """The generators of images first … first + count − 1. Image k of a seed is the same in every run."""
    # PyTorch's CPU generator keeps the low 32 bits of a seed; multiplied by an odd number, different seeds stay apart
    return [torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**32) for k in range(first, first + count)]


def _half_log_snr(alpha_bar: Tensor) -> Tensor:
    return 0.5 * (alpha_bar / (1 - alpha_bar)).log()
