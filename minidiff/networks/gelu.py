"""GELU, read in the order of memory: the activation of the U-Nets and the classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu(x: Tensor) -> Tensor:
    """GELU with erf, of any shape. A channels_last x (B, C, H, W) is read in memory order: twice as fast on a CPU."""
    if torch.compiler.is_compiling():
        return F.gelu(x)
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.gelu(x)


class GELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)
