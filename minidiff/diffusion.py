"""Chapter 2. The algebra: x_0, ε and x_t, and the Gaussian between two levels.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,  ε ~ N(0, I)                                    (DDPM Eq. 4)

Any two of x_0, ε and x_t determine the third. And if x_0 is known, the way back from level t to a cleaner level t′ is a
Gaussian in closed form (DDPM Eq. 6-7). With α = ᾱ_t/ᾱ_t′ and β = 1 − α *any* pair of levels is one step, at any stride.

All functions keep the dtype and device of the image; ᾱ is a 0-dim float64 tensor (or (B, 1, 1, 1), one per image).
DDPM, iDDPM: see schedule.py. PD = Salimans and Ho 2022, arXiv 2202.00512.
Imagen = Saharia et al. 2022, arXiv 2205.11487. Next: denoiser.py, the one interface.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def add_noise(x_0: Tensor, alpha_bar_t: Tensor, eps: Tensor) -> Tensor:
    """Jump from the clean image straight to noise level t.

        x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε                                              (DDPM Eq. 4)

    x_0, eps:    (B, C, H, W); x_0 in [-1, 1], eps ~ N(0, I)
    alpha_bar_t: 0-dim, or (B, 1, 1, 1) when every image has its own level
    """
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps


def add_more_noise(x_s: Tensor, alpha_bar_s: Tensor, alpha_bar_t: Tensor, z: Tensor) -> Tensor:
    """From level s up to a noisier level t: x_t = √α x_s + √(1 − α) z, α = ᾱ_t/ᾱ_s (DDPM Eq. 2, over several levels).

    x_s, z: (B, C, H, W), z ~ N(0, I)
    """
    return add_noise(x_s, alpha_bar_t / alpha_bar_s, z)


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """The clean image (B, C, H, W) that ε implies: x_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t        (DDPM Eq. 15)"""
    return (x_t - (1 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()


def predict_eps(x_t: Tensor, x_0: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """The noise (B, C, H, W) that x_0 implies: ε = (x_t − √ᾱ_t x_0) / √(1 − ᾱ_t)             (DDPM Eq. 4, for ε)"""
    return (x_t - alpha_bar_t.sqrt() * x_0) / (1 - alpha_bar_t).sqrt()


def velocity(x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """What a network may predict instead of ε, (B, C, H, W): √ᾱ_t ε − √(1 − ᾱ_t) x_0         (PD app. D, its "v")"""
    return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * x_0


def eps_from_velocity(x_t: Tensor, velocity: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """ε = √(1 − ᾱ_t) x_t + √ᾱ_t · velocity, (B, C, H, W)                                     (PD app. D, for ε)"""
    return (1 - alpha_bar_t).sqrt() * x_t + alpha_bar_t.sqrt() * velocity


class Posterior(NamedTuple):
    """q(x_t′ | x_t, x_0) = N(mean, var). A sampler chooses its var between β̃ and β."""

    mean: Tensor
    beta_tilde: Tensor
    beta: Tensor


def posterior(x_t: Tensor, x_0: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> Posterior:
    """The way back from level t to t′ < t when x_0 is known. Images (B, C, H, W), variances as ᾱ.

        mean = √ᾱ_t′ β / (1 − ᾱ_t) x_0 + √α (1 − ᾱ_t′) / (1 − ᾱ_t) x_t
        β̃    = (1 − ᾱ_t′) / (1 − ᾱ_t) β        with α = ᾱ_t/ᾱ_t′ and β = 1 − α                  (DDPM Eq. 7)

    β̃ is the right variance if the data are one image, β if they are N(0, I) (DDPM section 3.2).
    """
    alpha = alpha_bar_t / alpha_bar_prev
    beta = 1 - alpha
    of_x_0 = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar_t)
    of_x_t = alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return Posterior(of_x_0 * x_0 + of_x_t * x_t, (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta, beta)


def reverse_std(v: Tensor | None, beta_tilde: Tensor, beta: Tensor) -> Tensor:
    """Standard deviation of a reverse step: exp(½ (v log β + (1 − v) log β̃))                (iDDPM Eq. 15)

    v: (B, C, H, W), nominally in [0, 1]; 0 is β̃ and 1 is β. None means β̃.
    """
    if v is None:
        return beta_tilde.sqrt()
    return torch.exp(0.5 * (v * beta.log() + (1 - v) * beta_tilde.log()))


def unclipped(x_0: Tensor) -> Tensor:
    """The estimate of x_0, (B, C, H, W), as it is."""
    return x_0


def clip_to(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Clip the estimate of x_0, (B, C, H, W), to the range of the training pixels."""
    return lambda x_0: x_0.clamp(low, high)


def dynamic_threshold(ratio: float = 0.95, max_value: float = 1.5) -> Callable[[Tensor], Tensor]:
    """Per image: s = quantile(|x_0|, ratio), kept in [1, max_value]; clip to [-s, s], divide by s (Imagen section 2.3).

    Strong guidance drives x_0, (B, C, H, W), out of [-1, 1]; plain clipping saturates it. IF uses 0.95, with 1.5 (stage
    I) or 1.0 (stage II).
    """

    def clip(x_0: Tensor) -> Tensor:
        s = torch.quantile(x_0.flatten(1).abs().float(), ratio, dim=1).clamp(1, max_value).to(x_0.dtype)
        s = s.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-s, s) / s

    return clip
