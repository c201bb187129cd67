"""Draw with the shipped weights:  python sample.py [LESSON] [options]

digits     a grid of hand-written digits, class-conditioned and guided (the default lesson)
guidance   the same noise at several guidance scales, one row each
denoise    walk a noisy test digit back, step by step, beside one step and a Gaussian blur
edit       noise a picture of yours and walk it back: from little noise a touch, from much another picture
inpaint    repaint a part of a digit or of a picture
anagram    one image, two or more digits: seen upright, and turned, mirrored, negated, shuffled ...
hybrid     one image, two digits: one seen near by, one from afar
noise      what sigma 0 ... 1 does to a digit
blur       what a Gaussian blur can do about it
onestep    what the one-step denoiser can do about it, at the sigma it was trained for
ood        ... and at the seven sigmas, six of which it never saw

`--out NAME.png` is a picture (its settings are in the file), `--out NAME.safetensors` or `.npz` the arrays `images`
(N, 1, 28, 28) in [0, 1] and `labels` (N,), −1 for none; or of an anagram or a hybrid (N, V), a label for each reading. Besides,
edit has `original` and the `levels` (N,) it began at, inpaint `original` and `mask` (1 is repainted), anagram `views`
(N, V, 1, 28, 28), and hybrid `small`. `torchrun --nproc_per_node=N sample.py ...` draws the same images on N processes.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from minidiff import editing, files, illusions, images, mnist, pictures, sampling
from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_noise, clip_to, predict_x0
from minidiff.machine import Parser, choose_device, gathered, shared, start_processes
from minidiff.one_forward import one_forward
from minidiff.pretrained import Digits, load_digits
from minidiff.schedule import cosine, evenly_spaced
from minidiff.scores import psnr

SIGMAS = [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
BLUR = {0: 0.1, 0.2: 0.6, 0.4: 0.9, 0.5: 1.0, 0.6: 1.1, 0.8: 1.3, 1.0: 1.5}  # sigma of the noise -> sigma of the blur, in pixels: about the best PSNR of each
STARTS = [1, 3, 5, 7, 10, 20]  # where edit begins: indices into the course's list of levels, 991, 961, … 1, 0
DRAWING = str(mnist.DATA / "pictures" / "drawing-three.png")
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
    labels, frames = labels_of(args, model), []
    c = labels.to(args.device) if model.classes else None
    x = from_noise(args, model, lambda part: model.denoiser(c if c is None else c[part], args.scale[0]), frames if args.gif else None)
    if args.threshold:
        x[x < args.threshold] = 0
    says = f"{args.n} digits, {args.sampler}, {len(timesteps(args, model)) - 1} steps" + (f", guidance {args.scale[0]:g}" if model.classes or model.guide else "")
    return Result(x, labels, sheet(args, x) if is_picture(args) else None, says, [sheet(args, frame) for frame in frames])


def guidance(args: argparse.Namespace) -> Result:
    model = load(args, "class")
    labels = torch.tensor(args.digit)
    levels, c, rows = timesteps(args, model), labels.to(args.device), []
    for scale in tqdm(args.scale, leave=False):
        x = sampling.last(model.draw(sampling.seeded(args.seed, 0, len(c)), levels, step_of(args), c, scale))
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
    blurred = gaussian_blur(x_t / alpha_bar_t.sqrt(), 13, 2.5)  # as bright as x_0 on average; sigma 2.5 had the best PSNR at level 150
    columns = [x_0, *(x for _, x in shown), one_step, blurred]
    unit = [images.to_unit(x, *model.pixels).cpu() for x in columns]
    names = ["original", *(f"t = {level}" for level, _ in shown), "one step", "blur"]
    picture = strips(args, torch.stack(unit, 1), names)
    frames = [sheet(args, images.to_unit(x, *model.pixels)) for _, x in states]
    scores = f"PSNR: walk {psnr(unit[-3], unit[0]):.2f} dB, one step {psnr(unit[-2], unit[0]):.2f}, blur {psnr(unit[-1], unit[0]):.2f}"
    return Result(unit[-3], labels, picture, f"{len(x_0)} test digits from level {t} of {len(model.alpha_bar) - 1}. {scores}", frames)


def edit(args: argparse.Namespace) -> Result:
    """SDEdit: noise a picture to a level, and walk back. One column for each start of the course, from much noise to little.

    The levels are those where as much signal ᾱ is left as in the course, whose schedule keeps more of it at the same share of T.
    """
    model = load(args, "class", "time")
    x_0, labels, says = originals(args, model)
    levels = timesteps(args, model)
    course = cosine(1000)[[991 - 30 * i for i in STARTS]]
    starts = (model.alpha_bar[levels[:-1]] - course[:, None]).abs().argmin(1).tolist()
    columns = []
    for i in starts:

        def walk(part: range, how: dict, levels: list[int] = levels[i:]) -> Walk:
            return editing.sdedit(asked(args, model, labels[part]), x_0[part], levels, **how)

        columns.append(drawn(args, model, walk, len(levels) - 1 - i))
    original, x = images.to_unit(x_0.cpu(), *model.pixels), torch.stack(columns, 1)
    names = ["original", *(f"{i}: t = {levels[start]}" for i, start in zip(STARTS, starts))]
    more = {"original": original[:1], "levels": torch.tensor(levels)[starts].repeat(args.n)}
    picture = strips(args, torch.cat([original[:, None], x], 1), names)
    return Result(x.flatten(0, 1), labels.repeat_interleave(len(starts)), picture, f"{says}, drawn again from {len(starts)} levels", more=more)


def inpaint(args: argparse.Namespace) -> Result:
    """Repaint where the mask is 1; the rest stays, noised to the level of each step. More --rounds heal the seam (RePaint)."""
    model = load(args, "class", "time")
    x_0, labels, says = originals(args, model)
    mask = pictures.mask(args.mask, (28, 28), of=args.picture)
    m, levels = mask.to(args.device), timesteps(args, model)

    def walk(part: range, how: dict) -> Walk:
        return editing.inpaint(asked(args, model, labels[part]), x_0[part], m, levels, rounds=args.rounds, **how)

    x = drawn(args, model, walk, len(editing.resampled(levels, 1, args.rounds)) - 1)
    original = images.to_unit(x_0.cpu(), *model.pixels)
    picture = strips(args, torch.stack([original, original.lerp(torch.tensor(0.5), mask), x], 1), ["original", "mask", "result"])
    return Result(x, labels, picture, f"{says}, {float(mask.mean()):.0%} repainted, {args.rounds} rounds", more={"original": original, "mask": mask})


def anagram(args: argparse.Namespace) -> Result:
    """Every digit has its view of one image, and all ask for changes: turn their answers back and take the mean (Visual Anagrams)."""
    model = load(args, "class")
    A = [illusions.view(name, args.seed) for name in ("identity", *args.view)]
    if len(A) != len(args.labels):
        raise ValueError(f"{len(args.labels)} digits want {len(args.labels) - 1} names after --view (the first is seen as it is), got {len(args.view)}")
    if min(view.sign for view in A) < 0 and sum(model.pixels) != 0:
        raise ValueError(f"a negative wants a network of pixels in [-1, 1], {args.model} knows {list(model.pixels)}: choose another view or --model")
    x = combined(args, model, args.labels, lambda denoisers: illusions.anagram(denoisers, A, args.weights))
    seen = images.to_unit(torch.stack([view.apply(2 * x - 1) for view in A], 1))  # views are of pixels in [-1, 1]: a negative changes their sign
    names = [str(args.labels[0]), *(f"{c} {name}" for c, name in zip(args.labels[1:], args.view))]
    moments = [(view, s) for view in A[1:] for s in torch.linspace(0, 1, 24).tolist()] if args.gif else []
    frames = [images.grid(images.under_way(seen[:, 0], view, s), 5, 1) for view, s in moments]
    labels = torch.tensor(args.labels).expand(args.n, -1)
    return Result(seen[:, 0], labels, strips(args, seen, names), f"{args.n} images, each {' and '.join(names)}", frames, {"views": seen})


def hybrid(args: argparse.Namespace) -> Result:
    """The coarse part of one digit and the fine part of another: walk away, and the picture changes (Factorized Diffusion)."""
    model = load(args, "class")
    low_pass = illusions.gaussian(args.sigma)
    x = combined(args, model, [args.far, args.near], lambda denoisers: illusions.hybrid(*denoisers, low_pass))
    small = F.interpolate(x, scale_factor=0.25, mode="area")
    picture = strips(args, torch.stack([x, F.pad(small, (10, 11, 10, 11))], 1), [f"{args.near} near", f"{args.far} far"])
    labels = torch.tensor([args.near, args.far]).expand(args.n, -1)
    return Result(x, labels, picture, f"{args.n} images, each {args.near} near by and {args.far} from afar, sigma {args.sigma:g}", more={"small": small})


def noise(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    noisy = [z.clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(args, noisy, labels, "z = x + sigma eps, shown cut to [0, 1]")


def blur(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    blurred = [gaussian_blur(z, 9, BLUR[sigma]).clamp(0, 1) for z, sigma in zip(noised(args, x, SIGMAS), SIGMAS)]
    return sigma_grid(args, blurred, labels, "a Gaussian blur of z. " + each_psnr(blurred, x))


def onestep(args: argparse.Namespace) -> Result:
    model = load(args, "denoiser")
    x, labels = test_digits(args)
    (z,) = noised(args, x, [0.5])
    clean = torch.cat([model.unet(part).clamp(0, 1).cpu() for part in z.split(args.batch)])
    picture = strips(args, torch.stack([x.cpu(), z.cpu().clamp(0, 1), clean], 1), ["x", "z", "D(z)"])
    return Result(clean, labels, picture, f"the denoiser on {len(x)} test digits at sigma 0.5: PSNR {psnr(clean, x.cpu()):.2f} dB")


def ood(args: argparse.Namespace) -> Result:
    model = load(args, "denoiser")
    x, labels = test_digits(args)
    clean = [model.unet(z).clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(args, clean, labels, "D(z); it was trained at sigma 0.5 alone. " + each_psnr(clean, x))


LESSONS = {f.__name__: f for f in (digits, guidance, denoise, edit, inpaint, anagram, hybrid, noise, blur, onestep, ood)}
DEFAULT_STEPS = {"dpm": 20, "ddim": 50, "ddpm": None, "ddpm-large": None}  # None: every level, the full walk


# ---------------------------------------------------------------------------------------------------------------- their parts


def load(args: argparse.Namespace, *tasks: str) -> Digits:
    model = load_digits(args.model, tasks)
    for each in (model, model.guide):
        if each is not None:
            each.unet.to(args.device, memory_format=torch.channels_last)
    if "scale" in args and args.scale is None:
        args.scale = {"guidance": [0, 1, 2, 3, 5, 10], "denoise": [1]}.get(args.lesson, [model.scale])
    elif "scale" in args and not model.classes and model.guide is None:
        raise ValueError(f"--scale wants a network with labels or a guide, {args.model} has neither: leave --scale out, or choose another --model")
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
    args.steps = steps
    return evenly_spaced(level, steps)


def step_of(args: argparse.Namespace) -> sampling.Step:
    return {"dpm": sampling.dpm_solver(), "ddim": sampling.ddim(args.eta), "ddpm": sampling.ddpm_step, "ddpm-large": sampling.ddpm_large_step}[args.sampler]


def drawn(args: argparse.Namespace, model: Digits, walk: Callable[[range, dict], Walk], steps: int, frames: list[Tensor] | None = None) -> Tensor:
    """The last images of n walks, (n, 1, 28, 28) in [0, 1] on the CPU; into `frames` go all of the first batch.

    walk: (part, how) -> the walk of the images in that part of range(n). `how` is the keywords of `sample`; in it each image has its own
          noise, so that image k is the same in batches of any size (--batch), and for any number of processes
    """
    parts, results = shared(args.n, args.batch), []
    with tqdm(total=sum(map(len, parts)) * steps, unit="image-step", disable=args.rank > 0, leave=False) as bar:
        for part in parts:
            noise = sampling.noise_per_image(sampling.seeded(args.seed, part.start, len(part)))
            for _, x in walk(part, {"alpha_bar": model.alpha_bar, "step": step_of(args), "clip": clip_to(*model.pixels), "noise": noise}):
                if frames is not None and part.start == 0:
                    frames.append(images.to_unit(x, *model.pixels).cpu())
                bar.update(len(part))
            results.append(images.to_unit(x, *model.pixels))
    return gathered(results)


def from_noise(args: argparse.Namespace, model: Digits, denoiser_of: Callable[[range], Denoiser], frames: list[Tensor] | None = None) -> Tensor:
    """n images, each begun as noise. denoiser_of: the denoiser for a part of range(n)."""
    levels = timesteps(args, model)

    def walk(part: range, how: dict) -> Walk:
        x = how["noise"](torch.empty(len(part), 1, 28, 28, device=args.device))
        return sampling.sample(denoiser_of(part), x, levels, **how)

    return drawn(args, model, walk, len(levels) - 1, frames)


def asked(args: argparse.Namespace, model: Digits, c: Tensor) -> Denoiser:
    """The denoiser for labels (B,), −1 for none."""
    return one_forward(model.network, lambda net: model.guided(net, c, args.scale[0]))


def combined(args: argparse.Namespace, model: Digits, labels: list[int], combine: Callable[[list[Denoiser]], Denoiser]) -> Tensor:
    """n images drawn from a combination of guided denoisers, one for each label."""
    denoiser = one_forward(model.network, lambda net: combine([model.guided(net, torch.tensor([c]), args.scale[0]) for c in labels]))
    return from_noise(args, model, lambda part: denoiser)


def originals(args: argparse.Namespace, model: Digits) -> tuple[Tensor, Tensor, str]:
    """What to edit: the picture, n times, with the labels of --digit, or n test digits with their own. And a word about it."""
    if args.picture is None:
        x_0, labels = test_digits(args, model.pixels)
        return x_0, labels if model.classes else torch.full_like(labels, -1), f"{args.n} test digits"
    x = pictures.read(args.picture, (28, 28), 1, *model.pixels)
    says = Path(args.picture).name
    if pictures.inked(x, *model.pixels):  # and MNIST is white on black
        x, says = sum(model.pixels) - x, f"{says} (inverted, as its border is bright)"
    return x.expand(args.n, -1, -1, -1).to(args.device), labels_of(args, model), says


def labels_of(args: argparse.Namespace, model: Digits) -> Tensor:
    """The label of each of the n images, --digit in turn; −1 for none."""
    digit = torch.tensor(args.digit if args.digit and model.classes else [-1])
    return digit[torch.arange(args.n) % len(digit)]


def test_digits(args: argparse.Namespace, pixels: tuple[float, float] = (0, 1)) -> tuple[Tensor, Tensor]:
    x, labels = mnist.test_digits(args.n, args.digit or list(range(10)))
    return mnist.to_pixels(x, *pixels).to(args.device), labels


def noised(args: argparse.Namespace, x: Tensor, sigmas: list[float]) -> list[Tensor]:
    """z = x + σ ε, the same ε for every σ."""
    eps = sampling.noise_per_image(sampling.seeded(args.seed, 0, len(x)))(x)
    return [x + sigma * eps for sigma in sigmas]


def sheet(args: argparse.Namespace, x: Tensor) -> Image.Image:
    return images.grid(x, len(args.digit) if len(args.digit) > 1 else 10)


def strips(args: argparse.Namespace, x: Tensor, names: list[str]) -> Image.Image | None:
    """(N, V, 1, H, W) in [0, 1]: the V pictures of an image beside each other, under their names; as many images in a row as fit."""
    across = min(len(x), max(1, 10 // len(names)))
    return images.captioned(images.grid(x.flatten(0, 1), across * len(names), zoom=3), names * across) if is_picture(args) else None


def sigma_grid(args: argparse.Namespace, columns: list[Tensor], labels: Tensor, says: str) -> Result:
    x = torch.stack(columns, 1).cpu()
    return Result(x.flatten(0, 1), labels.repeat_interleave(len(columns)), strips(args, x, [f"sigma {sigma:g}" for sigma in SIGMAS]), says)


def each_psnr(columns: list[Tensor], x: Tensor) -> str:
    return "PSNR in dB: " + ", ".join(f"{psnr(column, x):.1f}" for column in columns)


def is_picture(args: argparse.Namespace) -> bool:
    return args.out.suffix == ".png"


def save(args: argparse.Namespace, result: Result, settings: dict) -> list[Path]:
    written = [args.out]
    if is_picture(args):
        images.save_png(result.picture, args.out, settings)
    else:
        files.save_arrays({"images": result.images, "labels": result.labels, **result.more}, args.out, settings)
    if args.gif:
        written.append(args.out.with_suffix(".gif"))
        images.save_gif(result.frames, written[-1])
    return written


# ---------------------------------------------------------------------------------------------------------------- arguments

FLAGS = {
    "-n": {"type": int, "help": "how many images"},
    "--digit": {"type": int, "nargs": "+", "default": list(range(10)), "help": "which digits; of a picture of yours, what it is to be (default: no label)"},
    "--model": {"help": "mnist-class, mnist-time, mnist-denoiser, or a file of train.py's"},
    "--sampler": {"default": "dpm", "help": "dpm (DPM-Solver++ 2M), ddim, ddpm (variance β̃), ddpm-large (β)"},
    "--steps": {"type": int, "help": "steps of the walk: dpm 20, ddim 50, ddpm all levels; edit 33, inpaint 50"},
    "--eta": {"type": float, "default": 0.0, "help": "DDIM's noise, 0 ... 1"},
    "--scale": {"type": float, "nargs": "+", "help": "guidance γ: 0 no label, 1 the label, more exaggerates; mnist-time is guided away from mnist-class without its label"},
    "--rounds": {"type": int, "default": 4, "help": "how often each step is taken: 1 is plain, more heal the seam (RePaint)"},
    "--mask": {"default": "0,14,28,28", "help": "what to repaint: x0,y0,x1,y1 in pixels of 28 x 28, or a picture, white there; default the lower half"},
    "--view": {"nargs": "+", "default": ["rot180"], "help": f"one for each digit but the first: {', '.join(illusions.views())}"},
    "--weights": {"type": float, "nargs": "+", "help": "one for each digit, more for one that is lost; default equal"},
    "--sigma": {"type": float, "default": 1.5, "help": "of the low pass, in pixels: more favours the near digit"},
    "picture": {"nargs": "?", "help": "any PNG, JPEG or WebP: its centre; inverted where its border is bright. Default: edit a drawing of a 3, inpaint test digits"},
    "labels": {"type": int, "nargs": "+", "help": "the digits: the first is seen upright"},
    "near": {"type": int, "help": "the digit to be seen near by"},
    "far": {"type": int, "help": "the digit to be seen from afar"},
    "--level": {"type": int, "help": "the noise level to start from"},
    "--threshold": {"type": float, "nargs": "?", "const": 0.2, "default": 0.0, "help": "make pixels below this black (0.2)"},
    "--batch": {"type": int, "default": 100, "help": "images at a time"},
    "--gif": {"action": "store_true", "help": "also the walk, or the view, as an animation beside --out"},
    "--seed": {"type": int, "default": 137, "help": "of the noise"},
    "--device": {"help": "cpu, cuda, mps; default: the best there is"},
    "--out": {"type": Path, "help": "a .png, .safetensors or .npz; default out/LESSON.png"},
}
AT_LEAST_1, A_DIGIT = (1, math.inf), (0, 9)
RANGES = {"-n": (1, 10**7), "--eta": (0, 1), "--batch": AT_LEAST_1, "--steps": AT_LEAST_1, "--rounds": AT_LEAST_1, "--seed": (0, math.inf), "--threshold": (0, 1)}
RANGES |= {"--digit": A_DIGIT, "labels": A_DIGIT, "near": A_DIGIT, "far": A_DIGIT}
WALK = ["--sampler", "--steps", "--eta", "--scale"]
EDIT = ["picture", "-n", "--digit", "--model", *WALK, "--batch"]
TAKES = {  # the flags of each lesson, besides --seed, --device and --out; and its defaults
    "digits": (["-n", "--digit", "--model", *WALK, "--threshold", "--batch", "--gif"], {"n": 40, "model": "mnist-class"}),
    "guidance": (["--digit", "--model", *WALK], {"model": "mnist-class", "n": 10}),
    "denoise": (["-n", "--digit", "--model", *WALK, "--level", "--gif"], {"n": 5, "model": "mnist-time"}),
    "edit": ([*EDIT], {"picture": DRAWING, "n": 4, "steps": 33, "digit": None, "model": "mnist-class"}),
    "inpaint": ([*EDIT, "--mask", "--rounds"], {"n": 9, "sampler": "ddpm", "steps": 50, "digit": None, "model": "mnist-class"}),
    "anagram": (["labels", "--view", "--weights", "-n", "--model", *WALK, "--batch", "--gif"], {"n": 10, "model": "mnist-class"}),
    "hybrid": (["near", "far", "--sigma", "-n", "--model", *WALK, "--batch"], {"n": 10, "model": "mnist-class"}),
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
    for path in (args.out, *([args.out.with_suffix(".gif")] if args.gif else [])):
        files.check_writable(path)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for a number out of its range."""
    values = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items() if value is not None}
    for flag, (low, high) in RANGES.items():
        for value in values.get(flag.lstrip("-"), []):
            if not low <= value <= high:
                raise ValueError(f"{flag} wants {f'{low} to {high}' if high < math.inf else f'at least {low}'}, got {value}")
    for name in ("scale", "weights", "sigma"):
        if not all(math.isfinite(value) for value in values.get(name, [])):
            raise ValueError(f"--{name} wants finite numbers, got {values[name]}")
    if len(values.get("scale", [])) > 1 and args.lesson != "guidance":
        raise ValueError(f"--scale wants one number in {args.lesson}, got {args.scale}: the lesson guidance takes several")
    if "sampler" in values and args.sampler not in DEFAULT_STEPS:
        raise ValueError(f"--sampler wants one of {', '.join(DEFAULT_STEPS)}, got {args.sampler!r}")
    if getattr(args, "eta", 0) and args.sampler != "ddim":
        raise ValueError(f"--eta is DDIM's, got {args.eta} with --sampler {args.sampler}: add --sampler ddim")


@torch.no_grad()
def main(argv: list[str]) -> int:
    started = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without γ gets a question mark
    try:
        args = arguments(argv)
        args.rank, _ = start_processes(args.device)
        result = LESSONS[args.lesson](args)
        if args.rank > 0:
            return 0
        settings = {k: str(v) if isinstance(v, Path | torch.device) else v for k, v in vars(args).items()}
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
