"""Beside chapter 12: what `torch.compile` is given in place of the rewritings of if_unet.py, formulas that it can fuse.

Without a compiler every operation reads and writes whole pictures, so the U-Net calls few large ones. A compiler makes
one pass of many small ones, forwards and backwards, if it can go through a picture as it lies in memory, channels last,
row after row: a training step then takes 0.4 of the time (benchmarks/text_training_speed.py). What it cannot fuse are
the library's own norm and attention.
"""

import torch
from torch import Tensor, nn


def norm_scale_shift(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """GN(x) · (1 + scale) + shift as two sums per channel and one a · x + b. x (B, C, H, W), scale, shift (B, C).

    A product with a matrix of ones and zeros leads from channels to groups and back. A compiler does not look into a
    product; an index it would evaluate anew for every element.
    """
    y = x.permute(0, 2, 3, 1).flatten(1, 2).float()  # (B, HW, C)
    total, squares, size = y.sum(1), y.square().sum(1), x.shape[1] // norm.num_groups
    with torch.autocast(x.device.type, enabled=False):
        member = torch.eye(norm.num_groups, device=x.device).repeat_interleave(size, 1)  # (groups, C), 1 if in group
        mean, square = (sums @ member.T / (y.shape[1] * size) for sums in (total, squares))  # (B, groups)
        rstd = torch.rsqrt(square - mean.square() + norm.eps)
        a = rstd @ member * norm.weight.float()                              # (B, C)
        b = norm.bias.float() - (mean * rstd) @ member * norm.weight.float()
        if scale is not None:
            a, b = a * (1 + scale.float()), b * (1 + scale.float()) + shift.float()
    return (y * a[:, None] + b[:, None]).to(x.dtype).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def enlarged(x: Tensor) -> Tensor:
    """Each pixel to 2 x 2: (B, C, H, W) -> (B, C, 2H, 2W), channels last."""
    x = x.permute(0, 2, 3, 1)[:, :, None, :, None]                           # (B, H, 1, W, 1, C)
    return x.expand(-1, -1, 2, -1, 2, -1).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v: (B, heads, M, d), twice (B, heads, N, d) -> (B, heads, M, d). Autocast softmax: float32."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1).to(v.dtype) @ v
