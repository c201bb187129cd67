"""Chapter 1. Schedules: how much of the image is left at noise level t?

The forward process adds a little Gaussian noise T times. All that matters is one table, the share of signal power left:

    α_t = 1 − β_t        ᾱ_t = α_1 α_2 … α_t        ᾱ_0 = 1                       (DDPM, below Eq. 4)

Levels are numbered as in the paper: t = 1 … T are noisy, t = 0 is the clean image. A schedule *is* the table ᾱ: T + 1
decreasing float64 numbers, `alpha_bar[0] == 1`. A sampler also needs the levels it visits (`strided`, `evenly_spaced`).

DDPM = Ho et al. 2020, arXiv 2006.11239. iDDPM = Nichol and Dhariwal 2021, arXiv 2102.09672.
ZSNR = Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", arXiv 2305.08891.
Next: diffusion.py, the algebra on top of ᾱ.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def from_beta(beta: Tensor) -> Tensor:
    """ᾱ from β_1 … β_T: (T,) -> (T + 1,) float64, starting with ᾱ_0 = 1. Raises ValueError for a β outside [0, 1)."""
    beta = beta.to(torch.float64)
    if beta.ndim != 1 or len(beta) == 0 or not bool(((beta >= 0) & (beta < 1)).all()):
        got = f"{beta.flatten()[:3].tolist()}... of shape {tuple(beta.shape)}"
        raise ValueError(f"beta must be a list of numbers in [0, 1), got {got}")
    return torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)])


def linear(T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> Tensor:
    """β rises in a straight line from beta_1 to beta_T (DDPM section 4). Returns ᾱ, (T + 1,) float64.

    The defaults were chosen for T = 1000, where ᾱ_T = 4.0e-5. With T = 300, as in the course, ᾱ_T = 0.048: a fifth of
    the image's amplitude remains, so sampling from pure noise starts off the data (ZSNR section 3.1). `linear_to_noise`
    fixes that. Raises ValueError unless T >= 1 and 0 <= beta_1 <= beta_T < 1.
    """
    _check_levels(T)
    if not 0 <= beta_1 <= beta_T < 1:
        raise ValueError(f"beta must rise inside [0, 1), got beta_1 = {beta_1}, beta_T = {beta_T}")
    return from_beta(torch.linspace(beta_1, beta_T, T, dtype=torch.float64))


def linear_to_noise(T: int) -> Tensor:
    """The linear schedule with β scaled by 1000/T: any T ends in noise, ᾱ_T < 1e-4. Returns ᾱ, (T + 1,) float64.

    Raises ValueError unless T >= 21: with fewer levels β_T = 20/T would not be below 1.
    """
    if T < 21:
        raise ValueError(f"the scaled linear schedule needs T >= 21, got {T}")
    return linear(T, 1e-4 * 1000 / T, 0.02 * 1000 / T)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """ᾱ_t = g(t/T) / g(0), g(u) = cos²((u + s)/(1 + s) · π/2), with β at most max_beta (iDDPM Eq. 17).

    Returns ᾱ, (T + 1,) float64. Raises ValueError unless T >= 1.
    """
    _check_levels(T)
    g = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
    return from_beta((1 - g[1:] / g[:-1]).clamp(max=max_beta))


def strided(T: int, stride: int) -> list[int]:
    """Every stride-th level, counted down from T, then the clean image: T, T − stride, …, 0.

    Raises ValueError unless T >= 1 and stride >= 1.
    """
    _check_levels(T)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    return [*range(T, 0, -stride), 0]


def evenly_spaced(T: int, steps: int) -> list[int]:
    """`steps` steps from T to 0, as even as integers allow. Raises ValueError unless 1 <= steps <= T."""
    _check_levels(T)
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be between 1 and T = {T}, got {steps}")
    return [round(T * i / steps) for i in range(steps, -1, -1)]


def check_timesteps(timesteps: list[int], T: int) -> None:
    """Raises ValueError unless there are two levels or more, strictly decreasing, between T and 0."""
    falls = all(t > t_prev for t, t_prev in pairwise(timesteps))
    if len(timesteps) < 2 or not falls or timesteps[0] > T or timesteps[-1] < 0:
        got = f"{list(timesteps[:4])}... ({len(timesteps)} levels)"
        raise ValueError(f"timesteps must be strictly decreasing, from at most T = {T} to at least 0, got {got}")


def _check_levels(T: int) -> None:
    if T < 1:
        raise ValueError(f"a schedule needs T >= 1 noise levels, got {T}")
