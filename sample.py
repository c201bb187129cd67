"""Draw with the shipped weights:  python sample.py [LESSON] [options]

digits     a grid of hand-written digits, class-conditioned and guided (the default lesson)
guidance   the same noise at several guidance scales, one row each
denoise    walk a noisy test digit back, step by step, beside one step and a Gaussian blur
noise      what sigma 0 ... 1 does to a digit
blur       what a Gaussian blur can do about it
onestep    what the one-step denoiser can do about it, at the sigma it was trained for
ood        ... and at the seven sigmas, six of which it never saw

`--out NAME.png` is a picture (its settings are in the file), `--out NAME.safetensors` or `.npz` the arrays `images`
(N, 1, 28, 28) in [0, 1] and `labels` (N,). `torchrun --nproc_per_node=N sample.py ...` draws the same images on N processes.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from minidiff import files, images, mnist, sampling
from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_noise, clip_to, predict_x0
from minidiff.machine import Parser, choose_device, start_processes
from minidiff.pretrained import Digits, load_digits
from minidiff.schedule import evenly_spaced

SIGMAS = [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
BLUR = {0: 0.1, 0.2: 0.6, 0.4: 0.9, 0.5: 1.0, 0.6: 1.1, 0.8: 1.3, 1.0: 1.5}  # sigma of the noise -> sigma of the blur, in pixels: the best PSNR of each
ARRAYS = (".safetensors", ".npz")
Walk = Iterator[tuple[int, Tensor]]


@dataclass
class Result:
    """What a lesson made: a picture, and the arrays behind it. Frames where it was asked for an animation."""

    images: Tensor
    labels: Tensor
    picture: Image.Image | None
    says: str
    frames: list[Image.Image] = field(default_factory=list)
    more: dict[str, Tensor] = field(default_factory=dict)  # arrays besides images and labels


# ---------------------------------------------------------------------------------------------------------------- lessons


def digits(args: argparse.Namespace) -> Result:
    model = load(args, "class", "time")
    labels = labels_of(args, model)
    steps, frames = len(timesteps(args, model)) - 1, []

    def walk(part: range, noise: sampling.Noise) -> Walk:
        c = labels[part].to(args.device) if model.classes else None
        return from_noise(args, model, model.denoiser(c, args.scale[0]), len(part), noise)

    x = images.to_unit(drawn(args, walk, steps, frames if args.gif else None), *model.pixels)
    if args.threshold:
        x[x < args.threshold] = 0
    frames = [sheet(args, images.to_unit(frame, *model.pixels)) for frame in frames]
    says = f"{args.n} digits, {args.sampler}, {steps} steps" + (f", guidance {args.scale[0]:g}" if model.classes else "")
    return Result(x, labels, sheet(args, x) if is_picture(args) else None, says, frames)


def guidance(args: argparse.Namespace) -> Result:
    model = load(args, "class")
    labels = torch.tensor(args.digit)
    rows = []
    for scale in tqdm(args.scale, leave=False):
        noise = sampling.noise_per_image(sampling.seeded(args.seed, 0, len(labels)))
        x = sampling.last(from_noise(args, model, model.denoiser(labels.to(args.device), scale), len(labels), noise))
        rows.append(images.to_unit(x, *model.pixels).cpu())
    picture = images.beside(images.grid(torch.cat(rows), len(labels)), [f"{scale:g}" for scale in args.scale])
    return Result(torch.cat(rows), labels.repeat(len(args.scale)), picture, f"guidance scales {args.scale}, one row each, from the same noise")


def denoise(args: argparse.Namespace) -> Result:
    """DDPM algebra on a real digit: jump to level t, then walk back, or jump back in one step, or blur."""
    model = load(args, "time", "class")
    x_0, labels = test_digits(args, model.pixels)
    t = start(args, model)
    generators = sampling.seeded(args.seed, 0, len(x_0))
    noise = sampling.noise_per_image(generators)
    alpha_bar_t = model.alpha_bar[t]
    x_t = add_noise(x_0, alpha_bar_t, noise(x_0))
    denoiser = model.denoiser(labels.to(args.device) if model.classes else None, args.scale[0])
    one_step = predict_x0(x_t, denoiser(x_t, t)[0], alpha_bar_t)
    clip = clip_to(*model.pixels)
    states = [(t, x_t), *sampling.sample(denoiser, x_t, timesteps(args, model), model.alpha_bar, step=step_of(args), clip=clip, noise=noise)]
    every = max(1, len(states) // 6)
    shown = [*states[:-1:every], states[-1]]
    blurred = gaussian_blur(x_t, 9, 1.5)
    columns = [x_0, *(x for _, x in shown), one_step, blurred]
    unit = [images.to_unit(x, *model.pixels).cpu() for x in columns]
    names = ["original", *(f"t = {level}" for level, _ in shown), "one step", "blur"]
    picture = images.captioned(images.grid(torch.stack(unit, 1).flatten(0, 1), len(columns), zoom=3), names)
    frames = [sheet(args, images.to_unit(x, *model.pixels)) for _, x in states]
    scores = f"PSNR: walk {psnr(unit[-3], unit[0]):.2f} dB, one step {psnr(unit[-2], unit[0]):.2f}, blur {psnr(unit[-1], unit[0]):.2f}"
    return Result(unit[-3], labels, picture, f"{len(x_0)} test digits from level {t} of {len(model.alpha_bar) - 1}. {scores}", frames)


def noise(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    noisy = [z.clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(noisy, labels, "z = x + sigma eps, shown cut to [0, 1]")


def blur(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    blurred = [gaussian_blur(z, 9, BLUR[sigma]).clamp(0, 1) for z, sigma in zip(noised(args, x, SIGMAS), SIGMAS)]
    return sigma_grid(blurred, labels, "a Gaussian blur of z. " + each_psnr(blurred, x))


def onestep(args: argparse.Namespace) -> Result:
    model = load(args, "denoiser")
    x, labels = test_digits(args)
    (z,) = noised(args, x, [0.5])
    clean = torch.cat([model.unet(part).clamp(0, 1).cpu() for part in z.split(args.batch)])
    picture = images.captioned(images.grid(torch.stack([x.cpu(), z.cpu(), clean], 1).flatten(0, 1).clamp(0, 1), 3, zoom=3), ["x", "z", "D(z)"]) if is_picture(args) else None
    return Result(clean, labels, picture, f"the denoiser on {len(x)} test digits at sigma 0.5: PSNR {psnr(clean, x.cpu()):.2f} dB")


def ood(args: argparse.Namespace) -> Result:
    model = load(args, "denoiser")
    x, labels = test_digits(args)
    clean = [model.unet(z).clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(clean, labels, "D(z); it was trained at sigma 0.5 alone. " + each_psnr(clean, x))


LESSONS = {f.__name__: f for f in (digits, guidance, denoise, noise, blur, onestep, ood)}
DEFAULT_STEPS = {"dpm": 20, "ddim": 50, "ddpm": None, "ddpm-large": None}  # None: every level, the full walk


# ---------------------------------------------------------------------------------------------------------------- their parts


def load(args: argparse.Namespace, *tasks: str) -> Digits:
    model = load_digits(args.model, tasks)
    model.unet.to(args.device, memory_format=torch.channels_last)
    if "scale" in args and args.scale is None:
        args.scale = [0, 1, 2, 3, 5, 10] if args.lesson == "guidance" else [model.scale]
    return model


def start(args: argparse.Namespace, model: Digits) -> int:
    """The level where the walk begins: T, or for a digit that is walked back --level."""
    T = len(model.alpha_bar) - 1
    if args.lesson != "denoise":
        return T
    level = T // 2 if args.level is None else args.level
    if not 1 <= level <= T:
        raise ValueError(f"--level must be between 1 and T = {T}, got {level}")
    return level


def timesteps(args: argparse.Namespace, model: Digits) -> list[int]:
    """The levels of the walk, as evenly spaced as --steps asks."""
    level = start(args, model)
    steps = args.steps if args.steps is not None else min(DEFAULT_STEPS[args.sampler] or level, level)
    if not 1 <= steps <= level:
        raise ValueError(f"--steps must be between 1 and {level}, the level where the walk begins, got {steps}")
    return evenly_spaced(level, steps)


def step_of(args: argparse.Namespace) -> sampling.Step:
    return {"dpm": sampling.dpm_solver(), "ddim": sampling.ddim(args.eta), "ddpm": sampling.ddpm_step, "ddpm-large": sampling.ddpm_large_step}[args.sampler]


def how(args: argparse.Namespace, model: Digits, noise: sampling.Noise) -> dict:
    """What every walk of a lesson is told besides its denoiser and its levels."""
    return {"step": step_of(args), "clip": clip_to(*model.pixels), "noise": noise}


def from_noise(args: argparse.Namespace, model: Digits, denoiser: Denoiser, count: int, noise: sampling.Noise) -> Walk:
    x = noise(torch.empty(count, 1, 28, 28, device=args.device))
    return sampling.sample(denoiser, x, timesteps(args, model), model.alpha_bar, **how(args, model, noise))


def drawn(args: argparse.Namespace, walk: Callable[[range, sampling.Noise], Walk], steps: int, frames: list[Tensor] | None = None) -> Tensor:
    """The last images of n walks, (n, 1, 28, 28) in the model's pixels on the CPU; into `frames` go all of the first batch.

    walk: (part, noise) -> the walk of the images in this part of range(n), each with a noise of its own: image k is the same in
          batches of any size (--batch), and for any number of processes that share the work
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(args.n)[rank * args.n // world : (rank + 1) * args.n // world]
    result = torch.empty(len(mine), 1, 28, 28)
    with tqdm(total=len(mine) * steps, unit="image-step", disable=rank > 0, leave=False) as bar:
        for first in range(mine.start, mine.stop, args.batch):
            part = range(first, min(first + args.batch, mine.stop))
            for _, x in walk(part, sampling.noise_per_image(sampling.seeded(args.seed, first, len(part)))):
                if frames is not None and first == 0:
                    frames.append(x.cpu())
                bar.update(len(part))
            result[first - mine.start : part.stop - mine.start] = x.cpu()
    if world == 1:
        return result
    parts = [None] * world
    dist.all_gather_object(parts, result)
    return torch.cat(parts)


def labels_of(args: argparse.Namespace, model: Digits) -> Tensor:
    """The label of each of the n images, --digit in turn; −1 for none."""
    digit = torch.tensor(args.digit if args.digit and model.classes else [-1])
    return digit[torch.arange(args.n) % len(digit)]


def test_digits(args: argparse.Namespace, pixels: tuple[float, float] = (0, 1)) -> tuple[Tensor, Tensor]:
    """The first n digits of the test set that are among --digit."""
    x, labels = mnist.load(train=False)
    chosen = torch.isin(labels, torch.tensor(args.digit)).nonzero()[: args.n, 0]
    return mnist.to_pixels(x[chosen], *pixels).to(args.device), labels[chosen]


def noised(args: argparse.Namespace, x: Tensor, sigmas: list[float]) -> list[Tensor]:
    """z = x + σ ε, the same ε for every σ."""
    eps = sampling.noise_per_image(sampling.seeded(args.seed, 0, len(x)))(x)
    return [x + sigma * eps for sigma in sigmas]


def sheet(args: argparse.Namespace, x: Tensor) -> Image.Image:
    return images.grid(x, len(args.digit) if len(args.digit) > 1 else 10)


def sigma_grid(columns: list[Tensor], labels: Tensor, says: str) -> Result:
    x = torch.stack(columns, 1).flatten(0, 1).cpu()
    picture = images.captioned(images.grid(x, len(columns), zoom=3), [f"sigma {sigma:g}" for sigma in SIGMAS])
    return Result(x, labels.repeat_interleave(len(columns)), picture, says)


def psnr(x: Tensor, wanted: Tensor) -> float:
    """Mean over images of −10 log10 of the mean squared error, pixels in [0, 1]."""
    return float((-10 * (x - wanted).square().flatten(1).mean(1).clamp(min=1e-10).log10()).mean())


def each_psnr(columns: list[Tensor], x: Tensor) -> str:
    return "PSNR in dB: " + ", ".join(f"{psnr(column, x):.1f}" for column in columns)


def is_picture(args: argparse.Namespace) -> bool:
    return args.out.suffix == ".png"


def save(args: argparse.Namespace, result: Result, settings: dict) -> list[Path]:
    written, arrays = [args.out], {"images": result.images, "labels": result.labels, **result.more}
    if is_picture(args):
        images.save_png(result.picture, args.out, settings)
    elif args.out.suffix == ".npz":
        with files.replaced(args.out) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: array.numpy() for name, array in arrays.items()}, settings=json.dumps(settings))
    else:
        files.save_tensors(arrays, args.out, settings)
    if args.gif:
        written.append(args.out.with_suffix(".gif"))
        images.save_gif(result.frames, written[-1])
    return written


# ---------------------------------------------------------------------------------------------------------------- arguments

FLAGS = {
    "-n": {"type": int, "help": "how many images"},
    "--digit": {"type": int, "nargs": "+", "default": list(range(10)), "help": "which digits"},
    "--model": {"help": "mnist-class, mnist-time, mnist-denoiser, or a file of train.py's"},
    "--sampler": {"default": "dpm", "help": "dpm (DPM-Solver++ 2M), ddim, ddpm (variance β̃), ddpm-large (β)"},
    "--steps": {"type": int, "help": "steps of the walk: dpm 20, ddim 50, ddpm all levels"},
    "--eta": {"type": float, "default": 0.0, "help": "DDIM's noise, 0 ... 1"},
    "--scale": {"type": float, "nargs": "+", "help": "guidance γ: 0 no label, 1 the label, more exaggerates"},
    "--level": {"type": int, "help": "the noise level to start from"},
    "--threshold": {"type": float, "nargs": "?", "const": 0.2, "default": 0.0, "help": "make pixels below this black (0.2)"},
    "--batch": {"type": int, "default": 100, "help": "images at a time"},
    "--gif": {"action": "store_true", "help": "also the walk, as an animation beside --out"},
    "--seed": {"type": int, "default": 137, "help": "of the noise"},
    "--device": {"help": "cpu, cuda, mps; default: the best there is"},
    "--out": {"type": Path, "help": "a .png, .safetensors or .npz; default out/LESSON.png"},
}
WALK = ["--sampler", "--steps", "--eta", "--scale"]
TAKES = {  # the flags of each lesson, besides --seed, --device and --out; and its defaults
    "digits": (["-n", "--digit", "--model", *WALK, "--threshold", "--batch", "--gif"], {"n": 40, "model": "mnist-class"}),
    "guidance": (["--digit", "--model", *WALK], {"model": "mnist-class", "n": 10}),
    "denoise": (["-n", "--digit", "--model", *WALK, "--level", "--gif"], {"n": 5, "model": "mnist-time"}),
    "noise": (["-n", "--digit"], {"n": 10}),
    "blur": (["-n", "--digit"], {"n": 10}),
    "onestep": (["-n", "--digit", "--model", "--batch"], {"n": 10, "model": "mnist-denoiser"}),
    "ood": (["-n", "--digit", "--model"], {"n": 10, "model": "mnist-denoiser"}),
}


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="sample.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lessons = parser.add_subparsers(dest="lesson", metavar="LESSON")
    for lesson, (flags, defaults) in TAKES.items():
        sub = lessons.add_parser(lesson)
        for flag in [*flags, "--seed", "--device", "--out"]:
            sub.add_argument(flag, **FLAGS[flag])
        sub.set_defaults(gif=False, **defaults)
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["digits", *argv]
    if argv[0] not in LESSONS and not argv[0].startswith("-"):
        raise ValueError(f"a lesson is one of {', '.join(LESSONS)}, got {argv[0]!r}")
    args = parser.parse_args(argv)
    check(args)
    args.out = args.out or Path("out") / f"{args.lesson}.png"
    if args.out.suffix not in (".png", *ARRAYS):
        raise ValueError(f"--out wants a name that ends in .png, .safetensors or .npz, got {args.out}")
    if is_picture(args) and args.n > 10_000:
        raise ValueError(f"a picture holds at most 10000 images, got -n {args.n}: write arrays with --out NAME.safetensors")
    args.device = choose_device(args.device)
    files.check_writable(args.out)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for a number out of its range."""
    values = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items() if value is not None}
    for name, low, high in (("n", 1, math.inf), ("batch", 1, math.inf), ("steps", 1, math.inf), ("seed", 0, math.inf), ("digit", 0, 9), ("threshold", 0, 1)):
        for value in values.get(name, []):
            if not low <= value <= high:
                raise ValueError(f"{'-' if name == 'n' else '--'}{name} wants {f'{low} to {high}' if high < math.inf else f'at least {low}'}, got {value}")
    for value in values.get("scale", []):
        if not math.isfinite(value):
            raise ValueError(f"--scale wants finite numbers, got {value}")
    if "sampler" in values and args.sampler not in DEFAULT_STEPS:
        raise ValueError(f"--sampler wants one of {', '.join(DEFAULT_STEPS)}, got {args.sampler!r}")


@torch.no_grad()
def main(argv: list[str]) -> int:
    started = time.monotonic()
    try:
        args = arguments(argv)
        settings = {k: str(v) if isinstance(v, Path | torch.device) else v for k, v in vars(args).items()}
        rank, _ = start_processes(args.device)
        result = LESSONS[args.lesson](args)
        if rank > 0:
            return 0
        written = save(args, result, settings)
    except (ValueError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    print(f"{result.says}\n{getattr(args, 'model', 'no model')}, seed {args.seed}, {args.device}, {time.monotonic() - started:.1f} s -> {' and '.join(map(str, written))}")
    if len(argv) == 0:
        print("next: python sample.py digits --digit 3 --gif, python sample.py guidance, python sample.py denoise")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
