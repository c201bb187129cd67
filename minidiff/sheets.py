"""Originals and sheets: the pictures that the lessons of sample.py begin with, and how they show what they made. As in workbench.py, `args` is the command line."""

import argparse
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minidiff import images, mnist, pictures, sampling
from minidiff.drawing import Model
from minidiff.workbench import asked_for, in_turn, of_digits


def originals(args: argparse.Namespace, model: Model) -> tuple[Tensor, list[str], str]:
    """What to edit: the picture, n times, or n test digits with their own labels. (n, C, H, W), the words, and a word about it."""
    labelled = len(model.conditions) > 1
    if args.picture is None:
        x_0, labels = test_digits(args, model.pixels)
        return x_0, [str(int(c)) if labelled else "" for c in labels], counted(args.n, "test digit")
    x = pictures.read(args.picture, model.shape[1:], model.shape[0], *model.pixels)
    says = Path(args.picture).name
    if of_digits(args) and pictures.inked(x, *model.pixels):  # and MNIST is white on black
        x, says = sum(model.pixels) - x, f"{says} (inverted, as its border is bright)"
    return x.expand(args.n, -1, -1, -1), in_turn(args, asked_for(args) if labelled else [""]), says


def test_digits(args: argparse.Namespace, pixels: tuple[float, float] = (0, 1)) -> tuple[Tensor, Tensor]:
    x, labels = mnist.test_digits(args.n, args.digit or list(range(10)))
    return mnist.to_pixels(x, *pixels).to(args.device), labels


def noised(args: argparse.Namespace, x: Tensor, sigmas: list[float]) -> list[Tensor]:
    """z = x + σ ε, the same ε for every σ."""
    eps = sampling.noise_per_image(sampling.seeded(args.seed, 0, len(x)))(x)
    return [x + sigma * eps for sigma in sigmas]


def resized(x: Tensor, like: Tensor) -> Tensor:
    """The images as large as others, each pixel repeated."""
    return F.interpolate(x.cpu(), size=like.shape[-2:])


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def tiles(x: Tensor, columns: int = 10) -> Image.Image:
    return images.grid(x, columns, 2 if x.shape[-1] < 128 else 1)


def strips(args: argparse.Namespace, x: Tensor, names: list[str]) -> Image.Image | None:
    """(N, V, C, H, W) in [0, 1]: the V pictures of an image beside each other, under their names; as many images in a row as fit."""
    across = min(len(x), max(1, 280 // (x.shape[-1] * len(names))))
    return images.captioned(images.grid(x.flatten(0, 1), across * len(names), -(-84 // x.shape[-1])), names * across) if is_picture(args) else None


def is_picture(args: argparse.Namespace) -> bool:
    return args.out.suffix == ".png"
