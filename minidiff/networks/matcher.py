"""A matcher: how well do a picture and a text go together?

Two towers, one vector each, and the angle between the two (CLIP):

    picture   32 x 32 -> 16 -> 8 -> 4, the mean over what is left, a linear layer       -> a unit vector of D numbers
    text      the sum of its words' vectors, whatever their order                       -> a unit vector of D numbers
    logits    scale · cos(picture, text)                                                  scale: learned

A bag of words cannot tell "a dog on a cat" from "a cat on a dog"; the captions here name one thing, one style, one
colour, and a sum of three vectors holds just that. A word that was never learned has the one vector that all such words
share.

Left out: attention, word order, and all of the generator's: a judge that shared its encoder would share its mistakes.
CLIP = Radford et al. 2021, arXiv 2103.00020. Next: matching.py, what it is asked.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32
SILENT = {"a", "an", "the", "of"}  # words that say nothing of what is seen
NONE, UNKNOWN = 0, 1  # rows of the table of words: no word, and any that was never learned


class Block(nn.Module):
    """x + two convolutions of it, each between batch normalisation and a ReLU. (B, C, H, W) -> the same."""

    def __init__(self, C: int):
        super().__init__()
        self.change = nn.Sequential(conv(C, C), nn.ReLU(), conv(C, C))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.change(x))


def conv(C_in: int, C_out: int, stride: int = 1) -> nn.Sequential:
    """3 x 3, and batch normalisation."""
    return nn.Sequential(nn.Conv2d(C_in, C_out, 3, stride, 1, bias=False), nn.BatchNorm2d(C_out))


class Matcher(nn.Module):
    """A picture and a text -> unit vectors. 0.9 million parameters at widths 48, 96, 144.

    words:  those it knows, in the order of their rows
    widths: channels at 16 x 16, 8 x 8 and 4 x 4 pixels
    D:      of the vectors
    """

    def __init__(self, words: Sequence[str], widths: Sequence[int] = (48, 96, 144), D: int = 128):
        super().__init__()
        a, b, c = widths
        self.rows = {word: row for row, word in enumerate(words, 2)}
        self.picture = nn.Sequential(
            nn.PixelUnshuffle(2), conv(12, a), nn.ReLU(), conv(a, a), nn.ReLU(),          # a, 16
            conv(a, b, 2), nn.ReLU(), Block(b),                                           # b, 8
            conv(b, c, 2), nn.ReLU(), Block(c),                                           # c, 4
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, D),                       # D
        )  # fmt: skip
        self.word = nn.Embedding(len(words) + 2, D, padding_idx=NONE)
        nn.init.normal_(self.word.weight, std=D**-0.5)
        nn.init.zeros_(self.word.weight[NONE])
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, at most 100. 0-dim."""
        return self.log_scale.exp().clamp(max=100)

    def of_pictures(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of any size -> (B, D), unit vectors."""
        return F.normalize(self.picture(at_the_door(x)).float(), dim=-1)

    def of_words(self, ids: Tensor) -> Tensor:
        """Rows of the table, NONE where a text is shorter: (..., L) int64 -> (..., D), the sum of their vectors."""
        return self.word(ids).sum(-2)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """P texts -> (P, D), unit vectors. A text without words has the vector of an unknown one."""
        return F.normalize(self.of_words(self.ids(texts)).float(), dim=-1)

    def ids(self, texts: Sequence[str], length: int | None = None) -> Tensor:
        """P texts -> (P, L) int64, rows of the table; L is `length`, or what the longest needs."""
        rows = [[self.rows.get(word, UNKNOWN) for word in read(text)] or [UNKNOWN] for text in texts]
        length = length or max(map(len, rows))
        padded = [row[:length] + [NONE] * (length - len(row)) for row in rows]
        return torch.tensor(padded, device=self.log_scale.device)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that it has not learned."""
        return [word for word in read(text) if word not in self.rows]

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a training step needs: unit vectors (B, D) of pictures, sums (P, D) of words, the scale."""
        return self.of_pictures(x), self.of_words(ids).float(), self.scale


def read(text: str) -> list[str]:
    """The words of a text that say something: "a 3D render of an owl" -> 3d, render, owl."""
    return [word for word in re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower()) if word not in SILENT]


def at_the_door(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 32, 32): a larger picture by areas, a smaller one bilinearly."""
    if x.shape[-2:] == (SIZE, SIZE):
        return x
    if min(x.shape[-2:]) >= SIZE:
        return F.adaptive_avg_pool2d(x, SIZE)
    return F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
