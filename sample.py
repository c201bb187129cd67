"""Draw with the shipped weights, or with a text model:  python sample.py [LESSON] [options]

digits     a grid of hand-written digits, class-conditioned and guided (the default lesson)
text       pictures of prompts, by DeepFloyd IF (python sample.py text "an oil painting of a snowy mountain village")
guidance   the same noise at several guidance scales, one row each
denoise    walk a noisy test digit back, step by step, beside one step and a Gaussian blur
edit       noise a picture of yours and walk it back: from little noise a touch, from much another picture
inpaint    repaint a part of a digit or of a picture
anagram    one image, two or more digits or prompts: seen upright, and turned, mirrored, negated, shuffled ...
hybrid     one image, two digits or prompts: one seen near by, one from afar
upscale    enlarge a picture four times, with stage II of DeepFloyd IF
embed      encode prompts with T5 into a prompt bank, after which T5 is not needed for them again
score      what our classifier says of the arrays of digits, anagrams or hybrids (NAME.safetensors), beside real digits
noise      what sigma 0 ... 1 does to a digit
blur       what a Gaussian blur can do about it
onestep    what the one-step denoiser can do about it, at the sigma it was trained for
ood        ... and at the seven sigmas, six of which it never saw

edit, inpaint, anagram and hybrid draw digits, or pictures with `--model` a text model: a folder, or a name on the hub.
`--out NAME.png` is a picture (its settings are in the file), `--out NAME.safetensors` or `.npz` the arrays `images`
(N, C, H, W) in [0, 1] and, of digits, `labels` (N,), −1 for none; or of an anagram or a hybrid (N, V), a label for each reading.
Besides, edit has `original` and the `levels` (N,) it began at, inpaint `original` and `mask` (1 is repainted), anagram `views`
(N, V, C, H, W), and hybrid `small` and `views`: near by, and from afar (blurred; of digits with their contrast restored).
`torchrun --nproc_per_node=N sample.py ...` draws the same images on N processes.
"""

import argparse  # noqa: I001, the long list below stays short
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from minidiff import editing, files, flags, hub, illusions, images, mnist, pictures, prompts, sampling
from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_noise, predict_x0
from minidiff.drawing import Model, only
from minidiff.machine import start_processes
from minidiff.reader import load_reader, plausible, read_as, readings, real_digits, real_floor
from minidiff.schedule import cosine
from minidiff.scores import alignment, concealment, frechet, psnr
from minidiff.sheets import counted, is_picture, noised, originals, resized, strips, test_digits, tiles
from minidiff.workbench import (
    Result, Walk, asked_for, best, block_by_block, check_stages, denoiser_of, drawn, enlarged, from_noise, in_turn, labels_of,
    load, load_u_net, of_digits, large_size, step_of, timesteps, upscaled,
)  # fmt: skip

SIGMAS = [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
BLUR = {0: 0.1, 0.2: 0.6, 0.4: 0.9, 0.5: 1.0, 0.6: 1.1, 0.8: 1.3, 1.0: 1.5}  # sigma of the noise -> sigma of the blur, in pixels: about the best PSNR of each
STARTS = [1, 3, 5, 7, 10, 20]  # where edit begins: indices into the course's list of levels, 991, 961, … 1, 0
PICTURES = mnist.DATA / "pictures"


# ---------------------------------------------------------------------------------------------------------------- lessons


def digits(args: argparse.Namespace) -> Result:
    words, frames = in_turn(args, [str(c) for c in args.digit or range(10)]), []
    model = load(args, words)
    if "0" not in model.conditions:
        words = [""] * args.n
    x = from_noise(args, model, [words], only, frames)
    if args.threshold:
        x[x < args.threshold] = 0
    guided = f", guidance {args.scale[0]:g}" if any(words) or model.guide else ""
    columns = len(args.digit) if args.digit and len(args.digit) > 1 else 10
    says = f"{counted(args.n, 'digit')}, {args.sampler}, {len(timesteps(args, model)) - 1} steps{guided}"
    return Result(x, labels_of(args, [words], args.n), tiles(x, columns) if is_picture(args) else None, says, [tiles(frame, columns) for frame in frames])


def text(args: argparse.Namespace) -> Result:
    words, frames = in_turn(args, args.words), []
    x = upscaled(args, from_noise(args, load(args, words), [words], only, frames), [words])
    columns = len(args.words) if len(args.words) > 1 else min(args.n, 5)
    says = f"{counted(args.n, 'picture')} of {', '.join(map(repr, args.words))}, {args.sampler}, guidance {args.scale[0]:g}"
    labels = labels_of(args, [words], args.n)
    return Result(x, labels, tiles(x, columns) if is_picture(args) else None, says, [tiles(frame, columns) for frame in frames])


def guidance(args: argparse.Namespace) -> Result:
    words, rows = [str(c) for c in args.digit or range(10)], []
    model = load(args, words, "class")
    args.n = len(words)
    scales = args.scale
    for scale in tqdm(scales, leave=False):
        args.scale = [scale]
        rows.append(from_noise(args, model, [words], only))
    args.scale = scales
    picture = images.beside(images.grid(torch.cat(rows), len(words)), [f"{scale:g}" for scale in scales])
    return Result(torch.cat(rows), labels_of(args, [words], args.n).repeat(len(scales)), picture, f"guidance scales {scales}, one row each, from the same noise")


def denoise(args: argparse.Namespace) -> Result:
    """DDPM algebra on a real digit: jump to level t, then walk back, or jump back in one step, or blur."""
    model = load(args, [], "time", "class")
    x_0, labels = test_digits(args, model.pixels)
    T = len(model.alpha_bar) - 1
    t = T // 2 if args.level is None else args.level
    if not 1 <= t <= T:
        raise ValueError(f"--level must be between 1 and T = {T}, got {t}")
    noise = sampling.noise_per_image(sampling.seeded(args.seed, 0, len(x_0)))
    alpha_bar_t = model.alpha_bar[t]
    x_t = add_noise(x_0, alpha_bar_t, noise(x_0))
    denoiser = model.denoiser([[str(int(c)) if "0" in model.conditions else "" for c in labels]], only, args.scale[0])
    one_step = predict_x0(x_t, denoiser(x_t, t)[0], alpha_bar_t)
    states = [(t, x_t), *sampling.sample(denoiser, x_t, timesteps(args, model, t), model.alpha_bar, step=step_of(args), clip=model.clip, noise=noise)]
    every = max(1, len(states) // 6)
    shown = [*states[:-1:every], states[-1]]
    blurred = gaussian_blur(x_t / alpha_bar_t.sqrt(), 13, 2.5)  # as bright as x_0 on average; sigma 2.5 had the best PSNR at level 150
    columns = [x_0, *(x for _, x in shown), one_step, blurred]
    unit = [images.to_unit(x, *model.pixels).cpu() for x in columns]
    names = ["original", *(f"t = {level}" for level, _ in shown), "one step", "blur"]
    picture = strips(args, torch.stack(unit, 1), names)
    frames = [tiles(images.to_unit(x, *model.pixels)) for _, x in states] if args.gif else []
    scores = f"PSNR: walk {psnr(unit[-3], unit[0]):.2f} dB, one step {psnr(unit[-2], unit[0]):.2f}, blur {psnr(unit[-1], unit[0]):.2f}"
    return Result(unit[-3], labels, picture, f"{counted(len(x_0), 'test digit')} from level {t} of {T}. {scores}", frames)


def edit(args: argparse.Namespace) -> Result:
    """SDEdit: noise a picture to a level, and walk back. One column for each start of the course, from much noise to little.

    The levels are those where as much signal ᾱ is left as in the course, whose schedule keeps more of it at the same share of T.
    """
    if args.picture is None:
        args.picture = str(PICTURES / ("drawing-three.png" if of_digits(args) else "tower.png"))

    def walks(model: Model):
        x_0, words, says = originals(args, model)
        levels = timesteps(args, model)
        course = cosine(1000)[[991 - 30 * i for i in STARTS]]
        nearest = (model.alpha_bar[levels[:-1]] - course[:, None]).abs().argmin(1).tolist()
        starts = sorted(dict(zip(nearest[::-1], STARTS[::-1])).items())  # in a walk of few steps two starts may be one level: shown once, as the first
        columns = []
        for i, _ in starts:

            def walk(part: range, how: dict, levels: list[int] = levels[i:]) -> Walk:
                return editing.sdedit(denoiser_of(args, model, [words], part), x_0[part].to(args.device), levels, **how)

            columns.append(drawn(args, model, walk, len(levels) - 1 - i))
        return images.to_unit(x_0.cpu(), *model.pixels), torch.stack(columns, 1), words, {start: levels[i] for i, start in starts}, says

    original, x, words, levels, says = walks(load(args, asked_for(args)))
    words = [word for word in words for _ in levels]
    x = upscaled(args, x.flatten(0, 1), [words]).unflatten(0, (-1, len(levels)))
    more = {"original": original[:1], "levels": torch.tensor([*levels.values()]).repeat(args.n)}
    names = ["original", *(f"{start}: t = {level}" for start, level in levels.items())]
    picture = strips(args, torch.cat([resized(original, x)[:, None], x], 1), names)
    return Result(x.flatten(0, 1), labels_of(args, [words], len(words)), picture, f"{says}, drawn again from {counted(len(levels), 'level')}", more=more)


def inpaint(args: argparse.Namespace) -> Result:
    """Repaint where the mask is 1; the rest stays, noised to the level of each step. More --rounds heal the seam (RePaint)."""

    def walks(model: Model):
        x_0, words, says = originals(args, model)
        H, W = model.shape[1:]
        mask = pictures.mask(args.mask or f"0,{H // 2},{W},{H}", (H, W), of=args.picture)
        m, levels = mask.to(args.device), timesteps(args, model)

        def walk(part: range, how: dict) -> Walk:
            return editing.inpaint(denoiser_of(args, model, [words], part), x_0[part].to(args.device), m, levels, rounds=args.rounds, **how)

        x = drawn(args, model, walk, len(editing.resampled(levels, 1, args.rounds)) - 1)
        return images.to_unit(x_0.cpu(), *model.pixels), x, mask, words, says

    if args.picture is None and not of_digits(args):
        args.picture = str(PICTURES / "tower.png")
    args.rounds = args.rounds or (4 if of_digits(args) else 1)
    original, x, mask, words, says = walks(load(args, asked_for(args)))
    if args.upscale:  # and there, too, what is not repainted is the picture, now in the large size
        size = large_size(args)
        x_0, mask = pictures.read(args.picture, (size, size)).expand(args.n, -1, -1, -1), F.interpolate(mask, size=(size, size))
        x, original = upscaled(args, x, [words], keep=(1 - mask, x_0)), images.to_unit(x_0)
    picture = strips(args, torch.stack([original, original.lerp(torch.tensor(0.5), mask), x], 1), ["original", "mask", "result"])
    says = f"{says}, {float(mask.mean()):.0%} repainted, {counted(args.rounds, 'round')}"
    return Result(x, labels_of(args, [words], args.n), picture, says, more={"original": original, "mask": mask})


def anagram(args: argparse.Namespace) -> Result:
    """Every word has its view of one image, and all ask for changes: turn their answers back and take the mean (Visual Anagrams)."""
    A = [illusions.view(name, args.seed) for name in ("identity", *args.view)]
    if len(args.words) < 2 or len(args.weights or args.words) != len(args.words):
        raise ValueError(f"an anagram wants two words or more, and as many --weights, if any: got {len(args.words)} words, {len(args.weights or args.words)} weights")
    if len(A) != len(args.words):
        raise ValueError(f"{len(args.words)} words want {len(args.words) - 1} names after --view (the first is seen as it is), got {len(args.view)}")
    if args.upscale and "pixels" in args.view:
        raise ValueError("the view 'pixels' shuffles a large picture otherwise: leave --upscale out, or choose another view")
    terms = [[word] for word in args.words]

    def combine(denoisers: Sequence[Denoiser]) -> Denoiser:
        return illusions.anagram(denoisers, A, args.weights)

    def walks(model: Model) -> Tensor:
        if min(view.sign for view in A) < 0 and sum(model.pixels) != 0:
            raise ValueError(f"a negative wants a network of pixels in [-1, 1], {args.model} knows {list(model.pixels)}: choose another view or --model")
        return from_noise(args, model, terms, combine)

    def seen_of(x: Tensor) -> Tensor:
        return images.to_unit(torch.stack([view.apply(2 * x - 1) for view in A], 1))  # views are of pixels in [-1, 1]: a negative changes their sign

    x, says = best(args, lambda: walks(load(args, args.words, rows=2 * len(terms))), seen_of, terms, len(terms))
    seen = seen_of(upscaled(args, x, terms, combine, A))
    names = [args.words[0], *(f"{word} {name}" if len(word) == 1 else f"{name}: {word}" for word, name in zip(args.words[1:], args.view))]
    moments = [(view, s) for view in A[1:] for s in torch.linspace(0, 1, 24).tolist()] if args.gif else []
    frames = [images.grid(images.under_way(seen[:, 0], view, s, max(1, 112 // seen.shape[-1])), 5, 1) for view, s in moments]
    return Result(seen[:, 0], labels_of(args, terms, args.n), strips(args, seen, names), f"{counted(args.n, 'image')}{says}, each {' and '.join(names)}", frames, {"views": seen})


def hybrid(args: argparse.Namespace) -> Result:
    """The coarse part of one word and the fine part of another: walk away, and the picture changes (Factorized Diffusion)."""
    args.sigma = 1.5 if args.sigma is None and of_digits(args) else args.sigma
    terms = [[args.near], [args.far]]

    def walks(model: Model) -> Tensor:
        args.sigma = model.shape[-1] / 32 if args.sigma is None else args.sigma  # the course's 2 at 64 pixels
        return from_noise(args, model, terms, lambda denoisers: illusions.hybrid(*denoisers[::-1], illusions.gaussian(args.sigma)))

    def seen_of(x: Tensor, sigma: float | None = None) -> Tensor:
        far = illusions.gaussian(sigma or args.sigma)(x)  # from afar the fine part is lost
        if of_digits(args):  # and the eye gets used to less contrast: of the brightest pixel, 0.3 is black and 0.7 white
            far = ((far / far.amax((1, 2, 3), keepdim=True).clamp(min=0.05) - 0.3) / 0.4).clamp(0, 1)
        return torch.stack([x, far], 1)

    x, says = best(args, lambda: walks(load(args, terms[0] + terms[1], rows=3)), seen_of, terms, 1)
    sigma = args.sigma
    if args.upscale:  # a blur as much wider as the picture
        sigma = args.sigma * large_size(args) / x.shape[-1]
        x = upscaled(args, x, terms, lambda denoisers: illusions.hybrid(*denoisers[::-1], illusions.gaussian(sigma)))
    seen, small = seen_of(x, sigma), F.interpolate(x, scale_factor=0.25, mode="area")
    room = x.shape[-1] - small.shape[-1]
    picture = strips(args, torch.stack([x, F.pad(small, (room // 2, room - room // 2) * 2)], 1), [f"near: {args.near}", f"far: {args.far}"])
    says = f"{counted(args.n, 'image')}{says}, each {args.near} near by and {args.far} from afar, sigma {args.sigma:g}"
    return Result(x, labels_of(args, terms, args.n), picture, says, more={"views": seen, "small": small})


def upscale(args: argparse.Namespace) -> Result:
    """Stage II alone: on a picture of yours, a quarter as large as the result, or on the arrays of another lesson (NAME.safetensors)."""
    args.picture, args.upscale = args.picture or str(PICTURES / "tower.png"), args.model
    lows = []

    def low(model: Model) -> Tensor:
        if Path(args.picture).suffix in flags.ARRAYS:
            stored = files.load_arrays(args.picture).get("images")
            if stored is None or stored.ndim != 4 or stored.shape[1] != 3 or len(stored) == 0 or not 0 <= float(stored.min()) <= float(stored.max()) <= 1:
                raise ValueError(f"{args.picture} holds no images (N, 3, H, W) in [0, 1]: give a picture, or the arrays of a text model")
            stored = stored.float()
            args.n = len(stored)
        else:
            small = [side // 4 for side in model.shape[1:]]
            stored = pictures.read(args.picture, small, 3, 0, 1).expand(args.n, -1, -1, -1)
        lows.append(stored)
        return stored

    check_stages(args, 2)
    x = enlarged(args, low, [asked_for(args)[:1]])
    picture = strips(args, torch.stack([resized(lows[0], x), x], 1), ["before", "after"])
    return Result(x, None, picture, f"{Path(args.picture).name}, from {lows[0].shape[-1]} to {x.shape[-1]} pixels")


def embed(args: argparse.Namespace) -> Result:
    """T5's vectors of prompts, and those of the course's file, into a prompt bank (--out): what is in there needs no T5 again."""
    bank = prompts.load_bank(args.out)
    before = len(bank)
    if args.course:
        bank |= prompts.import_pth(args.course)
    if args.prompts or not args.course:
        width = hub.read_json(args.model, "text_encoder/config.json").get("d_model")
        prompts.embed(["", *args.prompts], args.model, width, bank, args.dtype not in (None, "float32"), block_by_block)
    prompts.save_bank(bank, args.out)
    return Result(None, None, None, f"{counted(len(bank) - before, 'prompt')} added, {len(bank)} in the bank: every lesson looks there first (--bank)")


def score(args: argparse.Namespace) -> Result:
    """What our classifier says of drawn digits or illusions, beside what it says of real digits (reader.py)."""
    arrays = files.load_arrays(args.arrays)
    x, labels = arrays.get("images"), arrays.get("labels")
    seen = x[:, None] if x is not None and x.ndim == 4 and labels is not None and labels.ndim == 1 else arrays.get("views")
    if seen is None or labels is None or seen.ndim != 5 or seen.shape != (*labels.shape[:1], *seen.shape[1:2], 1, 28, 28) or labels.numel() != seen.shape[0] * seen.shape[1]:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in [*arrays.items()][:5]) or "nothing"
        raise ValueError(f"{args.arrays} wants images (N, 1, 28, 28) with labels (N,), or views (N, V, 1, 28, 28) with labels (N, V), it has {found}: give digits")
    if len(seen) == 0 or not bool(torch.isin(labels.double(), torch.arange(-1 if labels.ndim == 1 else 0, 10).double()).all()):
        raise ValueError(f"{args.arrays} wants at least one image, and labels 0 to 9 or -1 for none, got {len(seen)} images, labels {labels.flatten()[:3].tolist()}...: give digits")
    N, V, labels = len(seen), seen.shape[1], labels.long().view(len(seen), -1)
    reader = load_reader()
    features = reader.features(seen.flatten(0, 1)).unflatten(0, (N, V))
    log_probs, real = reader.log_probs(features), real_digits(reader)
    right, fits = read_as(log_probs.flatten(0, 1), labels.flatten()).view(N, V), plausible(features.flatten(0, 1), real).view(N, V)

    def share(which: Tensor) -> str:
        return f"{float(which.float().mean()):.1%}"

    asked = (labels >= 0).all(1)
    lines = [f"{counted(N, 'image')}: {f'{share(right[asked].all(1))} read as asked, ' if bool(asked.any()) else ''}{share(fits.all(1))} plausible, {share((right & fits).all(1))} both"]
    if V > 1:
        lines += [f"view {i + 1}: {share(right[:, i])} read as asked, {share(fits[:, i])} plausible" for i in range(V)]
        S = readings(log_probs, labels)
        lines += [f"alignment {float(alignment(S).mean()):.3f} (log-probability in the worst view), concealment {float(concealment(S).mean()):.3f} (by chance {1 / V:.2f}, at most 1)"]
    elif N > 1:
        lines += [f"Fréchet distance to the 10,000 test digits {frechet(features[:, 0], real.features):.3f}; of 2,000 training digits {real_floor(reader, real):.3f} (by our classifier's {features.shape[-1]} features; fewer images read higher)"]
    return Result(None, None, None, "\n".join([*lines, "99 % of real test digits are plausible"]))


def noise(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    noisy = [z.clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(args, noisy, labels, "z = x + sigma eps, shown cut to [0, 1]")


def blur(args: argparse.Namespace) -> Result:
    x, labels = test_digits(args)
    blurred = [gaussian_blur(z, 9, BLUR[sigma]).clamp(0, 1) for z, sigma in zip(noised(args, x, SIGMAS), SIGMAS)]
    return sigma_grid(args, blurred, labels, "a Gaussian blur of z. " + each_psnr(blurred, x))


def onestep(args: argparse.Namespace) -> Result:
    model = load_u_net(args, "denoiser")
    x, labels = test_digits(args)
    (z,) = noised(args, x, [0.5])
    clean = torch.cat([model.unet(part).clamp(0, 1).cpu() for part in z.split(args.batch or 100)])
    picture = strips(args, torch.stack([x.cpu(), z.cpu().clamp(0, 1), clean], 1), ["x", "z", "D(z)"])
    return Result(clean, labels, picture, f"the denoiser on {counted(len(x), 'test digit')} at sigma 0.5: PSNR {psnr(clean, x.cpu()):.2f} dB")


def ood(args: argparse.Namespace) -> Result:
    model = load_u_net(args, "denoiser")
    x, labels = test_digits(args)
    clean = [model.unet(z).clamp(0, 1) for z in noised(args, x, SIGMAS)]
    return sigma_grid(args, clean, labels, "D(z); it was trained at sigma 0.5 alone. " + each_psnr(clean, x))


LESSONS = {f.__name__: f for f in (digits, text, guidance, denoise, edit, inpaint, anagram, hybrid, upscale, embed, score, noise, blur, onestep, ood)}


# ---------------------------------------------------------------------------------------------------------------- the command


def sigma_grid(args: argparse.Namespace, columns: list[Tensor], labels: Tensor, says: str) -> Result:
    x = torch.stack(columns, 1).cpu()
    return Result(x.flatten(0, 1), labels.repeat_interleave(len(columns)), strips(args, x, [f"sigma {sigma:g}" for sigma in SIGMAS]), says)


def each_psnr(columns: list[Tensor], x: Tensor) -> str:
    return "PSNR in dB: " + ", ".join(f"{psnr(column, x):.1f}" for column in columns)


def save(args: argparse.Namespace, result: Result, settings: dict) -> list[Path]:
    if result.images is None:
        return [args.out] if args.out else []  # the lesson wrote its own file, or none
    written = [args.out]
    if is_picture(args):
        images.save_png(result.picture, args.out, settings)
    else:
        arrays = {"images": result.images, "labels": result.labels, **result.more}
        files.save_arrays({name: tensor for name, tensor in arrays.items() if tensor is not None}, args.out, settings)
    if args.gif:
        written.append(args.out.with_suffix(".gif"))
        images.save_gif(result.frames, written[-1])
    return written


def arguments(argv: list[str]) -> argparse.Namespace:
    return flags.arguments(argv, __doc__)


@torch.no_grad()
def main(argv: list[str]) -> int:
    started = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without γ gets a question mark
    warnings.showwarning = lambda message, *where: print(f"sample.py: {message}", file=sys.stderr)
    try:
        args = arguments(argv)
        args.rank, _ = start_processes(args.device)
        result = LESSONS[args.lesson](args)
        if args.rank > 0:
            return 0
        settings = {k: str(v) if isinstance(v, Path | torch.device) else v for k, v in vars(args).items()}
        written = save(args, result, settings)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":  # once, of many processes
            print(f"sample.py: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    print(result.says)
    if written:
        print(f"{getattr(args, 'model', 'no model')}, seed {args.seed}, {args.device}, {time.monotonic() - started:.1f} s -> {' and '.join(map(str, written))}")
    if len(argv) == 0:
        print("next: python sample.py digits --digit 3 --gif, python sample.py guidance, python sample.py denoise")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
