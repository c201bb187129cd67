"""What the digits' networks learn: one step from noise, all levels, all levels with labels; and to read what the others draw."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from minidiff import images, mnist, pretrained, sampling, training
from minidiff.files import load_tensors, save_tensors
from minidiff.pretrained import Digits
from minidiff.reader import Reader, read_as
from minidiff.run import Task
from minidiff.schedule import evenly_spaced

SAMPLED = (1, 5, 10, 20)  # sample grids are drawn after these epochs and after the last


def digits(settings: dict, folder: Path) -> Task:
    """A network of the digits: denoiser, time, class or classifier, as `settings["task"]` says."""
    model = pretrained.build(settings)
    x, labels = (a[: settings["limit"]] for a in mnist.load(train=True))
    for layer in model.unet.modules():
        if isinstance(layer, nn.ConvTranspose2d):  # BatchNorm follows, and subtracts any constant: the gradient is 0, and slow to add up
            layer.bias.requires_grad_(False)

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(x), generator=generator)

    def digit_loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        return loss(settings, model.alpha_bar, net, x[chosen], labels[chosen], generator, mine)

    def write(net: nn.Module, folder: Path, record: dict, last: bool) -> None:
        write_digits(replace(model, unet=net), folder, record, last)

    return Task(model.unet, len(x) // settings["batch"], order, digit_loss, write, lambda: load_tensors(settings["init"])[0])


def loss(
    settings: dict, alpha_bar: Tensor | None, net: nn.Module, digits: Tensor, labels: Tensor, generator: torch.Generator, mine: slice
) -> Tensor:
    """The loss of the part `mine` of a batch. digits: (B, 1, 28, 28) uint8; labels: (B,) int64. Returns a 0-dim float32."""
    device = next(net.parameters()).device
    x_0 = mnist.to_pixels(digits, *settings["pixels"])
    if settings["task"] == "classifier":
        angle, right, down = 2 * torch.rand(3, len(x_0), generator=generator) - 1  # in [-1, 1)
        shift = settings["shift"] * torch.stack([right, down], 1)
        x = training.moved(x_0[mine], math.radians(settings["turn"]) * angle[mine], shift[mine])
        return training.classifier_loss(net, x.to(device), labels[mine].to(device))
    eps = torch.randn(x_0.shape, generator=generator)
    if settings["task"] == "denoiser":
        return training.denoiser_loss(net, x_0[mine].to(device), eps[mine].to(device), settings["sigma"])
    t = torch.randint(1, settings["T"] + 1, (len(x_0),), generator=generator)
    c = None
    if "classes" in settings:
        keep = torch.rand(len(x_0), generator=generator) >= settings["p_uncond"]
        c = training.drop_labels(labels, keep, settings["classes"])[mine].to(device)
    x_0, t, eps = (a[mine].to(device) for a in (x_0, t, eps))
    return training.diffusion_loss(net, x_0, t, eps, alpha_bar, c, settings["target"])


def write_digits(model: Digits, folder: Path, record: dict, last: bool) -> None:
    """The weights with their settings and, after some epochs, a grid of samples from noise that is the same each time."""
    if model.task == "classifier":
        record = record | {"test_accuracy": accuracy(model)}
        print(f"test digits read right after epoch {record['epoch']}: {record['test_accuracy']:.2%}")
    save_tensors(model.unet.state_dict(), folder / f"mnist-{model.task}.safetensors", record)
    if last or record["epoch"] in SAMPLED:
        images.save_png(preview(model, record), folder / f"samples-epoch-{record['epoch']:03d}.png", record)


def accuracy(model: Digits) -> float:
    """The part of the 10,000 test digits that a classifier reads right."""
    x, labels = mnist.load(train=False)
    reader = Reader(model.unet.eval())
    return float(read_as(reader.log_probs(reader.features(mnist.to_pixels(x, 0, 1))), labels).float().mean())


@torch.no_grad()
def preview(model: Digits, settings: dict) -> Image.Image:
    """40 digits from noise that is the same each time; for the denoiser ten test digits, noisy, denoised; for the classifier the 40 that
    it is least sure of, among 2,000."""
    model.unet.eval()
    if model.task == "classifier":
        x, labels = mnist.test_digits(2000, list(range(10)))
        x, reader = mnist.to_pixels(x, 0, 1), Reader(model.unet)
        sure = reader.log_probs(reader.features(x)).gather(1, labels[:, None])[:, 0]  # log p(label)
        return images.grid(x[sure.argsort()[:40]], 10)
    generators = sampling.seeded(settings["seed"], 0, 40)
    if model.task == "denoiser":
        x = mnist.to_pixels(mnist.load(train=False)[0][:10], 0, 1).to(model.device)
        z = x + settings["sigma"] * sampling.noise_per_image(generators[:10])(x)
        return images.grid(torch.cat([x, z, model.unet(z)]).clamp(0, 1), 10)
    c = (torch.arange(40) % 10).to(model.device) if model.classes else None
    x = sampling.last(model.draw(generators, evenly_spaced(settings["T"], 25), sampling.dpm_solver(), c, model.scale))
    return images.grid(images.to_unit(x, *model.pixels), 10)
