"""Your pictures: any PNG, JPEG or WebP file -> pixels of the size and kind that a network takes, and masks for them.

What a viewer shows is what you get: turned as the camera says (EXIF), in the colours of a screen (ICC profiles),
transparent parts on white, of an animation the first frame; what else the file holds does not matter. The largest
centred rectangle of the wanted shape is cut out and scaled by areas, so that nothing is stretched and a small picture
does not sparkle. Left out: PNG's gAMA, cHRM and cICP.
"""

import io
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import pil_to_tensor

from minidiff.files import load_arrays

PNG = b"\x89PNG\r\n\x1a\n"
TURN = Image.Transpose
TURNS = {
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_90,
}
EXIF_NUMBERS = {
    1: "B",
    3: "H",
    4: "I",
    5: "II",
    6: "b",
    8: "h",
    9: "i",
    10: "ii",
    11: "f",
    12: "d",
}  # type -> how it is packed


def read(path: str | Path, size: tuple[int, int], channels: int = 3, low: float = -1, high: float = 1) -> Tensor:
    """A picture as (1, channels, H, W) float32 in [low, high].

    size: (H, W); channels: 3, or 1 for greys
    Raises ValueError when there is no such file, or it is no whole PNG, JPEG or WebP, or too large to be opened safely.
    """
    return fitted(_opened(path), size, channels) * (high - low) + low


def fitted(picture: Image.Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Centre crop and scale by areas: -> (1, channels, H, W) float32 in [0, 1]. A pixel of the result is the mean of
    what it covers.
    """
    H, W = size
    scale = min(picture.width / W, picture.height / H)
    left, top = max(0, (picture.width - W * scale) / 2), max(0, (picture.height - H * scale) / 2)
    box = (left, top, picture.width - left, picture.height - top)
    picture = picture.convert("L" if channels == 1 else "RGB").resize((W, H), Image.Resampling.BOX, box)
    return pil_to_tensor(picture)[None] / 255


def inked(x: Tensor, low: float = -1, high: float = 1) -> bool:
    """Ink on paper, or light on black? Ink, when the outermost pixels are, on average, nearer to `high` than `low`."""
    inner = torch.zeros_like(x)
    inner[..., 1:-1, 1:-1] = 1
    return float(x[inner == 0].mean()) > (low + high) / 2


def mask(source: str, size: tuple[int, int], of: str | Path | None = None) -> Tensor:
    """A mask (1, 1, H, W) of 0 and 1; 1 is repainted.

    source: "x0,y0,x1,y1", a box in pixels of the result, x1 and y1 not included; or a picture, white (or transparent)
            where to repaint
    of:     the picture that the mask belongs to: a mask of its size is cropped and scaled with it
    Raises ValueError when the box leaves the image or is empty, or the mask has neither the picture's size nor `size`.
    """
    H, W = size
    numbers = source.split(",")
    if len(numbers) == 4 and all(number.strip().lstrip("-").isdigit() for number in numbers):
        x0, y0, x1, y1 = map(int, numbers)
        if not (0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H):
            raise ValueError(
                f"the box {source} is not inside {W} x {H} pixels: give x0,y0,x1,y1 with 0 <= x0 < x1 <= {W} and 0 <= "
                f"y0 < y1 <= {H}"
            )
        box = torch.zeros(1, 1, H, W)
        box[..., y0:y1, x0:x1] = 1
        return box
    if "," in source and not Path(source).exists():
        raise ValueError(
            f"a box wants four whole numbers x0,y0,x1,y1, got {source!r}: give numbers like 0,{H // 2},{W},{H}, or a "
            f"picture"
        )
    picture = _opened(source)
    sizes = [(W, H), *([_opened(of).size] if of else [])]
    if picture.size not in sizes:
        wanted = " or ".join(f"{w} x {h}" for w, h in sizes)
        raise ValueError(
            f"the mask {source} has {picture.width} x {picture.height} pixels: make it {wanted}, as the picture is"
        )
    return (fitted(picture, size, 1) >= 0.5).float()


def of_arrays(path: str | Path, size: tuple[int, int], channels: int = 3) -> Tensor:
    """The `images` of a file of arrays, (N, channels, H, W) float32 in [0, 1]. Raises ValueError, with their size, for
    others.
    """
    images = load_arrays(path).get("images")
    wanted = f"images (N, {channels}, {size[0]}, {size[1]}) in [0, 1]"
    if images is None or images.ndim != 4 or images.shape[1:] != (channels, *size) or len(images) == 0:
        found = "no images" if images is None else f"images {tuple(images.shape)}"
        raise ValueError(
            f"{path} has {found}, the model takes {wanted}: give a picture, which is cropped, or arrays of that size"
        )
    images = images.float()
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise ValueError(
            f"{path} has images in [{float(images.min()):g}, {float(images.max()):g}], expected {wanted}: scale them"
        )
    return images


# ------------------------------------------------------------------------------------------------- what a viewer shows


def _opened(path: str | Path) -> Image.Image:
    """The whole picture as RGB of a screen (sRGB), upright, on white."""
    if not os.path.isfile(path):
        raise ValueError(f"there is no picture {path}: check the path")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its rights and its disk") from None
    if not content:
        raise ValueError(f"{path} is empty (0 bytes): save the picture again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content, profile = _bare(content)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as picture:
                picture.load()
                colours, alpha = _apart(picture, content)
                exif, profile = picture.info.get("exif", b""), profile or picture.info.get("icc_profile")
            colours = _on_screen(colours, profile)
            if alpha is not None:
                colours.putalpha(alpha)
                colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
            turn = TURNS.get(_orientation(exif))
            return colours if turn is None else colours.transpose(turn)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is too large ({error}): scale it to at most {Image.MAX_IMAGE_PIXELS:,} pixels"
        ) from None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001, the decoders raise a dozen kinds for what is broken
        raise ValueError(f"{path} is no whole PNG, JPEG or WebP picture: save it again as PNG") from None


def _bare(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG or a JPEG without the parts that do not change a still picture, whatever they hold; and a PNG's colour
    profile.
    """
    kept, profile, at = [PNG], None, len(PNG)
    if content.startswith(b"\xff\xd8"):
        return _bare_jpeg(content), None
    if not content.startswith(PNG):
        return content, None
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + size]
        sound = len(chunk) == 12 + size and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if not kind[0] & 32 or (
            kind in (b"tRNS", b"eXIf") and sound
        ):  # a capital letter first: nothing is shown without it
            kept.append(chunk)
        elif kind == b"iCCP" and sound:
            with suppress(zlib.error):
                profile = zlib.decompressobj().decompress(chunk[8:-4].partition(b"\0")[2][1:], 2**24)
        at += len(chunk) if kind != b"IEND" else len(content)
    return b"".join(kept), profile


def _bare_jpeg(content: bytes) -> bytes:
    wanted = {
        0xE0: b"",
        0xE1: b"Exif\0\0",
        0xE2: b"ICC_PROFILE\0",
        0xEE: b"Adobe",
    }  # segments of programs, and how they begin
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:  # there the pixels begin
        size = (
            1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        )  # it may be filled up with 0xFF
        kind, start = content[at + 1], content[at + 4 : at + 16]
        if (not 0xE0 <= kind <= 0xEF and kind != 0xFE) or (kind in wanted and start.startswith(wanted[kind])):
            kept.append(content[at : at + size])
        at += size
    return b"".join([*kept, content[at:]])


def _apart(picture: Image.Image, content: bytes) -> tuple[Image.Image, Image.Image | None]:
    """Colours (L, RGB or CMYK, 8 bits) and, where something is transparent, alpha."""
    key, depth = picture.info.get("transparency"), content[24] if picture.format == "PNG" else 8
    if picture.mode in ("P", "PA") or picture.mode in ("LA", "La", "RGBA", "RGBa"):
        colours = picture.convert("RGBA")
        return colours.convert("RGB" if picture.mode not in ("LA", "La") else "L"), colours.getchannel("A")
    pixels = np.asarray(picture)
    if picture.mode.startswith("I"):  # greys of 16 bits
        colours = Image.fromarray(((pixels.astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8))
    else:
        colours = picture if picture.mode in ("RGB", "CMYK") else picture.convert("L")
    if key is None or picture.format != "PNG":
        return colours, None
    if picture.mode == "RGB" and depth == 16:
        pixels = (
            decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
            .permute(1, 2, 0)
            .numpy()
        )
    elif depth < 8:  # Pillow has stretched them to 0 ... 255
        pixels, key = np.asarray(colours), (key & (2**depth - 1)) * (255 // (2**depth - 1))
    seen = np.atleast_3d(pixels != np.asarray(key).astype(pixels.dtype)).any(-1)
    return colours, Image.fromarray(seen.astype(np.uint8) * 255)


def _on_screen(colours: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of a profile -> RGB of a screen. A profile that is broken, or not of this kind of colours, counts as
    none.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        if mode == colours.mode or (mode, colours.mode) == ("RGB", "L"):
            return ImageCms.profileToProfile(
                colours.convert(mode), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
    except (ImageCms.PyCMSError, ImportError, KeyError, OSError, TypeError, ValueError):
        pass
    return colours.convert("RGB")


def _orientation(exif: bytes) -> int:
    """The number that says how the camera was held, 1 for upright, from the one entry that matters here, whatever the
    rest is like.
    """
    with suppress(struct.error, IndexError, ZeroDivisionError, ValueError, OverflowError):
        exif = exif.removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}.get(exif[:2], "<")
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        for entry in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", exif, start)[0], 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == 0x0112 and kind in EXIF_NUMBERS:
                number = order + EXIF_NUMBERS[kind]
                inside = struct.calcsize(number) * count <= 4
                value = struct.unpack_from(
                    number, exif, entry + 8 if inside else struct.unpack_from(f"{order}I", exif, entry + 8)[0]
                )
                return int(value[0] / value[1] if len(value) == 2 else value[0])
    return 1
