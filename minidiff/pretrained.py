"""Chapter 8. Pretrained models: from a file to everything that a walk needs.

A loader returns one frozen record: the network, its schedule, its range of pixels, and how conditions become denoisers. The
file answers every question about itself, so the scripts ask for no flag that it answers.

A network without labels has no half to be guided away from; a worse version of itself will do: ε_w + γ (ε − ε_w). Ours is the
class-conditioned network with its label dropped, which saw a tenth as many images so. AG = Karras et al. 2024, "Guiding a
diffusion model with a bad version of itself", arXiv 2406.02507. Next: illusions.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minidiff.adapters import labelled
from minidiff.denoiser import Denoiser
from minidiff.diffusion import clip_to
from minidiff.files import load_tensors
from minidiff.guidance import cfg
from minidiff.networks.mnist_classifier import Classifier
from minidiff.networks.mnist_unet import UNet
from minidiff.sampling import Step, noise_per_image, sample
from minidiff.schedule import cosine, linear, linear_to_noise

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # beside the package: minidiff is installed with `pip install -e .`
SCHEDULES = {"linear": linear, "linear_to_noise": linear_to_noise, "cosine": cosine}


@dataclass(frozen=True)
class Digits:
    """A network of the digits with all that its file says of it.

    unet:      the network; of task "denoiser" it maps z to x, of "time" and "class" it predicts `target`; of "classifier" it is none but reads
    alpha_bar: (T + 1,) float64, or None for the denoiser and the classifier
    pixels:    (low, high), the range it was trained on
    classes:   how many labels it knows, 0 for none
    target:    "eps" or "velocity"
    scale:     the guidance that suits it, 1 where there is none
    guide:     a worse network of the same schedule, for one without labels to be guided away from (AG)
    """

    task: str
    unet: nn.Module
    alpha_bar: Tensor | None
    pixels: tuple[float, float]
    classes: int
    target: str
    scale: float = 1
    guide: "Digits | None" = None

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def network(self, x_t: Tensor, t: int, c: Tensor | None) -> tuple[Tensor, None]:
        """The network with its labels beside the images, as `one_forward` wants it: (B,) int64, −1 for none."""
        return labelled(self.unet, c, self.alpha_bar, self.classes, self.target)(x_t, t)

    def denoiser(self, c: Tensor | None = None, scale: float = 1) -> Denoiser:
        """Labels (B,), or None for none -> a denoiser, guided when scale is not 1: from no label to the label, or from the guide to this network."""
        uncond = labelled(self.unet, None, self.alpha_bar, self.classes, self.target)
        if c is None:
            return uncond if self.guide is None else cfg(uncond, self.guide.denoiser(), scale)
        return cfg(labelled(self.unet, c, self.alpha_bar, self.classes, self.target), uncond, scale)

    def draw(self, generators: list[torch.Generator], timesteps: list[int], step: Step, c: Tensor | None = None, scale: float = 1) -> Iterator[tuple[int, Tensor]]:
        """Walk one image for each generator from noise to level 0; yields (t, x_t), pixels in `self.pixels`."""
        noise = noise_per_image(generators)
        x = noise(torch.empty(len(generators), 1, 28, 28, device=self.device))
        return sample(self.denoiser(c, scale), x, timesteps, self.alpha_bar, step=step, clip=clip_to(*self.pixels), noise=noise)


def build(settings: dict, device: str = "cpu") -> Digits:
    """An untrained network from the settings of a run (see train.py for their names)."""
    task, classes = settings["task"], settings.get("classes", 0)
    with torch.device(device):
        unet = Classifier(settings["width"]) if task == "classifier" else UNet(settings["width"], time=task != "denoiser", classes=classes)
    alpha_bar = None if task in ("denoiser", "classifier") else SCHEDULES[settings["schedule"]](settings["T"])
    low, high = (float(value) for value in settings["pixels"])
    scale, target = float(settings.get("scale", 1)), settings.get("target", "image")
    if not low < high or not math.isfinite(high - low) or not math.isfinite(scale) or target not in ("eps", "velocity", "image"):
        raise ValueError(f"pixels {low} to {high}, scale {scale}, target {target!r}")
    return Digits(task, unet, alpha_bar, (low, high), classes, target, scale)


def load_digits(name: str | Path, tasks: tuple[str, ...]) -> Digits:
    """A network that train.py wrote, in eval mode: BatchNorm uses its running statistics, so no image depends on its batch.

    name:  mnist-denoiser, mnist-time, mnist-class, mnist-classifier, or the path of a file
    tasks: the kinds that the caller can use
    Raises ValueError, in one sentence, when there is no such file, when it is damaged, of another kind, or holds numbers that are not finite.
    """
    path = Path(name)
    if path.suffix != ".safetensors":
        known = sorted(p.stem for p in WEIGHTS.glob("mnist-*.safetensors"))
        if str(name) not in known:
            raise ValueError(f"--model wants one of {', '.join(known)}, or the path of a .safetensors file, got {str(name)!r}")
        path = WEIGHTS / f"{name}.safetensors"
    tensors, settings = load_tensors(path)
    if settings.get("task") not in tasks:
        raise ValueError(f"{path} holds a network of kind {settings.get('task')!r}, wanted {' or '.join(tasks)}: choose another with --model")
    try:
        model = build(settings, "meta")  # names and shapes alone: nothing is allocated before they fit
        model.unet.load_state_dict(tensors, assign=True)
        if settings.get("guide") is not None:
            model = replace(model, guide=load_digits(settings["guide"], ("class", "time")))
            if not torch.equal(model.guide.alpha_bar, model.alpha_bar) or model.guide.pixels != model.pixels:
                raise ValueError(f"its guide {settings['guide']} has another schedule or range of pixels")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} does not hold the network that its settings describe ({' '.join(str(error).split())[:200]}): get it again") from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"{path} holds numbers that are not finite (in {key}): train it again from an earlier state")
    model.unet.eval().requires_grad_(False)
    return model
