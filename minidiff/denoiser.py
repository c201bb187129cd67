"""Chapter 3. The one interface: a denoiser is any function that names the noise in an image.

    eps, v = denoise(x_t, t)

    x_t  (B, C, H, W) float32, an image at noise level t
    t    int, 1 … T           (0 is the clean image and is never asked about)
    eps  (B, C, H, W)         the predicted noise; dtype and device of x_t
    v    (B, C, H, W) or None where the reverse variance lies between β̃_t (0) and β_t (1), in the log (iDDPM Eq. 15);
                              nominally in [0, 1], never clamped. None means β̃_t

A network with its label or prompt becomes a denoiser in adapters.py, guidance and illusions make one denoiser of several, and
sampling.py walks any of them from noise to image. A formula is a denoiser too: that is how the tests know every answer.
"""

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
