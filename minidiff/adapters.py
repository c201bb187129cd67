"""Chapter 7. Adapters: how do a network and its label or prompt become a denoiser?

Networks differ in their conventions, and each is stated here, once: how the level is given (the digits' U-Net expects
t/T), what is predicted (ε or the velocity), how a label is passed and dropped. Networks are called, never imported.
Next: views.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_noise, eps_from_velocity


def labelled(unet: nn.Module, c: Tensor | None, alpha_bar: Tensor, classes: int = 0, target: str = "eps") -> Denoiser:
    """The digits' U-Net as a denoiser.

    c:         (B,) int64 labels, −1 where the label is dropped; None drops all (the unconditional half)
    alpha_bar: (T + 1,) float64, the schedule that the network was trained with
    classes:   number of labels; 0 for a network that is conditioned on time alone
    target:    what the network predicts, "eps" or "velocity"
    Raises ValueError for a label outside −1 … classes − 1, and for an unknown target.
    """
    T = len(alpha_bar) - 1
    if target not in ("eps", "velocity"):
        raise ValueError(f"target must be one of eps, velocity, got {target!r}")
    if c is not None and not classes:
        raise ValueError(f"this network knows no labels, got {c.tolist()[:5]}: pass c = None")
    if c is not None and not bool(((c >= -1) & (c < classes)).all()):
        raise ValueError(f"labels must be between 0 and {classes - 1}, or -1 for none, got {c.tolist()[:5]}")

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, None]:
        time = torch.full((len(x_t), 1), t / T).to(x_t)
        one_hot = x_t.new_zeros(len(x_t), classes) if classes else None
        if c is not None:
            one_hot = (F.one_hot(c.clamp(min=0), classes) * (c >= 0)[:, None]).to(x_t)
        prediction = unet(x_t, time, one_hot)
        return (prediction if target == "eps" else eps_from_velocity(x_t, prediction, alpha_bar[t])), None

    return denoise


def text(unet: nn.Module, state) -> Denoiser:
    """DeepFloyd IF's stage I (or any U-Net with its interface) and its prompt as a denoiser of images (B, 3, H, W).

    unet:  (x, t, state) -> (eps, v), with t counted from 0: our level t is its t − 1
    state: from `unet.encode(prompt_embeddings)`, one prompt for all images or one per image
    Images stay float32: a half-precision network is cast to and from its own dtype here.
    """

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        eps, v = unet(x_t.to(state.pooled.dtype), t - 1, state)
        return eps.to(x_t.dtype), None if v is None else v.to(x_t.dtype)

    return denoise


def enlarged(
    low_res: Tensor,
    size: tuple[int, int],
    alpha_bar: Tensor,
    level: int = 251,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """What stage II sees of a low-resolution image: enlarged to `size`, then noised, which hides the flaws of stage I.

    low_res:   (B, 3, h, w) in [-1, 1], enlarged bilinearly
    alpha_bar: (T + 1,) float64, the schedule of this noise
    level:     1 … T; 251 is IF's 250
    -> (B, 3, H, W). Draw it once and pass it to the denoisers of all prompts. Raises ValueError for a level outside.
    """
    if not 1 <= level < len(alpha_bar):
        limits = f"between 1 and {len(alpha_bar) - 1}"
        raise ValueError(f"the noise level of the low-resolution image must be {limits}, got {level}")
    x_0 = F.interpolate(low_res, size=size, mode="bilinear", align_corners=True)
    return add_noise(x_0, alpha_bar[level], noise(x_0))


def superres(unet: nn.Module, state, low: Tensor, level: int = 251) -> Denoiser:
    """DeepFloyd IF's stage II as a denoiser of the large image (B, 3, H, W).

    unet, state: as for `text`; this network is also told `level`
    low, level:  (B, 3, H, W) from `enlarged`, and its level; if x_t is seen through a view, so must `low` be
    """

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        x = torch.cat([x_t, low.to(x_t)], dim=1).to(state.pooled.dtype)  # (B, 6, H, W)
        eps, v = unet(x, t - 1, state, level - 1)
        return eps.to(x_t.dtype), None if v is None else v.to(x_t.dtype)

    return denoise
