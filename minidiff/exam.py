"""An exam for a model of prompts: does it draw what it was told, also what nobody has drawn?

The questions: pairs of thing and style that were trained on, pairs that were held out, and held-out colours ("a blue
lemon"). The matcher that marks the answers has seen the pictures of all of them, the model that draws has not. Held-out
pictures may have twins that were trained on: flat of 3d, pixel of emoji. The marks are explained in marks.py.

The judge errs, too: what it says of the pictures of the book themselves is the most that a model can have (`CEILING`).
Some sets of emoji are flat drawings, and it takes four real emoji of ten for flat, 3d or another style.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff import matching, picturebook
from minidiff.judge import alignment, concealment
from minidiff.marks import HUNDRED, Asked, evaluate, said, summary
from minidiff.networks.matcher import read
from minidiff.picturebook import Book

CEILING = "real pictures have: thing 99 %, style 89 % (emoji 60, flat 79, others 93 to 100), colour 100 %"


def understood(prompts: Sequence[str], book: Book) -> list[Asked]:
    """Prompts -> what they ask for, by the phrases, names and aliases of the book, the phrase first.

    thing is None where a prompt names no thing of the book, or two.
    """
    phrases = [(read(phrase), name) for name, all_of in zip(book.styles, book.phrases) for phrase in all_of]
    phrases.sort(key=lambda said: -len(said[0]))  # "pixel art drawing" before "pixel art"
    names = {tuple(sorted(read(thing.name))): i for i, thing in enumerate(book.things)}
    aliases = {tuple(sorted(read(alias))): i for i, thing in enumerate(book.things) for alias in thing.aliases}
    both = aliases | names

    def one(words: list[str]) -> Asked:
        phrase, style = next((said for said in phrases if words[: len(said[0])] == said[0]), ([], None))
        words = sorted(words[len(phrase) :])
        colours = [colour for colour in book.colours if colour in words]
        # a red apple is an apple that is red, though it is an alias, too
        for table, which in ((names, [None]), (both, colours), (aliases, [None])):
            for colour in which:
                rest = tuple(word for word in words if word != colour)
                if rest in table:
                    return Asked(table[rest], style, colour)
        return Asked(None, style, None)

    return [one(read(prompt)) for prompt in prompts]


def questions(book: Book, count: int = 64, things: int = HUNDRED) -> dict[str, list[Asked]]:
    """What a model of the first `things` is asked: `count` of the pairs of thing and style that it was trained on,
    and all the pairs and colours of these things that were held out."""
    lesson = picturebook.lesson(book, things)
    trained = torch.stack([book.thing[lesson], book.style[lesson]], 1).unique(dim=0)
    held = book.held_out & (book.thing < things)
    pairs = torch.stack([book.thing[held], book.style[held]], 1).unique(dim=0)
    spread = trained[torch.linspace(0, len(trained) - 1, min(count, len(trained))).long()]
    colours = [(i, c) for i in range(things) for c in book.colours if (book.things[i].name, c) in book.held_out_colours]
    return {
        "seen pairs": [Asked(thing, book.styles[style], None) for thing, style in spread.tolist()],
        "held-out pairs": [Asked(thing, book.styles[style], None) for thing, style in pairs.tolist()],
        "held-out colours": [Asked(i, None, colour) for i, colour in colours],
    }


def score_prompts(model, n: int = 1, count: int = 64, things: int = HUNDRED, seed: int = 137, **sampling) -> str:
    """Ask a model all questions n times and mark what it draws: the numbers, in words.

    model:    has .sample(words, seed=..., **sampling) -> (N, 3, H, W) in [0, 1], as `minidiff.load` returns it
    count:    how many seen pairs; things: that the model was trained on
    """
    book, lines = picturebook.load(), []
    for group, asks in questions(book, count, things).items():
        asks = asks * n
        if asks:
            images = model.sample([said(book, *ask) for ask in asks], seed=seed, **sampling)
            lines.append(f"{len(asks):4d} {group}: {summary(evaluate(images, asks, book))}")
    return "\n".join([*lines, CEILING])


def score_arrays(arrays: dict[str, Tensor], prompts: Sequence[str]) -> str:
    """What a file of sample.py holds, in words: pictures in turn of these prompts, or views of illusions, one a prompt.

    arrays: `images` (N, 3, H, W) in [0, 1], or `views` (N, V, 3, H, W) with V prompts
    Raises ValueError for other arrays, and for no prompts.
    """
    views, images = arrays.get("views"), arrays.get("images")
    if not prompts or (views is None and images is None):
        raise ValueError(
            f"expected images or views and their prompts, got {', '.join(arrays)} and {len(prompts)} prompts"
        )
    if views is not None and views.ndim == 5 and views.shape[1] == len(prompts):
        S = matching.readings(views, prompts)
        aligned, concealed = float(alignment(S).mean()), float(concealment(S).mean())
        surely = float((alignment(S) > -math.log(2)).float().mean())
        return (
            f"{len(S)} illusions: alignment {aligned:.2f} (log-probability in the worst view), "
            f"concealment {concealed:.2f} (by chance {1 / len(prompts):.2f}, at most 1); "
            f"in {surely:.0%} every prompt is likelier than all other things together"
        )
    book, groups = picturebook.load(), {}
    pairs = {(int(t), book.styles[s]) for t, s in zip(book.thing[book.held_out], book.style[book.held_out])}
    for i, ask in enumerate(understood([prompts[i % len(prompts)] for i in range(len(images))], book)):
        held = (ask.thing, ask.style) in pairs
        held |= ask.thing is not None and (book.things[ask.thing].name, ask.colour) in book.held_out_colours
        name = "of other prompts, not marked" if ask.thing is None else "of held-out pairs" if held else "of seen pairs"
        groups.setdefault(name, []).append((i, ask))
    lines = []
    for name, those in groups.items():
        rows, asks = zip(*those)
        marks = "" if asks[0].thing is None else f": {summary(evaluate(images[list(rows)], asks, book))}"
        lines.append(f"{len(rows):4d} {name}{marks}")
    return "\n".join(lines)
