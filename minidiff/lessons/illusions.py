"""Illusions: one image that is two or three."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff import illusions
from minidiff.formula import Combine
from minidiff.judge import rank_digits
from minidiff.lessons.common import OfAny, at_least_one, of_prompts, opened
from minidiff.matching import rank_prompts
from minidiff.model import Model
from minidiff.results import Result, counted, labels_of
from minidiff.views import View, under_way, view
from minidiff.walk import Walk
from minidiff.words import Words, one_text, texts


def anagram(
    words: Words,
    *,
    view: Sequence[str | View] = ("rot180",),
    weights: list[float] | None = None,
    best_of: int | None = None,
    n: int | None = None,
    gif: bool = False,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """One image of several digits or prompts, each seen in another way: upright, turned, negated ... (Visual Anagrams).

    words:   digits or prompts, the first is seen upright
    view:    one for each word but the first: identity, vflip, hflip, rot90, rot180, rot270, transpose, negate, pixels,
             patches, jigsaw, skew, hinge, circle
    weights: one for each word, more for one that is lost; default equal
    best_of: draw so many times as many and keep those that read best, the best first (so image k depends on n); of
             digits 6, of picturebook 8
    n:       how many images; default 10 digits, 4 pictures
    gif:     also the last view, as an animation
    Example: anagram 4 7 --view rot180
    """
    words, model, A = texts(words), opened(model, words), _views(view, walk.seed)
    n = (4 if of_prompts(model) else 10) if n is None else n
    at_least_one(n)
    _check(words, A, weights, model)
    walk, terms = (
        model.settled(walk if of_prompts(model) else walk.default(steps=10, scale=3)),
        [[word] for word in words],
    )

    def combine(denoisers) -> illusions.Denoiser:
        return illusions.anagram(denoisers, A, weights)

    def seen_of(x: Tensor) -> Tensor:  # views are of pixels in [-1, 1]: a negative changes their sign
        return ((torch.stack([each.apply(2 * x - 1) for each in A], 1) + 1) / 2).clamp(0, 1)

    best_of = _default_best_of(model, 6) if best_of is None else best_of
    x, kept = _best_of(model, terms, n, walk, combine, best_of, seen_of, len(terms))
    seen = seen_of(model.enlarge(x, terms, combine, A, walk=walk))
    names = [words[0]] + [
        f"{word} {a.name}" if len(word) == 1 else f"{a.name}: {word}" for word, a in zip(words[1:], A[1:])
    ]
    moments = [(a, s) for a in A[1:] for s in torch.linspace(0, 1, 24).tolist()] if gif else []
    frames = [under_way(seen[:, 0], a, s, max(1, 112 // seen.shape[-1])) for a, s in moments]
    labels, summary = (
        None if of_prompts(model) else labels_of(terms, n),
        f"{counted(n, 'image')}{kept}, each {' and '.join(names)}",
    )
    return Result(
        summary,
        seen[:, 0],
        labels,
        {"views": seen},
        seen,
        names,
        across=5,
        frames=frames,
        walk=walk,
        settled={"n": n, "best_of": best_of},
        prompts=words,
    )


def hybrid(
    near: str,
    far: str,
    *,
    sigma: float | None = None,
    best_of: int | None = None,
    n: int | None = None,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """One image, two digits or prompts: one seen near by, one from afar (Factorized Diffusion).

    near:    the digit or prompt to be seen near by
    far:     the digit or prompt to be seen from afar
    sigma:   of the low pass, in pixels: more favours what is near; default 1.5 for digits, else 2 for 64 pixels
    best_of: draw so many times as many and keep those that read best, the best first (so image k depends on n); of
             digits 12, of picturebook 8
    n:       how many images; default 10 digits, 4 pictures
    Example: hybrid 3 8 --sigma 1.5
    """
    near, far = one_text(near), one_text(far)
    terms, model = [[near], [far]], opened(model, [near, far])
    n = (4 if of_prompts(model) else 10) if n is None else n
    at_least_one(n)
    walk = model.settled(walk if of_prompts(model) else walk.default(steps=10, scale=4))
    _all_words([word for [word] in terms], model)
    sigma = (model.shape[-1] / 32 if of_prompts(model) else 1.5) if sigma is None else sigma
    _check_sigma(sigma)
    low_pass = illusions.gaussian(sigma)

    def combined(low: illusions.Part) -> Combine:
        return lambda denoisers: illusions.hybrid(*denoisers[::-1], low)

    def seen_of(x: Tensor, low: illusions.Part = low_pass) -> Tensor:
        return torch.stack([x, low(x) if of_prompts(model) else contrast(low(x))], 1)

    best_of = _default_best_of(model, 12) if best_of is None else best_of
    x, kept = _best_of(model, terms, n, walk, combined(low_pass), best_of, seen_of, 1)
    wider = illusions.gaussian(sigma * _factor(model))  # a blur as much wider as the picture
    x = model.enlarge(x, terms, combined(wider), walk=walk)
    seen, small = seen_of(x, wider), F.interpolate(x, scale_factor=0.25, mode="area")
    afar = F.interpolate(small, size=x.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
    names = (f"near: {near}", f"far: {far}", "a quarter the size")
    shown = torch.stack([x, seen[:, 1], afar], 1)
    labels = None if of_prompts(model) else labels_of(terms, n)
    summary = f"{counted(n, 'image')}{kept}, each {near} near by and {far} from afar, sigma {sigma:g}"
    return Result(
        summary,
        x,
        labels,
        {"views": seen, "small": small},
        shown,
        names,
        walk=walk,
        settled={"n": n, "best_of": best_of, "sigma": sigma},
        prompts=[near, far],
    )


def triple(
    near: str,
    middle: str,
    far: str,
    *,
    sigma: list[float] | None = None,
    n: int = 4,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """One image, three digits or prompts at three distances (Factorized Diffusion).

    near:   seen near by
    middle: seen from a few steps away
    far:    seen from afar
    sigma:  of the fine and the coarse low pass, in pixels; default 1/32 and 1/16 of the width
    n:      how many images
    Example: triple "a red apple" "an owl" "a tree" --model picturebook
    """
    words = [one_text(word) for word in (near, middle, far)]
    model = opened(model, words)
    walk = model.settled(walk)
    sigma = [model.shape[-1] / 32, model.shape[-1] / 16] if sigma is None else sigma
    if len(sigma) != 2 or not 0 < sigma[0] < sigma[1]:
        raise ValueError(f"sigma must be two numbers, the fine one first, 0 < fine < coarse, got {list(sigma)}")
    for each in sigma:
        _check_sigma(each)

    def combined(factor: float) -> Combine:
        fine, coarse = (illusions.gaussian(each * factor) for each in sigma)
        return lambda denoisers: illusions.triple_hybrid(*denoisers[::-1], coarse, fine)

    def seen_of(x: Tensor, factor: float) -> list[Tensor]:
        return [x, *(illusions.gaussian(each * factor)(x) for each in sigma)]

    result = _parts(words, ("near", "middle", "far"), n, model, walk, combined, seen_of)
    return replace(result, settled={"sigma": list(sigma)})


def colour(grey: str, coloured: str, *, n: int = 4, model: OfAny = None, walk: Walk = Walk()) -> Result:
    """One image, two prompts: one in the greys, as in dim light, one in what the colours add (Factorized Diffusion).

    grey:     seen in dim light
    coloured: seen when the light goes on
    n:        how many images
    Example: colour "a snowy mountain" "a parrot" --model picturebook
    """
    words = [one_text(grey), one_text(coloured)]
    model = opened(model, words)
    if model.shape[0] == 1:
        raise ValueError(f"colour needs pictures with colours, {model.name} draws in grey: choose another model")

    def seen_of(x: Tensor, factor: float) -> list[Tensor]:
        return [illusions.grey(x), x]

    return _parts(words, ("in grey", "in colour"), n, model, model.settled(walk), lambda factor: _by_colour, seen_of)


def contrast(far: Tensor) -> Tensor:
    """From afar the eye gets used to less contrast: of the brightest pixel, 0.3 is black and 0.7 white.

    (N, C, H, W) in [0, 1].
    """
    return ((far / far.amax((1, 2, 3), keepdim=True).clamp(min=0.05) - 0.3) / 0.4).clamp(0, 1)


def _by_colour(denoisers) -> illusions.Denoiser:
    return illusions.colour_hybrid(*denoisers)


def _parts(
    words: list[str], names: Sequence[str], n: int, model: Model, walk: Walk, combined: Callable, seen_of: Callable
) -> Result:
    """Draw and show an image whose parts are of several words; the parts of the large image are a factor wider."""
    at_least_one(n)
    _all_words(words, model)
    terms = [[word] for word in words]
    x, _ = model.from_noise(terms, n, walk, combined(1.0))
    x = model.enlarge(x, terms, combined(_factor(model)), walk=walk)
    seen = torch.stack(seen_of(x, _factor(model)), 1)
    columns = [f"{name}: {word}" for name, word in zip(names, words)]
    labels = None if of_prompts(model) else labels_of(terms, n)
    summary = f"{counted(n, 'image')}, each {', '.join(columns)}"
    return Result(summary, x, labels, {"views": seen}, seen, columns, walk=walk, prompts=words)


def _factor(model: Model) -> float:
    """How much larger stage II makes a picture; 1 where there is none."""
    return 1.0 if model.large is None else model.large.shape[-1] / model.shape[-1]


def _views(names: Sequence[str | View], seed: int) -> list[View]:
    """The views by their names; the first word is seen as it is."""
    names = [names] if isinstance(names, str | View) else names
    return [view("identity"), *(name if isinstance(name, View) else view(name, seed) for name in names)]


def _check(words: list[str], A: list[View], weights: list[float] | None, model: Model) -> None:
    """Raises ValueError for what an anagram cannot do."""
    if len(words) < 2 or len(weights or words) != len(words):
        raise ValueError(
            f"an anagram needs at least two words, and as many weights, if any: "
            f"got {len(words)} words, {len(weights or words)} weights"
        )
    if weights is not None and not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise ValueError(f"weights must be numbers of at least 0, not all of them 0, got {list(weights)}")
    if len(A) != len(words):
        raise ValueError(
            f"{len(words)} words need {len(words) - 1} views (the first is seen as it is), got {len(A) - 1}"
        )
    if model.large is not None and "pixels" in [each.name for each in A]:
        raise ValueError(
            "the view 'pixels' shuffles a large picture otherwise: do without stage II, or choose another view"
        )
    if min(each.sign for each in A) < 0 and sum(model.pixels) != 0:
        raise ValueError(
            f"a negative needs pixels in [-1, 1], {model.name} has {list(model.pixels)}: choose another view or model"
        )
    _all_words(words, model)


def _check_sigma(sigma: float) -> None:
    if not 0.001 <= sigma <= 1000:
        raise ValueError(f"sigma must be between 0.001 and 1000 pixels, got {sigma}")


def _all_words(words: list[str], model: Model) -> None:
    model.known(words)
    if model.words and "" in words:
        raise ValueError(f"{model.name} knows the digits {model.words[0]} to {model.words[-1]}, got ''")


def _default_best_of(model: Model, digits: int) -> int:
    """So many times as many are drawn: of pictures that nobody can judge, no more than asked for."""
    return digits if not of_prompts(model) else 1 if model.vocabulary is None else 8


def _best_of(
    model: Model, terms: list[list[str]], n: int, walk: Walk, combine: Combine, best_of: int,
    seen_of: Callable[[Tensor], Tensor], lifelike: int,
) -> tuple[Tensor, str]:  # fmt: skip
    """n images (n, C, H, W), the best of best_of times as many, best first; and a word about it."""
    if not 1 <= best_of <= 1000:
        raise ValueError(f"best_of must be between 1 and 1000, got {best_of}")
    if best_of > 1 and not model.words and model.vocabulary is None:
        raise ValueError(f"best_of needs digits with labels, or picturebook's pictures, got {model.name}: leave it out")
    x, _ = model.from_noise(terms, n * best_of, walk, combine)
    if best_of == 1:
        return x, ""
    seen, words = seen_of(x), [word for [word] in terms]
    score = rank_prompts(seen, words) if of_prompts(model) else rank_digits(seen, [int(w) for w in words], lifelike)
    return x[score.argsort(descending=True, stable=True)[:n]], f" of {best_of * n}"
