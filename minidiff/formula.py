"""Formulas of words: several prompts or labels, each guided, combined into one denoiser.

    denoise = combine([ε(no word) + γ (ε(word_1) − ε(no word)), …])

A term is the words of one denoiser: one for all images, or one an image. What a network is given for a word is its
condition c. A network without words is guided away from a worse one, its guide (AG, see model.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.guidance import cfg
from minidiff.one_forward import Build, one_forward, stacked

Combine = Callable[[Sequence[Denoiser]], Denoiser]  # one guided denoiser for each term of a formula -> the formula


def only(denoisers: Sequence[Denoiser]) -> Denoiser:
    """The formula of one term."""
    (denoiser,) = denoisers
    return denoiser


def all_words(terms: Sequence[Sequence[str]]) -> list[str]:
    """The words of a formula, and none: each once."""
    return list(dict.fromkeys(["", *(word for words in terms for word in words)]))


def formula_of(
    terms: Sequence[Sequence[str]],
    combine: Combine,
    scale: float,
    conditions: dict[str, Any],
    guide: Denoiser | None = None,
    lows: Sequence[Tensor | None] | None = None,
) -> Build:
    """The formula as `one_forward` takes it: build(net) -> denoiser.

    conditions: {word: c} of all words and of "", none
    lows:       for a stage II: what each term sees of the low resolution, (B, C, H, W)
    """

    def guided(net: Callable[[Any], Denoiser], words: Sequence[str], low: Tensor | None) -> Denoiser:
        """A term: from no word to the words, or from the guide to the network."""
        c = conditions[words[0]] if len(set(words)) == 1 else stacked([conditions[word] for word in words], 1)
        empty = conditions[""]
        if low is not None:
            c, empty = (c, low), (empty, low)
        if guide is not None:
            return cfg(net(c), guide, scale)
        return cfg(net(c), net(empty), scale) if any(words) else net(c)

    lows = [None] * len(terms) if lows is None else lows
    return lambda net: combine([guided(net, words, low) for words, low in zip(terms, lows, strict=True)])


def rows_of(terms: Sequence[Sequence[str]], combine: Combine, scale: float, shape: tuple[int, int, int]) -> int:
    """How many rows the formula asks of a network for one image (C, H, W).

    It is run against a network that counts and answers zero. Of several words a term counts with one that is guided.
    """
    rows, x = [], torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

    def counting(x_t: Tensor, t: int, c: Any) -> tuple[Tensor, None]:
        rows.append(len(x_t))
        return torch.zeros_like(x_t), None

    one_each = [[next(filter(None, words), "")] for words in terms]
    conditions = {word: torch.tensor([k]) for k, word in enumerate(all_words(one_each))}
    one_forward(counting, formula_of(one_each, combine, scale, conditions))(x, 1)
    return rows[0]
