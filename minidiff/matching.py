"""Judging prompts: is this a picture of what the words say?

The matcher (networks/matcher.py) gives a picture and a text the cosine of an angle. How large a cosine
is large depends on the words, so a prompt is set against its rivals: every thing of the picture book, said in the same
words of style and colour.

    cosines     cos(v, p)                                                v of a picture, p of a prompt
    readings    S_ij = log e^(s cos(v_i, p_j)) / Σ_r e^(s cos(v_i, r))    r: p_j and its rivals; s: the scale learned
    rank        min_i S_ii + ½ concealment(S)                            of an illusion: the worst view, and a little
                                                                         for each prompt's being seen in its view alone

S is a log-probability, as the reader of digits has it, so judge.py's formulas hold for both. A thing that is not in the
book is set against all that are; two things in one prompt are one bag of words. Next: exam.py.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minidiff.files import load_tensors
from minidiff.judge import alignment, concealment
from minidiff.networks.matcher import Matcher, read
from minidiff.shipped import WEIGHTS

AT_A_TIME = 500  # pictures through the network
LITTLE = 0.5  # what a step from full to no concealment is worth, in nats of the worst view


class Judge(NamedTuple):
    """A matcher, and what it knows of the picture book.

    things: the names of all things
    styles: the words of the styles' phrases and of the colours: what a prompt and its rivals have in common
    """

    net: Matcher
    things: tuple[str, ...]
    styles: frozenset[str]


def load_matcher(name: str | Path = "picturebook-matcher") -> Judge:
    """The shipped matcher, or that of a file of train.py's.

    Raises ValueError when there is no such file, or it is damaged, of another kind, or its numbers are not finite.
    """
    path = Path(name) if Path(name).suffix == ".safetensors" else WEIGHTS / f"{name}.safetensors"
    return _loaded(path.resolve())


@cache
def _loaded(path: Path) -> Judge:
    tensors, record = load_tensors(path)
    if record.get("task") != "matcher":
        raise ValueError(f"{path} holds a network of kind {record.get('task')!r}, expected a matcher")
    try:
        net = Matcher(record["words"], record["widths"], record["D"])
        net.load_state_dict(tensors)
        judge = Judge(net.eval().requires_grad_(False), tuple(record["things"]), frozenset(record["styles"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        says = f"{path} does not hold the matcher that its settings describe ({' '.join(str(error).split())[:200]})"
        raise ValueError(f"{says}: download it again") from None
    if not all(bool(w.isfinite().all()) for w in net.state_dict().values()):
        raise ValueError(f"{path} holds numbers that are not finite: train it again")
    return judge._replace(net=net.to(memory_format=torch.channels_last))


@torch.no_grad()
def seen(images: Tensor, judge: Judge | None = None) -> Tensor:
    """What the matcher sees in images (N, 3, H, W) in [0, 1] of any size: (N, D), unit vectors.

    Raises ValueError for another shape or range, or numbers that are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"expected pictures in colour (N, 3, H, W), got {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}: (x + 1) / 2 maps [-1, 1] to it")
    net = (judge or load_matcher()).net
    return torch.cat([net.of_pictures(2 * part.float().cpu() - 1) for part in images.split(AT_A_TIME)])


@torch.no_grad()
def meant(prompts: Sequence[str], judge: Judge | None = None) -> Tensor:
    """What the matcher reads in P prompts: (P, D), unit vectors.

    Raises ValueError for no prompts, and for one without words.
    """
    for prompt in [*prompts] or [""]:
        if not read(prompt):
            raise ValueError(f"expected prompts that name something to see, got {prompt!r}")
    return (judge or load_matcher()).net.of_texts(prompts)


def cosines(images: Tensor, prompts: Sequence[str], judge: Judge | None = None) -> Tensor:
    """How well images (N, 3, H, W) in [0, 1] and P prompts go together: (N, P) in [-1, 1]. Raises ValueError."""
    return seen(images, judge) @ meant(prompts, judge).T


def rivals(prompt: str, judge: Judge) -> list[str]:
    """What else it could be: "pixel art of a red apple" -> every other thing as "pixel art red ..."."""
    words = read(prompt)
    shared = [word for word in words if word in judge.styles]
    if len(shared) == len(words):  # "an orange" is a thing and no colour
        shared = shared[:-1]
    texts = {thing: " ".join([*shared, thing]) for thing in judge.things}
    return [text for text in texts.values() if sorted(read(text)) != sorted(words)]


@torch.no_grad()
def readings(views: Tensor, prompts: Sequence[str], judge: Judge | None = None) -> Tensor:
    """S of judge.py for illusions of V prompts: views (N, V, 3, H, W) in [0, 1] -> (N, V, V), at most 0.

    Raises ValueError.
    """
    if views.ndim != 5 or views.shape[1] != len(prompts):
        wanted = f"views (N, V, 3, H, W), one for each of {len(prompts)} prompts"
        raise ValueError(f"expected {wanted}, got {tuple(views.shape)}")
    judge = judge or load_matcher()
    v, p, scale = seen(views.flatten(0, 1), judge), meant(prompts, judge), float(judge.net.scale)
    columns = []
    for prompt, own in zip(prompts, p):
        others = judge.net.of_texts(rivals(prompt, judge))
        columns.append((scale * v @ torch.cat([own[None], others]).T).log_softmax(1)[:, 0])
    return torch.stack(columns, 1).unflatten(0, views.shape[:2])


def rank_prompts(views: Tensor, prompts: Sequence[str], judge: Judge | None = None) -> Tensor:
    """A score for each illusion, higher is better: views (N, V, 3, H, W) in [0, 1], V prompts -> (N,).

    Raises ValueError.
    """
    S = readings(views, prompts, judge)
    return alignment(S) + LITTLE * concealment(S)
