"""Images from noise: digits of labels, pictures of prompts, and what guidance changes."""

import torch

from minidiff.lessons.common import PROMPT, at_least_one, in_turn, of_prompts, opened, opened_digits
from minidiff.model import OfAny, OfDigits, Words, only, texts
from minidiff.results import Result, counted, labels_of
from minidiff.walk import Walk


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
    """
    at_least_one(n)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    model = opened_digits(model, "digits")
    walk = model.settled(walk)
    asked = model.known(range(10) if words is None and model.words else words or "")
    labels = in_turn(asked, n)
    x, states = model.from_noise([labels], n, walk, only, watch=gif)
    x = x if threshold is None else torch.where(x < threshold, 0.0, x)
    guided = f", guidance {walk.scale:g}" if any(labels) or model.guide else ""
    summary = (
        f"{counted(n, 'digit')}, {walk.sampler}, {len(model.timesteps(walk.steps, walk.sampler)) - 1} steps{guided}"
    )
    across = len(asked) if words is not None and len(asked) > 1 else 10
    columns = tuple(asked) if any(labels) and len(asked) == across else ()
    return Result(
        summary, x, labels_of([labels], n), columns=columns, across=across, frames=states, walk=walk, prompts=labels
    )


def text(
    words: Words = PROMPT, *, n: int | None = None, gif: bool = False, model: OfAny = "picturebook", walk: Walk = Walk()
) -> Result:
    """Pictures of prompts.

    words: prompts, in turn
    n:     how many images; default one a prompt, at least 4
    gif:   also the walk as an animation
    """
    prompts = texts(words)
    n = max(4, len(prompts)) if n is None else n
    at_least_one(n)
    model = opened(model)
    walk = model.settled(walk)
    each = in_turn(model.known(prompts), n)
    x, states = model.from_noise([each], n, walk, only, watch=gif)
    x = model.enlarge(x, [each], walk=walk)
    summary = f"{counted(n, 'picture')} of {', '.join(map(repr, prompts))}, {walk.sampler}, guidance {walk.scale:g}"
    across = len(prompts) if len(prompts) > 1 else min(n, 5)
    labels = None if of_prompts(model) else labels_of([each], n)
    return Result(
        summary,
        x,
        labels,
        columns=tuple(in_turn(prompts, min(across, n))),
        across=across,
        frames=states,
        walk=walk,
        prompts=each,
    )


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
    """
    model = opened_digits(model, "guidance")
    if not model.words:
        raise ValueError(f"guidance needs a network with labels, {model.name} has none: choose another model")
    labels = model.known(words)
    walks = [model.settled(Walk(walk.sampler, walk.steps, walk.eta, each, seed=walk.seed)) for each in scale]
    rows = [model.from_noise([labels], len(labels), each)[0] for each in walks]
    summary = f"guidance scales {list(scale)}, one row each, from the same noise"
    names = {"columns": tuple(labels), "rows": tuple(f"scale {each:g}" for each in scale)}
    every = labels_of([labels], len(labels)).repeat(len(scale))
    return Result(summary, torch.cat(rows), every, across=len(labels), walk=walks[-1], **names)
