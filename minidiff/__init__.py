"""minidiff: pixel diffusion from end to end, by hand, in plain PyTorch.

Letters for shapes: B batch, C channels, H W pixels, T noise levels (t = 1 … T noisy, 0 clean), D width.
Paper tags (DDPM, DDIM, CFG, …) are explained at the top of the chapter that uses them.

The names below stand in reading order: a schedule, the algebra on it, the walk, a network, its loss, guidance, adapters, files.
"""
# ruff: noqa: I001, RUF022, reading order

from minidiff.schedule import cosine, evenly_spaced, linear, linear_to_noise, strided
from minidiff.diffusion import add_noise, add_more_noise, clip_to, dynamic_threshold, posterior, predict_eps, predict_x0, unclipped
from minidiff.denoiser import Denoiser
from minidiff.sampling import ddim, ddpm_large_step, ddpm_step, dpm_solver, last, noise_per_image, sample, seeded
from minidiff.networks.mnist_unet import UNet
from minidiff.training import denoiser_loss, diffusion_loss, drop_labels, update_ema
from minidiff.guidance import cfg
from minidiff.adapters import labelled
from minidiff.pretrained import Digits, load_digits

__all__ = [
    "cosine", "evenly_spaced", "linear", "linear_to_noise", "strided",
    "add_noise", "add_more_noise", "clip_to", "dynamic_threshold", "posterior", "predict_eps", "predict_x0", "unclipped",
    "Denoiser",
    "ddim", "ddpm_large_step", "ddpm_step", "dpm_solver", "last", "noise_per_image", "sample", "seeded",
    "UNet",
    "denoiser_loss", "diffusion_loss", "drop_labels", "update_ema",
    "cfg", "labelled", "Digits", "load_digits",
]  # fmt: skip
