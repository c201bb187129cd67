"""What the digits' networks learn: one step from noise, all levels, these with labels; and to read a digit."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from minidiff import digits, images, judge, mnist, sampling, training
from minidiff.files import load_tensors, save_tensors
from minidiff.run import Task
from minidiff.walk import Walk

SAMPLED = (1, 5, 10, 20)  # sample grids are drawn after these epochs and after the last


def task(settings: dict, folder: Path) -> Task:
    """A network of the digits: denoiser, time, class or classifier, as `settings["task"]` says."""
    unet, alpha_bar = digits.network(settings), digits.schedule(settings)
    x, labels = (a[: settings["limit"]] for a in mnist.load(train=True))
    for layer in unet.modules():
        if isinstance(
            layer, nn.ConvTranspose2d
        ):  # BatchNorm follows, and subtracts any constant: the gradient is 0, and slow to add up
            layer.bias.requires_grad_(False)

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(x), generator=generator)

    def digit_loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        return loss(settings, alpha_bar, net, x[chosen], labels[chosen], generator, mine)

    def write(net: nn.Module, folder: Path, record: dict, last: bool) -> None:
        write_digits(net.eval(), folder, record, last)

    return Task(unet, len(x) // settings["batch"], order, digit_loss, write, lambda: load_tensors(settings["init"])[0])


def loss(
    settings: dict,
    alpha_bar: Tensor | None,
    net: nn.Module,
    digits: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    mine: slice,
) -> Tensor:
    """The loss of the part `mine` of a batch, a 0-dim float32. digits: (B, 1, 28, 28) uint8; labels: (B,) int64."""
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


def write_digits(net: nn.Module, folder: Path, record: dict, last: bool) -> None:
    """The weights with their settings and, after some epochs, a sheet of what the network does."""
    if record["task"] == "classifier":
        record = record | {"test_accuracy": accuracy(net)}
        print(f"test digits read right after epoch {record['epoch']}: {record['test_accuracy']:.2%}")
    save_tensors(net.state_dict(), folder / f"mnist-{record['task']}.safetensors", record)
    if last or record["epoch"] in SAMPLED:
        images.save_png(preview(net, record), folder / f"samples-epoch-{record['epoch']:03d}.png", record)


def accuracy(classifier: nn.Module) -> float:
    """The part of the 10,000 test digits that a classifier in evaluation mode reads right."""
    x, labels = mnist.load(train=False)
    reader = judge.Reader(classifier)
    return float(judge.read_as(reader.log_probs(reader.features(mnist.to_pixels(x, 0, 1))), labels).float().mean())


@torch.no_grad()
def preview(net: nn.Module, settings: dict) -> Image.Image:
    """A sheet with named rows and columns of what a network in evaluation mode does, from the same noise each time.

    classifier    the 40 of 2,000 test digits that it is least sure of, and what each is and is read as
    denoiser      ten test digits: clean, noisy, denoised
    time, class   40 drawn digits, as `sample.py digits` draws them: guided by their label, or away from the guide
    """
    if settings["task"] == "classifier":
        return unsure(judge.Reader(net))
    device = next(net.parameters()).device
    if settings["task"] == "denoiser":
        x = mnist.to_pixels(mnist.load(train=False)[0][:10], 0, 1).to(device)
        z = x + settings["sigma"] * sampling.noise_per_image(sampling.seeded(settings["seed"], 0, 10))(x)
        rows = ["clean", f"sigma {settings['sigma']}", "denoised"]
        return images.beside(images.grid(torch.cat([x, z, net(z)]).clamp(0, 1), 10, 3), rows, 60)
    model = digits.model(settings["task"], net, settings, digits.guide_of(settings, device))
    words = list(model.words) or [""]
    steps = model.walk((words * 40)[:40], 40, Walk(steps=25, seed=settings["seed"]))  # by this process alone
    x = model.to_unit(sampling.last(steps))
    names = [f"label {word}" for word in words] if model.words else [""] * 10
    guided = f"scale {model.scale:g}, from {settings.get('guide', 'no label')}" if model.guided else "not guided"
    return images.beside(images.captioned(images.grid(x, 10, 3), names), [guided, "", "", ""], 150)


def unsure(reader: judge.Reader) -> Image.Image:
    """A sheet of the 40 of 2,000 test digits whose label is least probable; above each its label and what is read."""
    x, labels = mnist.test_digits(2000, list(range(10)))
    x = mnist.to_pixels(x, 0, 1)
    log_probs = reader.log_probs(reader.features(x))
    order = log_probs.gather(1, labels[:, None])[:, 0].argsort()[:40]  # by log p(label)
    said = [f"{label}, read {read}" for label, read in zip(labels[order].tolist(), log_probs[order].argmax(1).tolist())]
    rows = [
        images.captioned(images.grid(x[part], 10, 3), said[k : k + 10])
        for k, part in zip(range(0, 40, 10), order.split(10))
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for k, row in enumerate(rows):
        sheet.paste(row, (0, k * row.height))
    return sheet
