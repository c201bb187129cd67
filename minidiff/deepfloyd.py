"""Chapter 21. DeepFloyd IF: what besides weights does a published model need to draw as its authors meant?

    schedule     ᾱ, and how an estimate of x_0 is kept in range: both in scheduler_config.json
    levels       which of the 1000 noise levels a walk visits: `respaced` for DDPM's steps, `solver_levels` for DPM-Solver++
    memory       how much a walk will take, told before anything is loaded

IF counts levels from 0 (least noise) to 999; ours are one more, 1 … 1000, and 0 is the clean image: their list 999, …, 0 is our 1000,
…, 1, 0. Left out: stage III (it never came), the safety checker, the watermark. Next: prompted.py.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff import schedule
from minidiff.diffusion import clip_to, dynamic_threshold, unclipped
from minidiff.networks.if_unet import Attention, IFUNet

RESPACINGS = {  # name -> steps in equal sections of the levels, the least noisy first (IF's own)
    "fast27": "10,10,3,2,2",
    "smart27": "7,4,2,1,2,4,7",
    "smart50": "10,6,4,3,2,2,3,4,6,10",
    "smart100": "1,1,1,1,2,2,2,2,2,2,3,3,4,4,5,5,6,7,7,8,9,10,13",
    "smart185": "1,1,2,2,2,3,3,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,20",
    "super27": "1,1,1,1,1,1,1,2,5,13",
    "super40": "2,2,2,2,2,2,3,4,6,15",
    "super100": "4,4,6,6,8,8,10,10,14,30",
}


def respaced(steps: str | int, T: int = 1000) -> list[int]:
    """The levels of a walk, falling from at most T, with 0 behind: steps + 1 of them.

    steps: a number (evenly from 1 to T), a name of RESPACINGS, or numbers of steps for equal sections: "10,10,3,2,2"
    Raises ValueError for an unknown name, and for more steps than levels.
    """
    text = RESPACINGS.get(str(steps), str(steps))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"steps must be a number, numbers like 10,10,3,2,2 or one of {', '.join(RESPACINGS)}, got {steps!r}")
    counts, first, levels = [int(n) for n in text.split(",")], 0, []
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"a section of {size} levels takes 1 to {size} steps, got {count} in {steps!r}: ask for other numbers")
        # evenly from the first to the last level of the section; the sum, not a product, rounds as the original does
        at, stride = 0.0, (size - 1) / max(count - 1, 1)
        for _ in range(count):
            levels.append(first + round(at) + 1)
            at += stride
        first += size
    return [*reversed(levels), 0]


def solver_levels(alpha_bar: Tensor, steps: int, lowest_log_snr: float = -5.1) -> list[int]:
    """Levels for DPM-Solver++: steps + 1, evenly from the noisiest one whose λ = ½ log(ᾱ/(1 − ᾱ)) is not below the bound, to 0.

    On the cosine schedule λ falls to −9.9 in the last levels, which hold no image: −5.1 leaves out the last 4 of 1000. Raises ValueError.
    """
    log_snr = 0.5 * (alpha_bar[1:] / (1 - alpha_bar[1:])).log()
    noisiest = int((log_snr >= lowest_log_snr).sum())
    if not 1 <= steps < noisiest:
        raise ValueError(f"steps must be between 1 and {noisiest - 1}, got {steps}")
    stride = (noisiest - 1) / steps  # divided first, so that halves round as the reference's do
    return [*(round(stride * i) + 1 for i in range(steps, 0, -1)), 0]


def number(config: dict, name: str, default: float, low: float, high: float) -> float:
    """A number of scheduler_config.json; a whole one where the default is. Raises ValueError for anything else."""
    value = default if config.get(name) is None else config[name]
    if type(value) not in (int, type(default)) or not low <= value <= high:
        kind = "whole number" if type(default) is int else "number"
        raise ValueError(f"the scheduler's config asks for {name} = {value!r}, wanted is a {kind} between {low} and {high}: use the scheduler of an IF checkpoint")
    return value


def schedule_of(config: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """scheduler_config.json -> ᾱ (T + 1,) float64, and the clip of x_0. Raises ValueError for a schedule that is not built."""
    built = {"prediction_type": ("epsilon",), "variance_type": ("learned_range", "fixed_small"), "trained_betas": (None,), "rescale_betas_zero_snr": (False,)}
    for name, values in built.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"the scheduler's config asks for {name} = {config[name]!r}, built is {' or '.join(map(repr, values))}: use the scheduler of an IF checkpoint")
    T, kind = number(config, "num_train_timesteps", 1000, 1, 100_000), config.get("beta_schedule")
    if kind == "squaredcos_cap_v2":
        alpha_bar = schedule.cosine(T)
    elif kind == "linear":
        alpha_bar = schedule.linear(T, number(config, "beta_start", 1e-4, 0, 1), number(config, "beta_end", 0.02, 0, 1))
    else:
        raise ValueError(f"the scheduler's config asks for beta_schedule = {kind!r}, built is 'squaredcos_cap_v2' or 'linear': use the scheduler of an IF checkpoint")
    if config.get("thresholding"):
        clip = dynamic_threshold(number(config, "dynamic_thresholding_ratio", 0.995, 0, 1), number(config, "sample_max_value", 1.0, 0, math.inf))
    else:
        limit = number(config, "clip_sample_range", 1.0, 0, math.inf)
        clip = clip_to(-limit, limit) if config.get("clip_sample", True) else unclipped
    return alpha_bar, clip


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that the parts of a walk will take, one after the other: the prompts first, then the network with its pictures."""

    weights: int
    activations: int
    text: int  # T5's largest block, streamed; 0 when all prompts are in the bank

    @property
    def peak(self) -> int:
        return max(self.weights + self.activations, self.text)

    def __str__(self) -> str:
        parts = f"weights {self.weights / 1e9:.2f} GB + activations {self.activations / 1e9:.2f} GB"
        return parts + (f"; before that, T5 block by block {self.text / 1e9:.2f} GB" if self.text else "")

    def check(self, free: int) -> None:
        """Raises ValueError when the plan does not fit into `free` bytes."""
        if self.peak > free:
            raise ValueError(
                f"this walk needs about {self.peak / 1e9:.1f} GB ({self}), free are {free / 1e9:.1f} GB: use a smaller model, --dtype bfloat16, fewer images or --sequential"
            )


def memory_plan(config: dict, dtype: torch.dtype, rows: int, size: int | None = None, text_config: dict | None = None) -> MemoryPlan:
    """What a walk of `rows` pictures at a time (two an image with guidance) will take; nothing is loaded.

    config:      unet/config.json
    text_config: text_encoder/config.json if T5 is needed
    The activations are an estimate from above: what is kept for the way up, ten times the widest picture, and the widest kernel once
    more (measured at width 128: 0.156 GB for 2 rows in float32, here 0.17; 0.14 for 4 in bfloat16, here 0.14).
    """
    with torch.device("meta"):
        unet = IFUNet(config)
    size, widths = size or config.get("sample_size") or 64, unet.config["block_out_channels"]
    areas = [size**2 // 4**i for i in range(len(widths))]
    skips = sum(C * area * (depth + 2) for C, area, depth in zip(widths, areas, unet.config["layers_per_block"]))
    widest = max(2 * C * area for C, area in zip(widths, areas))
    weights = sum(p.numel() for p in unet.parameters())
    tokens = sum(2 * 77 * m.to_q.out_features for m in unet.modules() if isinstance(m, Attention))
    numbers = rows * (skips + 10 * widest + tokens) + 40 * max(C * C for C in widths)
    text = 0
    if text_config is not None:
        D, inner = text_config["d_model"], text_config["num_heads"] * text_config["d_kv"]
        text = 4 * max(text_config["vocab_size"] * D, 4 * D * inner + 3 * D * text_config["d_ff"])
    return MemoryPlan(weights * dtype.itemsize, numbers * dtype.itemsize, text)
