"""Chapter 12. One forward pass: how does a formula of many denoisers cost one pass of the network?

A guided anagram of two views calls the network four times per step. A batch of four rows would call it once. Write

    guided = lambda net, c: cfg(net(c), net(empty), 7)
    denoise = one_forward(network, lambda net: anagram([guided(net, skull), guided(net, water)], views))

as if each net(c) were a denoiser of its own. At every step the formula runs twice: first against a recorder, which
notes the questions (x, c) and answers zero; then, once the network has answered all distinct questions in one batch,
with the answers. A question asked twice is one row: a guided hybrid asks about the empty prompt twice: 3 rows, not 4.

Two questions are the same when x and c are: tensors by value (kilobytes, cheap beside a forward pass), tuples part by
part. Left out: questions that depend on answers, for which there is `sequential`. Next: networks/if_unet.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser

Network = Callable[
    [Tensor, int, Any], tuple[Tensor, Tensor | None]
]  # eps, v = network(x_t, t, c), one row of c per image
Build = Callable[[Callable[[Any], Denoiser]], Denoiser]  # a formula: build(net) -> denoiser, where net(c) is a denoiser


def stacked(conditions: Sequence[Any], B: int) -> Any:
    """n conditions as one batch: tensors (B, …) or (1, …), (nested) tuples of them, or None -> the same, (n · B, …)."""
    if conditions[0] is None:
        return None
    if isinstance(conditions[0], Tensor):
        return torch.cat([c.expand(B, *c.shape[1:]) for c in conditions])
    return tuple(stacked(parts, B) for parts in zip(*conditions))


def sequential(network: Network, build: Build) -> Denoiser:
    """The formula of images (B, C, H, W) with one forward pass of B rows per question, to save memory."""
    return build(lambda c: lambda x_t, t: network(x_t, t, stacked([c], len(x_t))))


def one_forward(network: Network, build: Build) -> Denoiser:
    """The formula of images (B, C, H, W) with one forward pass per step, of B rows per distinct question.

    When called, it raises ValueError if a question is about another level or shape, or depends on an answer.
    """
    answer = None  # `record` or `reply`
    formula = build(lambda c: lambda x, level: answer(x, level, c))

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        nonlocal answer
        questions, calls = [], []  # the distinct questions; the k-th call asks questions[calls[k]]

        def record(x, level, c):
            if level != t or x.shape != x_t.shape:
                got = f"level {level} and {tuple(x.shape)}"
                raise ValueError(
                    f"expected questions about level {t} and {tuple(x_t.shape)}, got {got}: use `sequential`"
                )
            known = [k for k, (y, d) in enumerate(questions) if _same(x, y) and _same(c, d)]
            calls.append(known[0] if known else len(questions))
            if not known:
                questions.append((x, c))
            return torch.zeros_like(x), torch.zeros_like(x)

        def reply(x, level, c):
            k = next(order, None)
            if k is None or not (_same(x, questions[k][0]) and _same(c, questions[k][1])):
                raise ValueError("expected the same questions whatever the answers, got others: use `sequential`")
            return eps[k], v[k]

        answer = record
        formula(x_t, t)
        images, conditions = zip(*questions)
        eps, v = network(torch.cat(images), t, stacked(conditions, len(x_t)))
        eps, v = eps.split(len(x_t)), [None] * len(questions) if v is None else v.split(len(x_t))
        order = iter(calls)
        answer = reply
        return formula(x_t, t)

    return denoise


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b
