"""minidiff: pixel diffusion from end to end, by hand, in plain PyTorch.

Letters for shapes: B batch, C channels, H W pixels, T noise levels (t = 1 … T noisy, 0 clean), D width.
Paper tags (DDPM, DDIM, CFG, …) are explained at the top of the chapter that uses them.

The names below stand in reading order: a schedule, the algebra on it, the walk, a network, its loss, guidance,
adapters, illusions, edits, models. `minidiff.lessons` has the experiments.
"""
# ruff: noqa: I001, RUF022, reading order

from minidiff.schedule import cosine, evenly_spaced, linear, linear_to_noise, strided
from minidiff.diffusion import (
    add_noise, add_more_noise, clip_to, dynamic_threshold, posterior, predict_eps, predict_x0, unclipped,
)  # fmt: skip
from minidiff.denoiser import Denoiser
from minidiff.sampling import (
    ddim_step, ddpm_large_step, ddpm_step, dpm_step, last, noise_per_image, one_step, sample, seeded,
)  # fmt: skip
from minidiff.networks.mnist_unet import UNet
from minidiff.training import denoiser_loss, diffusion_loss, drop_labels, update_ema
from minidiff.guidance import cfg
from minidiff.adapters import labelled
from minidiff.views import View, permutation, view, views
from minidiff.illusions import anagram, colour_hybrid, factorised, gaussian, hybrid, triple_hybrid
from minidiff.editing import hold, inpaint, resampled, sdedit
from minidiff.one_forward import one_forward, sequential
from minidiff.walk import Walk
from minidiff.model import Model
from minidiff.pretrained import load, names

__version__ = "0.2.0"


def show(x):
    """Images (N, C, H, W) in [0, 1], or a lesson's Result, as one PIL picture, which a notebook displays. Raises
    ValueError."""
    from minidiff import results  # Pillow and torchvision are loaded by those who look

    return results.pictured(x)


def save(x, path):
    """Write images (N, C, H, W) in [0, 1], or a lesson's Result, as a PNG; or the frames of a Result as a GIF. Raises
    ValueError."""
    from minidiff import images, results

    if str(path).endswith(".gif"):
        images.save_gif(results.moving(x), path)
    elif str(path).endswith(".png"):
        images.save_png(results.pictured(x), path)
    else:
        raise ValueError(f"expected a name that ends in .png or .gif, got {path}")


__all__ = [
    "cosine", "evenly_spaced", "linear", "linear_to_noise", "strided",
    "add_noise", "add_more_noise", "clip_to", "dynamic_threshold", "posterior", "predict_eps", "predict_x0",
    "unclipped", "Denoiser",
    "ddim_step", "ddpm_large_step", "ddpm_step", "dpm_step", "last", "noise_per_image", "one_step", "sample", "seeded",
    "UNet",
    "denoiser_loss", "diffusion_loss", "drop_labels", "update_ema",
    "cfg", "labelled", "View", "permutation", "view", "views",
    "anagram", "colour_hybrid", "factorised", "gaussian", "hybrid", "triple_hybrid",
    "hold", "inpaint", "resampled", "sdedit", "one_forward", "sequential",
    "Walk", "Model", "load", "names", "save", "show",
]  # fmt: skip
