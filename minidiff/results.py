"""What a lesson returns, and how a picture shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from minidiff import images
from minidiff.walk import Walk

SIDE = 84  # pixels of a small image on a picture, at least


@dataclass(frozen=True, repr=False)
class Result:
    """What a lesson made. The pictures are drawn when they are asked for.

    summary: a sentence or several lines
    images:  (N, C, H, W) in [0, 1], None where the lesson measures or stores
    labels:  (N,) int64, −1 for none; (N, V) for V readings; None for prompts
    arrays:  others by name: views, original, levels, mask, small
    shown:   (N, V, C, H, W), what the picture shows of each image; None: the image itself
    columns: the names of the V, or of the columns of a grid
    rows:    the names of the rows of a grid
    across:  images in a row of a grid
    frames:  of the animation, (N, C, H, W) each
    walk:    as it was walked
    settled: other values that were not given, as the lesson chose them
    prompts: a word for each image, where there are any
    bank:    the prompts' vectors, of the lesson that encodes them
    """

    summary: str
    images: Tensor | None = None
    labels: Tensor | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    shown: Tensor | None = None
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    across: int = 10
    frames: Sequence[Tensor] = ()
    walk: Walk | None = None
    settled: dict = field(default_factory=dict)
    prompts: Sequence[str] = ()
    bank: dict | None = None

    def __repr__(self) -> str:
        return f"Result({self.summary.splitlines()[0]})"

    def picture(self) -> Image.Image:
        """All images on one picture, every row and column named. Raises ValueError for a result without images."""
        if self.images is None:
            raise ValueError("this lesson made no images: read its summary")
        if self.shown is None:
            picture, columns = grid(self.images, self.across), list(self.columns)[: len(self.images)]
            named = images.captioned(picture, columns) if columns else picture
            if not self.rows:
                return named
            left, top = images.beside(picture, list(self.rows)), named.height - picture.height
            sheet = Image.new("RGB", (left.width, named.height), "white")
            sheet.paste(left, (0, top))
            sheet.paste(named, (left.width - picture.width, 0))
            return sheet
        x, V = self.shown, self.shown.shape[1]
        across = min(len(x), max(1, 280 // (x.shape[-1] * V)))  # as many images in a row as fit
        return images.captioned(grid(x.flatten(0, 1), across * V), [*self.columns] * across)

    def animation(self) -> list[Image.Image]:
        """The frames as pictures."""
        return [grid(frame, self.across) for frame in self.frames]

    def stored(self) -> dict[str, Tensor]:
        """All arrays by name, as sample.py writes them."""
        arrays = {"images": self.images, "labels": self.labels, **self.arrays}
        return {name: array for name, array in arrays.items() if array is not None}


def grid(x: Tensor, columns: int) -> Image.Image:
    """(N, C, H, W) in [0, 1], row by row; small images enlarged by a whole number."""
    return images.grid(x, columns, -(-SIDE // x.shape[-1]))


def pictured(x: Tensor | Result) -> Image.Image:
    """Images (N, C, H, W) in [0, 1], or a Result, as one picture. Raises ValueError for another shape or range."""
    if isinstance(x, Result):
        return x.picture()
    if not isinstance(x, Tensor) or x.ndim != 4 or len(x) == 0 or x.shape[1] not in (1, 3):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected images (N, 1 or 3, H, W) or a lesson's Result, got {got}")
    low, high = float(x.min()), float(x.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"expected pixels in [0, 1], got {low:g} to {high:g}: (x + 1) / 2 maps [-1, 1] to it, x / 255 bytes"
        )
    return grid(x, min(len(x), 10))


def moving(result: Result) -> list[Image.Image]:
    """The frames of a Result as pictures. Raises ValueError where there are none."""
    if not isinstance(result, Result) or not result.frames:
        got = repr(result) if isinstance(result, Result) else type(result).__name__
        raise ValueError(f"expected the Result of a lesson with gif=True, got {got}: or save a .png")
    return result.animation()


def labels_of(terms: Sequence[Sequence[str]], n: int) -> Tensor:
    """Digits as numbers (n,), −1 for none; (n, V) of V terms."""
    columns = [torch.tensor([int(word or -1) for word in words]).expand(n) for words in terms]
    return columns[0] if len(columns) == 1 else torch.stack(columns, 1)


def counted(n: int, noun: str) -> str:
    """ "1 digit", "2 digits"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
