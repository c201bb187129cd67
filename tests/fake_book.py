"""A picture book of plain shapes with the interface of minidiff.picturebook: what a tiny network learns in seconds."""

from types import SimpleNamespace

import torch

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}

THINGS = [SimpleNamespace(name=name) for name in ("top", "bottom", "left", "right")]


def load():
    """Twelve pictures: 4 things (halves of the square) in 3 styles (colours), one of them held out."""
    thing, style = torch.arange(12) // 3, torch.arange(12) % 3
    return SimpleNamespace(
        thing=thing,
        style=style,
        sheet=style,
        sheets=list(COLOURS),
        held_out=torch.arange(12) == 11,
        things=THINGS,
        styles=list(COLOURS),
        colours={"red": 0.0},
    )


def lesson(book, count=None):
    return ((book.thing < (count or len(book.things))) & ~book.held_out).nonzero()[:, 0]


def vocabulary(book, count=None):
    return {"a", *COLOURS, *(thing.name for thing in book.things[:count])}


def prompt(style, name):
    return f"a {style} {name}"


def caption(book, i, generator, colour=None):
    return prompt(book.styles[int(book.style[i])], book.things[int(book.thing[i])].name)


def batch(book, indices, size, generator):
    """x (B, 3, size, size) in [-1, 1], captions."""
    x, captions = torch.ones(len(indices), 3, size, size), []
    half = slice(0, size // 2), slice(size // 2, size)
    for row, i in zip(x, indices.tolist()):
        thing, style = int(book.thing[i]), book.styles[int(book.style[i])]
        part = row[:, half[thing]] if thing < 2 else row[:, :, half[thing - 2]]
        part[:] = torch.tensor(COLOURS[style])[:, None, None]
        captions.append(caption(book, i, generator))
    return x, captions
