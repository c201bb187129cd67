"""The picture book: ten thousand small pictures of nine hundred things in eight styles, and what to say of each.

A picture is stored as 64 x 64 RGBA, one lossless sheet per source. Its caption is made when it is asked for: the same picture is
"an emoji of an apple", "a colourful emoji of a fruit" or just "an apple". Where a picture has a single hue, that can be turned,
and the colour's name goes into the caption: "a blue lemon".

Held out, for questions that cannot have been learned by heart: some (thing, style) pairs, of which no picture is trained on, and
some (thing, colour) pairs, to which no picture is turned. `Book.twins` names styles that share an outline (3d and flat) or are
made of one another (pixel and emoji): say so when one of them is scored.

Left out: mirror images (scissors, letters and cars have a side). `data/picturebook/README.md` names sources and licences;
`build.py` beside it makes the sheets again. Reading needs only what is shipped.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).resolve().parent.parent / "data" / "picturebook"
PHRASE = {
    "emoji": "an emoji of", "flat": "a flat drawing of", "3d": "a 3d render of", "icon": "an icon of", "line": "a line drawing of",
    "pixel": "a pixel art drawing of", "cartoon": "a cartoon of", "silhouette": "a silhouette of",
}  # fmt: skip
COLOUR_WORDS = set("red orange yellow green turquoise blue purple pink black white brown gold silver bronze".split())
UNCOUNTED = set(  # no article before these
    "bread cheese corn wheat rice popcorn butter bacon broccoli garlic ginger lettuce cabbage fire ice water soap yarn coral money meat "
    "sushi tempura spaghetti salad stew soup curry fondue falafel food seafood clothing tableware furniture wool fog wind smoke rain dna "
    "snow poop paper music milk tea wine coffee honey salt whisky soda blood sound cutlery maize grain fuji saturn earth steam medicine "
    "lightning tennis pong weather make-up sake cream wood dynamite mail barley chocolate porridge".split()
)


@dataclass(frozen=True)
class Thing:
    name: str
    aliases: tuple[str, ...]
    kind: str


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


def load(folder: str | Path = FOLDER) -> Book:
    """Read captions.json and the sheets. Raises ValueError when one of them is missing or damaged."""
    try:
        told = json.loads((Path(folder) / "captions.json").read_text())
        pictures = [_cut(Path(folder) / sheet["file"], len(sheet["things"]), told["size"], told["columns"]) for sheet in told["sheets"]]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the picture book in {folder} ({error}): restore it with `git checkout -- data`") from None
    styles = tuple(told["styles"])
    things = tuple(Thing(thing["name"], tuple(thing["aliases"]), thing["kind"]) for thing in told["things"])
    pairs = {tuple(pair) for pair in told["held_out"]}
    rows = [
        (thing, styles.index(sheet["style"]), number, float("nan") if hue is None else hue, (things[thing].name, sheet["style"]) in pairs)
        for number, sheet in enumerate(told["sheets"])
        for thing, hue in zip(sheet["things"], sheet["hues"], strict=True)
    ]
    columns = map(torch.tensor, zip(*rows, strict=True))
    return Book(
        torch.cat(pictures), *columns, things, styles, tuple(map(tuple, told["styles"].values())), told["colours"],
        frozenset(told["colourless"]), told["twins"], frozenset(map(tuple, told["held_out_colours"])),
    )  # fmt: skip


def _cut(path: Path, count: int, size: int, columns: int) -> Tensor:
    """A sheet, read row by row -> (count, 4, size, size) uint8."""
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGBA")))
    return sheet.view(-1, size, columns, size, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, size, size)[:count]


def lesson(book: Book, count: int | None = None) -> Tensor:
    """Indices (M,) of the pictures to train on: of the first `count` things, without what is held out."""
    return ((book.thing < (count or len(book.things))) & ~book.held_out).nonzero()[:, 0]


def with_article(words: str) -> str:
    """"owl" -> "an owl", "unicorn" -> "a unicorn"; "cherries", "bread" and "pair of cherries" -> as they should be."""
    noun = re.split(r" (?:of|with|in|on|from|and|before|at) ", words)[0].split()[-1]
    if noun in UNCOUNTED or (noun.endswith("s") and not re.search(r"(ss|us|is|lens)$", noun)):
        return words
    an = re.match(r"(?!eu|ewe|one|ufo|uni|uti)[aeiou]|hour|x-ray", words)
    return f"{'an' if an else 'a'} {words}"


def prompt(style: str | None, name: str, colour: str | None = None) -> str:
    """The canonical caption: prompt("pixel", "apple", "red") is "a pixel art drawing of a red apple"; style None: "a red apple"."""
    if style is not None and style not in PHRASE:
        raise ValueError(f"expected one of the styles {', '.join(PHRASE)}, got {style!r}")
    words = with_article(f"{colour} {name}" if colour else name)
    return f"{PHRASE[style]} {words}" if style else words


def caption(book: Book, i: int, generator: torch.Generator, colour: str | None = None) -> str:
    """One of the things to say of picture i: its name (75 %), an alias (15 %) or its kind (10 %), the style in nine of ten.

    colour: the name of the one it was turned to. An alias that names a colour itself is never said of a black or turned picture.
    """
    which, alias, styled, phrase = torch.rand(4, generator=generator).tolist()
    thing, style = book.things[book.thing[i]], int(book.style[i])
    plain = colour or book.styles[style] in book.colourless
    aliases = [words for words in thing.aliases if not (plain and COLOUR_WORDS & set(words.split()))] or [thing.name]
    words = thing.name if which < 0.75 else aliases[int(alias * len(aliases))] if which < 0.9 else thing.kind
    words = with_article(f"{colour} {words}" if colour else words)
    phrases = book.phrases[style][:1] * 2 + book.phrases[style]
    return f"{phrases[int(phrase * len(phrases))]} {words}" if styled < 0.9 else words


def words(text: str) -> list[str]:
    """The words of a prompt, as `vocabulary` lists them."""
    return re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower())


def vocabulary(book: Book) -> set[str]:
    """Every word that a caption can hold; another one means nothing to a network that has learned this book."""
    said = [text for thing in book.things for text in (thing.name, *thing.aliases, thing.kind)]
    said += [phrase for phrases in book.phrases for phrase in phrases]
    return {word for text in [*said, *book.colours, "a an"] for word in words(text)}


def render(rgba: Tensor, size: int, background: float = 1.0) -> Tensor:
    """On a plain background, scaled by areas: (B, 4, 64, 64) uint8 -> (B, 3, size, size) float32 in [-1, 1].

    The colours are weighed by their alpha before the mean is taken, so no rim gets dark. background: -1 black … 1 white
    """
    if not 1 <= size <= rgba.shape[-1]:
        raise ValueError(f"expected a size from 1 to {rgba.shape[-1]}, got {size}")
    x = rgba.float() / 255
    return F.adaptive_avg_pool2d(background + x[:, 3:] * (x[:, :3] * 2 - 1 - background), size)


def recolour(rgba: Tensor, from_hue: float, to_hue: float) -> Tensor:
    """Turn the hues within 60 degrees of from_hue by to_hue - from_hue; value and saturation stay (HSV).

    rgba: (..., 4, H, W) uint8, and so is the result
    """
    x = rgba[..., :3, :, :].float()
    value, chroma = x.amax(-3), x.amax(-3) - x.amin(-3)
    r, g, b = x.unbind(-3)
    side = torch.where(value == r, (g - b) % (6 * chroma.clamp(min=1)), torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma))
    hue = side / chroma.clamp(min=1) * 60
    near = ((hue - from_hue + 180) % 360 - 180).abs() < 60
    hue = torch.where(near, hue + to_hue - from_hue, hue)
    k = (torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + hue.unsqueeze(-3) / 60) % 6
    turned = value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(k, 4 - k).clamp(0, 1)
    return torch.cat([turned.round().to(torch.uint8), rgba[..., 3:, :, :]], -3)


def batch(
    book: Book, indices: Tensor, size: int, generator: torch.Generator, recolour_share: float = 0.1, shift: float = 0.04
) -> tuple[Tensor, list[str]]:
    """What a training step takes: pictures (B, 3, size, size) float32 in [-1, 1] and their captions.

    recolour_share: of the pictures with one hue, how many are turned to another (never to one that is held out)
    shift:          each is moved by up to this share of the side, in whole pixels of the result
    """
    turned = torch.rand(len(indices), generator=generator) < recolour_share
    rgba, captions = book.pictures[indices], []
    for row, i in enumerate(indices.tolist()):
        colour, hue = None, float(book.hue[i])
        if turned[row] and hue == hue:
            name = book.things[book.thing[i]].name
            free = [colour for colour in book.colours if (name, colour) not in book.held_out_colours]
            colour = free[int(torch.randint(len(free), (), generator=generator))]
            rgba[row] = recolour(rgba[row], hue, book.colours[colour])
        captions.append(caption(book, i, generator, colour))
    return shifted(render(rgba, size), round(shift * size), generator), captions


def shifted(x: Tensor, most: int, generator: torch.Generator, background: float = 1.0) -> Tensor:
    """Each picture moved by a whole number of pixels in -most … most, to the side and up or down. x: (B, C, H, W)"""
    B, _, H, W = x.shape
    y0, x0 = torch.randint(2 * most + 1, (2, B), generator=generator)
    rows = (torch.arange(H) + y0[:, None])[:, None, :, None]
    columns = (torch.arange(W) + x0[:, None])[:, None, None, :]
    wide = F.pad(x, (most, most, most, most), value=background)
    return wide[torch.arange(B)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]
