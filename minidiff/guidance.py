"""Chapter 6. Classifier-free guidance: how does a denoiser follow its label more closely?

    ε = ε_u + γ (ε_c − ε_u)                                                              (CFG Eq. 6 with γ = 1 + w)

γ = 0 ignores the label, 1 is the conditional model, and more exaggerates what the label changes. What comes out is a
denoiser again, so guidance works for labels, for prompts, and inside every illusion.

CFG = Ho and Salimans 2022, arXiv 2207.12598. Next: adapters.py.
"""

from torch import Tensor

from minidiff.denoiser import Denoiser


def cfg(cond: Denoiser, uncond: Denoiser, scale: float) -> Denoiser:
    """The guided denoiser, of images (B, C, H, W). Its v is that of `cond`, as IF was trained.

    scale: γ; at exactly 1 `uncond` is never called
    """
    if scale == 1:
        return cond

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        eps_c, v = cond(x_t, t)
        eps_u, _ = uncond(x_t, t)
        return eps_u + scale * (eps_c - eps_u), v

    return denoise
