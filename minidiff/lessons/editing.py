"""Pictures of yours: drawn again from noise, repainted in part, enlarged."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minidiff import editing, files, pictures
from minidiff.lessons.common import (
    OfAny,
    OfEnlarging,
    at_least_one,
    beside,
    default_prompt,
    in_turn,
    of_prompts,
    opened,
    test_digits,
)
from minidiff.model import Model
from minidiff.results import Result, counted, labels_of
from minidiff.sampling import Noise
from minidiff.schedule import cosine, strided
from minidiff.shipped import PICTURES
from minidiff.walk import Walk
from minidiff.words import Words, one_text

STARTS = [1, 3, 5, 7, 10, 20]  # where edit begins: indices into the course's list of levels, 991, 961, … 1, 0
ARRAYS = (".safetensors", ".npz")


def edit(
    picture: str | Path | None = None,
    *,
    words: Words | None = None,
    n: int = 4,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """SDEdit: noise a picture to a level and walk back: from little noise a touch, from much another picture.

    One column for each start of the course, from much noise to little; its levels are those where as much signal ᾱ is
    left as in the course, whose schedule keeps more of it at the same share of T.

    picture: any PNG, JPEG or WebP: its centre; for digits inverted where its border is bright. Default: one of ours
    words:   what it is to be: a digit (default: no label) or a prompt
    n:       how many images
    Example: edit data/pictures/drawing-house.png --prompt "a pixel art drawing of a house"
    """
    at_least_one(n)
    model = opened(model, words)
    ours = PICTURES / ("tower.png" if of_prompts(model) else "drawing-three.png")
    x_0, words, name = _originals(ours if picture is None else picture, words, n, model)
    return _edited(model, x_0, words, name, walk)


def logo(
    letters: str = "mini",
    *,
    words: Words = "a pixel art drawing of a mushroom",
    n: int = 4,
    model: OfAny = "picturebook",
    walk: Walk = Walk(),
) -> Result:
    """Letters that become a picture of a prompt, as much as they are noised: `edit` of a word, one to four letters.

    letters: what is written
    words:   what it is to be
    n:       how many images
    Example: logo CS --prompt "a 3d render of a heart"
    """
    at_least_one(n)
    model = opened(model)
    if not 1 <= len(letters) <= 4:
        raise ValueError(f"expected one to four letters, got {letters!r}")
    size = 4 * model.shape[-1]
    paper, ink = ("white", (200, 30, 60)) if of_prompts(model) else ("black", "white")
    picture = Image.new("RGB", (size, size), paper)
    font = ImageFont.load_default(1.5 * size / (len(letters) + 1))
    ImageDraw.Draw(picture).text((size / 2, size / 2), letters, ink, font, anchor="mm", stroke_width=size // 64)
    low, high = model.pixels
    x_0 = pictures.fitted(picture, model.shape[1:], model.shape[0]) * (high - low) + low
    return _edited(model, x_0.expand(n, -1, -1, -1), in_turn(model.known(words), n), f"the letters {letters}", walk)


def _edited(model: Model, x_0: Tensor, words: list[str], name: str, walk: Walk) -> Result:
    """Each image (n, C, H, W), a word each, noised to the levels of the course's starts and walked back."""
    walk, n = model.settled(walk.default(sampler="ddpm") if of_prompts(model) else walk.default(steps=33)), len(x_0)
    if of_prompts(model) and walk.steps is None and walk.sampler != "dpm":
        levels = strided(991, 30)  # the course's own list
    else:
        levels = model.timesteps(walk.steps, walk.sampler)
    starts, columns = _starts(model, levels), []
    model.prepare([words], n, walk)
    for i in starts.values():

        def path(part: range, noise: Noise, levels: list[int] = levels[i:]) -> Iterator[tuple[int, Tensor]]:
            x, denoise = x_0[part].to(model.device), model.of_part([words], part, walk)
            return editing.sdedit(denoise, x, levels, model.alpha_bar, step=walk.step(), clip=model.clip, noise=noise)

        columns.append(model.draw(path, n, len(levels) - 1 - i, walk)[0])
    words = [word for word in words for _ in starts]
    x = model.enlarge(torch.stack(columns, 1).flatten(0, 1), [words], walk=walk).unflatten(0, (n, len(starts)))
    original = model.to_unit(x_0)
    arrays = {"original": original[:1], "levels": torch.tensor([levels[i] for i in starts.values()]).repeat(n)}
    names = ("original", *(f"{start}: t = {levels[i]}" for start, i in starts.items()))
    shown = torch.cat([F.interpolate(original, size=x.shape[-2:])[:, None], x], 1)
    labels = None if of_prompts(model) else labels_of([words], len(words))
    summary = f"{name}, drawn again from {counted(len(starts), 'level')}"
    return Result(summary, x.flatten(0, 1), labels, arrays, shown, names, walk=walk, prompts=words)


def inpaint(
    picture: str | Path | None = None,
    *,
    words: Words | None = None,
    n: int = 9,
    mask: str | None = None,
    rounds: int | None = None,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """Repaint a part of a digit or of a picture; the rest stays, noised to the level of each step.

    picture: any PNG, JPEG or WebP: its centre; for digits inverted where its border is bright. Default: test digits, or
             one of ours
    words:   what it is to be: a digit (of test digits: their own label) or a prompt
    n:       how many images
    mask:    what to repaint: x0,y0,x1,y1 in pixels of the network, or a picture, white there; default the lower half
    rounds:  how often each step is taken: 1 is plain (default for prompts), more heal the seam (RePaint; default for
             digits 4)
    Example: inpaint data/pictures/drawing-house.png --mask 4,4,24,14 --digit 8
    """
    at_least_one(n)
    if rounds is not None and not 1 <= rounds <= 1000:
        raise ValueError(f"rounds must be between 1 and 1000, got {rounds}")
    model = opened(model, words)
    walk = model.settled(walk.default(sampler="ddpm", steps=50))
    picture = PICTURES / "tower.png" if picture is None and of_prompts(model) else picture
    rounds = (1 if of_prompts(model) else 4) if rounds is None else rounds
    x_0, words, name = _originals(picture, words, n, model)
    H, W = model.shape[1:]
    m, levels = (
        pictures.mask(mask or f"0,{H // 2},{W},{H}", (H, W), of=picture),
        model.timesteps(walk.steps, walk.sampler),
    )
    model.prepare([words], n, walk)

    def path(part: range, noise: Noise) -> Iterator[tuple[int, Tensor]]:
        x, denoise = x_0[part].to(model.device), model.of_part([words], part, walk)
        how = {"rounds": rounds, "step": walk.step(), "clip": model.clip, "noise": noise}
        return editing.inpaint(denoise, x, m.to(model.device), levels, model.alpha_bar, **how)

    x, _ = model.draw(path, n, len(editing.resampled(levels, 1, rounds)) - 1, walk)
    original = model.to_unit(x_0)
    if model.large is not None:  # there, too, what is not repainted is the picture, now in the large size
        size = model.large.shape[1:]
        x_0, m = pictures.read(picture, size).expand(n, -1, -1, -1), F.interpolate(m, size=size)
        x, original = model.enlarge(x, [words], keep=(1 - m, x_0), walk=walk), model.large.to_unit(x_0)
    shown = beside(original, original.lerp(torch.tensor(0.5), m), x)
    labels = None if of_prompts(model) else labels_of([words], n)
    summary = f"{name}, {float(m.mean()):.0%} repainted, {counted(rounds, 'round')}"
    return Result(
        summary,
        x,
        labels,
        {"original": original, "mask": m},
        shown,
        ("original", "mask", "result"),
        walk=walk,
        settled={"rounds": rounds},
        prompts=words,
    )


def upscale(
    picture: str | Path | None = None,
    *,
    words: Words | None = None,
    n: int = 1,
    model: OfEnlarging = "DeepFloyd/IF-II-M-v1.0",
    walk: Walk = Walk(),
) -> Result:
    """Enlarge a picture with stage II.

    picture: any PNG, JPEG or WebP, its centre, or the arrays of another lesson (NAME.safetensors). Default: one of ours
    words:   what it is to be
    n:       how many images
    Example: upscale data/pictures/tower.png
    """
    at_least_one(n)
    model = opened(model)
    if model.low is None:
        raise ValueError(f"{model.name} is no stage II, which enlarges: name one, like DeepFloyd/IF-II-M-v1.0")
    picture = PICTURES / "tower.png" if picture is None else picture
    word = one_text(default_prompt(model) if words is None else words)
    walk = model.settled(walk)
    model.timesteps(walk.steps, walk.sampler)
    if Path(picture).suffix in ARRAYS:
        x = files.load_arrays(picture).get("images")
        if x is None or x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise ValueError(
                f"{picture} holds no images (N, 3, H, W) in [0, 1]: give a picture, or the arrays of a model of prompts"
            )
        if x.shape[-2] != x.shape[-1]:
            raise ValueError(f"{picture} holds images of {x.shape[-1]} x {x.shape[-2]} pixels, expected squares")
        x = x.float()
    else:
        x = pictures.read(picture, [side // 4 for side in model.shape[1:]], 3, 0, 1).expand(n, -1, -1, -1)
    large = model.enlarge(x, [[word]], walk=walk)
    shown = beside(F.interpolate(x, size=large.shape[-2:]), large)
    summary = f"{Path(picture).name}, from {x.shape[-1]} to {large.shape[-1]} pixels"
    names = ("before", "after")
    return Result(summary, large, shown=shown, columns=names, walk=walk, settled={"n": len(x)}, prompts=[word])


def _originals(picture: str | Path | None, words: Words | None, n: int, model: Model) -> tuple[Tensor, list[str], str]:
    """What to edit: the picture, n times, or n test digits with their own labels.

    (n, C, H, W), a word each, and a name for it.
    """
    if picture is None:
        x_0, labels = test_digits(model, n, words)
        return x_0, [str(int(c)) if model.words else "" for c in labels], counted(n, "test digit")
    asked = model.known(default_prompt(model) if words is None else words)
    x = model.picture(picture)
    upright = pictures.read(picture, model.shape[1:], model.shape[0], *model.pixels)
    name = Path(picture).name + ("" if torch.equal(x, upright) else " (inverted, as its border is bright)")
    return x.expand(n, -1, -1, -1), in_turn(asked, n), name


def _starts(model: Model, levels: list[int]) -> dict[int, int]:
    """Start of the course -> index into the levels.

    In a walk of few steps two starts may be one level: then it is the first.
    """
    course = cosine(1000)[[991 - 30 * i for i in STARTS]]
    nearest = (model.alpha_bar[levels[:-1]] - course[:, None]).abs().argmin(1).tolist()
    first = dict(zip(nearest[::-1], STARTS[::-1]))
    return {start: i for i, start in sorted(first.items())}
