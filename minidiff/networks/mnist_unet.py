"""Chapter 4. The digits' U-Net: which network predicts the noise?

One network serves three tasks. Down twice (28 -> 14 -> 7), flatten to one vector, and up again with skip connections:

    denoiser            x from a noisy x             UNet(width)
    time-conditioned    ε(x_t, t/T)                  UNet(width, time=True)
    class-conditioned   ε(x_t, t/T, c)               UNet(width, time=True, classes=10)

Time and label enter in two places only, as a shift and a scale of whole channels:

    z  <- scale_c1 · z  + shift_t1        z:  the unflattened bottleneck, 2D channels at 7 x 7
    u1 <- scale_c2 · u1 + shift_t2        u1: after the first block up,    D channels at 14 x 14

Source: CS180 project 5, part B (Berkeley, 2024), after minDiffusion and TeaPearce/Conditional_Diffusion_MNIST; its page
has c2 · u1 + t1, whose shapes do not match. Left out: attention, residual blocks, sinusoids of t (see if_unet.py).
Next: training.py, the loss.
"""

import torch
from torch import Tensor, nn

from minidiff.networks.gelu import GELU


def conv(c_in: int, c_out: int) -> nn.Sequential:
    """A 3 x 3 convolution: (B, c_in, H, W) -> (B, c_out, H, W)."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out), GELU())


def down_conv(c_in: int, c_out: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H/2, W/2)."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, 2, 1), nn.BatchNorm2d(c_out), GELU())


def up_conv(c_in: int, c_out: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, 2H, 2W)."""
    return nn.Sequential(nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), GELU())


def conv_block(c_in: int, c_out: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H, W)."""
    return nn.Sequential(conv(c_in, c_out), conv(c_out, c_out))


def down_block(c_in: int, c_out: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H/2, W/2)."""
    return nn.Sequential(down_conv(c_in, c_out), conv_block(c_out, c_out))


def up_block(c_in: int, c_out: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, 2H, 2W)."""
    return nn.Sequential(up_conv(c_in, c_out), conv_block(c_out, c_out))


def flatten() -> nn.Sequential:
    """(B, C, 7, 7) -> (B, C, 1, 1): the mean over the image, one vector of features."""
    return nn.Sequential(nn.AvgPool2d(7), GELU())


def unflatten(c: int) -> nn.Sequential:
    """(B, c, 1, 1) -> (B, c, 7, 7): a coarse image from the vector."""
    return nn.Sequential(FromOnePixel(c, c, 7, 7, 0), nn.BatchNorm2d(c), GELU())


class FromOnePixel(nn.ConvTranspose2d):
    """A transposed convolution of one pixel, computed as one matrix product, which is many times faster."""

    def forward(self, z: Tensor) -> Tensor:
        """z (B, C, 1, 1) -> (B, C, 7, 7)."""
        x = z.flatten(1) @ self.weight.permute(0, 2, 3, 1).flatten(1)  # (B, C) @ (C, 7 · 7 · C)
        return x.unflatten(1, (*self.kernel_size, -1)).permute(0, 3, 1, 2) + self.bias[:, None, None]


def fc_block(f_in: int, f_out: int) -> nn.Sequential:
    """(B, f_in) -> (B, f_out)."""
    return nn.Sequential(nn.Linear(f_in, f_out), GELU(), nn.Linear(f_out, f_out))


class UNet(nn.Module):
    """The digits' U-Net (CS180 project 5, part B, figures 2, 8 and 9).

    width:   D, the channels of the first level; the course uses 128 for the denoiser and 64 for the other two
    time:    condition on the noise level
    classes: number of labels, 0 for none

    Parameters at D = 64: 1,975,361 (denoiser), 1,996,417 (time), 2,019,201 (time and 10 classes).
    """

    def __init__(self, width: int = 64, time: bool = False, classes: int = 0):
        super().__init__()
        D = width
        self.width, self.time, self.classes = width, time, classes

        self.enter = conv_block(1, D)
        self.down1 = down_block(D, D)
        self.down2 = down_block(D, 2 * D)
        self.flatten = flatten()
        self.unflatten = unflatten(2 * D)
        self.up1 = up_block(4 * D, D)
        self.up2 = up_block(2 * D, D)
        self.leave = nn.Sequential(conv_block(2 * D, D), nn.Conv2d(D, 1, 3, 1, 1))

        if time:
            self.time1, self.time2 = fc_block(1, 2 * D), fc_block(1, D)
        if classes:
            self.class1, self.class2 = fc_block(classes, 2 * D), fc_block(classes, D)

    def forward(self, x: Tensor, t: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """x (B, 1, 28, 28) -> (B, 1, 28, 28): the noise, the velocity or the clean image, as it was trained.

        t: (B, 1) noise level as a fraction of T, in (0, 1]; only for a time-conditioned network
        c: (B, classes) one-hot label, a row of zeros where the label is dropped; only for a class-conditioned network
        Raises ValueError when x, t or c has another shape: (B,) instead of (B, 1) would broadcast silently.
        """
        self._check(x, t, c)
        # fmt: off
        a = self.enter(x)                                    # D,  28
        b = self.down1(a)                                    # D,  14
        d = self.down2(b)                                    # 2D, 7
        z = self.unflatten(self.flatten(d))                  # 2D, 1 -> 2D, 7
        if self.classes:
            z = self.class1(c)[:, :, None, None] * z
        if self.time:
            z = z + self.time1(t)[:, :, None, None]
        u1 = self.up1(torch.cat([d, z], dim=1))              # 4D, 7 -> D, 14
        if self.classes:
            u1 = self.class2(c)[:, :, None, None] * u1
        if self.time:
            u1 = u1 + self.time2(t)[:, :, None, None]
        u2 = self.up2(torch.cat([b, u1], dim=1))             # 2D, 14 -> D, 28
        return self.leave(torch.cat([a, u2], dim=1))         # 2D, 28 -> 1, 28
        # fmt: on

    def _check(self, x: Tensor, t: Tensor | None, c: Tensor | None) -> None:
        B = len(x)
        if x.shape != (B, 1, 28, 28):
            raise ValueError(f"expected images (B, 1, 28, 28), got {tuple(x.shape)}: resize or crop them")
        for name, value, features in (("t", t, int(self.time)), ("c", c, self.classes)):
            got = None if value is None else tuple(value.shape)
            want = (B, features) if features else None
            if got != want:
                raise ValueError(f"expected {name} of shape {want}, got {got}: see the network's `time` and `classes`")
