"""What several lessons need: a model by its name, words in turn, test digits."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from minidiff import mnist, shipped
from minidiff.model import Model
from minidiff.pretrained import load, names
from minidiff.words import Words, texts

OfAny = Model | str  # what a lesson takes for its model
OfDigits = Annotated[Model | str, "digits"]  # ... that draws digits
OfEnlarging = Annotated[Model | str, "enlarging"]  # ... that is a stage II
DIGITS, PICTURES = "mnist-class", "picturebook"  # the shipped models
OF_DIGITS = {"noise": None, "blur": None, "onestep": "mnist-denoiser", "denoise": "mnist-time"}  # without a picture
PROMPT = "a high quality photo"  # the course's prompt for nothing in particular


def opened(model: Model | str | None, words: Words | None = None) -> Model:
    """The model, loaded when it is given by its name.

    None: that of the digits when the words are digits, else that of prompts.
    """
    if isinstance(model, Model):
        return model
    return load(model or suits(words))


def default_model(lesson: str, words: Words | None, picture: str | None) -> str | None:
    """The shipped model for a lesson that was given none; None where it needs no network."""
    if lesson in OF_DIGITS:
        return (PICTURES if PICTURES in names() else DIGITS) if picture else OF_DIGITS[lesson]
    return suits(words)


def suits(words: Words | None) -> str:
    """The shipped model that knows these words."""
    prompts = words is not None and not all(word == "" or word.isdecimal() and len(word) == 1 for word in texts(words))
    return PICTURES if prompts and PICTURES in names() else DIGITS


def opened_digits(model: Model | str, lesson: str) -> Model:
    """A model of digits. Raises ValueError for one of prompts."""
    model = opened(model)
    if model.words is None:
        raise ValueError(
            f"{lesson} is a lesson on digits, got {model.name}: name {DIGITS}, mnist-time or a file of train.py's"
        )
    return model


def of_prompts(model: Model) -> bool:
    """Whether the words of the model are prompts."""
    return model.words is None


def default_prompt(model: Model) -> str:
    """The prompt for nothing in particular: the course's; none for a model that has never seen its words."""
    return PROMPT if of_prompts(model) and model.vocabulary is None else ""


def in_turn(words: Sequence[str], n: int) -> list[str]:
    """A word for each of n images."""
    return [words[k % len(words)] for k in range(n)]


def test_digits(model: Model | None, n: int, digits: Words | None) -> tuple[Tensor, Tensor]:
    """n real digits (n, 1, 28, 28) that no network was trained on, in the model's pixels, and their labels (n,)."""
    wanted = list(range(10)) if digits is None else digit_labels(digits)
    x, labels = mnist.test_digits(n, wanted)
    low, high = (0, 1) if model is None else model.pixels
    x = mnist.to_pixels(x, low, high)
    return (x if model is None else x.to(model.device)), labels


def opened_picture(picture: str | None, n: int | None, model: Model | str | None) -> tuple[Model, Tensor]:
    """A model that walks (default: the one of prompts), and a picture n times (default: one of ours, once) in its
    pixels."""
    model, n = opened(model or (PICTURES if PICTURES in names() else DIGITS)), 1 if n is None else n
    at_least_one(n)
    if model.alpha_bar is None:
        model.timesteps()  # says so
    ours = "tower.png" if of_prompts(model) else "drawing-three.png"
    return model, model.picture(picture or shipped.PICTURES / ours).expand(n, -1, -1, -1).to(model.device)


def digit_labels(digits: Words) -> list[int]:
    """Digits as numbers. Raises ValueError for anything else."""
    words = texts(digits)
    for word in words:
        if not (word.isdecimal() and int(word) <= 9):
            raise ValueError(f"a digit is 0 to 9, got {word!r}")
    return [int(word) for word in words]


def at_least_one(n: int) -> None:
    """Raises ValueError unless n images are asked for that a machine may hold."""
    if not 1 <= n <= 10**7:
        raise ValueError(f"n must be between 1 and 10000000, got {n}")


def stacked_noise(x: Tensor, sigmas: Sequence[float], eps: Tensor) -> list[Tensor]:
    """z = x + σ ε, the same ε for every σ."""
    return [x + sigma * eps for sigma in sigmas]


def beside(*columns: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of the same images beside each other: (N, V, C, H, W), on the CPU."""
    return torch.stack([column.cpu() for column in columns], 1)
