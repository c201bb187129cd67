"""Muon: momentum whose step moves every direction of a matrix alike, where plain momentum moves a few large ones.

    m ← μ m + (1 − μ) g,   u = μ m + (1 − μ) g                         momentum (Nesterov's)
    U = NS(u) ≈ (u uᵀ)^(−1/2) u                                        u = A S Bᵀ -> A Bᵀ: all singular values about 1
    w ← (1 − lr λ) w − lr · 0.2 √max(rows, columns) · U                as large a step as Adam's (Moonlight section 2.2)

For matrices inside of a network; a convolution is one of (out, in · 9). Embeddings, norms, biases, and the first and
last convolution are Adam's. Muon = Jordan et al. 2024, kellerjordan.github.io/posts/muon; Moonlight = Liu et al.
2025, arXiv 2502.16982.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ADAMS = (
    "shared",
    "conv_in",
    "conv_out",
    "positional",
    "relative",
    "norm",
)  # in names of weights that are no such matrices


def matrices(net: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is for, of a text model."""
    learned = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    return [p for name, p in learned if p.ndim >= 2 and not any(part in name for part in ADAMS)]


def orthogonal(u: Tensor) -> Tensor:
    """NS: five steps of a Newton-Schulz iteration, X ← a X + (b A + c A²) X with A = X Xᵀ, in bfloat16 (Muon).

    u: (K, M, N), K matrices. Returns (K, M, N) bfloat16 whose singular values lie between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = u.shape[1] <= u.shape[2]
    X = (u if wide else u.mT).bfloat16()
    X = X / (X.float().norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X if wide else X.mT


class Muon(torch.optim.Optimizer):
    """The update above; matrices of one shape are made orthogonal together. mu: μ; weight_decay: λ."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, mu: float = 0.95):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "mu": mu})

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        lr, mu, shapes = group["lr"], group["mu"], {}
        for w in group["params"]:
            shapes.setdefault(w.shape, []).append(w)
        for weights in shapes.values():
            u = torch.stack([self._momentum(w, mu) for w in weights])
            scale = 0.2 * max(u.shape[1:]) ** 0.5
            for w, step in zip(weights, orthogonal(u).float()):
                step = step.view(len(w), *w.shape[2:], w.shape[1]).movedim(
                    -1, 1
                )  # (out, in, …), as `_momentum` laid it out
                w.mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr * scale)

    def _momentum(self, w: nn.Parameter, mu: float) -> Tensor:
        """u of a weight, as a matrix (out, … · in): channels last, as convolutions lie in memory."""
        state = self.state[w]
        m = state.setdefault("momentum", torch.zeros_like(w))
        m.lerp_(w.grad, 1 - mu)
        return w.grad.lerp(m, mu).movedim(1, -1).flatten(1)
