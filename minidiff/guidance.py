"""Chapter 6. Classifier-free guidance: how does a denoiser listen harder to its label?

    ε = ε_u + γ (ε_c − ε_u)                                                                    (CFG Eq. 6 with γ = 1 + w)

γ = 0 forgets the label, 1 is the conditional model, more exaggerates what the label changes. A denoiser of two denoisers: it
works for labels, prompts, and inside every illusion. CFG = Ho and Salimans 2022, arXiv 2207.12598. Next: adapters.py.
"""

from torch import Tensor

from minidiff.denoiser import Denoiser


def cfg(cond: Denoiser, uncond: Denoiser, scale: float) -> Denoiser:
    """The guided denoiser. `scale` is γ; at exactly 1 the unconditional one is never asked. v is the conditional one's (IF learned it so)."""
    if scale == 1:
        return cond

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        eps_c, v = cond(x_t, t)
        eps_u, _ = uncond(x_t, t)
        return eps_u + scale * (eps_c - eps_u), v

    return denoise
