"""Chapter 11. One forward pass: how does a formula of many questions cost one?

A guided anagram of two views asks the network four times a step, as four closures. A batch of four rows asks once. Keep both:

    denoise = one_forward(network, lambda net: hybrid(cfg(net(skull), net(empty), 7), cfg(net(water), net(empty), 7), low_pass))

The formula is written as if each net(c) were a denoiser of its own, and is run twice a step: first against a recorder that notes
the questions (x, c) and answers zero, then, when the network has answered all distinct questions as one batch, with the answers.
A question asked twice is one row: the hybrid above takes 3 and not 4, since both halves ask the same of the empty prompt.

Two questions are the same when x and c are: tensors by value (kilobytes, beside a forward pass), tuples part by part.
Left out: questions that depend on answers (a second-order step inside a formula); `sequential` can. Next: networks/if_unet.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser

Network = Callable[[Tensor, int, Any], tuple[Tensor, Tensor | None]]  # eps, v = network(x_t, t, c); c has a row an image
Build = Callable[[Callable[[Any], Denoiser]], Denoiser]  # a formula: build(net) -> denoiser, where net(c) is a denoiser


def stacked(conditions: Sequence[Any], B: int) -> Any:
    """Conditions one below the other: tensors with B rows, or with 1 for all; or tuples (of tuples) of such, as a text's state; or None."""
    if conditions[0] is None:
        return None
    if isinstance(conditions[0], Tensor):
        return torch.cat([c.expand(B, *c.shape[1:]) for c in conditions])
    return tuple(stacked(parts, B) for parts in zip(*conditions))


def sequential(network: Network, build: Build) -> Denoiser:
    """The formula with one forward pass for each question: for small memories."""
    return build(lambda c: lambda x_t, t: network(x_t, t, stacked([c], len(x_t))))


def one_forward(network: Network, build: Build) -> Denoiser:
    """The formula with one forward pass a step. Raises ValueError if it asks about another level or shape, or by what was answered."""
    answer = None  # what a question gets now: `record` or `reply`
    formula = build(lambda c: lambda x, level: answer(x, level, c))

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        nonlocal answer
        questions, calls = [], []  # the distinct ones; and the k-th call of the formula asks question calls[k]

        def record(x, level, c):
            if level != t or x.shape != x_t.shape:
                raise ValueError(
                    f"asked at level {level} about {tuple(x.shape)} in a step at level {t} about {tuple(x_t.shape)}: use `sequential`"
                )
            known = [k for k, (y, d) in enumerate(questions) if _same(x, y) and _same(c, d)]
            calls.append(known[0] if known else len(questions))
            if not known:
                questions.append((x, c))
            return torch.zeros_like(x), torch.zeros_like(x)

        def reply(x, level, c):
            k = next(order, None)
            if k is None or not (_same(x, questions[k][0]) and _same(c, questions[k][1])):
                raise ValueError("this formula asks something else when the answers are not zero: use `sequential`")
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
