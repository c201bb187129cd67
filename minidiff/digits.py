"""Chapter 16. Digits: from a file of train.py's to a model.

The file answers every question about itself: its metadata hold the settings of the run (see train.py for their names),
so the scripts ask for no flag that it answers. Next: networks/if_unet.py.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidiff.adapters import labelled
from minidiff.denoiser import Denoiser
from minidiff.diffusion import clip_to, unclipped
from minidiff.files import load_tensors
from minidiff.model import Model
from minidiff.networks.mnist_classifier import Classifier
from minidiff.networks.mnist_unet import UNet
from minidiff.one_forward import Network
from minidiff.schedule import cosine, evenly_spaced, linear, linear_to_noise
from minidiff.shipped import WEIGHTS

SCHEDULES = {"linear": linear, "linear_to_noise": linear_to_noise, "cosine": cosine}
STEPS = {"dpm": 20, "ddim": 50}  # the default of a sampler; of the others every level, the full walk
AT_ONCE = 8  # digits at a time on a CPU: of 200, each took 1.8 times as long, as activations leave the cache
TASKS = ("time", "class", "denoiser")


def network(settings: dict, device: torch.device | str = "cpu") -> nn.Module:
    """The untrained network of a run's settings. Raises ValueError for values that no run has."""
    low, high, scale = *(float(value) for value in settings["pixels"]), float(settings.get("scale", 1))
    target = settings.get("target", "image")
    if (
        not low < high
        or not math.isfinite(high - low)
        or not math.isfinite(scale)
        or target not in ("eps", "velocity", "image")
    ):
        raise ValueError(f"pixels {low} to {high}, scale {scale}, target {target!r}")
    with torch.device(device):
        if settings["task"] == "classifier":
            return Classifier(settings["width"])
        return UNet(settings["width"], time=settings["task"] != "denoiser", classes=settings.get("classes", 0))


def schedule(settings: dict) -> Tensor | None:
    """ᾱ (T + 1,) of a run's settings; None for the one-step denoiser and the classifier."""
    return SCHEDULES[settings["schedule"]](settings["T"]) if settings["task"] in ("time", "class") else None


def model(name: str, unet: nn.Module, settings: dict, guide: Denoiser | None = None) -> Model:
    """The model of a network and its settings; it computes where the network is."""
    device = next(unet.parameters(), torch.empty(0)).device
    classes, alpha_bar = settings.get("classes", 0), schedule(settings)
    labels = {"": -1, **{str(c): c for c in range(classes)}}

    def ask(x_t: Tensor, t: int, c: Tensor | None) -> tuple[Tensor, None]:
        return labelled(unet, c, alpha_bar, classes, settings["target"])(x_t, t)

    def conditions(words: list[str]) -> dict[str, Any]:
        return {word: torch.tensor([labels[word]], device=device) if classes else None for word in words}

    def levels(steps: int | str | None, sampler: str, start: int | None) -> list[int]:
        start = len(alpha_bar) - 1 if start is None else start
        try:
            steps = min(STEPS.get(sampler, start), start) if steps is None else int(steps)
        except ValueError:
            raise ValueError(f"steps must be a whole number for digits, got {steps!r}") from None
        if not 1 <= steps <= start:
            raise ValueError(f"steps must be between 1 and {start}, the level where the walk begins, got {steps}")
        return evenly_spaced(start, steps)

    pixels = tuple(float(value) for value in settings["pixels"])
    return Model(
        name=name,
        network=in_parts(ask) if device.type == "cpu" else ask,
        words=tuple(labels)[1:],
        conditions=conditions,
        alpha_bar=alpha_bar,
        clip=unclipped if alpha_bar is None else clip_to(*pixels),
        pixels=pixels,
        shape=(1, 28, 28),
        scale=float(settings.get("scale", 1)),
        device=device,
        batch=100,
        levels=levels,
        unet=unet,
        guide=guide,
    )


def in_parts(ask: Network) -> Network:
    """The network, asked about a few images at a time."""

    def denoise(x_t: Tensor, t: int, c: Tensor | None) -> tuple[Tensor, None]:
        conditions = [None] * len(x_t) if c is None else c.expand(len(x_t)).split(AT_ONCE)
        return torch.cat([ask(x, t, row)[0] for x, row in zip(x_t.split(AT_ONCE), conditions)]), None

    return denoise


def load_digits(name: str | Path, device: torch.device | str = "cpu", tasks: tuple[str, ...] = TASKS) -> Model:
    """A network that train.py wrote, as a model. Raises ValueError as `load_network` does."""
    unet, settings = load_network(name, tasks)
    unet.to(device, memory_format=torch.channels_last)
    return model(str(name), unet, settings, guide_of(settings, device))


def guide_of(settings: dict, device: torch.device | str = "cpu") -> Denoiser | None:
    """The worse network that a run's settings name, to be guided away from (AG). Raises ValueError for one that does
    not fit."""
    if settings.get("guide") is None:
        return None
    guide = load_digits(settings["guide"], device, ("time", "class"))
    if not torch.equal(guide.alpha_bar, schedule(settings)) or list(guide.pixels) != [*map(float, settings["pixels"])]:
        raise ValueError(f"the guide {settings['guide']} has another schedule or range of pixels: train without it")
    return guide.denoiser(scale=1)


def load_network(name: str | Path, tasks: tuple[str, ...]) -> tuple[nn.Module, dict]:
    """A network that train.py wrote, in eval mode (BatchNorm uses its running statistics), and the settings of its run.

    name:  mnist-class, … or the path of a file
    tasks: the kinds that the caller can use
    Raises ValueError when there is no such file, when it is damaged, of another kind, or holds numbers that are not
    finite.
    """
    path = Path(name) if Path(name).suffix == ".safetensors" else WEIGHTS / f"{name}.safetensors"
    tensors, settings = load_tensors(path)
    if settings.get("task") not in tasks:
        kind = settings.get("task")
        raise ValueError(
            f"{name} holds a network of kind {kind!r}, expected {' or '.join(tasks)}: choose another model"
        )
    try:
        unet = network(settings, "meta")  # names and shapes alone: nothing is allocated before they fit
        unet.load_state_dict(tensors, assign=True)
        schedule(settings)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} does not hold the network that its settings describe ({why}): download it again"
        ) from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(
                f"{path} holds numbers that are not finite (in {key}): train it again from an earlier state"
            )
    return unet.eval().requires_grad_(False), settings
