"""Chapter 7. Adapters: from a network and its condition to a denoiser.

Here live the conventions in which networks differ, each said once: how the level is told (the digits' U-Net wants t/T), what is
predicted (ε or the velocity), how a label is given and dropped. Networks are called, never imported. Next: pretrained.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.denoiser import Denoiser
from minidiff.diffusion import eps_from_velocity


def labelled(unet: nn.Module, c: Tensor | None, alpha_bar: Tensor, classes: int = 0, target: str = "eps") -> Denoiser:
    """The digits' U-Net as a denoiser.

    c:         (B,) int64 labels, −1 where the label is dropped; or None: all are, the unconditional half
    alpha_bar: (T + 1,) float64, the schedule that the network was trained with
    classes:   labels that the network knows; 0 for a network that is conditioned on time alone
    target:    what it predicts, "eps" or "velocity"
    Raises ValueError when a label is not below `classes`, or the target is unknown.
    """
    T = len(alpha_bar) - 1
    if target not in ("eps", "velocity"):
        raise ValueError(f"target must be one of eps, velocity, got {target!r}")
    if c is not None and not bool(((c >= -1) & (c < classes)).all() and classes):
        raise ValueError(f"labels must be between 0 and {classes - 1}, or -1 for none, got {c.tolist()[:5]}" if classes else "this network knows no labels: give c = None")

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, None]:
        time = torch.full((len(x_t), 1), t / T).to(x_t)
        one_hot = None
        if classes:
            one_hot = x_t.new_zeros(len(x_t), classes) if c is None else (F.one_hot(c.clamp(min=0), classes) * (c >= 0)[:, None]).to(x_t)
        prediction = unet(x_t, time, one_hot)
        return (prediction if target == "eps" else eps_from_velocity(x_t, prediction, alpha_bar[t])), None

    return denoise
