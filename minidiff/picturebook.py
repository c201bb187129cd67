"""The picture book: ten thousand small pictures of nine hundred things in eight styles, and what to say of each.

A picture is stored as 64 x 64 RGBA, one lossless sheet per source. Its caption (captions.py) is made when it is asked
for: the same picture is "an emoji of an apple", "a colourful emoji of a fruit" or just "an apple". Where a picture has
a single hue, that can be turned, and the colour's name goes into the caption: "a blue lemon".

Held out, for questions that cannot have been learned by heart: some (thing, style) pairs, no picture of which is used
in training, and some (thing, colour) pairs, to which no picture is turned. `Book.twins` names styles that share an
outline (3d and flat) or are made of one another (pixel and emoji): say so when one of them is scored.

Left out: mirror images (scissors and cars have a side). `data/picturebook/README.md` names sources and licences, and
`build.py` beside it makes the sheets again; reading needs only what is shipped.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minidiff.captions import Thing, prompt, say, words
from minidiff.shipped import DATA

__all__ = ["Book", "Thing", "batch", "caption", "lesson", "load", "prompt", "recolour", "render", "vocabulary", "words"]

FOLDER = DATA / "picturebook"


@dataclass(frozen=True)
class Book:
    """N pictures, and what is known of them. things[:100] are those best seen at 32 x 32: learn them first."""

    pictures: Tensor  # (N, 4, 64, 64) uint8, RGBA
    thing: Tensor  # (N,) int64, into things
    style: Tensor  # (N,) int64, into styles
    sheet: Tensor  # (N,) int64, the source
    hue: Tensor  # (N,) float32, degrees in [0, 360), nan where there is no single one
    held_out: Tensor  # (N,) bool, never to be trained on
    things: tuple[Thing, ...]
    styles: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]  # of each style, the canonical one first
    colours: dict[str, float]  # name -> hue
    colourless: frozenset[str]  # styles in black on white
    twins: dict[str, str]
    held_out_colours: frozenset[tuple[str, str]]  # (name of a thing, name of a colour)
    sheets: tuple[str, ...]  # names of the sources


def load(folder: str | Path = FOLDER) -> Book:
    """Read captions.json and the sheets. Raises ValueError when one of them is missing or damaged."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        sheets = told["sheets"]
        pictures = [_cut(folder / s["file"], len(s["things"]), told["size"], told["columns"]) for s in sheets]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = f"cannot read the picture book in {folder} ({error}): restore it with `git checkout -- data`"
        raise ValueError(message) from None
    styles, pairs = tuple(told["styles"]), {tuple(pair) for pair in told["held_out"]}
    things = tuple(Thing(thing["name"], tuple(thing["aliases"]), thing["kind"]) for thing in told["things"])
    nan = float("nan")
    rows = [
        (i, styles.index(s["style"]), number, nan if hue is None else hue, (things[i].name, s["style"]) in pairs)
        for number, s in enumerate(sheets)
        for i, hue in zip(s["things"], s["hues"], strict=True)
    ]
    return Book(
        torch.cat(pictures), *map(torch.tensor, zip(*rows, strict=True)), things, styles,
        tuple(map(tuple, told["styles"].values())), told["colours"], frozenset(told["colourless"]), told["twins"],
        frozenset(map(tuple, told["held_out_colours"])), tuple(Path(s["file"]).stem for s in sheets),
    )  # fmt: skip


def _cut(path: Path, count: int, size: int, columns: int) -> Tensor:
    """A sheet, read row by row -> (count, 4, size, size) uint8."""
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGBA")))
    return sheet.view(-1, size, columns, size, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, size, size)[:count]


def lesson(book: Book, count: int | None = None) -> Tensor:
    """Indices (M,) of the pictures to train on: of the first `count` things (all), without what is held out."""
    return ((book.thing < (count or len(book.things))) & ~book.held_out).nonzero()[:, 0]


def caption(book: Book, i: int, generator: torch.Generator, colour: str | None = None) -> str:
    """Something to say of picture i, see `captions.say`. colour: the one it was turned to."""
    style = int(book.style[i])
    black = book.styles[style] in book.colourless
    return say(book.things[book.thing[i]], book.phrases[style], generator, colour, black)


def vocabulary(book: Book, count: int | None = None) -> set[str]:
    """Every word that a caption of the first `count` things (all) can hold; others mean nothing to their network."""
    said = [text for thing in book.things[:count] for text in (thing.name, *thing.aliases, thing.kind)]
    return {word for text in [*said, *sum(book.phrases, ()), *book.colours, "a an"] for word in words(text)}


def render(rgba: Tensor, size: int, background: float = 1.0) -> Tensor:
    """On a plain background, scaled by areas: (B, 4, 64, 64) uint8 -> (B, 3, size, size) float32 in [-1, 1].

    Colours are weighed by their alpha before the mean is taken, so no rim gets dark.
    background: -1 black … 1 white. Raises ValueError when size is larger than the picture.
    """
    S = rgba.shape[-1]
    if not 1 <= size <= S:
        raise ValueError(f"expected a size from 1 to {S}, got {size}")
    edge, pixel = torch.arange(size) * S / size, torch.arange(S)[:, None]
    area = (torch.minimum(pixel + 1, edge + S / size) - torch.maximum(pixel, edge)).clamp(min=0) * size / S
    x = rgba.float()  # column j of area says how much of each pixel falls into pixel j of the result
    over = x[:, :3].sub(127.5 * (1 + background)).mul_(x[:, 3:])
    return (area.T @ (over @ area)).mul_(2 / 255**2).add_(background)


def recolour(rgba: Tensor, from_hue: float, to_hue: float) -> Tensor:
    """Turn the hues within 60 degrees of from_hue by to_hue - from_hue; value, saturation and alpha stay (HSV).

    rgba: (..., 4, H, W) uint8, and so is the result
    """
    r, g, b = x = rgba[..., :3, :, :].float().movedim(-3, 0)
    value, chroma = x.amax(0), x.amax(0) - x.amin(0)
    sector = torch.where(value == r, g - b, torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma))
    hue = sector / chroma.clamp(min=1) * 60
    near = ((hue - from_hue + 180) % 360 - 180).abs() < 60
    hue = torch.where(near, hue + to_hue - from_hue, hue)
    k = [(n + hue / 60) % 6 for n in (5, 3, 1)]
    turned = [value - chroma * torch.minimum(kc, 4 - kc).clamp(0, 1) for kc in k]
    return torch.stack([*(c.round().to(torch.uint8) for c in turned), rgba[..., 3, :, :]], -3)


def batch(
    book: Book, indices: Tensor, size: int, generator: torch.Generator, recolour_share: float = 0.1, shift: float = 0.04
) -> tuple[Tensor, list[str]]:
    """What a training step takes: pictures (B, 3, size, size) float32 in [-1, 1], and B captions.

    recolour_share: of the pictures with one hue, how many are turned to another (never to one that is held out)
    shift:          each picture is moved by up to this share of the side, in whole pixels of the result
    """
    turned = torch.rand(len(indices), generator=generator) < recolour_share
    rgba, captions = book.pictures[indices], []
    for row, i in enumerate(indices.tolist()):
        colour, hue, name = None, float(book.hue[i]), book.things[book.thing[i]].name
        if turned[row] and hue == hue:
            free = [c for c in book.colours if (name, c) not in book.held_out_colours]
            colour = free[int(torch.randint(len(free), (), generator=generator))]
            rgba[row] = recolour(rgba[row], hue, book.colours[colour])
        captions.append(caption(book, i, generator, colour))
    return shifted(render(rgba, size), round(shift * size), generator), captions


def shifted(x: Tensor, most: int, generator: torch.Generator, background: float = 1.0) -> Tensor:
    """Each picture moved by -most … most pixels to the side and up or down. x: (B, C, H, W)"""
    B, _, H, W = x.shape
    corners = torch.randint(2 * most + 1, (B, 2), generator=generator).tolist()
    wide = F.pad(x, (most, most, most, most), value=background)
    return torch.stack([p[:, top : top + H, left : left + W] for p, (top, left) in zip(wide, corners, strict=True)])
