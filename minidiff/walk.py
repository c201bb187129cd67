"""Chapter 14. Walks: how are n images drawn, whatever draws them?

In batches, with one generator of noise an image: image k is the same in batches of any size, and for any number of
processes (to 1e-6: the kernels of matrix products depend on the batch). `torchrun` shares the images over its
processes.
Next: model.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real

from torch import Tensor
from tqdm import tqdm

from minidiff.machine import gathered, is_first, shared
from minidiff.sampling import Noise, Step, ddim_step, ddpm_large_step, ddpm_step, dpm_step, noise_per_image, seeded

SAMPLERS = {"dpm": dpm_step, "ddim": ddim_step, "ddpm": ddpm_step, "ddpm-large": ddpm_large_step}
Path = Callable[[range, Noise], Iterator[tuple[int, Tensor]]]  # of the images in a part of range(n), from their noise
WHOLE = ("batch", "seed")  # the numbers of a walk that are whole


@dataclass(frozen=True)
class Walk:
    """How to walk. None: what suits the model and the lesson.

    sampler:    dpm (DPM-Solver++ 2M), ddim, ddpm (variance β̃, or learned), ddpm-large (β), or in Python a step like
                `ddpm_step`; default dpm, of inpaint, and of edit with prompts, ddpm
    steps:      how many; default for digits dpm 20, ddim 50, ddpm all levels, edit 33, inpaint 50, anagram and hybrid
                10, for prompts dpm 20; with ddpm and ddim prompts also take smart27, smart50, fast27 or 10,10,3,2,2
    eta:        DDIM's noise, 0 ... 1
    scale:      guidance γ: 0 ignores the label or prompt, 1 is the conditional model, more exaggerates
    batch:      images at a time; default 100 digits, 4 pictures, 1 large one
    sequential: a forward pass for each term of a formula: less memory
    seed:       of the noise, any whole number from 0
    """

    sampler: str | Step | None = None
    steps: int | str | None = None
    eta: float = 0.0
    scale: float | None = None
    batch: int | None = None
    sequential: bool = False
    seed: int = 137

    def __post_init__(self):
        ours = [name for name, step in SAMPLERS.items() if step is self.sampler]
        if ours:  # given by its function: the same as by its name
            object.__setattr__(self, "sampler", ours[0])
        if not callable(self.sampler) and self.sampler not in (None, *SAMPLERS):
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, or a step, got {self.sampler!r}")
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, Integral | str)):
            raise ValueError(f"steps must be a whole number, or for prompts a name like smart27, got {self.steps!r}")
        for name, low, high in (("eta", 0, 1), ("scale", 0, 100), ("batch", 1, 2**31), ("seed", 0, float("inf"))):
            value = getattr(self, name)
            if value is None and name in ("scale", "batch"):
                continue
            kind, limits = (
                (Integral, f"a whole number from {low}") if name in WHOLE else (Real, f"between {low} and {high}")
            )
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise ValueError(f"{name} must be {limits}, got {value!r}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is DDIM's, got {self.eta} with the sampler {self.name or 'dpm'}: use ddim")

    def default(self, **values) -> "Walk":
        """The same with these values where it has None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    @property
    def name(self) -> str | None:
        """The sampler's name, that of a step of yours as well."""
        step = getattr(self.sampler, "func", self.sampler)  # of a partial
        return getattr(step, "__name__", type(step).__name__) if callable(step) else step

    def step(self) -> Step:
        """The sampler's step."""
        step = self.sampler if callable(self.sampler) else SAMPLERS[self.sampler]
        return partial(step, eta=self.eta) if step is ddim_step else step

    def settings(self) -> dict:
        """What it takes to walk so again, for a picture's metadata."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"sampler": self.name}


def draw(
    path: Path, n: int, steps: int, walk: Walk, watch: bool = False, show: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """The last images of n walks, (n, C, H, W) on the CPU.

    steps: of a walk, for the bar, which `show` shows; watch: also return the first batch after each step, (b, C, H, W)
    """
    parts, results, states = shared(n, walk.batch), [], []
    hidden = not (show and is_first())
    with tqdm(total=sum(map(len, parts)) * steps, unit="image-step", disable=hidden, leave=False) as bar:
        for part in parts:
            for _, x in path(part, noise_per_image(seeded(walk.seed, part.start, len(part)))):
                if watch and part.start == 0:
                    states.append(x.cpu())
                bar.update(len(part))
            results.append(x)
    return gathered(results), states
