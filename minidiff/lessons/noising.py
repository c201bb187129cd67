"""Noise on real pictures, and ways to take it away: a blur, one step of a denoiser, a walk.

These are the assignment's A 1.1 - 1.4 and B 1.

Of digits: noise of strength sigma, z = x + σ ε, for the one-step denoiser. Of a picture: the forward process x_t of a
model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from minidiff import sampling
from minidiff.diffusion import add_noise, predict_x0
from minidiff.judge import psnr
from minidiff.lessons.common import (
    OfAny,
    at_least_one,
    beside,
    default_prompt,
    in_turn,
    of_prompts,
    opened,
    opened_picture,
    stacked_noise,
    test_digits,
)
from minidiff.model import Model
from minidiff.results import Result, counted
from minidiff.walk import Walk
from minidiff.words import Words

SIGMAS = (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
# σ of the noise -> of the blur: the best PSNR
BLUR = {0: 0.1, 0.2: 0.6, 0.4: 0.9, 0.5: 1.0, 0.6: 1.1, 0.8: 1.3, 1.0: 1.5}
BLURS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of pictures, in 64ths of the width: the best of them is shown


def noise(
    picture: str | None = None,
    *,
    words: Words | None = None,
    n: int | None = None,
    seed: int = 137,
    model: OfAny = None,
) -> Result:
    """What sigma 0 ... 1 does to a digit, or the levels of a model to a picture.

    picture: any PNG, JPEG or WebP; default test digits
    words:   which digits
    n:       how many images; default 10 digits, 1 picture
    seed:    of the noise, any whole number from 0
    Example: noise data/pictures/tower.png
    """
    if picture is not None or model is not None:
        model, x_0, levels, noisy = _forward(picture, n, seed, model, words)
        return _levels_result(model, x_0, noisy, levels, "x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps")
    _, labels, noisy = _sigmas(n, words, seed)
    return _sigma_result([z.clamp(0, 1) for z in noisy], labels, "z = x + sigma eps, shown cut to [0, 1]")


def blur(
    picture: str | None = None,
    *,
    words: Words | None = None,
    n: int | None = None,
    seed: int = 137,
    model: OfAny = None,
) -> Result:
    """What a Gaussian blur can do about it.

    picture: any PNG, JPEG or WebP; default test digits
    words:   which digits
    n:       how many images; default 10 digits, 1 picture
    seed:    of the noise, any whole number from 0
    Example: blur data/pictures/tower.png
    """
    if picture is not None or model is not None:
        model, x_0, levels, noisy = _forward(picture, n, seed, model, words)
        bright = [x_t / model.alpha_bar[t].sqrt() for t, x_t in zip(levels, noisy)]  # as bright as x_0 on average
        best = [max((_blurred(x, s) for s in BLURS), key=lambda y: _psnr(model, y, x_0)) for x in bright]
        return _levels_result(model, x_0, best, levels, "the best Gaussian blur of x_t")
    x, labels, noisy = _sigmas(n, words, seed)
    blurred = [gaussian_blur(z, 9, BLUR[sigma]).clamp(0, 1) for z, sigma in zip(noisy, SIGMAS)]
    return _sigma_result(blurred, labels, "a Gaussian blur of z. " + _each_psnr(blurred, x))


@torch.no_grad()
def onestep(
    picture: str | None = None,
    *,
    words: Words | None = None,
    n: int | None = None,
    batch: int | None = None,
    seed: int = 137,
    model: OfAny = None,
) -> Result:
    """What the one-step denoiser can do about it, at its own sigma; or one step of a model, at three levels.

    picture: any PNG, JPEG or WebP; default test digits
    words:   which digits, or what the picture shows
    n:       how many images; default 10 digits, 1 picture
    batch:   digits at a time; default 100
    seed:    of the noise, any whole number from 0
    Example: onestep data/pictures/tower.png
    """
    if model is not None or picture is None:
        model = opened(model or "mnist-denoiser")
    batch = Walk(batch=batch).batch  # says what is wrong with it
    if picture is not None or model.alpha_bar is not None:
        if batch is not None:
            raise ValueError(f"a picture takes one step at once, got batch {batch}: leave it out, or ask for fewer")
        model, x_0, levels, noisy = _forward(picture, n, seed, model)
        words = in_turn(model.known(default_prompt(model) if words is None else words), len(x_0))
        denoiser = model.denoiser(words, scale=1)
        clean = [predict_x0(x_t, denoiser(x_t, t)[0], model.alpha_bar[t]) for t, x_t in zip(levels, noisy)]
        return _levels_result(model, x_0, clean, levels, "one step from x_t to x_0")
    model = _denoiser(model)
    x, labels, _ = _sigmas(n, words, seed)
    z = x + 0.5 * _eps(x, seed)
    clean = torch.cat([model.unet(part.to(model.device)).clamp(0, 1).cpu() for part in z.split(batch or 100)])
    summary = f"the denoiser on {counted(len(x), 'test digit')} at sigma 0.5: PSNR {psnr(clean, x):.2f} dB"
    return Result(summary, clean, labels, shown=beside(x, z.clamp(0, 1), clean), columns=("x", "z", "D(z)"))


@torch.no_grad()
def ood(*, words: Words | None = None, n: int = 10, seed: int = 137, model: OfAny = "mnist-denoiser") -> Result:
    """... and at the seven sigmas, six of which it never saw.

    words: which digits
    n:     how many images
    seed:  of the noise, any whole number from 0
    Example: ood -n 4
    """
    model = _denoiser(model)
    x, labels, noisy = _sigmas(n, words, seed)
    clean = [model.unet(z.to(model.device)).clamp(0, 1).cpu() for z in noisy]
    return _sigma_result(clean, labels, "D(z); it was trained at sigma 0.5 alone. " + _each_psnr(clean, x))


@torch.no_grad()
def denoise(
    picture: str | None = None,
    *,
    words: Words | None = None,
    n: int | None = None,
    level: int | None = None,
    gif: bool = False,
    model: OfAny = None,
    walk: Walk = Walk(),
) -> Result:
    """Walk a noisy test digit, or a picture, back step by step, beside one step and a Gaussian blur.

    picture: any PNG, JPEG or WebP; default test digits
    words:   which digits, or what the picture shows
    n:       how many images; default 5 digits, 1 picture
    level:   the noise level to start from; default the middle one
    gif:     also the walk as an animation
    Example: denoise --digit 3 --level 200
    """
    model, x_0, words, labels = _to_denoise(picture, words, n, model)
    if walk.batch is not None:
        raise ValueError(
            f"denoise walks all its images at once, got batch {walk.batch}: leave it out, or ask for fewer"
        )
    walk = model.settled(walk.default(scale=1) if model.guided else walk)
    T, n = len(model.alpha_bar) - 1, len(x_0)
    t = T // 2 if level is None else level
    if not 1 <= t <= T:
        raise ValueError(f"level must be between 1 and T = {T}, got {t}")
    levels = [t, *(s for s in model.timesteps(walk.steps, walk.sampler, t) if s < t)]
    source = sampling.noise_per_image(sampling.seeded(walk.seed, 0, n))
    x_t = add_noise(x_0, model.alpha_bar[t], source(x_0))
    denoiser = model.formula([words], scale=walk.scale, one_by_one=walk.sequential)
    one_step = predict_x0(x_t, denoiser(x_t, t)[0], model.alpha_bar[t])
    how = {"step": walk.step(), "clip": model.clip, "noise": source}
    states = [(t, x_t), *sampling.sample(denoiser, x_t, levels, model.alpha_bar, **how)]
    shown = [*states[: -1 : max(1, len(states) // 6)], states[-1]]
    # as bright as x_0 on average; sigma 2.5 had the best PSNR on digits at level 150
    blurred = gaussian_blur(x_t / model.alpha_bar[t].sqrt(), 13, 2.5)
    unit = [model.to_unit(x) for x in (x_0, *(x for _, x in shown), one_step, blurred)]
    walked, one, blurry = (psnr(x, unit[0]) for x in unit[-3:])
    scores = f"PSNR: walk {walked:.2f} dB, one step {one:.2f}, blur {blurry:.2f}"
    summary = f"{counted(n, 'picture' if of_prompts(model) else 'test digit')} from level {t} of {T}. {scores}"
    names = ("original", *(f"t = {level}" for level, _ in shown), "one step", "blur")
    frames = [model.to_unit(x) for _, x in states] if gif else ()
    shown, settled = torch.stack(unit, 1), {"level": t}
    return Result(summary, unit[-3], labels, shown=shown, columns=names, frames=frames, walk=walk, settled=settled)


def _to_denoise(
    picture: str | None, words: Words | None, n: int | None, model: Model | str | None
) -> tuple[Model, Tensor, list[str], Tensor | None]:
    """A model, clean images (n, C, H, W) in its pixels, a word each, and the labels of digits."""
    if picture is None and (model is None or not of_prompts(opened(model))):
        model, n = opened(model or "mnist-time"), 5 if n is None else n
        at_least_one(n)
        model.timesteps()  # says so when it has no levels
        x_0, labels = test_digits(model, n, words)
        return model, x_0, [str(int(c)) if model.words else "" for c in labels], labels
    model, x_0 = opened_picture(picture, n, model)
    return model, x_0, in_turn(model.known(default_prompt(model) if words is None else words), len(x_0)), None


def _forward(
    picture: str | None, n: int | None, seed: int, model: Model | str | None, digits: Words | None = None
) -> tuple[Model, Tensor, list[int], list[Tensor]]:
    """A picture (n, C, H, W) and x_t of it at a quarter, half and three quarters of the levels, by the same noise."""
    if digits is not None:
        raise ValueError(f"words say which test digits, got {digits!r} for a picture: leave them out")
    model, x_0 = opened_picture(picture, n, model)
    T, eps = len(model.alpha_bar) - 1, _eps(x_0, seed)
    levels = [T // 4, T // 2, 3 * T // 4]
    return model, x_0, levels, [add_noise(x_0, model.alpha_bar[t], eps) for t in levels]


def _sigmas(n: int | None, words: Words | None, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """n test digits (n, 1, 28, 28) in [0, 1], their labels, and z for each σ."""
    n = 10 if n is None else n
    at_least_one(n)
    x, labels = test_digits(None, n, words)
    return x, labels, stacked_noise(x, SIGMAS, _eps(x, seed))


def _denoiser(model: Model | str | None) -> Model:
    model = opened(model or "mnist-denoiser")
    if model.unet is None or model.alpha_bar is not None:
        raise ValueError(
            f"expected the one-step denoiser, got {model.name}: name mnist-denoiser, or a file of `train.py denoiser`"
        )
    return model


def _eps(x: Tensor, seed: int) -> Tensor:
    return sampling.noise_per_image(sampling.seeded(Walk(seed=seed).seed, 0, len(x)))(x)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    sigma = sigma * x.shape[-1] / 64
    reach = min(2 * int(3 * sigma) + 3, 2 * (x.shape[-1] // 2) - 1)
    return gaussian_blur(x, reach, sigma)


def _psnr(model: Model, x: Tensor, x_0: Tensor) -> float:
    return psnr(model.to_unit(x), model.to_unit(x_0))


def _sigma_result(columns: Sequence[Tensor], labels: Tensor, summary: str) -> Result:
    x, names = beside(*columns), tuple(f"sigma {sigma:g}" for sigma in SIGMAS)
    return Result(summary, x.flatten(0, 1), labels.repeat_interleave(len(columns)), shown=x, columns=names)


def _levels_result(model: Model, x_0: Tensor, columns: Sequence[Tensor], levels: Sequence[int], what: str) -> Result:
    found = ", ".join(f"{_psnr(model, x, x_0):.1f}" for x in columns)
    shown = beside(*(model.to_unit(x) for x in (x_0, *columns)))
    names = ("original", *(f"t = {t}" for t in levels))
    return Result(f"{what}; PSNR in dB: {found}", shown[:, 1:].flatten(0, 1), shown=shown, columns=names)


def _each_psnr(columns: list[Tensor], x: Tensor) -> str:
    return "PSNR in dB: " + ", ".join(f"{psnr(column, x):.1f}" for column in columns)
