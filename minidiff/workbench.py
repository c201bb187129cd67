"""The workbench: what the lessons of sample.py share. A model by its name, and a walk of many images (sheets.py has the pictures).

Every function here takes the command line, `args`, and may write into it what the model answers: scale, sampler, steps, batch.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minidiff import deepfloyd, editing, flags, hub, illusions, images, pictures, sampling
from minidiff.denoiser import Denoiser
from minidiff.drawing import Combine, Model, digits_model, load_prompted, only
from minidiff.machine import free_memory, gathered, shared
from minidiff.pretrained import Digits, load_digits
from minidiff.reader import load_reader, readings, real_digits, to_nearest
from minidiff.schedule import evenly_spaced, strided
from minidiff.scores import alignment

BEST_OF = {"anagram": 6, "hybrid": 12}  # of digits: what it takes until most pairs read both ways

Walk = Iterator[tuple[int, Tensor]]
Views = Sequence[illusions.View]
Kept = tuple[Tensor, Tensor]
Terms = Sequence[Sequence[str]]  # for each term of a formula its words: one an image, or one for all


@dataclass
class Result:
    """What a lesson made: a picture, and the arrays behind it. Frames where it was asked for an animation."""

    images: Tensor | None
    labels: Tensor | None
    picture: Image.Image | None
    says: str
    frames: list[Image.Image] = field(default_factory=list)
    more: dict[str, Tensor] = field(default_factory=dict)  # arrays besides images and labels


# ---------------------------------------------------------------------------------------------------------------- the model


def of_digits(args: argparse.Namespace) -> bool:
    """Whether --model is a network of the digits, and not a text model."""
    return args.model.startswith("mnist-") or args.model.endswith(".safetensors")


def load_u_net(args: argparse.Namespace, *tasks: str) -> Digits:
    model = load_digits(args.model, tasks)
    for each in (model, model.guide):
        if each is not None:
            each.unet.to(args.device, memory_format=torch.channels_last)
    return model


def load(args: argparse.Namespace, words: Sequence[str], *tasks: str, rows: int = 2) -> Model:
    """The model with the conditions for these words; and what it answers when it is not asked for: scale, sampler, steps, batch.

    tasks: the kinds of networks of digits that will do; rows: how many images a guided step asks the network about, for one that is drawn
    """
    digits, asked = of_digits(args), vars(args)
    for flag in ("prompt", "dtype", "bank", "encoder", "upscale", "upscale_steps", "noise_level") if digits else ("digit", "threshold"):
        if asked.get(flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} is for {'text models' if digits else 'digits'}, {args.model} is for {'digits' if digits else 'prompts'}: leave it out, or choose another --model")
    if not digits and args.lesson in ("digits", "guidance", "denoise"):
        raise ValueError(f"{args.lesson} is a lesson on digits, got --model {args.model}: name mnist-class, mnist-time or a file of train.py's, or use text for prompts")
    args.sampler = args.sampler or ("ddpm" if args.lesson == "inpaint" or (args.lesson == "edit" and not digits) else "dpm")
    args.batch = asked.get("batch") or (100 if digits else 4)
    if not digits:
        check_stages(args, rows)
        return load_text_model(args, args.model, words, rows)
    model = digits_model(load_u_net(args, *(tasks or ("class", "time"))))
    if len(model.conditions) > 1:
        for word in words:
            if word not in model.conditions or (not word and args.lesson in ("anagram", "hybrid")):
                raise ValueError(f"{args.model} knows the digits 0 to {len(model.conditions) - 2}, got {word!r}")
    elif asked.get("digit") and (args.lesson == "digits" or asked.get("picture")):
        raise ValueError(f"--digit wants a network with labels, {args.model} has none: leave it out, or choose another --model")
    elif args.scale is not None and model.guide is None:
        raise ValueError(f"--scale wants a network with labels or a guide, {args.model} has neither: leave --scale out, or choose another --model")
    args.steps = args.steps or {"edit": "33", "inpaint": "50", "anagram": "10", "hybrid": "10"}.get(args.lesson)
    args.scale = args.scale or {"guidance": [0, 1, 2, 3, 5, 10], "denoise": [1], "anagram": [3], "hybrid": [4]}.get(args.lesson, [model.scale])
    return model


def check_stages(args: argparse.Namespace, rows: int) -> None:
    """What can be known to be wrong before hours of work: raises ValueError for a stage of the other kind, steps that it does not take, no picture."""
    if of_digits(args):
        raise ValueError(f"{args.lesson} wants a text model, got --model {args.model}: name one like {flags.STAGE_II if args.lesson == 'upscale' else flags.STAGE_I}")
    stages = [("--steps", args.model, args.steps, args.lesson == "upscale")]
    if args.upscale and args.lesson != "upscale":
        stages.append(("--upscale-steps", args.upscale, args.upscale_steps, True))
    for flag, name, steps, second in stages:
        try:
            config = hub.read_json(name, "unet/config.json")
            if (config.get("in_channels") == 6) != second:
                kind, wanted = ("a stage I", f"a stage II, like {flags.STAGE_II}") if second else ("a stage II, which enlarges", f"a stage I, like {flags.STAGE_I}")
                raise ValueError(f"{name} is {kind}, wanted is {wanted}")
            if steps is not None and args.sampler == "dpm" and not (steps.isdecimal() and 1 <= int(steps) <= 900):
                raise ValueError(f"DPM-Solver++ takes 1 to 900 steps, got {flag} {steps!r}: a named respacing is for --sampler ddpm or ddim")
            if steps is not None and args.sampler != "dpm":
                deepfloyd.respaced(steps)
            if flag == "--upscale-steps":  # the other stage's plan is checked when it is loaded, which is next
                deepfloyd.memory_plan(config, dtype_of(args), 1 if args.sequential else rows).check(free_memory(args.device))
        except ValueError as error:
            raise ValueError(f"--upscale: {error}" if flag == "--upscale-steps" else str(error)) from None
    if vars(args).get("picture") and Path(args.picture).suffix not in flags.ARRAYS:
        pictures.read(args.picture, (8, 8))
    if vars(args).get("mask"):
        side = hub.read_json(args.model, "unet/config.json").get("sample_size") or 64
        pictures.mask(args.mask, (side, side), of=args.picture)


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    args.dtype = args.dtype or ("float32" if args.device.type in ("cpu", "mps") else "float16")
    return getattr(torch, args.dtype)


def large_size(args: argparse.Namespace) -> int:
    """Of the pictures that stage II makes, in pixels."""
    return hub.read_json(args.upscale, "unet/config.json").get("sample_size") or 256


def load_text_model(args: argparse.Namespace, name: str, words: Sequence[str], rows: int) -> Model:
    """Stage I or II with its prompts; `rows` as in `load`."""
    at_once = 1 if args.sequential else -(-rows // 2) if args.scale == [1] else rows
    args.bank, args.noise_level = args.bank or flags.BANK, 250 if args.noise_level is None else args.noise_level
    model = load_prompted(
        name, words, args.bank, encoder=args.encoder, rows=min(args.n, args.batch) * at_once, noise_level=args.noise_level + 1,
        dtype=dtype_of(args), device=args.device, say=print if args.rank == 0 else lambda line: None, progress=block_by_block,
    )  # fmt: skip
    args.scale = args.scale or [model.scale]
    return model


def block_by_block(blocks):
    return tqdm(blocks, desc="T5, block by block", leave=False)


def asked_for(args: argparse.Namespace) -> list[str]:
    """The words of --digit or --prompt; without them none, or what the course asks for."""
    if of_digits(args):
        return [str(c) for c in args.digit or [""]]
    return args.prompt or ["a high quality photo"]


def in_turn(args: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """A word for each of the n images."""
    return [words[k % len(words)] for k in range(args.n)]


def labels_of(args: argparse.Namespace, terms: Terms, n: int) -> Tensor | None:
    """Digits as numbers (n,), −1 for none; (n, V) of V terms. None for prompts."""
    if not of_digits(args):
        return None
    columns = [torch.tensor([int(word or -1) for word in words]).expand(n) for words in terms]
    return columns[0] if len(columns) == 1 else torch.stack(columns, 1)


# ---------------------------------------------------------------------------------------------------------------- the walk


def timesteps(args: argparse.Namespace, model: Model, start: int | None = None) -> list[int]:
    """The levels of the walk, from T or a lower start, as --steps asks."""
    if model.levels is not None:
        first = model.enlarged is None  # stage II walks as it always does
        if first and args.lesson == "edit" and args.steps is None and args.sampler != "dpm":
            return strided(991, 30)  # the course's own list
        return model.levels(args.steps or ("50" if first and args.lesson == "inpaint" else None), args.sampler == "dpm")
    start = start or len(model.alpha_bar) - 1
    try:
        steps = int(args.steps or min(flags.SAMPLERS[args.sampler] or start, start))
    except ValueError:
        raise ValueError(f"--steps wants a number for digits, got {args.steps!r}") from None
    if not 1 <= steps <= start:
        raise ValueError(f"--steps must be between 1 and {start}, the level where the walk begins, got {steps}")
    return evenly_spaced(start, steps)


def step_of(args: argparse.Namespace) -> sampling.Step:
    return {"dpm": sampling.dpm_solver(), "ddim": sampling.ddim(args.eta), "ddpm": sampling.ddpm_step, "ddpm-large": sampling.ddpm_large_step}[args.sampler]


def drawn(args: argparse.Namespace, model: Model, walk: Callable[[range, dict], Walk], steps: int, frames: list[Tensor] | None = None, seed: int | None = None) -> Tensor:
    """The last images of n walks, (n, C, H, W) in [0, 1] on the CPU; into `frames` go all of the first batch.

    walk: (part, how) -> the walk of the images in that part of range(n). `how` is the keywords of `sample`; in it each image has its own
          noise, so that image k is the same in batches of any size (--batch), and for any number of processes
    """
    parts, results = shared(args.n, args.batch), []
    with tqdm(total=sum(map(len, parts)) * steps, unit="image-step", disable=args.rank > 0, leave=False) as bar:
        for part in parts:
            noise = sampling.noise_per_image(sampling.seeded(args.seed if seed is None else seed, part.start, len(part)))
            for _, x in walk(part, {"alpha_bar": model.alpha_bar, "step": step_of(args), "clip": model.clip, "noise": noise}):
                if frames is not None and part.start == 0:
                    frames.append(images.to_unit(x, *model.pixels).cpu())
                bar.update(len(part))
            results.append(images.to_unit(x, *model.pixels))
    return gathered(results)


def from_noise(args: argparse.Namespace, model: Model, terms: Terms, combine: Combine, frames: list[Tensor] | None = None) -> Tensor:
    """n images, each begun as noise. Frames are kept for --gif alone."""
    levels = timesteps(args, model)

    def walk(part: range, how: dict) -> Walk:
        x = how["noise"](torch.empty(len(part), *model.shape, device=args.device))
        return sampling.sample(denoiser_of(args, model, terms, part, combine), x, levels, **how)

    return drawn(args, model, walk, len(levels) - 1, frames if args.gif else None)


def best(args: argparse.Namespace, draw: Callable[[], Tensor], seen_of: Callable[[Tensor], Tensor], terms: Terms, lifelike: int) -> tuple[Tensor, str]:
    """With --best-of K of digits, draws K times as many and keeps the n that read best, best first; else draws n. And a word about it.

    The score: the log-probability of the worst view (`alignment`, scores.py), less how far the least lifelike of the first `lifelike`
    views is from real digits, where 1 is as far as real digits are at most (`plausible`, reader.py).
    """
    of_many = args.best_of or (BEST_OF[args.lesson] if of_digits(args) else 1)
    args.best_of = of_many
    if of_many == 1:
        return draw(), ""
    if not of_digits(args):
        raise ValueError(f"--best-of wants pictures that our classifier can read, digits, got --model {args.model}: leave it out")
    n, args.n = args.n, args.n * of_many
    x = draw()
    seen, args.n, reader = seen_of(x), n, load_reader()
    real = real_digits(reader)
    features = reader.features(seen.flatten(0, 1)).view(*seen.shape[:2], -1)
    distance = to_nearest(features[:, :lifelike].flatten(0, 1), real.features).view(len(x), lifelike) / real.limit
    score = alignment(readings(reader.log_probs(features), torch.tensor([int(word) for [word] in terms]))) - distance.amax(1)
    return x[score.argsort(descending=True, stable=True)[:n]], f" of {of_many * n}"


def denoiser_of(args: argparse.Namespace, model: Model, terms: Terms, part: range, combine: Combine = only, lows: Sequence[Tensor] | None = None) -> Denoiser:
    """The guided formula for the images in this part of range(n)."""
    words = [words if len(words) == 1 else words[part.start : part.stop] for words in terms]
    return model.denoiser(words, combine, args.scale[0], args.sequential, lows)


def upscaled(args: argparse.Namespace, x: Tensor, terms: Terms, combine: Combine = only, views: Views = (), keep: Kept | None = None) -> Tensor:
    """With --upscale the images (N, 3, H, W) in [0, 1] enlarged by stage II, else as they are. The first model is no longer in memory."""
    return enlarged(args, lambda model: x, terms, combine, views, keep) if args.upscale else x


def enlarged(args: argparse.Namespace, low_of: Callable[[Model], Tensor], terms: Terms, combine: Combine = only, views: Views = (), keep: Kept | None = None) -> Tensor:
    """Stage II of the same formula; what a term sees through a view, it sees through it in the low resolution too.

    keep: where the mask is 1, the images stay: a mask and (N, 3, H, W) in [-1, 1]
    """
    if args.lesson != "upscale":  # of a lesson that goes on after this, stage II has its own steps, scale and batch
        args = argparse.Namespace(**vars(args))
        args.steps, args.scale, args.batch = args.upscale_steps, None, None
        args.encoder = args.encoder or args.model
    args.sampler, args.batch = args.sampler or "dpm", args.batch or 1
    model = load_text_model(args, args.upscale, [word for words in terms for word in words], 2 * len(terms))
    low_0 = 2 * low_of(model) - 1
    levels, args.n = timesteps(args, model), len(low_0)

    def walk(part: range, how: dict) -> Walk:
        x = how["noise"](torch.empty(len(part), *model.shape, device=args.device))
        low = model.enlarged(low_0[part].to(args.device), how["noise"])
        lows = [view.apply(low) for view in views] if views else [low] * len(terms)
        denoiser, constrain = denoiser_of(args, model, terms, part, combine, lows), None
        if keep is not None:
            mask, x_orig = (a.to(args.device) for a in keep)
            constrain = editing.hold(lambda x: mask * x, x_orig[part], model.alpha_bar, how["noise"])
        return sampling.sample(denoiser, x, levels, constrain=constrain, **how)

    return drawn(args, model, walk, len(levels) - 1, seed=args.seed + 1)  # other noise than that of stage I
