"""Chapter 11. Editing: how does a given picture steer sampling?

    sdedit    start at level t from the picture, noised to t: what the noise hides is drawn anew         (SDEdit Alg. 1)
    hold      after every step, reset one part f of the image to that of the picture                     (FD)
              x_t <- x_t − f(x_t) + f(√ᾱ_t x_orig + √(1 − ᾱ_t) ε)
    inpaint   hold with f(x) = (1 − m) x: the mask m is 1 where the image is repainted       (CS180 A.5, RePaint Alg. 1)

The part that is held is noised to the level that the step *reached*, so the network sees one noise level in the whole
image; at level 0 it is the clean original, bit for bit. A step draws the rest knowing the held part only through its
noise, so the two may not fit: RePaint goes up a few levels and down again, several times, until the seam disappears.

With another prompt or label in the denoiser, sdedit is guided image-to-image. SDEdit = Meng et al. 2022, arXiv
2108.01073. RePaint = Lugmayr et al. 2022, arXiv 2201.09865. FD: see illusions.py. Next: one_forward.py.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_more_noise, add_noise, unclipped
from minidiff.sampling import Clip, Noise, Step, ddpm_step, one_step, sample
from minidiff.schedule import check_timesteps


def sdedit(
    denoise: Denoiser,
    x_orig: Tensor,
    timesteps: list[int],
    alpha_bar: Tensor,
    *,
    step: Step = ddpm_step,
    clip: Clip = unclipped,
    noise: Noise = torch.randn_like,
) -> Iterator[tuple[int, Tensor]]:
    """Sample from x_orig, noised to level timesteps[0]. Yields (t, x_t) as `sample` does.

    x_orig:    (B, C, H, W), in the network's range of pixels
    timesteps: decreasing levels; a lower start gives a smaller edit (the course's i_start: `timesteps[i_start:]`)
    Raises ValueError when the levels do not decrease.
    """
    check_timesteps(timesteps, len(alpha_bar) - 1)
    x = add_noise(x_orig, alpha_bar[timesteps[0]], noise(x_orig))
    return sample(denoise, x, timesteps, alpha_bar, step=step, clip=clip, noise=noise)


def hold(
    part: Callable[[Tensor], Tensor], x_orig: Tensor, alpha_bar: Tensor, noise: Noise = torch.randn_like
) -> Callable[[Tensor, int], Tensor]:
    """The constraint that `part` of the image is that of x_orig (B, C, H, W), for `constrain` in `sample`.

    part: a projection (a mask, the greys), or nearly one (a low pass); see illusions.py
    """

    def constrain(x_t: Tensor, t: int) -> Tensor:
        return x_t - part(x_t) + part(add_noise(x_orig, alpha_bar[t], noise(x_orig)))

    return constrain


def resampled(timesteps: list[int], jump: int, rounds: int) -> list[int]:
    """RePaint's levels: every `jump` steps go back up by `jump` and down again, `rounds` times down in all.

        resampled([6, 5, 4, 3, 2, 1, 0], jump=2, rounds=2) = [6, 5, 4, 3,  5, 4, 3, 2, 1,  3, 2, 1, 0]

    The jumps start 1, 1 + jump, 1 + 2 jump, … steps before the end, as in RePaint's code (paper: jump 10, rounds 10,
    250 steps). Raises ValueError unless rounds >= 1 and jump >= 1, and unless jump < steps when rounds > 1.
    """
    steps = len(timesteps) - 1
    if rounds < 1 or jump < 1 or (rounds > 1 and jump >= steps):
        limits = f"rounds >= 1 and a jump between 1 and {steps - 1} for {steps} steps"
        raise ValueError(f"expected {limits}, got rounds = {rounds}, jump = {jump}")
    levels = []
    for i, t in enumerate(timesteps):
        levels.append(t)
        if i >= jump and i < steps and (steps - i - 1) % jump == 0:
            levels += timesteps[i - jump : i + 1] * (rounds - 1)
    return levels


@torch.no_grad()
def inpaint(
    denoise: Denoiser,
    x_orig: Tensor,
    mask: Tensor,
    timesteps: list[int],
    alpha_bar: Tensor,
    *,
    jump: int = 1,
    rounds: int = 1,
    step: Step = ddpm_step,
    clip: Clip = unclipped,
    noise: Noise = torch.randn_like,
) -> Iterator[tuple[int, Tensor]]:
    """Repaint a picture where the mask is 1. Yields (t, x_t) after every step, down or up.

    x_orig:       (B, C, H, W), in the network's range of pixels
    mask:         (B or 1, C or 1, H, W), rounded to 0 or 1 (a soft mask would mix two noises and lose variance)
    timesteps:    from T the hole starts as noise; from a lower level, as the picture (sdedit inside the mask)
    jump, rounds: see `resampled`; with rounds = 1 it never goes up
    Raises ValueError when the mask does not fit the picture, the levels do not decrease, or the jump is too long.
    """
    check_timesteps(timesteps, len(alpha_bar) - 1)
    fits = mask.ndim == 4 and all(m in (1, n) for m, n in zip(mask.shape, x_orig.shape))
    if not fits or mask.shape[-2:] != x_orig.shape[-2:]:
        wanted = f"a mask of the picture's shape, {tuple(x_orig.shape)}, or with 1 for B or C"
        raise ValueError(f"expected {wanted}, got {tuple(mask.shape)}")
    keep = (mask <= 0.5).to(x_orig)
    known = hold(lambda x: keep * x, x_orig, alpha_bar, noise)
    x = noise(x_orig)
    if timesteps[0] < len(alpha_bar) - 1:
        x = add_noise(x_orig, alpha_bar[timesteps[0]], x)
    x = known(x, timesteps[0])
    before = None
    for t, t_next in pairwise(resampled(timesteps, jump, rounds)):
        if t_next > t:
            x, before = add_more_noise(x, alpha_bar[t], alpha_bar[t_next], noise(x)), None
        else:
            x, before = one_step(denoise, x, t, t_next, alpha_bar, step, clip, noise, before)
            x = known(x, t_next)
        yield t_next, x
