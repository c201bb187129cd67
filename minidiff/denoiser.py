"""Chapter 3. The one interface: a denoiser is any function that predicts the noise in an image.

    eps, v = denoise(x_t, t)

    x_t  (B, C, H, W) float32, an image at noise level t
    t    int, 1 … T           (0 is the clean image, for which no denoiser is called)
    eps  (B, C, H, W)         the predicted noise, in the dtype and on the device of x_t
    v    (B, C, H, W) or None where the log of the reverse variance lies between β̃_t (0) and β_t (1) (iDDPM Eq. 15);
                              nominally in [0, 1], never clamped. None means β̃_t

adapters.py makes a denoiser of a network and its label or prompt, guidance and illusions combine several into one, and
sampling.py takes any of them from noise to an image. A formula can be a denoiser too: so the tests know every answer.
"""

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
