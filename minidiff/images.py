"""Pictures: tensors to PNG, GIF and back. Pixels are [0, 1] at this door.

Every picture carries the settings that made it in its metadata (a PNG text chunk, "minidiff").
"""

import json
import math
from bisect import bisect_right
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from minidiff.files import replaced


def to_unit(x: Tensor, low: float = -1, high: float = 1) -> Tensor:
    """Pixels in [low, high] -> [0, 1], cut off outside."""
    return ((x - low) / (high - low)).clamp(0, 1)


def grid(images: Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """(N, C, H, W) in [0, 1], row by row, each pixel `zoom` pixels wide."""
    sheet = make_grid(images.detach().float().cpu(), nrow=columns, padding=1, pad_value=0.35)
    picture = Image.fromarray((sheet * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def one_line(text: str, width: float) -> str:
    """What can be drawn of any text in a line of `width` pixels: control characters are spaces, the end is cut."""
    most = max(0, int(width))  # letters: each is a pixel wide, or more
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 20 * most]).split())[:most]
    length = ImageDraw.Draw(Image.new("L", (1, 1))).textlength
    if length(text) <= width:
        return text
    fits = bisect_right(range(1, len(text)), width, key=lambda k: length(text[:k] + "..."))
    return text[:fits] + "..." if fits else text


def captioned(picture: Image.Image, columns: list[str]) -> Image.Image:
    """The picture with a line of text above each of its equally wide columns, cut where the column ends."""
    sheet, width = Image.new("RGB", (picture.width, picture.height + 16), "white"), picture.width / len(columns)
    sheet.paste(picture, (0, 16))
    for i, text in enumerate(columns):
        ImageDraw.Draw(sheet).text((int((i + 0.5) * width), 8), one_line(text, width - 4), fill="black", anchor="mm")
    return sheet


def beside(picture: Image.Image, rows: list[str], margin: int = 40) -> Image.Image:
    """The picture with a line of text at the left of each of its equally high rows, in a margin so wide."""
    sheet = Image.new("RGB", (picture.width + margin, picture.height), "white")
    sheet.paste(picture, (margin, 0))
    for i, text in enumerate(rows):
        place = margin // 2, int((i + 0.5) * picture.height / len(rows))
        ImageDraw.Draw(sheet).text(place, one_line(text, margin), fill="black", anchor="mm")
    return sheet


def save_png(picture: Image.Image, path: str | Path, settings: dict | None = None) -> None:
    """Write the PNG, whole or not at all; `settings` goes into its metadata as JSON."""
    info = PngInfo()
    info.add_text("minidiff", json.dumps(settings or {}))
    with replaced(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def save_gif(frames: list[Image.Image], path: str | Path, fps: int = 12) -> None:
    """An animation that rests 1.5 s on its last frame. Raises ValueError when it is too large for a GIF."""
    if not frames or max(frames[0].size) > 65535:
        size = f"frames of {frames[0].width} x {frames[0].height}" if frames else "no frames"
        raise ValueError(f"a GIF has frames of at most 65535 x 65535 pixels, got {size}: draw fewer images")
    durations = [1000 // fps] * (len(frames) - 1) + [1500]
    with replaced(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def curve(values: list[float], size: tuple[int, int] = (640, 360)) -> Image.Image:
    """The loss over the steps on a log scale: each step in light blue, the running mean of 2 % of them in dark."""
    picture = Image.new("RGB", size, "white")
    draw, left, right, top, bottom = ImageDraw.Draw(picture), 64, size[0] - 16, 28, size[1] - 44
    y, every = torch.tensor(values, dtype=torch.float64).clamp(min=1e-8), max(len(values) // 50, 1)
    sums = torch.cat([y.new_zeros(1), y.cumsum(0)])
    mean = (sums[every:] - sums[:-every]) / every  # (N - every + 1,), each of `every` values up to its step
    low, high = float(y.min().log10()), max(float(y.max().log10()), float(y.min().log10()) + 1e-3)

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * (step - 1) / max(len(values) - 1, 1)
        return x, bottom - (bottom - top) * (math.log10(value) - low) / (high - low)

    for value in _round_numbers(10**low, 10**high):
        draw.line([(left, place(1, value)[1]), (right, place(1, value)[1])], fill="gainsboro")
        draw.text((left - 6, place(1, value)[1]), f"{value:.3g}", fill="black", anchor="rm")
    for step in sorted({1 + round((len(values) - 1) * k / 4) for k in range(5)}):
        draw.line([(place(step, 10**low)[0], bottom), (place(step, 10**low)[0], bottom + 4)], fill="grey")
        anchor = "ra" if step == len(values) > 1 else "ma"
        draw.text((place(step, 10**low)[0], bottom + 6), f"{step:,}", fill="black", anchor=anchor)
    draw.line([place(i + 1, v) for i, v in enumerate(y.tolist())], fill="lightsteelblue")
    draw.line([place(i + every, v) for i, v in enumerate(mean.tolist())], fill="navy", width=2)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="grey")
    draw.text((left, 6), f"loss (log scale): each step, and the mean of {every}", fill="black")
    draw.text(((left + right) // 2, size[1] - 20), "step", fill="black", anchor="ma")
    return picture


def _round_numbers(low: float, high: float) -> list[float]:
    """Ticks between two positive numbers: 1, 2 and 5 times powers of ten (of over eight, the powers), or even steps."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**k for k in decades for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    ticks = ticks if len(ticks) <= 8 else [t for t in ticks if f"{t:e}"[0] == "1"]
    return ticks if len(ticks) >= 2 else [low + (high - low) * k / 4 for k in range(5)]
