"""Noise on real pictures, and ways to take it away: a blur, one step of a denoiser, a walk."""

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from minidiff import sampling
from minidiff.diffusion import add_noise, predict_x0
from minidiff.judge import psnr
from minidiff.lessons.common import at_least_one, beside, opened, opened_digits, stacked_noise, test_digits
from minidiff.model import Model, OfDigits, Words
from minidiff.results import Result, counted
from minidiff.walk import Walk

SIGMAS = [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
BLUR = {
    0: 0.1,
    0.2: 0.6,
    0.4: 0.9,
    0.5: 1.0,
    0.6: 1.1,
    0.8: 1.3,
    1.0: 1.5,
}  # σ of the noise -> of the blur, in pixels: about the best PSNR


def noise(*, words: Words | None = None, n: int = 10, seed: int = 137) -> Result:
    """What sigma 0 ... 1 does to a digit.

    words: which digits
    n:     how many images
    seed:  of the noise, any whole number from 0
    """
    x, labels = _test_digits(n, words)
    noisy = [z.clamp(0, 1) for z in stacked_noise(x, SIGMAS, _eps(x, seed))]
    return _sigma_grid(noisy, labels, "z = x + sigma eps, shown cut to [0, 1]")


def blur(*, words: Words | None = None, n: int = 10, seed: int = 137) -> Result:
    """What a Gaussian blur can do about it.

    words: which digits
    n:     how many images
    seed:  of the noise, any whole number from 0
    """
    x, labels = _test_digits(n, words)
    noisy = stacked_noise(x, SIGMAS, _eps(x, seed))
    blurred = [gaussian_blur(z, 9, BLUR[sigma]).clamp(0, 1) for z, sigma in zip(noisy, SIGMAS)]
    return _sigma_grid(blurred, labels, "a Gaussian blur of z. " + _each_psnr(blurred, x))


def onestep(
    *, words: Words | None = None, n: int = 10, batch: int = 100, seed: int = 137, model: OfDigits = "mnist-denoiser"
) -> Result:
    """What the one-step denoiser can do about it, at the sigma it was trained for.

    words: which digits
    n:     how many images
    batch: images at a time
    seed:  of the noise, any whole number from 0
    """
    model = _denoiser(model)
    x, labels = _test_digits(n, words)
    z = x + 0.5 * _eps(x, seed)
    clean = torch.cat([model.unet(part.to(model.device)).clamp(0, 1).cpu() for part in z.split(batch)])
    summary = f"the denoiser on {counted(len(x), 'test digit')} at sigma 0.5: PSNR {psnr(clean, x):.2f} dB"
    return Result(summary, clean, labels, shown=beside(x, z.clamp(0, 1), clean), columns=("x", "z", "D(z)"))


def ood(*, words: Words | None = None, n: int = 10, seed: int = 137, model: OfDigits = "mnist-denoiser") -> Result:
    """... and at the seven sigmas, six of which it never saw.

    words: which digits
    n:     how many images
    seed:  of the noise, any whole number from 0
    """
    model = _denoiser(model)
    x, labels = _test_digits(n, words)
    clean = [model.unet(z.to(model.device)).clamp(0, 1).cpu() for z in stacked_noise(x, SIGMAS, _eps(x, seed))]
    return _sigma_grid(clean, labels, "D(z); it was trained at sigma 0.5 alone. " + _each_psnr(clean, x))


def denoise(
    *,
    words: Words | None = None,
    n: int = 5,
    level: int | None = None,
    gif: bool = False,
    model: OfDigits = "mnist-time",
    walk: Walk = Walk(),
) -> Result:
    """Walk a noisy test digit back, step by step, beside one step and a Gaussian blur.

    words: which digits
    n:     how many images
    level: the noise level to start from; default the middle one
    gif:   also the walk as an animation
    """
    at_least_one(n)
    model = opened_digits(model, "denoise")
    if model.alpha_bar is None:
        model.timesteps()  # says why not
    walk = model.settled(walk.default(scale=1) if model.words or model.guide else walk)
    x_0, labels = test_digits(model, n, words)
    T = len(model.alpha_bar) - 1
    t = T // 2 if level is None else level
    if not 1 <= t <= T:
        raise ValueError(f"level must be between 1 and T = {T}, got {t}")
    levels, source = (
        model.timesteps(walk.steps, walk.sampler, t),
        sampling.noise_per_image(sampling.seeded(walk.seed, 0, n)),
    )
    alpha_bar_t = model.alpha_bar[t]
    x_t = add_noise(x_0, alpha_bar_t, source(x_0))
    denoiser = model.denoiser([str(int(c)) if model.words else "" for c in labels], walk.scale)
    one_step = predict_x0(x_t, denoiser(x_t, t)[0], alpha_bar_t)
    how = {"step": walk.step(), "clip": model.clip, "noise": source}
    states = [(t, x_t), *sampling.sample(denoiser, x_t, levels, model.alpha_bar, **how)]
    shown = [*states[: -1 : max(1, len(states) // 6)], states[-1]]
    blurred = gaussian_blur(
        x_t / alpha_bar_t.sqrt(), 13, 2.5
    )  # as bright as x_0 on average; sigma 2.5 had the best PSNR at level 150
    unit = [model.to_unit(x) for x in (x_0, *(x for _, x in shown), one_step, blurred)]
    walked, one, blurry = (psnr(x, unit[0]) for x in unit[-3:])
    scores = f"PSNR: walk {walked:.2f} dB, one step {one:.2f}, blur {blurry:.2f}"
    summary = f"{counted(n, 'test digit')} from level {t} of {T}. {scores}"
    names = ("original", *(f"t = {level}" for level, _ in shown), "one step", "blur")
    frames = [model.to_unit(x) for _, x in states] if gif else ()
    return Result(summary, unit[-3], labels, shown=torch.stack(unit, 1), columns=names, frames=frames, walk=walk)


def _test_digits(n: int, words: Words | None) -> tuple[Tensor, Tensor]:
    at_least_one(n)
    return test_digits(None, n, words)


def _denoiser(model: Model | str) -> Model:
    model = opened(model)
    if model.unet is None or model.alpha_bar is not None:
        raise ValueError(
            f"expected the one-step denoiser, got {model.name}: name mnist-denoiser, or a file of `train.py denoiser`"
        )
    return model


def _eps(x: Tensor, seed: int) -> Tensor:
    return sampling.noise_per_image(sampling.seeded(seed, 0, len(x)))(x)


def _sigma_grid(columns: list[Tensor], labels: Tensor, summary: str) -> Result:
    x, names = beside(*columns), tuple(f"sigma {sigma:g}" for sigma in SIGMAS)
    return Result(summary, x.flatten(0, 1), labels.repeat_interleave(len(columns)), shown=x, columns=names)


def _each_psnr(columns: list[Tensor], x: Tensor) -> str:
    return "PSNR in dB: " + ", ".join(f"{psnr(column, x):.1f}" for column in columns)
