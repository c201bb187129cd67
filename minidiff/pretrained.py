"""Chapter 23. Pretrained models: from a name to a model, whatever it is. Next: judge.py, what they drew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from minidiff.digits import load_digits
from minidiff.model import Model
from minidiff.prompted import load_prompted
from minidiff.shipped import WEIGHTS


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    *,
    dtype: str | torch.dtype | None = None,
    bank: str | Path | None = None,
    encoder: str | Path | None = None,
    noise_level: int | None = None,
    upscale: str | Path | None = None,
    upscale_steps: int | str | None = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """A model by its name.

    name:          a shipped one (see `names`), a .safetensors file of train.py's, a folder in the hub's layout,
                   owner/name on the hub
    device:        cpu, cuda, mps
    dtype:         of a prompted model's weights: float32, bfloat16 or float16; default float32, on CUDA float16
    bank:          the prompt bank, a .safetensors file: looked into before T5 is asked, and added to
    encoder:       the model whose tokenizer/ and text_encoder/ encode the prompts, if not this one
    noise_level:   of the small picture in stage II, 0 ... 999: more invents more; default 250
    upscale:       stage II of that folder or name enlarges what this model draws
    upscale_steps: steps of that; default dpm 20, ddpm smart50
    say:           is given a line about memory before a prompted model is loaded
    Raises ValueError for an unknown name, a file that cannot be believed, and what the model has no use for.
    """
    given = {"dtype": dtype, "bank": bank, "encoder": encoder, "noise_level": noise_level, "upscale": upscale}
    if is_of_digits(name):
        for option, value in (given | {"upscale_steps": upscale_steps}).items():
            if value is not None:
                raise ValueError(
                    f"{option} is for models of prompts, {name} draws digits: leave it out, or choose another model"
                )
        return load_digits(name, device)
    if upscale_steps is not None and upscale is None:
        raise ValueError(
            f"upscale_steps is for stage II, got {upscale_steps} without upscale: leave it out, or name a stage II"
        )
    options = {"dtype": _dtype(dtype), "bank": _bank(bank), "say": say}
    level, large = 250 if noise_level is None else noise_level, None
    if upscale is not None:
        try:
            large = load_prompted(
                _place(upscale),
                device,
                **options,
                encoder=encoder or _place(name),
                noise_level=level,
                steps=upscale_steps,
            )
            large = replace(large, name=str(upscale), levels=_of_upscale(large.levels))
            if large.low is None:
                raise ValueError(f"{upscale} is a stage I, expected a stage II, like DeepFloyd/IF-II-M-v1.0")
        except ValueError as error:
            raise ValueError(f"upscale: {error}") from None
    model = load_prompted(_place(name), device, **options, encoder=encoder, noise_level=level, large=large)
    if model.low is None and large is None and noise_level is not None:
        raise ValueError(
            f"noise_level is for stage II, got {noise_level} for {name} alone: leave it out, or name a stage II"
        )
    if model.low is not None and large is not None:
        raise ValueError(f"{name} is a stage II, which enlarges pictures: expected a stage I, or no upscale")
    return replace(model, name=str(name))


def names() -> list[str]:
    """The shipped models."""
    digits = [path.stem for path in WEIGHTS.glob("mnist-*.safetensors") if path.stem != "mnist-classifier"]
    return sorted([*digits, *(path.parent.parent.name for path in WEIGHTS.glob("*/unet/config.json"))])


def is_of_digits(name: str | Path) -> bool:
    """Whether that is the name of a network of digits. Raises ValueError for a name that can be none at all."""
    name = str(name)
    if name.endswith(".safetensors") or (name in names() and name.startswith("mnist-")):
        return True
    if "/" not in name and "\\" not in name and name not in names() and not Path(name).is_dir():
        raise ValueError(
            f"expected {', '.join(names())}, a .safetensors file, a folder or owner/name on the hub, got {name!r}"
        )
    return False


def _of_upscale(levels: Callable) -> Callable:
    """Levels whose errors say that they are of stage II."""

    def of_upscale(*asked) -> list[int]:
        try:
            return levels(*asked)
        except ValueError as error:
            raise ValueError(f"upscale: {error}") from None

    return of_upscale


def _place(name: str | Path) -> str | Path:
    """The folder of a shipped model; another name as it is."""
    return WEIGHTS / name if (WEIGHTS / name / "unet").is_dir() else name


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = ("float32", "bfloat16", "float16")
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return getattr(torch, dtype)


def _bank(bank: str | Path | None) -> Path | None:
    if bank is not None and Path(bank).suffix != ".safetensors":
        raise ValueError(f"bank must be a name that ends in .safetensors, got {bank}")
    return None if bank is None else Path(bank)
