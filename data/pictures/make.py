"""Draw the pictures of this folder again:  python data/pictures/make.py

Everything is drawn here, from shapes and a seed; no picture of anyone else was used. Drawn four times as large, then scaled down.
"""

import random
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent
LARGE, SMALL = 512, 128


def tower() -> Image.Image:
    """A bell tower at sunset."""
    picture = gradient((36, 52, 110), (250, 170, 105))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((330, 250, 410, 330), fill=(255, 236, 170))
    draw.polygon([(0, 512), (0, 390), (120, 340), (260, 400), (400, 350), (512, 385), (512, 512)], fill=(64, 60, 88))
    draw.rectangle((190, 170, 290, 470), fill=(222, 200, 172))  # the shaft, its shadow, the belfry, the roof
    draw.rectangle((190, 170, 215, 470), fill=(158, 136, 132))
    draw.rectangle((180, 120, 300, 175), fill=(236, 218, 190))
    for x in (196, 228, 260):
        draw.rounded_rectangle((x, 130, x + 22, 172), 11, fill=(70, 58, 74))
    draw.polygon([(176, 122), (240, 22), (304, 122)], fill=(112, 82, 86))
    draw.ellipse((218, 196, 272, 250), fill=(250, 246, 232), outline=(84, 66, 70), width=5)
    draw.line([(245, 223), (245, 203)], fill=(60, 48, 52), width=5)
    draw.line([(245, 223), (259, 229)], fill=(60, 48, 52), width=5)
    draw.rectangle((0, 462, 512, 512), fill=(38, 46, 50))
    for x in range(10, 512, 58):
        draw.ellipse((x - 34, 418, x + 38, 490), fill=(30, 62 + x % 29, 48))
    return picture


def apple() -> Image.Image:
    """A red apple on a table."""
    picture = gradient((228, 222, 206), (196, 186, 168))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 360, 512, 512), fill=(150, 104, 66))
    draw.ellipse((110, 382, 420, 448), fill=(104, 70, 46))
    body = Image.new("L", picture.size)
    for box in ((110, 140, 290, 420), (222, 140, 402, 420)):
        ImageDraw.Draw(body).ellipse(box, fill=255)
    light = Image.new("L", picture.size)
    ImageDraw.Draw(light).ellipse((130, 150, 290, 310), fill=190)
    skin = Image.composite(Image.new("RGB", picture.size, (244, 116, 92)), Image.new("RGB", picture.size, (168, 22, 34)), light.filter(ImageFilter.GaussianBlur(44)))
    picture.paste(skin, mask=body)
    draw.line([(256, 172), (262, 120), (284, 84)], fill=(84, 58, 36), width=13, joint="curve")
    draw.polygon([(268, 118), (320, 74), (380, 84), (336, 126)], fill=(82, 142, 60))
    return picture


def house() -> Image.Image:
    """A house, the sun and a tree, as a child draws them with crayons."""
    picture = Image.new("RGB", (LARGE, LARGE), "white")
    hand = random.Random(1)
    crayon(picture, hand, [(110, 250), (110, 440), (310, 440), (310, 250), (110, 250)], (40, 70, 190))
    crayon(picture, hand, [(90, 255), (210, 140), (330, 255)], (200, 40, 40))
    crayon(picture, hand, [(180, 440), (180, 340), (240, 340), (240, 440)], (120, 70, 30))
    crayon(picture, hand, [(20, 446), (490, 442)], (50, 150, 60))
    crayon(picture, hand, [(420, 440), (424, 330)], (120, 70, 30))
    for turn in ([(424, 330), (374, 290), (400, 230), (450, 230), (474, 290), (424, 330)], [(395, 300), (430, 250), (455, 300)]):
        crayon(picture, hand, turn, (50, 150, 60))
    crayon(picture, hand, [(60, 60), (100, 40), (130, 70), (110, 108), (70, 104), (60, 60)], (240, 180, 20))
    for ray in ([(140, 70), (180, 66)], [(128, 110), (160, 140)], [(84, 118), (80, 158)]):
        crayon(picture, hand, ray, (240, 180, 20))
    return picture


def three() -> Image.Image:
    """A crooked digit, in ink on paper."""
    picture = Image.new("RGB", (LARGE, LARGE), "white")
    crayon(picture, random.Random(4), [(150, 130), (250, 90), (340, 140), (330, 210), (230, 245), (340, 280), (360, 370), (270, 430), (150, 400)], (20, 20, 30), width=44)
    return picture


def crayon(picture: Image.Image, hand: random.Random, points: list[tuple[int, int]], colour: tuple[int, int, int], width: int = 16) -> None:
    """A line through the points by an unsteady hand."""
    draw, path = ImageDraw.Draw(picture), []
    for (x, y), (u, v) in pairwise(points):
        path += [(x + (u - x) * i / 8 + hand.gauss(0, 2.5), y + (v - y) * i / 8 + hand.gauss(0, 2.5)) for i in range(8)]
    for x, y in [*path, points[-1]]:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    draw.line([*path, points[-1]], fill=colour, width=width, joint="curve")


def gradient(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    shade = Image.linear_gradient("L").resize((LARGE, LARGE))
    return Image.composite(Image.new("RGB", shade.size, bottom), Image.new("RGB", shade.size, top), shade)


if __name__ == "__main__":
    for name, draw_picture in {"tower": tower, "apple": apple, "drawing-house": house, "drawing-three": three}.items():
        draw_picture().resize((SMALL, SMALL), Image.Resampling.LANCZOS).save(FOLDER / f"{name}.png", optimize=True)
