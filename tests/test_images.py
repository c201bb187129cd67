"""Animations of views: where they begin, where they end, and what is half way."""

import numpy as np
import pytest
import torch
from formulas import images
from PIL import Image, ImageDraw
from torch.testing import assert_close

from minidiff.images import _round_numbers, beside, captioned, curve, grid, one_line, save_gif
from minidiff.views import under_way, view, views


def pixels(canvas, H, zoom):
    """The H x H image in the middle of a canvas, one pixel a square."""
    first = (canvas.shape[-1] - H * zoom) // 2 + zoom // 2
    return canvas[..., first : first + H * zoom : zoom, first : first + H * zoom : zoom]


@pytest.mark.parametrize("name", views())
def test_a_view_under_way_begins_with_the_picture_and_ends_with_what_the_view_shows(name):
    x, A = images(2, 3, 8, 8) / 2 + 0.5, view(name)
    assert under_way(x, A, 0).shape == (2, 3, 48, 48)  # 8 · √2 = 11.3
    assert torch.equal(pixels(under_way(x, A, 0), 8, 4), x)
    shown = A.apply(2 * x - 1) / 2 + 0.5
    assert_close(pixels(under_way(x, A, 1), 8, 4), shown)


def test_half_of_half_a_turn_is_a_quarter_turn():
    x = images(1, 1, 8, 8) / 2 + 0.5
    half = pixels(under_way(x, view("rot180"), 0.5), 8, 4)
    assert any(torch.equal(half, x.rot90(k, (-2, -1))) for k in (1, -1))


def test_the_middle_pixel_of_an_odd_image_has_no_angle_and_stays_a_number():
    x = images(1, 1, 7, 7) / 2 + 0.5
    assert_close(pixels(under_way(x, view("rot90"), 1), 7, 4), x.rot90(1, (-2, -1)))
    assert under_way(x, view("rot90"), 0.5).isfinite().all()


def test_a_mirror_image_folds_on_its_axis_and_a_negative_is_grey_half_way():
    x = images(1, 1, 8, 8) / 2 + 0.5
    folded = under_way(x, view("vflip"), 0.5, paper=-1.0)
    assert (
        folded[0, 0].amax(1) >= 0
    ).sum() <= 6  # rows of the canvas with something in them: one pixel of 4, half as large again
    assert_close(pixels(under_way(x, view("negate"), 0.5), 8, 4), torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64))


def test_an_animation_goes_on_for_ever_and_rests_on_its_last_frame(tmp_path):
    save_gif([grid(torch.full((1, 1, 4, 4), v), 1) for v in (0.0, 0.5, 1.0)], tmp_path / "x.gif", fps=10)
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.info["loop"] == 0
        durations = [picture.seek(i) or picture.info["duration"] for i in range(3)]
    assert durations == [100, 100, 1500]


@pytest.mark.parametrize(("frames", "says"), [([], "no frames"), ([Image.new("L", (1, 65536))], "frames of 1 x 65536")])
def test_what_no_gif_can_hold_is_refused_in_one_sentence(tmp_path, frames, says):
    with pytest.raises(ValueError, match=f"at most 65535 x 65535 pixels, got {says}: draw fewer images"):
        save_gif(frames, tmp_path / "x.gif")


def test_a_pixel_of_a_grid_is_a_square_of_one_colour():
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    once, thrice = (np.asarray(grid(x, 2, zoom)) for zoom in (1, 3))
    assert np.array_equal(thrice, once.repeat(3, 0).repeat(3, 1))


def ink(picture):
    """Where the darkest pixels lie on average: (right, down)."""
    rows, columns = (np.asarray(picture.convert("L")) < 100).nonzero()
    return columns.mean(), rows.mean()


def test_names_stand_above_their_columns_and_beside_their_rows():
    paper = Image.new("RGB", (200, 100), "white")
    above = [ink(captioned(paper, names))[0] for names in (["MMM", ""], ["", "MMM"])]
    left = [ink(beside(paper, names))[1] for names in (["MMM", ""], ["", "MMM"])]
    assert (above, left) == (pytest.approx([50, 150], abs=10), pytest.approx([25, 75], abs=10))


ANY_TEXT = [
    "a\nb",
    "\r\n",
    "\0",
    "\x1b[31m",
    "\ud800",
    "\udcff",
    "👨‍👩‍👧",
    "שלום",
    "e\u0301" * 500,
    "\u200b" * 99,
    "\u202eabc",
    "\u2028",
    "日本語" * 99,
    "\U0010ffff",
]


@pytest.mark.parametrize("text", ANY_TEXT, ids=ascii)
@pytest.mark.parametrize("width", [3, 200])
def test_any_text_is_a_caption(text, width):
    paper = Image.new("RGB", (width, 20), "white")
    assert captioned(paper, [text] * 2).size == (width, 36)
    assert beside(paper, [text] * 2).size == (width + 40, 20)


def test_a_line_break_is_a_space_and_what_is_too_long_ends_in_dots():
    assert one_line("a\nfox\t in\r\nsnow ", 300) == "a fox in snow"
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    long = "an oil painting of a village" * 9
    k = len(one_line(long, 120)) - 3
    assert one_line(long, 120) == long[:k] + "..."
    assert draw.textlength(long[:k] + "...") <= 120 < draw.textlength(long[: k + 1] + "...")
    assert (one_line("W", 4), one_line("abc", -2)) == ("W", "")


def test_the_time_of_a_caption_does_not_grow_with_the_square_of_its_length(monkeypatch):
    asked = []
    textlength = ImageDraw.ImageDraw.textlength
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "textlength", lambda self, text: asked.append(len(text)) or textlength(self, text)
    )
    captioned(Image.new("L", (400, 20)), ["ab " * 10**6])
    assert sum(asked) < 10_000


def test_a_falling_loss_is_drawn_falling():
    line = np.asarray(curve([1.0, 0.1, 0.01]))
    rows, columns = (line == (0, 0, 128)).all(-1).nonzero()  # navy
    height = dict(zip(columns.tolist(), rows.tolist()))
    assert height[70] < height[344] < height[618]
    assert height[344] == pytest.approx((height[70] + height[618]) / 2, abs=3)  # straight: the axis is logarithmic


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.03, 1.2, [0.05, 0.1, 0.2, 0.5, 1.0]),
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (0.6, 0.9, [0.6, 0.675, 0.75, 0.825, 0.9]),
    ],
)
def test_the_ticks_of_a_curve_are_round_numbers(low, high, ticks):
    assert _round_numbers(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.9**k for k in range(1000)]])
def test_a_curve_is_drawn_of_any_number_of_steps(values):
    picture = np.asarray(curve(values))
    assert picture.shape == (360, 640, 3)
