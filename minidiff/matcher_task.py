"""What the matcher learns: which words belong to a picture of the book, also when it is drawn badly.

    L = CE(thing and style) + ½ CE(thing) + ½ CE(thing and colour) + 0.3 CE(kind)     logits: s · cos(picture, text)

Each picture is set against all that could be said of it: every thing in every style, every thing in every colour, every
thing without a style ("an owl"), every kind ("an animal"). So its negatives are the other things of its style and the
other styles of its thing, not whatever a batch happens to hold. A thing is called by its name or, a quarter of the
time, by an alias that no other thing has.

It learns from all pictures, also from those that are held out: it judges what another network makes of pairs which that
one has never seen, and the generator is never shown this network. Pictures are moved, blurred, noised, coarsened,
recoloured and covered in part, since a judge of drawings meets bad ones. Next: matching.py.
"""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff import picturebook, training
from minidiff.files import load_tensors, save_tensors
from minidiff.networks.matcher import NONE, UNKNOWN, Matcher, read
from minidiff.picturebook import Book
from minidiff.run import Task

COLOURED = {
    "red",
    "orange",
    "yellow",
    "green",
    "turquoise",
    "blue",
    "purple",
    "pink",
    "black",
    "white",
    "brown",
    "gold",
}
NEAR = 15  # degrees from a colour's hue that still are that colour


def matcher(settings: dict, folder: Path) -> Task:
    """The matcher, from the whole picture book."""
    book = picturebook.load()
    words = sorted({word for text in picturebook.vocabulary(book) for word in read(text)})
    net = Matcher(words, settings["widths"], settings["D"])
    said = Said(net, book)

    rare = 1 / book.style.bincount()[book.style]  # all styles equally often: nearly half of the pictures are emoji

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return rare.multinomial(len(rare), replacement=True, generator=generator)

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        device = next(net.parameters()).device
        x, colour = turned(book, chosen, settings["turned"], generator)
        x, ids = drawn_badly(x, settings["bad"], generator), said.again(generator)
        facts = torch.stack([book.thing[chosen], book.style[chosen], colour, said.kind[book.thing[chosen]]])
        return matcher_loss(*net(x[mine].to(device), ids.to(device)), facts[:, mine].to(device), said.counts)

    def write(net: Matcher, folder: Path, record: dict, last: bool) -> None:
        right = right_things(net.eval(), book, torch.arange(0, len(book.thing), 10))
        print(f"epoch {record['epoch']}: {right:.1%} of clean pictures have the right thing, of all in their style")
        tensors = {name: w.half() if w.is_floating_point() else w for name, w in net.state_dict().items()}
        known = {"words": words, "things": [thing.name for thing in book.things], "styles": sorted(frame(book))}
        save_tensors(tensors, folder / "picturebook-matcher.safetensors", record | known | {"right": right})

    steps = len(book.thing) // settings["batch"]
    return Task(net, steps, order, loss, write, lambda: load_tensors(settings["init"])[0])


def frame(book: Book) -> set[str]:
    """The words of the styles and the colours, which a prompt shares with its rivals (matching.py)."""
    return {word for phrases in book.phrases for phrase in phrases for word in read(phrase)} | {*book.colours}


@torch.no_grad()
def right_things(net: Matcher, book: Book, pictures: Tensor, spoil: Callable[[Tensor], Tensor] = lambda x: x) -> float:
    """The share of pictures (N,) of the book whose thing is the nearest of all, said in their style.

    spoil: is done to them before, (N, 3, 32, 32) in [-1, 1] -> the same
    """
    style, x = book.style[pictures], spoil(picturebook.render(book.pictures[pictures], 32))
    v = torch.cat([net.of_pictures(part.to(net.log_scale.device)) for part in x.split(500)])
    names, right = [thing.name for thing in book.things], 0
    for k, name in enumerate(book.styles):
        texts = net.of_texts([picturebook.prompt(name, thing) for thing in names])
        right += int(((v[style == k] @ texts.T).argmax(1).cpu() == book.thing[pictures][style == k]).sum())
    return right / len(pictures)


class Said:
    """All that can be said of the pictures, as rows of the matcher's table of words.

    counts: how many things, styles, colours and kinds there are; the rows of `again` are in this order
    kind:   (things,) int64, of each thing
    """

    def __init__(self, net: Matcher, book: Book):
        names = [[thing.name, *aliases] for thing, aliases in zip(book.things, own_aliases(book))]
        kinds = sorted({thing.kind for thing in book.things})
        self.kind = torch.tensor([kinds.index(thing.kind) for thing in book.things])
        said = [*names, *map(list, book.phrases), *([colour] for colour in book.colours), *([kind] for kind in kinds)]
        self.counts = len(names), len(book.phrases), len(book.colours), len(kinds)
        longest = max(len(read(text)) for texts in said for text in texts)
        self.others = torch.tensor([len(texts) - 1 for texts in said])
        self.table = torch.zeros(len(said), max(map(len, said)), longest, dtype=torch.int64)
        for row, texts in zip(self.table, said):
            row[: len(texts)] = net.ids(texts, longest)

    def again(self, generator: torch.Generator) -> Tensor:
        """Words for each, (P, L) int64: the first 75 %, another 25 %; to one in twenty an unknown word is added."""
        other, which, unknown = torch.rand(3, len(self.table), generator=generator)
        k = torch.where(other < 0.25, (1 + which * self.others).long(), 0).clamp(max=self.others)
        added = torch.where(unknown < 0.05, UNKNOWN, NONE)
        return torch.cat([self.table[torch.arange(len(k)), k], added[:, None]], 1)


def own_aliases(book: Book) -> list[list[str]]:
    """Of each thing the aliases that are no other's, and name no colour: a picture may be turned to another."""
    of_many = Counter(text for thing in book.things for text in {thing.name, *thing.aliases, thing.kind})

    def own(alias: str) -> bool:
        return of_many[alias] == 1 and not COLOURED & set(read(alias))

    return [[alias for alias in thing.aliases if own(alias)] for thing in book.things]


def turned(book: Book, chosen: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, 32, 32) in [-1, 1], some turned to another hue, and their colours (B,), −1 for none."""
    hues, rgba, hue = torch.tensor([*book.colours.values()]), book.pictures[chosen], book.hue[chosen]
    new = torch.randint(len(hues), hue.shape, generator=generator)
    turn = torch.rand(hue.shape, generator=generator) < share
    apart = ((hue[:, None] - hues + 180) % 360 - 180).abs()
    colour = torch.where(apart.amin(1) < NEAR, apart.argmin(1), -1)  # nan, no single hue, is near nothing
    rows = (turn & ~hue.isnan()).nonzero()[:, 0]
    if len(rows):
        rgba[rows] = picturebook.recolour(rgba[rows], hue[rows, None, None], hues[new[rows]][:, None, None])
    colour[rows] = new[rows]
    return picturebook.render(rgba, 32), colour


def drawn_badly(x: Tensor, bad: float, generator: torch.Generator) -> Tensor:
    """Moved, and most of them spoilt in several ways: what a judge of drawings should see through.

    x:   (B, 3, 32, 32) in [-1, 1]
    bad: how likely each way is
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(len(x), *shape, generator=generator)

    def some(share: float = bad) -> Tensor:
        return (draw() < share)[:, None, None, None]

    B, angle, shift = len(x), (2 * draw() - 1) * math.radians(6), 5 * draw(2) - 2.5
    whole = draw() < 0.5  # half of them by whole pixels and not at all turned: those stay sharp
    x = 1 + training.moved(x - 1, angle * ~whole, torch.where(whole[:, None], shift.round(), shift))
    mixed = torch.eye(3) + 0.12 * torch.randn(B, 3, 3, generator=generator)
    wrong = 1 + torch.einsum("bij,bjhw->bihw", mixed, x - 1) + 0.08 * (2 * draw(1, 1, 1) - 1)
    x = torch.where(some(), wrong, x)  # wrong colours, little contrast
    x = torch.where(some(), F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear"), x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(some(), x.lerp(blurred, draw(1, 1, 1)), x)
    x = torch.where(some() & _box(draw(4), 14), x.roll(1, 0), x)  # a part of another picture
    return x + torch.where(some(2 * bad), 0.6 * draw(1, 1, 1), 0) * torch.randn(x.shape, generator=generator)


def _box(u: Tensor, most: int) -> Tensor:
    """(B, 4) in [0, 1) -> (B, 1, 32, 32) bool: inside a box whose sides are up to `most` pixels."""
    pixel = torch.arange(32)
    (top, left), (high, wide) = u[:, :2].T * 32, 4 + u[:, 2:].T * (most - 4)
    rows = (top[:, None] <= pixel) & (pixel < (top + high)[:, None])
    columns = (left[:, None] <= pixel) & (pixel < (left + wide)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def matcher_loss(v: Tensor, sums: Tensor, scale: Tensor, facts: Tensor, counts: tuple[int, int, int, int]) -> Tensor:
    """The loss at the top of the file, 0-dim.

    v:      (B, D), unit vectors of pictures
    sums:   (P, D), of the words of things, styles, colours and kinds, so many of each as `counts` says
    facts:  (4, B) int64: thing, style, colour (−1 for none) and kind of each picture
    """
    with torch.autocast(v.device.type, enabled=False):
        (things, styles, colours, kinds), (thing, style, colour, kind) = sums.split(counts), facts

        def entropy(which: Tensor | slice, texts: Tensor, right: Tensor) -> Tensor:
            logits = scale * v[which] @ F.normalize(texts, dim=-1).flatten(0, -2).T
            return F.cross_entropy(logits, right[which], reduction="sum") / len(v)

        every, seen = slice(None), (colour >= 0).nonzero()[:, 0]
        loss = entropy(every, things + styles[:, None], style * counts[0] + thing)
        loss = loss + 0.5 * entropy(seen, things + colours[:, None], colour * counts[0] + thing)
        return loss + 0.5 * entropy(every, things, thing) + 0.3 * entropy(every, kinds, kind)
