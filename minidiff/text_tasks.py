"""What the text models learn: pictures from captions at 32 x 32 (stage I), and 64 x 64 from 32 x 32 (stage II).

    stage I     E w_t ‖ε_θ(x_t, t, T5(caption)) − ε‖²                  the encoder learns with the U-Net
    stage II    E w_t ‖ε_θ(x_t, low_s, t, s, T5(caption)) − ε‖²        low_s: the small picture, enlarged, noised to level s

A tenth of the captions is dropped: "" is the prompt that guidance steers away from (CFG Alg. 1). Noise on the low resolution hides from
stage II what stage I gets wrong (Imagen section 2.4; IF does the same). Two times as many crops as whole pictures fit into an hour, and
stage II has to look no farther than a crop. CFG = Ho and Salimans 2022, arXiv 2207.12598; Imagen = Saharia et al. 2022, arXiv 2205.11487.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minidiff import adapters, hub, images, picturebook, sampling, schedule, training
from minidiff.deepfloyd import solver_levels
from minidiff.diffusion import add_noise, clip_to
from minidiff.guidance import cfg
from minidiff.networks.if_unet import IFUNet
from minidiff.networks.t5 import T5Encoder
from minidiff.networks.tokenizer import Tokenizer
from minidiff.picturebook import Book
from minidiff.run import Task
from minidiff.text_model import (
    SPIECE, TextToImage, begin_encoder, begin_unet, encoder_config, encoder_weights, train_tokenizer, unet_config, weights_of,
    write_bytes, write_text, write_unet,
)  # fmt: skip

ALPHA_BAR = schedule.cosine(1000)


def text(settings: dict, folder: Path) -> Task:
    """Stage I with its encoder, from the picture book; or from another run's or model's weights, with that one's tokenizer."""
    book, init = picturebook.load(), settings.get("init")
    if not (folder / SPIECE).is_file():
        write_bytes(
            hub.fetch(init, SPIECE).read_bytes() if init else train_tokenizer(corpus(book), settings["pieces"]),
            folder / SPIECE,
        )
    spiece, tokenizer = (folder / SPIECE).read_bytes(), Tokenizer(folder / SPIECE)
    unet, encoder = (
        IFUNet(unet_config(settings, second=False)),
        T5Encoder(encoder_config(settings, tokenizer.pieces.get_piece_size())),
    )
    net = TextToImage(begin_unet(unet), begin_encoder(encoder))

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        seen = picturebook.lesson(book, phase(settings, epoch)[1])
        return in_order(seen, settings["steps"] * settings["batch"], generator)

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        x_0, captions = picturebook.batch(book, chosen, phase(settings, epoch)[0], generator)
        return text_loss(net, x_0, captions, tokenizer, settings["p_uncond"], generator, mine)

    def write(net: TextToImage, folder: Path, record: dict, last: bool) -> None:
        write_unet(net.unet, settings["scale"], folder)
        write_text(net.text_encoder, spiece, folder)
        if last or record["epoch"] % settings["preview_every"] == 0:
            size, things = phase(settings, record["epoch"] - 1)
            names = [
                book.things[i].name for i in torch.linspace(0, min(things, len(book.things)) - 1, 8).long().unique()
            ]
            rows = {style: [picturebook.prompt(style, name) for name in names] for style in book.styles}
            sheet = preview(net, tokenizer, names, rows, size, settings["scale"], settings["seed"])
            images.save_png(sheet, folder / f"samples-epoch-{record['epoch']:03d}.png", record)

    return Task(net, settings["steps"], order, loss, write, lambda: weights_of(Path(init)))


def superres(settings: dict, folder: Path) -> Task:
    """Stage II, told the captions by the encoder of the stage I in `settings["text"]`, which learns no more."""
    book, model = picturebook.load(), Path(settings["text"])
    tokenizer, config = Tokenizer(hub.fetch(model, SPIECE)), hub.read_json(model, "text_encoder/config.json")
    encoder = T5Encoder(config).requires_grad_(False)
    encoder.load_state_dict(encoder_weights(model))
    unet = IFUNet(unet_config(settings | {"d_model": config["d_model"], "heads": config["num_heads"]}, second=True))
    net = TextToImage(begin_unet(unet), encoder)

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return in_order(picturebook.lesson(book), settings["steps"] * settings["batch"], generator)

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        x_0, captions = picturebook.batch(book, chosen, settings["size"], generator)
        z, level = (
            torch.randn(x_0.shape, generator=generator),
            torch.randint(1, settings["levels"] + 1, (len(x_0),), generator=generator),
        )
        low = add_noise(enlarged(halved(x_0)), _column(ALPHA_BAR[level]).float(), z)
        top, left = torch.randint(0, settings["size"] - settings["crop"] + 1, (2,), generator=generator).tolist()
        x_0, low = (a[..., top : top + settings["crop"], left : left + settings["crop"]] for a in (x_0, low))
        return text_loss(net, x_0, captions, tokenizer, settings["p_uncond"], generator, mine, low, level)

    def write(net: TextToImage, folder: Path, record: dict, last: bool) -> None:
        write_unet(net.unet, settings["scale"], folder)
        if last or record["epoch"] % settings["preview_every"] == 0:
            chosen = torch.linspace(0, len(book.thing) - 1, 8).long()
            x_0, captions = picturebook.batch(
                book, chosen, settings["size"], torch.Generator().manual_seed(settings["seed"])
            )
            sheet = enlarged_preview(
                net, tokenizer, x_0, captions, settings["level"], settings["scale"], settings["seed"]
            )
            images.save_png(sheet, folder / f"samples-epoch-{record['epoch']:03d}.png", record)

    return Task(net, settings["steps"], order, loss, write, lambda: weights_of(Path(settings["init"])))


def text_loss(
    net: nn.Module, x_0: Tensor, captions: list[str], tokenizer: Tokenizer, p_uncond: float, generator: torch.Generator, mine: slice,
    low: Tensor | None = None, level: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """E w_t ‖ε_θ − ε‖² over the part `mine` of a batch, captions dropped with probability p_uncond.

    x_0:   (B, 3, H, W) in [-1, 1], with B captions
    low:   (B, 3, H, W), stage II alone: the low resolution, noised to its `level` (B,) int64 in 1 … T
    """
    eps, t = torch.randn(x_0.shape, generator=generator), spread_levels(len(x_0), len(ALPHA_BAR) - 1, generator)
    keep = torch.rand(len(x_0), generator=generator) >= p_uncond
    ids, mask = tokenizer(training.drop_captions(captions, keep)[mine])
    x_t = add_noise(x_0, _column(ALPHA_BAR[t]).float(), eps)
    x_t = x_t if low is None else torch.cat([x_t, low], dim=1)
    weight, device = training.min_snr(ALPHA_BAR[t]).float(), _device(net)
    x_t, t, eps, weight = (a[mine].to(device) for a in (x_t, t, eps, weight))
    eps_hat = net(x_t, t, ids.to(device), mask.to(device), None if level is None else level[mine].to(device))
    return training.noise_loss(eps_hat, eps, weight)


def spread_levels(count: int, T: int, generator: torch.Generator) -> Tensor:
    """A level for each of a batch, (count,) int64 in 1 … T, every one as likely: one from each of `count` equal sections, in an order of chance.

    No batch is of little noise alone, so its loss and gradient vary less than with levels drawn one by one.
    """
    u = (
        torch.randperm(count, generator=generator) + torch.rand(count, generator=generator, dtype=torch.float64)
    ) / count
    return 1 + (u * T).long()


def phase(settings: dict, epoch: int) -> tuple[int, int]:
    """(size, things) of an epoch, counted from 0: those of the last phase that has begun. A phase is [first epoch, size, things]."""
    return tuple(next(p[1:] for p in reversed(settings["phases"]) if p[0] <= epoch))


def in_order(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the pictures (M,) int64: each once in an order of chance, then again. (count,) int64."""
    return torch.cat(
        [pictures[torch.randperm(len(pictures), generator=generator)] for _ in range(-(-count // len(pictures)))]
    )[:count]


def corpus(book: Book) -> list[str]:
    """Captions for the tokenizer: of every picture two as it is and, with a colour's name in it, a third."""
    generator, colours = torch.Generator().manual_seed(0), [None, None, *book.colours]
    said = [
        (i, colours[k] if k < 2 else colours[2 + i % len(book.colours)])
        for i in range(len(book.thing))
        for k in range(3)
    ]
    return [picturebook.caption(book, i, generator, colour) for i, colour in said]


def halved(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/2, W/2): means of 2 x 2."""
    return F.avg_pool2d(x, 2)


def enlarged(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 2H, 2W), bilinear, as IF does before stage II (adapters.enlarged)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@torch.no_grad()
def preview(
    net: TextToImage,
    tokenizer: Tokenizer,
    names: list[str],
    rows: dict[str, list[str]],
    size: int,
    scale: float,
    seed: int,
) -> Image.Image:
    """A sheet of prompts in named columns and rows, from the same noise each time; in bfloat16, as the weights are written."""
    net, drawn = copy.deepcopy(net).eval().to(torch.bfloat16), []
    for row in rows.values():
        cond, uncond = (adapters.text(net.unet, state) for state in states(net, tokenizer, row))
        generators = sampling.seeded(seed, len(drawn) * len(row), len(row))
        drawn.append(_drawn(cfg(cond, uncond, scale), generators, (3, size, size), _device(net)))
    sheet = images.grid(images.to_unit(torch.cat(drawn)), len(names), max(96 // size, 1))
    return images.beside(images.captioned(sheet, names), list(rows))


@torch.no_grad()
def enlarged_preview(
    net: TextToImage, tokenizer: Tokenizer, x_0: Tensor, captions: list[str], level: int, scale: float, seed: int
) -> Image.Image:
    """A sheet of pictures (columns): the low resolution, what stage II makes of it, the picture itself. x_0: (N, 3, H, W) in [-1, 1]."""
    net, generators = copy.deepcopy(net).eval().to(torch.bfloat16), sampling.seeded(seed, 0, len(x_0))
    big = enlarged(halved(x_0))
    low = add_noise(big, ALPHA_BAR[level], sampling.noise_per_image(generators)(big))
    cond, uncond = (
        adapters.superres(net.unet, state, low.to(_device(net)), level) for state in states(net, tokenizer, captions)
    )
    drawn = _drawn(cfg(cond, uncond, scale), generators, tuple(x_0.shape[1:]), _device(net))
    sheet = images.grid(images.to_unit(torch.cat([big, drawn, x_0])), len(x_0), 2)
    return images.beside(images.captioned(sheet, captions), ["low", "drawn", "true"])


def states(net: TextToImage, tokenizer: Tokenizer, prompts: list[str]) -> tuple:
    """What the U-Net needs to know of the prompts, and of the empty one."""
    encoded = net.text_encoder(*(a.to(_device(net)) for a in tokenizer([*prompts, ""])))
    return net.unet.encode(encoded[:-1]), net.unet.encode(encoded[-1:])


def _drawn(
    denoise, generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device, steps: int = 20
) -> Tensor:
    """A picture for each generator, (N, 3, H, W) in [-1, 1], on the CPU."""
    noise = sampling.noise_per_image(generators)
    x = noise(torch.empty(len(generators), *shape, device=device))
    how = {"step": sampling.dpm_step, "clip": clip_to(-1, 1), "noise": noise}
    return sampling.last(sampling.sample(denoise, x, solver_levels(ALPHA_BAR, steps), ALPHA_BAR, **how)).cpu()


def _column(a: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return a[:, None, None, None]


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
