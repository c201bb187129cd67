"""Images from noise: digits of labels, pictures of prompts, and what guidance changes."""

from dataclasses import replace
from pathlib import Path

import torch

from minidiff.captions import PHRASE, prompt
from minidiff.formula import only
from minidiff.lessons.common import (
    OfAny,
    OfDigits,
    at_least_one,
    default_prompt,
    in_turn,
    of_prompts,
    opened,
    opened_digits,
)
from minidiff.results import Result, counted, labels_of
from minidiff.walk import Walk
from minidiff.words import Words, texts

SHEET = ("apple", "cat", "rocket", "mushroom", "panda", "sailboat")  # the columns of the sheet of `text`


def digits(
    *,
    words: Words | None = None,
    n: int = 40,
    threshold: float | None = None,
    gif: bool = False,
    model: OfDigits = "mnist-class",
    walk: Walk = Walk(),
) -> Result:
    """A grid of hand-written digits, class-conditioned and guided.

    words:     which digits, in turn; default all ten
    n:         how many images
    threshold: make pixels below this black
    gif:       also the walk as an animation
    Example: digits --digit 3 8 -n 20 --gif
    """
    at_least_one(n)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    model = opened_digits(model, "digits")
    walk = model.settled(walk)
    asked = model.known(words if words is not None else model.words or "")
    labels = in_turn(asked, n)
    x, states = model.from_noise([labels], n, walk, only, watch=gif)
    x = x if threshold is None else torch.where(x < threshold, 0.0, x)
    guided = f", guidance {walk.scale:g}" if any(labels) or model.guide else ""
    steps = len(model.timesteps(walk.steps, walk.sampler)) - 1
    summary = f"{counted(n, 'digit')}, {walk.name}, {counted(steps, 'step')}{guided}"
    across = len(asked) if words is not None and len(asked) > 1 else 10
    columns = tuple(asked) if any(labels) and len(asked) == across else ()
    return Result(
        summary, x, labels_of([labels], n), columns=columns, across=across, frames=states, walk=walk, prompts=labels
    )


def text(
    words: Words | None = None,
    *,
    prompts: str | None = None,
    n: int | None = None,
    gif: bool = False,
    model: OfAny = "picturebook",
    walk: Walk = Walk(),
) -> Result:
    """Pictures of prompts; without any, a sheet of what the small model knows, one row a style.

    words:   prompts, in turn
    prompts: a file with one prompt a line
    n:       how many images; default one a prompt, at least 4
    gif:     also the walk as an animation
    Example: text "a pixel art drawing of a red apple"
    """
    model, names = opened(model), {}
    if prompts is not None:
        words = [*(() if words is None else texts(words)), *_lines(prompts)]
    if words is None and model.vocabulary is not None:
        words = [prompt(style, thing) for style in PHRASE for thing in SHEET]
        names = {"columns": SHEET, "rows": tuple(PHRASE), "across": len(SHEET)}
    words = texts(default_prompt(model) if words is None else words)
    n = max(1 if prompts or names else 4, len(words)) if n is None else n
    at_least_one(n)
    walk, each = model.settled(walk), in_turn(model.known(words), n)
    x, states = model.from_noise([each], n, walk, only, watch=gif)
    x = model.enlarge(x, [each], walk=walk)
    guided = f", guidance {walk.scale:g}" if any(each) or model.guide else ""
    said = ", ".join(map(repr, words)) if len(words) <= 8 else f"{len(words)} prompts"
    summary = f"{counted(n, 'picture')} of {said}, {walk.name}{guided}"
    across = min(len(words) if len(words) > 1 else n, 5)
    names = names or {"columns": in_turn(words, n)[:across] if len(words) <= across else (), "across": across}
    labels = None if of_prompts(model) else labels_of([each], n)
    return Result(summary, x, labels, frames=states, walk=walk, settled={"n": n}, prompts=each, **names)


def _lines(path: str) -> list[str]:
    """The prompts of a file, one a line; empty lines are left out. Raises ValueError."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the prompts in {path} ({why}): expected a UTF-8 text file") from None
    if not any(lines):
        raise ValueError(f"{path} holds no prompts: write one a line")
    return [line for line in lines if line]


def guidance(
    *,
    words: Words = tuple("0123456789"),
    scale: list[float] = [0.0, 1.0, 2.0, 3.0, 5.0, 10.0],  # noqa: B006, read and never written
    model: OfDigits = "mnist-class",
    walk: Walk = Walk(),
) -> Result:
    """The same noise at several guidance scales, one row each.

    words: which digits
    scale: guidance γ of each row: 0 ignores the label, 1 is the conditional model, more exaggerates
    Example: guidance --digit 2 3 5 --scale 0 1 4
    """
    model = opened_digits(model, "guidance")
    if not model.words:
        raise ValueError(f"guidance needs a network with labels, {model.name} has none: choose another model")
    if len(scale) == 0:
        raise ValueError("guidance needs at least one scale, got none")
    labels = model.known(words)
    walks = [model.settled(replace(walk, scale=each)) for each in scale]
    rows = [model.from_noise([labels], len(labels), each)[0] for each in walks]
    summary = f"guidance scales {list(scale)}, one row each, from the same noise"
    names = {"columns": tuple(labels), "rows": tuple(f"scale {each:g}" for each in scale)}
    every = labels_of([labels], len(labels)).repeat(len(scale))
    settled = {"scale": list(scale)}
    return Result(summary, torch.cat(rows), every, across=len(labels), walk=walks[-1], settled=settled, **names)
