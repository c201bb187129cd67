"""Chapter 8. Pretrained models: from a file to everything that a walk needs.

A loader returns one frozen record: the network, its schedule, its range of pixels, conditions -> denoiser. No flag is asked for
that the file answers. Next: the scripts, sample.py and train.py.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from minidiff import images, sampling
from minidiff.adapters import labelled
from minidiff.denoiser import Denoiser
from minidiff.diffusion import clip_to
from minidiff.guidance import cfg
from minidiff.models.mnist_unet import UNet
from minidiff.schedule import evenly_spaced, linear, linear_to_noise

SCHEDULES = {"linear": linear, "linear_to_noise": linear_to_noise}


def build(settings: dict) -> UNet:
    return UNet(settings["width"], time=settings["task"] != "denoiser", classes=settings.get("classes", 0))


def schedule(settings: dict) -> Tensor:
    return SCHEDULES[settings["schedule"]](settings["T"])


@dataclass(frozen=True)
class Digits:
    unet: nn.Module
    settings: dict

    @property
    def alpha_bar(self) -> Tensor:
        return schedule(self.settings)

    def denoiser(self, c: Tensor | None, scale: float = 1) -> Denoiser:
        def bound(c):
            return labelled(self.unet, c, self.alpha_bar, self.settings.get("classes", 0), self.settings["target"])

        return bound(None) if c is None else cfg(bound(c), bound(None), scale)


@torch.no_grad()
def preview(model: Digits, seed: int) -> Image.Image:
    generators = sampling.seeded(seed, 0, 40)
    noise = sampling.noise_per_image(generators)
    x = noise(torch.empty(40, 1, 28, 28))
    device = next(model.unet.parameters()).device
    low, high = model.settings["pixels"]
    if model.settings["task"] == "denoiser":
        from minidiff import mnist

        digits = mnist.to_pixels(mnist.load(train=False)[0][:40], 0, 1)
        return images.grid(torch.cat([digits + 0.5 * x, model.unet((digits + 0.5 * x).to(device)).cpu()]).clamp(0, 1), 10)
    c = torch.arange(40) % 10 if "classes" in model.settings else None
    walk = sampling.sample(
        model.denoiser(c.to(device) if c is not None else None, 2.0), x.to(device), evenly_spaced(model.settings["T"], 25), model.alpha_bar,
        step=sampling.dpm_solver(), clip=clip_to(low, high), noise=noise,
    )
    return images.grid(images.to_unit(sampling.last(walk), low, high), 10)
