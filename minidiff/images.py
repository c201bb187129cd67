"""Pictures: tensors to PNG, GIF and back. Pixels are [0, 1] at this door.

Every picture carries the settings that made it in its metadata (a PNG text chunk, "minidiff").
"""

import json
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
    """What can be drawn of any text in one line of `width` pixels: line breaks and other control characters are spaces, and the end is cut off."""
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


def beside(picture: Image.Image, rows: list[str]) -> Image.Image:
    """The picture with a line of text at the left of each of its equally high rows."""
    sheet = Image.new("RGB", (picture.width + 40, picture.height), "white")
    sheet.paste(picture, (40, 0))
    for i, text in enumerate(rows):
        ImageDraw.Draw(sheet).text((20, int((i + 0.5) * picture.height / len(rows))), one_line(text, 40), fill="black", anchor="mm")
    return sheet


def save_png(picture: Image.Image, path: str | Path, settings: dict | None = None) -> None:
    """Write the PNG, whole or not at all; `settings` goes into its metadata as JSON."""
    info = PngInfo()
    info.add_text("minidiff", json.dumps(settings or {}))
    with replaced(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def save_gif(frames: list[Image.Image], path: str | Path, fps: int = 12) -> None:
    """An animation that rests 1.5 s on its last frame. Written whole or not at all."""
    durations = [1000 // fps] * (len(frames) - 1) + [1500]
    with replaced(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def curve(values: list[float], size: tuple[int, int] = (640, 320)) -> Image.Image:
    """A line plot with a logarithmic y axis: the loss over the steps."""
    width, height, margin = *size, 40
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    y = torch.tensor(values, dtype=torch.float64).clamp(min=1e-8).log10()
    low, high = float(y.min()), max(float(y.max()), float(y.min()) + 1e-3)
    points = [
        (margin + (width - 2 * margin) * i / max(len(values) - 1, 1), height - margin - (height - 2 * margin) * (float(v) - low) / (high - low))
        for i, v in enumerate(y)
    ]
    draw.line([(margin, margin), (margin, height - margin), (width - margin, height - margin)], fill="grey")
    draw.line(points, fill="navy", width=1)
    draw.text((4, margin - 14), f"loss {10**high:.4g}", fill="black")
    draw.text((4, height - margin + 4), f"{10**low:.4g}", fill="black")
    draw.text((width - margin, height - margin + 4), f"{len(values)} points", fill="black", anchor="ra")
    return picture
