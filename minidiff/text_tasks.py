"""What the text models learn: pictures from captions at 32 x 32 (stage I), and 64 x 64 from 32 x 32 (stage II).

    stage I     E w_t ‖ε_θ(x_t, t, T5(caption)) − ε‖²              the encoder learns with the U-Net
    stage II    E w_t ‖ε_θ(x_t, low_s, t, s, T5(caption)) − ε‖²    low_s: the small picture, enlarged, noised to level s

A tenth of the captions is dropped: "" is the prompt that guidance steers away from (CFG Alg. 1). Noise on the low
resolution hides from stage II what stage I gets wrong (Imagen section 2.4; IF does the same). Stage II sees crops: it
has only to look as far as a crop reaches, and four of them take the time of one picture.

CFG = Ho and Salimans 2022, arXiv 2207.12598. Imagen = Saharia et al. 2022, arXiv 2205.11487.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minidiff import adapters, hub, images, picturebook, sampling, schedule, text_model, training
from minidiff.deepfloyd import solver_levels
from minidiff.denoiser import Denoiser
from minidiff.diffusion import add_noise, clip_to
from minidiff.guidance import cfg
from minidiff.networks.if_unet import IFUNet, TextState
from minidiff.networks.t5 import T5Encoder
from minidiff.networks.tokenizer import Tokenizer
from minidiff.picturebook import Book
from minidiff.run import Task
from minidiff.text_model import SPIECE, TextToImage

ALPHA_BAR = schedule.cosine(1000)
Tokens = Callable[[list[str]], tuple[Tensor, Tensor]]  # B captions -> ids and mask, (B, L) each


def text(settings: dict, folder: Path) -> Task:
    """Stage I with its encoder. The tokenizer is that of `init`, if the run begins with another's weights."""
    book, init = picturebook.load(), settings.get("init")
    if not (folder / SPIECE).is_file():
        trained = None if init else text_model.train_tokenizer(corpus(book), settings["pieces"])
        text_model.write_bytes(trained or hub.fetch(init, SPIECE).read_bytes(), folder / SPIECE)
    spiece, tokenizer = (folder / SPIECE).read_bytes(), Tokenizer(folder / SPIECE)
    encoder = T5Encoder(text_model.encoder_config(settings, tokenizer.pieces.get_piece_size()))
    unet = IFUNet(text_model.unet_config(settings, second=False))
    net = TextToImage(text_model.begin_unet(unet), text_model.begin_encoder(encoder))

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return in_order(book, phase(settings, epoch)[1], settings, generator)

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        x_0, captions = picturebook.batch(book, chosen, phase(settings, epoch)[0], generator)
        return text_loss(net, x_0, captions, tokens_of(tokenizer, encoder), settings["p_uncond"], generator, mine)

    def write(net: TextToImage, folder: Path, record: dict, last: bool) -> None:
        text_model.write_unet(net.unet, settings["scale"], folder)
        text_model.write_text(net.text_encoder, spiece, folder)
        known = picturebook.vocabulary(book, phase(settings, record["epoch"] - 1)[1])
        text_model.write_bytes("\n".join(sorted(known)).encode(), folder / "vocabulary.txt")  # others are warned of
        if last or record["epoch"] % settings["preview_every"] == 0:
            size, things = phase(settings, record["epoch"] - 1)
            sheet = preview(net, tokenizer, book, min(things, len(book.things)), size, settings)
            images.save_png(sheet, folder / f"samples-epoch-{record['epoch']:03d}.png", record)

    return Task(net, settings["steps"], order, loss, write, lambda: text_model.weights_of(Path(init)))


def superres(settings: dict, folder: Path) -> Task:
    """Stage II, told the captions by the encoder of the model in `settings["text"]`, which learns no more."""
    book, model = picturebook.load(), settings["text"]
    tokenizer, config = Tokenizer(hub.fetch(model, SPIECE)), hub.read_json(model, "text_encoder/config.json")
    encoder = T5Encoder(config).requires_grad_(False)
    encoder.load_state_dict(text_model.encoder_weights(model))
    shape = settings | {"d_model": config["d_model"], "heads": config["num_heads"]}
    net = TextToImage(text_model.begin_unet(IFUNet(text_model.unet_config(shape, second=True))), encoder)

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return in_order(book, len(book.things), settings, generator)

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        size, crop = settings["size"], settings["crop"]
        x_0, captions = picturebook.batch(book, chosen, size, generator)
        z = torch.randn(x_0.shape, generator=generator)
        level = torch.randint(1, settings["levels"] + 1, (len(x_0),), generator=generator)
        low = add_noise(enlarged(halved(x_0)), column(ALPHA_BAR[level]).float(), z)
        top, left = torch.randint(0, size - crop + 1, (2,), generator=generator).tolist()
        x_0, low = (a[..., top : top + crop, left : left + crop] for a in (x_0, low))
        tokens = tokens_of(tokenizer, encoder)
        return text_loss(net, x_0, captions, tokens, settings["p_uncond"], generator, mine, low, level)

    def write(net: TextToImage, folder: Path, record: dict, last: bool) -> None:
        text_model.write_unet(net.unet, settings["scale"], folder)
        if last or record["epoch"] % settings["preview_every"] == 0:
            sheet = enlarged_preview(net, tokenizer, book, settings)
            images.save_png(sheet, folder / f"samples-epoch-{record['epoch']:03d}.png", record)

    return Task(net, settings["steps"], order, loss, write, lambda: text_model.weights_of(Path(settings["init"])))


def text_loss(
    net: nn.Module, x_0: Tensor, captions: list[str], tokens: Tokens, p_uncond: float,
    generator: torch.Generator, mine: slice, low: Tensor | None = None, level: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """E w_t ‖ε_θ − ε‖² over the part `mine` of a batch, captions dropped with probability p_uncond.

    x_0:    (B, 3, H, W) in [-1, 1], with B captions
    low:    (B, 3, H, W), stage II alone: the low resolution, noised to its `level` (B,) int64 in 1 … T
    """
    eps, t = torch.randn(x_0.shape, generator=generator), spread_levels(len(x_0), len(ALPHA_BAR) - 1, generator)
    keep = torch.rand(len(x_0), generator=generator) >= p_uncond
    ids, mask = tokens(training.drop_captions(captions, keep)[mine])
    x_t = add_noise(x_0, column(ALPHA_BAR[t]).float(), eps)
    x_t = x_t if low is None else torch.cat([x_t, low], dim=1)
    weight, device = training.min_snr(ALPHA_BAR[t]).float(), next(net.parameters()).device
    x_t, t, eps, weight = (a[mine].to(device) for a in (x_t, t, eps, weight))
    x_t = x_t.contiguous(memory_format=torch.channels_last)  # as the weights lie
    eps_hat = net(x_t, t, ids.to(device), mask.to(device), None if level is None else level[mine].to(device))
    return training.noise_loss(eps_hat, eps, weight)


def tokens_of(tokenizer: Tokenizer, encoder: T5Encoder) -> Tokens:
    """captions -> ids and mask, no longer than the encoder has to see (see `text_model.short`)."""
    return lambda captions: text_model.short(*tokenizer(captions), encoder.config)


def spread_levels(count: int, T: int, generator: torch.Generator) -> Tensor:
    """A level for each of a batch, (count,) int64: one from each of `count` equal sections of 1 … T, shuffled.

    Each level is as likely as if it were drawn alone, but no batch is of little noise only: gradients vary less.
    """
    section, u = torch.randperm(count, generator=generator), torch.rand(count, generator=generator, dtype=torch.float64)
    return 1 + ((section + u) / count * T).long()


def phase(settings: dict, epoch: int) -> tuple[int, int]:
    """(size, things) of an epoch, counted from 0, by the last phase that has begun: [first epoch, size, things]."""
    return tuple(next(p[1:] for p in reversed(settings["phases"]) if p[0] <= epoch))


def in_order(book: Book, things: int, settings: dict, generator: torch.Generator) -> Tensor:
    """An epoch's pictures, of the first so many things: each in an order of chance, then again. (steps · batch,) int64.

    `share`, name of a sheet -> number: its pictures are seen in such a part of the rounds.
    """
    pictures, order = picturebook.lesson(book, things), torch.empty(0, dtype=torch.int64)
    share = torch.tensor([settings["share"].get(sheet, 1.0) for sheet in book.sheets])[book.sheet[pictures]]
    while len(order) < settings["steps"] * settings["batch"]:
        now = pictures[torch.rand(len(pictures), generator=generator) < share]
        order = torch.cat([order, now[torch.randperm(len(now), generator=generator)]])
    return order[: settings["steps"] * settings["batch"]]


def corpus(book: Book) -> list[str]:
    """Captions for the tokenizer: of every picture two as it is and, with a colour's name in it, a third."""
    generator, colours = torch.Generator().manual_seed(0), list(book.colours)
    said = [(i, colour) for i in range(len(book.thing)) for colour in (None, None, colours[i % len(colours)])]
    return [picturebook.caption(book, i, generator, colour) for i, colour in said]


def halved(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/2, W/2): means of 2 x 2."""
    return F.avg_pool2d(x, 2)


def enlarged(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 2H, 2W), bilinear, as IF does before stage II (adapters.enlarged)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@torch.no_grad()
def preview(net: TextToImage, tokenizer: Tokenizer, book: Book, things: int, size: int, settings: dict) -> Image.Image:
    """A sheet of eight of the first so many things (columns) in all styles (rows); bfloat16, as it is written."""
    net, drawn = copy.deepcopy(net).eval().to(torch.bfloat16), []
    names = [book.things[i].name for i in torch.linspace(0, things - 1, 8).long().unique()]
    for style in book.styles:
        states = encoded(net, tokenizer, [picturebook.prompt(style, name) for name in names])
        cond, uncond = (adapters.text(net.unet, state) for state in states)
        generators = sampling.seeded(settings["seed"], len(drawn) * len(names), len(names))
        x_T = sampling.noise_per_image(generators)(torch.empty(len(names), 3, size, size))
        drawn.append(walked(cfg(cond, uncond, settings["scale"]), x_T.to(states[0].pooled.device)))
    sheet = images.grid(images.to_unit(torch.cat(drawn)), len(names), max(96 // size, 1))
    return images.beside(images.captioned(sheet, names), list(book.styles), 64)


@torch.no_grad()
def enlarged_preview(net: TextToImage, tokenizer: Tokenizer, book: Book, settings: dict) -> Image.Image:
    """A sheet of eight pictures: the low resolution, what stage II makes of it noised to `level`, the true picture."""
    net, chosen = copy.deepcopy(net).eval().to(torch.bfloat16), torch.linspace(0, len(book.thing) - 1, 8).long()
    x_0, captions = picturebook.batch(book, chosen, settings["size"], torch.Generator().manual_seed(settings["seed"]))
    noise, big = sampling.noise_per_image(sampling.seeded(settings["seed"], 0, len(x_0))), enlarged(halved(x_0))
    states, level = encoded(net, tokenizer, captions), settings["level"]
    low, x_T = (a.to(states[0].pooled.device) for a in (add_noise(big, ALPHA_BAR[level], noise(big)), noise(big)))
    cond, uncond = (adapters.superres(net.unet, state, low, level) for state in states)
    drawn = walked(cfg(cond, uncond, settings["scale"]), x_T)
    sheet = images.grid(images.to_unit(torch.cat([big, drawn, x_0])), len(x_0), 2)
    return images.beside(images.captioned(sheet, captions), ["low", "drawn", "true"])


def encoded(net: TextToImage, tokenizer: Tokenizer, prompts: list[str]) -> tuple[TextState, TextState]:
    """What the U-Net needs to know of the prompts, and of the empty one."""
    ids, mask = (a.to(next(net.parameters()).device) for a in tokenizer([*prompts, ""]))
    states = net.text_encoder(ids, mask)
    return net.unet.encode(states[:-1]), net.unet.encode(states[-1:])


def walked(denoise: Denoiser, x_T: Tensor, steps: int = 20) -> Tensor:
    """(N, 3, H, W): noise -> pictures in [-1, 1], on the CPU, by DPM-Solver++."""
    how = {"step": sampling.dpm_step, "clip": clip_to(-1, 1)}
    return sampling.last(sampling.sample(denoise, x_T, solver_levels(ALPHA_BAR, steps), ALPHA_BAR, **how)).cpu()


def column(a: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return a[:, None, None, None]
