"""Your pictures: any PNG, JPEG or WebP file -> pixels of the size and kind that a network wants, and masks to go with them.

What a viewer shows is what you get: turned as the camera says (EXIF), transparent parts on white. The largest centred rectangle
of the wanted shape is cut out and scaled by areas, so that nothing is stretched and a small picture does not sparkle.
"""

import warnings
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def read(path: str | Path, size: tuple[int, int], channels: int = 3, low: float = -1, high: float = 1) -> Tensor:
    """A picture as (1, channels, H, W) float32 in [low, high].

    size: (H, W); channels: 3, or 1 for greys
    Raises ValueError when there is no such file, or it is no whole PNG, JPEG or WebP, or too large to be opened safely.
    """
    return fitted(_opened(path), size, channels) * (high - low) + low


def fitted(picture: Image.Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Centre crop and scale by areas: -> (1, channels, H, W) float32 in [0, 1]. A pixel of the result is the mean of what it covers."""
    H, W = size
    scale = min(picture.width / W, picture.height / H)
    left, top = max(0, (picture.width - W * scale) / 2), max(0, (picture.height - H * scale) / 2)
    box = (left, top, picture.width - left, picture.height - top)
    picture = picture.convert("L" if channels == 1 else "RGB").resize((W, H), Image.Resampling.BOX, box)
    return pil_to_tensor(picture)[None] / 255


def inked(x: Tensor, low: float = -1, high: float = 1) -> bool:
    """Ink on paper, or light on black? Ink, when the outermost pixels are, in the mean, nearer to `high` than to `low`."""
    inner = torch.zeros_like(x)
    inner[..., 1:-1, 1:-1] = 1
    return float(x[inner == 0].mean()) > (low + high) / 2


def mask(source: str, size: tuple[int, int], of: str | Path | None = None) -> Tensor:
    """A mask (1, 1, H, W) of 0 and 1; 1 is repainted.

    source: "x0,y0,x1,y1", a box in pixels of the result, x1 and y1 not included; or a picture, white (or transparent) where to repaint
    of:     the picture that the mask belongs to: a mask of its size is cropped and scaled with it
    Raises ValueError when the box leaves the image or is empty, or the mask has neither the size of the picture nor `size`.
    """
    H, W = size
    numbers = source.split(",")
    if len(numbers) == 4 and all(number.strip().lstrip("-").isdigit() for number in numbers):
        x0, y0, x1, y1 = map(int, numbers)
        if not (0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H):
            raise ValueError(f"the box {source} is not inside {W} x {H} pixels: give x0,y0,x1,y1 with 0 <= x0 < x1 <= {W} and 0 <= y0 < y1 <= {H}")
        box = torch.zeros(1, 1, H, W)
        box[..., y0:y1, x0:x1] = 1
        return box
    if "," in source and not Path(source).exists():
        raise ValueError(f"a box wants four whole numbers x0,y0,x1,y1, got {source!r}: give numbers like 0,{H // 2},{W},{H}, or a picture")
    picture = _opened(source)
    sizes = [(W, H), *([_opened(of).size] if of else [])]
    if picture.size not in sizes:
        wanted = " or ".join(f"{w} x {h}" for w, h in sizes)
        raise ValueError(f"the mask {source} has {picture.width} x {picture.height} pixels: make it {wanted}, as the picture is")
    return (fitted(picture, size, 1) >= 0.5).float()


def _opened(path: str | Path) -> Image.Image:
    """The whole picture as RGB, upright, on white."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no picture {path}: check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): save the picture again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
                picture = ImageOps.exif_transpose(picture)
                if picture.mode.startswith("I"):  # 16 bits: convert("L") alone would cut off at 255
                    picture = picture.convert("I").point(lambda value: value / 257).convert("L")
                picture = picture.convert("RGBA")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is too large ({error}): scale it to at most {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError):
        raise ValueError(f"{path} is no whole PNG, JPEG or WebP picture: save it again as PNG") from None
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
