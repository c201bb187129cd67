"""Chapter 5. Training: which mean squared error teaches a network to denoise?

    denoiser    E ‖D(x + σ ε) − x‖²                           one σ, the clean image itself              (CS180 B.1)
    diffusion   E ‖ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t) − ε‖²      t ~ U{1 … T}                         (DDPM Eq. 14, Alg. 1)
    classifier  −E log p(c | x)                               no denoiser: it reads what the others draw

The second may ask for the velocity √ᾱ_t ε − √(1 − ᾱ_t) x_0 in place of ε (PD, see diffusion.py). Both fix x_0; but
where nearly all is noise, ε is nearly x_t and its error says nothing about the image, while the velocity there is −x_0:
the network has to decide what to draw, which is what a small one without guidance fails at.

A text model predicts ε, as DeepFloyd IF does, with each level's error weighed by `min_snr`.
Min-SNR = Hang et al. 2023, arXiv 2303.09556.

Nothing here draws random numbers: t, ε, the dropped labels, the angles and shifts are arguments. Next: guidance.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.diffusion import add_noise, velocity


def denoiser_loss(unet: nn.Module, x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """E ‖D(x_0 + σ ε) − x_0‖², mean over pixels, 0-dim float32. x_0 in [0, 1], eps: (B, 1, H, W); sigma > 0."""
    return F.mse_loss(unet(x_0 + sigma * eps).float(), x_0)


def diffusion_loss(
    unet: nn.Module,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    c: Tensor | None = None,
    target: str = "eps",
) -> Tensor:
    """DDPM Eq. 14, mean over pixels. Returns a 0-dim float32.

    x_0, eps:  (B, 1, H, W)
    t:         (B,) int64 in 1 … T; the network is told t/T
    alpha_bar: (T + 1,) float64
    c:         (B, classes) one-hot labels, dropped rows zero (see `drop_labels`); None for a network without classes
    target:    "eps" or "velocity"
    """
    T = len(alpha_bar) - 1
    if not bool(((1 <= t) & (t <= T)).all()):
        raise ValueError(f"t must be between 1 and T = {T}, got {int(t.min())} … {int(t.max())}")
    alpha_bar_t = alpha_bar[t.to(alpha_bar.device)].to(x_0)[:, None, None, None]
    x_t = add_noise(x_0, alpha_bar_t, eps)
    wanted = {"eps": eps, "velocity": velocity(x_0, eps, alpha_bar_t)}[target]
    return F.mse_loss(unet(x_t, (t / T).to(x_0)[:, None], c).float(), wanted)


def min_snr(alpha_bar_t: Tensor, gamma: float = 5.0) -> Tensor:
    """The weight of ε's squared error at a level: levels of little noise, which are easy and many, count less.

        w = min(SNR, γ) / SNR,  SNR = ᾱ_t / (1 − ᾱ_t)                             (Min-SNR section 3.4)

    alpha_bar_t: any shape, in (0, 1). Returns the same shape, in (0, 1].
    """
    snr = alpha_bar_t / (1 - alpha_bar_t)
    return snr.clamp(max=gamma) / snr


def noise_loss(eps_hat: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """E w_t ‖ε_θ − ε‖², mean over pixels. eps_hat, eps: (B, C, H, W); weight: (B,). Returns a 0-dim float32."""
    return (weight.to(eps) * (eps_hat.float() - eps).square().mean((1, 2, 3))).mean()


def drop_labels(c: Tensor, keep: Tensor, classes: int = 10) -> Tensor:
    """One-hot labels, all zero where `keep` is False: what the unconditional half of guidance learns from (CFG Alg. 1).

    c: (B,) int64 in 0 … classes − 1; keep: (B,) bool, True with probability 1 − p_uncond. Returns (B, classes) float32.
    """
    return F.one_hot(c, classes).float() * keep[:, None]


def drop_captions(captions: list[str], keep: Tensor) -> list[str]:
    """The captions, "" where `keep` (B,) is False: what the unconditional half of guidance learns from (CFG Alg. 1)."""
    return [caption if kept else "" for caption, kept in zip(captions, keep.tolist(), strict=True)]


def moved(x: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Each image turned about its centre, counter-clockwise, and moved right and down; bilinear, 0 outside.

    x: (B, C, H, W); angle: (B,), radians; shift: (B, 2), pixels to the right and down
    """
    H, W = x.shape[-2:]
    right, down = shift.T[:, :, None, None]
    column, row = (
        torch.arange(W).to(x) - (W - 1) / 2 - right,
        torch.arange(H).to(x)[:, None] - (H - 1) / 2 - down,
    )  # (B, 1, W), (B, H, 1)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    source = torch.stack(
        [(cos * column - sin * row) * 2 / (W - 1), (sin * column + cos * row) * 2 / (H - 1)], -1
    )  # borders are −1 and 1
    return F.grid_sample(x, source, align_corners=True)


def classifier_loss(classifier: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """−E log p(c | x). x: (B, 1, H, W) in [0, 1]; c: (B,) int64 labels. Returns a 0-dim float32."""
    return F.cross_entropy(classifier(x).float(), c)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay · ema + (1 − decay) · model, for parameters and BatchNorm's running statistics alike."""
    pairs = list(zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [(averaged, now.to(averaged)) for averaged, now in pairs if averaged.is_floating_point()]
    torch._foreach_lerp_([averaged for averaged, _ in floats], [now for _, now in floats], 1 - decay)
    for averaged, now in pairs:
        if not averaged.is_floating_point():
            averaged.copy_(now)
