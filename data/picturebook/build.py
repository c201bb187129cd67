"""Make the picture book again: the sheets and captions.json, out of npm's packages and things.txt. Nobody needs this to train.

    python3 -m venv /tmp/b && /tmp/b/bin/pip install resvg-py==0.5.0 pillow==13.0.0 numpy==2.4.6 fonttools==4.68.0
    /tmp/b/bin/python data/picturebook/build.py          # a minute or two; needs npm, and the network once

1. `npm pack` fetches the packages below and each must have the sha256 written here.
2. A picture is drawn at 128 pixels, cut to what is not transparent and scaled so that its longer side is 56 of 64.
3. Pixel art is derived: 14 cells, few colours, a dark rim. Exact copies of an earlier picture are left out.
4. What is held out is decided by a hash of the code point and the style, so that it never changes when things are added.

The versions are pinned and nothing is random: a second run writes the same bytes.
"""

import colorsys
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import resvg_py
from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE, INSIDE, COLUMNS = 64, 56, 32
STYLES = {  # the first phrase is the canonical one
    "emoji": ("an emoji of", "a colourful emoji of", "an emoji picture of"),
    "flat": ("a flat drawing of", "a flat illustration of", "a flat picture of"),
    "3d": ("a 3d render of", "a 3d model of", "a shiny 3d picture of"),
    "icon": ("an icon of", "a black icon of", "a simple icon of"),
    "line": ("a line drawing of", "an outline of", "a thin line drawing of"),
    "pixel": ("a pixel art drawing of", "pixel art of", "a pixel art picture of"),
    "cartoon": ("a cartoon of", "a cartoon drawing of", "a cartoon picture of"),
    "silhouette": ("a silhouette of", "a black silhouette of", "the silhouette of"),
}
COLOURLESS = ("icon", "line", "silhouette")
TWINS = {"pixel": "emoji", "3d": "flat"}  # made of, or drawn on the same outline as
COLOURS = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "turquoise": 176, "blue": 215, "purple": 272, "pink": 325}
NAMED = {*COLOURS, *"black white brown gold silver bronze polar".split()}  # a thing that says its colour is never turned to another
PACKAGES = {  # sheet: package, version, style, licence, credit, sha256 of npm's archive
    "noto": ("@iconify-json/noto", "1.2.9", "emoji", "Apache-2.0", "Google: Noto Emoji",
             "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "blobs": ("@iconify-json/noto-v1", "1.2.5", "emoji", "Apache-2.0", "Google: Noto Emoji, the older \"blobs\"",
              "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "emoji", "CC-BY-4.0", "Twitter, Inc and other contributors: Twemoji",
                "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojitwo": ("@iconify-json/emojione", "1.2.3", "emoji", "CC-BY-4.0", "EmojiOne and the EmojiTwo project: EmojiTwo",
                 "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "emoji", "Apache-2.0", "Mozilla: FxEmojis",
                "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "flat", "MIT", "Microsoft Corporation: Fluent UI Emoji",
                    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "3d", "MIT", "Microsoft Corporation: Fluent UI Emoji; packed by LobeHub",
                  "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "fluent-icon": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "icon", "MIT", "Microsoft Corporation: Fluent UI Emoji",
                    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"),
    "noto-line": ("@fontsource/noto-emoji", "5.3.2", "line", "OFL-1.1", "Google: Noto Emoji, the font, weight 400",
                  "1fe49bb2cf7c2d78f93c0a69b6a431dcfd0d585b7831eba87fae6888ccf8d373"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4", "cartoon", "CC-BY-4.0", "Streamline: Streamline Emojis",
                   "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc"),
    "game-icons": ("@iconify-json/game-icons", "1.2.4", "silhouette", "CC-BY-3.0", "Lorc, Delapouite and the contributors of game-icons.net",
                   "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4"),
}  # fmt: skip
PIXELS = {"pixel-noto": "noto", "pixel-twemoji": "twemoji"}  # derived: the parent's licence and credit
INK = "#202020"


def main() -> None:
    things = [read_thing(line) for line in (HERE / "things.txt").read_text().splitlines() if line and line[0] != "#"]
    sheets = {name: {} for name in (*PACKAGES, *PIXELS)}  # sheet -> {index of the thing: (64, 64, 4) uint8}
    with tempfile.TemporaryDirectory() as folder:
        for name, (package, version, style, *_, sha256) in PACKAGES.items():
            draw = artist(fetch(package, version, sha256, Path(folder)), name)
            for i, thing in enumerate(things):
                picture = draw(thing)
                if picture is not None and (picture := framed(picture)) is not None:
                    sheets[name][i] = picture
            print(name, len(sheets[name]), flush=True)
    for name, parent in PIXELS.items():
        sheets[name] = {i: pixel_art(picture) for i, picture in sheets[parent].items()}
    without_copies(sheets)
    enough = keep(things, sheets)
    write(things, sheets, enough)


def read_thing(line: str) -> dict:
    code, name, aliases, kind, slug, fxemoji, streamline, game = ([part.strip() for part in line.split(" |")] + [""] * 3)[:8]
    return {"id": code, "name": name, "aliases": [a.strip() for a in aliases.split(";") if a.strip()], "kind": kind,
            "slug": slug, "fxemoji": fxemoji, "streamline": streamline, "game-icons": game}  # fmt: skip


def fetch(package: str, version: str, sha256: str, folder: Path) -> dict[str, bytes]:
    """A package's files, by name. Raises ValueError when the archive isn't the one that this was written with."""
    out = subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, capture_output=True, text=True)
    data = (folder / out.stdout.split()[-1]).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{package}@{version} has sha256 {hashlib.sha256(data).hexdigest()}, expected {sha256}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


# How a thing is found in each package, and drawn


def artist(files: dict[str, bytes], sheet: str):
    """-> draw(thing): (H, W, 4) uint8, or None where the package has no such thing."""
    if sheet == "fluent-3d":
        found = {name.split("/")[-1][:-5].replace("-fe0f", ""): data for name, data in files.items() if name.endswith(".webp")}
        return lambda thing: np.array(Image.open(io.BytesIO(found[thing["id"]])).convert("RGBA")) if thing["id"] in found else None
    if sheet == "noto-line":
        return font_artist([TTFont(io.BytesIO(data)) for name, data in sorted(files.items()) if name.endswith("-400-normal.woff")])
    icons, chars = json.loads(files["icons.json"]), json.loads(files["chars.json"])

    def draw(thing):
        name = thing[sheet] if sheet in thing else chars.get(thing["id"], thing["slug"])
        while name not in icons["icons"] and name in icons.get("aliases", {}):
            name = icons["aliases"][name]["parent"]
        if name not in icons["icons"]:
            return None
        icon = icons["icons"][name]
        box = [icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
        return rendered(icon["body"].replace("currentColor", INK), box)

    return draw


def font_artist(fonts: list[TTFont]):
    glyphs = {code: (font.getGlyphSet(), name) for font in reversed(fonts) for code, name in font.getBestCmap().items()}

    def draw(thing):
        if "-" in thing["id"] or int(thing["id"], 16) not in glyphs:
            return None
        glyph_set, name = glyphs[int(thing["id"], 16)]
        pen, bounds = SVGPathPen(glyph_set), BoundsPen(glyph_set)
        glyph_set[name].draw(pen)
        glyph_set[name].draw(bounds)
        if bounds.bounds is None:
            return None
        x0, y0, x1, y1 = bounds.bounds
        return rendered(f'<path transform="scale(1 -1)" fill="{INK}" d="{pen.getCommands()}"/>', [x0, -y1, x1 - x0, y1 - y0])

    return draw


def rendered(body: str, box: list[float]) -> np.ndarray:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    left, top, width, height = box
    zoom = 2 * SIZE / max(width, height)
    svg = f'<svg {names} viewBox="{left} {top} {width} {height}" width="{width * zoom}" height="{height * zoom}">{body}</svg>'
    return np.array(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))).convert("RGBA"))


# What is done to a picture


def scaled(rgba: np.ndarray, width: int, height: int) -> np.ndarray:
    """By areas, with the colours weighed by their alpha: no dark rims. (H, W, 4) uint8 -> (height, width, 4) float32 in [0, 1]."""
    x = rgba.astype(np.float32) / 255
    x[..., :3] *= x[..., 3:]
    x = np.stack([np.asarray(Image.fromarray(x[..., c]).resize((width, height), Image.Resampling.BOX)) for c in range(4)], -1)
    x[..., :3] /= np.maximum(x[..., 3:], 1e-6)
    return x.clip(0, 1)


def cut(rgba: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((rgba[..., 3] > 12).any(axis)) for axis in (1, 0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def framed(rgba: np.ndarray, size: int = SIZE, inside: int = INSIDE) -> np.ndarray | None:
    """The picture in the middle, its longer side `inside` pixels; None where nothing is seen."""
    if not (rgba[..., 3] > 12).any():
        return None
    rgba = cut(rgba)
    zoom = inside / max(rgba.shape[:2])
    height, width = (max(1, round(side * zoom)) for side in rgba.shape[:2])
    out = np.zeros((size, size, 4), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    out[top : top + height, left : left + width] = (scaled(rgba, width, height) * 255).round()
    out[out[..., 3] < 4] = 0
    return out


def pixel_art(rgba: np.ndarray, cells: int = 16, inside: int = 14, colours: int = 8) -> np.ndarray:
    """A coarse grid with few colours and a dark rim, every cell 4 x 4 pixels. What makes eyes survive is to sharpen the cells first."""
    rgba = cut(rgba)
    zoom = inside / max(rgba.shape[:2])
    height, width = (max(1, round(side * zoom)) for side in rgba.shape[:2])
    x = scaled(rgba, width, height)
    solid = x[..., 3] > 0.45
    mass = neighbours(np.concatenate([x[..., :3] * x[..., 3:], x[..., 3:]], -1), [(i, j) for i in range(3) for j in range(3)])
    sharp = 2 * x[..., :3] - mass[..., :3] / np.maximum(mass[..., 3:], 1e-6)
    vivid = (((sharp.clip(0, 1) - 0.5) * 1.1 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    few = Image.fromarray(vivid[solid][None]).quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    grid = np.zeros((cells, cells, 4), np.float32)
    top, left = (cells - height) // 2, (cells - width) // 2
    grid[top : top + height, left : left + width][solid] = np.concatenate([np.asarray(few)[0], np.full((solid.sum(), 1), 255)], 1)
    beside = neighbours(grid, [(0, 1), (1, 0), (1, 2), (2, 1)])
    rim = (grid[..., 3] == 0) & (beside[..., 3] > 0)
    grid[rim, :3] = 0.35 * beside[rim, :3] / (beside[rim, 3:] / 255)
    grid[rim, 3] = 255
    return grid.astype(np.uint8).repeat(SIZE // cells, 0).repeat(SIZE // cells, 1)


def neighbours(x: np.ndarray, offsets: list[tuple[int, int]]) -> np.ndarray:
    """The sum of a cell's neighbours; (1, 1) is the cell itself. (H, W, C) -> (H, W, C)."""
    wide = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return sum(wide[i : i + x.shape[0], j : j + x.shape[1]] for i, j in offsets)


def one_hue(rgba: np.ndarray) -> float | None:
    """The hue (degrees) of a picture that has just one: most of it is coloured, and nearly all colour lies within 30 degrees."""
    x = rgba[rgba[..., 3] > 128] / 255
    if len(x) < 40:
        return None
    high, low = x[:, :3].max(1), x[:, :3].min(1)
    chroma = high - low
    coloured = chroma > 0.2
    if coloured.mean() < 0.5:
        return None
    turn = np.array([colorsys.rgb_to_hsv(*p)[0] for p in x[coloured][:, :3]]) * 2 * np.pi
    weight = chroma[coloured]
    mean = np.angle((weight * np.exp(1j * turn)).sum())
    near = np.abs(np.angle(np.exp(1j * (turn - mean)))) < np.deg2rad(30)
    if (weight * near).sum() < 0.9 * weight.sum():
        return None
    return round(float(np.rad2deg(np.angle((weight * near * np.exp(1j * turn)).sum()))) % 360, 1) % 360


# What is kept, what is held out, and the files


def without_copies(sheets: dict) -> None:
    seen = set()
    for pictures in sheets.values():
        for i in list(pictures):
            key = hashlib.sha256(pictures[i].tobytes()).digest()
            if key in seen:
                del pictures[i]
            seen.add(key)


def keep(things: list, sheets: dict) -> list[int]:
    """Things with at least four pictures, in the order of things.txt."""
    return [i for i in range(len(things)) if sum(i in pictures for pictures in sheets.values()) >= 4]


def chance(*words: str) -> float:
    """A number in [0, 1) that depends on nothing but the words."""
    return int(hashlib.sha256(" ".join(words).encode()).hexdigest()[:12], 16) / 16**12


def style_of(sheet: str) -> str:
    return "pixel" if sheet in PIXELS else PACKAGES[sheet][2]


def held_out(thing: dict, styles: dict[str, int], share: float = 0.05) -> list[str]:
    """Styles of which training sees nothing of this thing: at least three pictures and two styles stay."""
    left, out = dict(styles), []
    for style in sorted(styles, key=lambda style: chance(thing["id"], style)):
        rest = sum(left.values()) - left[style]
        if chance(thing["id"], style) < share and rest >= 3 and len(left) > 2:
            out.append(style)
            del left[style]
    return out


def held_out_colours(thing: dict, hues: list[float], share: float = 0.12) -> list[str]:
    """Colours that this thing has in no picture, and that it is never turned to in training."""
    far = [c for c, h in COLOURS.items() if all(abs((h - hue + 180) % 360 - 180) > 40 for hue in hues)]
    return [c for c in far if hues and chance(thing["id"], "colour", c) < share]


def write(things: list, sheets: dict, enough: list[int]) -> None:
    number = {i: n for n, i in enumerate(enough)}
    listed, out_styles, out_colours = [], [], []
    hues = {
        name: {i: one_hue(p) if style_of(name) not in COLOURLESS and not NAMED & set(things[i]["name"].split()) else None for i, p in pictures.items()}
        for name, pictures in sheets.items()
    }
    for name, pictures in sheets.items():
        kept = [i for i in enough if i in pictures]
        canvas = np.zeros((-(-len(kept) // COLUMNS) * SIZE, COLUMNS * SIZE, 4), np.uint8)
        for n, i in enumerate(kept):
            y, x = n // COLUMNS * SIZE, n % COLUMNS * SIZE
            canvas[y : y + SIZE, x : x + SIZE] = pictures[i]
        Image.fromarray(canvas).save(HERE / f"{name}.webp", lossless=True, quality=100, method=6)
        package, version, _, licence, credit, _ = PACKAGES[PIXELS.get(name, name)]
        listed.append({"file": f"{name}.webp", "style": style_of(name), "package": f"{package}@{version}", "licence": licence, "credit": credit,
                       "things": [number[i] for i in kept], "hues": [hues[name][i] for i in kept]})  # fmt: skip
    for i in enough:
        styles = {}
        for name, pictures in sheets.items():
            if i in pictures:
                styles[style_of(name)] = styles.get(style_of(name), 0) + 1
        name = things[i]["name"]
        out_styles += [[name, style] for style in held_out(things[i], styles)]
        mine = [hues[s][i] for s in sheets if hues[s].get(i) is not None]
        out_colours += [[name, colour] for colour in held_out_colours(things[i], mine)]
    rows = [{key: things[i][key] for key in ("id", "name", "aliases", "kind")} for i in enough]
    captions = {"size": SIZE, "columns": COLUMNS, "colours": COLOURS, "styles": STYLES, "colourless": COLOURLESS, "twins": TWINS,
                "things": rows, "sheets": listed, "held_out": out_styles, "held_out_colours": out_colours}  # fmt: skip
    (HERE / "captions.json").write_text(laid_out(captions))
    print(f"{len(rows)} things, {sum(len(s['things']) for s in listed)} pictures, {len(out_styles)} (thing, style) pairs held out")


def laid_out(captions: dict) -> str:
    """JSON with one thing, sheet or pair to a line, so that a change can be read."""
    lines = []
    for key, value in captions.items():
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(item) for item in value) + "\n]")
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
