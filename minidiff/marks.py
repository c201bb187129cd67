"""Marks for pictures of prompts: is it the thing, the style, the colour that was asked for, and is it a copy?

    thing      of a hundred things, said in the style asked for, is the right one the nearest?  (by matching.py)
    style      of eight styles of that thing, is it the right one?                              (by matching.py)
    colour     is most of the colour in the picture of the hue asked for?                       (by its pixels)
    distance   root mean square to the nearest picture that the model was trained on: a copy?   (32 x 32, in [0, 1])

3d and flat count as one style: often they are the same outline, shaded or not. A picture whose thing the matcher finds
may still be ugly. Next: exam.py, what is asked.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from minidiff import matching, picturebook
from minidiff.matching import Judge
from minidiff.networks.matcher import SIZE, at_the_door
from minidiff.picturebook import Book

HUNDRED = 100
AS_ONE = {"3d": "flat"}
COPY = 0.05  # root mean square in [0, 1]


class Asked(NamedTuple):
    """What a prompt asks for, None for what it leaves open. thing: into book.things"""

    thing: int | None
    style: str | None
    colour: str | None


def said(book: Book, thing: int, style: str | None, colour: str | None = None) -> str:
    """The canonical prompt."""
    return picturebook.prompt(style, book.things[thing].name, colour)


def evaluate(images: Tensor, questions: Sequence[Asked], book: Book, judge: Judge | None = None) -> dict[str, Tensor]:
    """What is right: images (N, 3, H, W) in [0, 1] and N questions that name a thing -> by name (N,) each.

    thing, style, colour: 1 right, 0 wrong, nan where it was not asked
    distance, nearest:    of the nearest training picture
    """
    if len(images) != len(questions) or any(question.thing is None for question in questions):
        got = f"{len(images)} pictures, {len(questions)} questions"
        raise ValueError(f"expected a question that names a thing for each picture, got {got}")
    judge = judge or matching.load_matcher()
    v = matching.seen(images, judge)
    marks = [(_thing(v[i], q, book, judge), _style(v[i], q, book, judge)) for i, q in enumerate(questions)]
    thing, style = torch.tensor(marks).T
    hue, hues = main_colours(images, book), [None, *book.colours]
    wanted = torch.tensor([hues.index(q.colour) - 1 for q in questions])
    colour = torch.where(wanted < 0, torch.nan, (hue == wanted).float())
    distance, nearest = to_nearest(images, book)
    return {"thing": thing, "style": style, "colour": colour, "distance": distance, "nearest": nearest}


def _thing(v: Tensor, question: Asked, book: Book, judge: Judge) -> float:
    """Of the first hundred things of the book (the one asked for in place of the last, if it is none). v: (D,)"""
    things = [*range(HUNDRED)] if question.thing < HUNDRED else [*range(HUNDRED - 1), question.thing]
    texts = [said(book, i, question.style, question.colour) for i in things[: len(book.things)]]
    return float(things[int((matching.meant(texts, judge) @ v).argmax())] == question.thing)


def _style(v: Tensor, question: Asked, book: Book, judge: Judge) -> float:
    if question.style is None:
        return float("nan")
    texts = [said(book, question.thing, style, question.colour) for style in book.styles]
    found = book.styles[int((matching.meant(texts, judge) @ v).argmax())]
    return float(AS_ONE.get(found, found) == AS_ONE.get(question.style, question.style))


def main_colours(images: Tensor, book: Book) -> Tensor:
    """The colour that most of the chroma has, into book.colours, −1 for a grey picture.

    (N, 3, H, W) in [0, 1] -> (N,) int64
    """
    value, least = images.amax(1), images.amin(1)
    chroma, (r, g, b) = value - least, images.unbind(1)
    sector = torch.where(value == r, g - b, torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma))
    hue = 60 * sector / chroma.clamp(min=1e-6)
    hues = torch.tensor([float(each) for each in book.colours.values()])
    nearest = ((hue[..., None] - hues + 180) % 360 - 180).abs().argmin(-1)
    weight = torch.where(chroma > 0.15, chroma, 0)
    sums = torch.stack([(weight * (nearest == k)).sum((1, 2)) for k in range(len(hues))], 1)
    return torch.where(sums.sum(1) > 0.005 * nearest[0].numel(), sums.argmax(1), -1)


def to_nearest(images: Tensor, book: Book, pictures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest training picture of each image (N, 3, H, W) in [0, 1], moved by up to a pixel.

    pictures: indices to look among; default all that are trained on, none of them turned to another colour
    Returns the distances (N,) and which pictures of the book they are (N,).
    """
    pictures = picturebook.lesson(book) if pictures is None else pictures
    known = (picturebook.render(book.pictures[pictures], SIZE).flatten(1) - 1) / 2  # white is 0: sums stay exact
    squares, x = known.square().sum(1), at_the_door(images.float()) - 1
    best, which = torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.int64)
    for down, right in product((-1, 0, 1), repeat=2):
        moved = x.roll((down, right), (2, 3)).flatten(1)
        distance, found = (moved.square().sum(1, keepdim=True) + squares - 2 * moved @ known.T).min(1)
        which = torch.where(distance < best, pictures[found], which)
        best = torch.minimum(distance, best)
    return (best.clamp(min=0) / known.shape[1]).sqrt(), which


def summary(marks: dict[str, Tensor]) -> str:
    """The marks of `evaluate` in words."""
    means = {name: float(marks[name].nanmean()) for name in ("thing", "style", "colour")}
    right = ", ".join(f"right {name} {mean:.0%}" for name, mean in means.items() if mean == mean)
    near, copies = float(marks["distance"].median()), float((marks["distance"] < COPY).float().mean())
    return f"{right}; nearest training picture {near:.3f} away (median), {copies:.0%} nearer than {COPY}"
