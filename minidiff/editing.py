"""Chapter 10. Editing: how does a picture of yours steer the walk?

    sdedit    begin at level t with your picture, noised to t: what noise has covered is drawn again     (SDEdit Alg. 1)
    hold      after every step, put one part f of the image back to what it is in your picture
              x_t <- x_t − f(x_t) + f(√ᾱ_t x_orig + √(1 − ᾱ_t) ε)                                       (FD: hybrids of real images)
    inpaint   hold with f(x) = (1 − m) x: the mask m is 1 where the picture is to be repainted             (CS180 A.5, RePaint Alg. 1)

The part that is held is noised to the level of the *result* of the step, so that a network sees one level in the whole image; at
level 0 it is the clean original, to the bit. What is repainted is drawn by a step that knew the held part only through its noise,
and may not fit: RePaint goes back up a few levels and down again, several times, and the seam heals.

With another prompt or label in the denoiser, sdedit is text- or label-guided image-to-image. SDEdit = Meng et al. 2022, arXiv
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
    """Walk from x_orig, noised to level timesteps[0]. Yields (t, x_t) as `sample` does.

    x_orig:    (B, C, H, W), in the network's range of pixels
    timesteps: falling levels; drop more of the first for a smaller edit (the course's i_start: `timesteps[i_start:]`)
    """
    check_timesteps(timesteps, len(alpha_bar) - 1)
    x = add_noise(x_orig, alpha_bar[timesteps[0]], noise(x_orig))
    return sample(denoise, x, timesteps, alpha_bar, step=step, clip=clip, noise=noise)


def hold(
    part: Callable[[Tensor], Tensor], x_orig: Tensor, alpha_bar: Tensor, noise: Noise = torch.randn_like
) -> Callable[[Tensor, int], Tensor]:
    """The constraint that `part` of the image is that of x_orig, for the `constrain` of `sample`.

    part: linear, and the same when taken twice (a mask, the greys), or nearly so (a low pass); see illusions.py
    """

    def constrain(x_t: Tensor, t: int) -> Tensor:
        return x_t - part(x_t) + part(add_noise(x_orig, alpha_bar[t], noise(x_orig)))

    return constrain


def resampled(timesteps: list[int], jump: int, rounds: int) -> list[int]:
    """RePaint's walk: every `jump` steps go back up by `jump` and down again, so that each stretch is walked `rounds` times.

        resampled([6, 5, 4, 3, 2, 1, 0], jump=2, rounds=2) = [6, 5, 4, 3,  5, 4, 3, 2, 1,  3, 2, 1, 0]

    The jumps start 1, 1 + jump, 1 + 2 jump, … steps before the end (RePaint's code; its paper: jump 10, rounds 10, 250 steps).
    Raises ValueError unless rounds >= 1 and jump >= 1, and jump < steps when there is something to repeat.
    """
    steps = len(timesteps) - 1
    if rounds < 1 or jump < 1 or (rounds > 1 and jump >= steps):
        raise ValueError(
            f"resampling {steps} steps wants rounds >= 1 and a jump of 1 to {steps - 1}, got rounds = {rounds}, jump = {jump}"
        )
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
    """Repaint a picture where the mask is 1. Yields (t, x_t) after every step down or up; the last is the picture at level timesteps[-1].

    x_orig: (B, C, H, W), in the network's range of pixels
    mask:   (B or 1, C or 1, H, W), cut at ½ to 0 or 1 (a soft mask would mix two noises and lose variance)
    timesteps: from T the hole begins as noise; from a lower level, as what was there (sdedit in a mask)
    jump, rounds: see `resampled`; rounds = 1 never goes up
    Raises ValueError when the mask does not fit the picture, the levels do not fall, or the jump is too long.
    """
    check_timesteps(timesteps, len(alpha_bar) - 1)
    if (
        mask.ndim != 4
        or mask.shape[-2:] != x_orig.shape[-2:]
        or any(m not in (1, n) for m, n in zip(mask.shape, x_orig.shape))
    ):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}, the picture {tuple(x_orig.shape)}: make them the same, or 1 in place of B and C"
        )
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
