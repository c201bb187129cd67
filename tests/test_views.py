"""Chapter 9: views undo themselves, move noise to noise, and refuse what does not."""

import pytest
import torch
import torchvision.transforms.functional as TF
from formulas import images
from torch.testing import assert_close

from minidiff.illusions import gaussian
from minidiff.views import View, patches, permutation, view, views

NAMES = [
    "identity", "vflip", "hflip", "rot90", "rot180", "rot270", "transpose",
    "negate", "pixels", "patches", "jigsaw", "skew", "hinge", "circle",
]  # fmt: skip
SQUARES = [(1, 1, 1, 1), (2, 1, 5, 5), (2, 1, 28, 28), (1, 3, 27, 27), (1, 3, 64, 64)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SQUARES)
def test_a_view_is_undone_from_both_sides_and_moves_every_pixel_once(name, shape):
    x, A = images(*shape), view(name, seed=3)
    assert torch.equal(A.undo(A.apply(x)), x) and torch.equal(A.apply(A.undo(x)), x)
    assert torch.equal(A.unpermute(A.permute(x)), x)
    assert torch.equal(A.apply(x).abs().flatten().sort().values, x.abs().flatten().sort().values)
    A.check(shape[1:])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("rot90", "rot270", "transpose", "jigsaw")])
def test_a_view_that_keeps_the_sides_takes_images_that_are_not_square(name):
    view(name).check((1, 28, 33))


@pytest.mark.parametrize("name", ["rot90", "rot270", "transpose", "jigsaw"])
def test_a_view_that_swaps_the_sides_asks_for_a_square(name):
    with pytest.raises(ValueError, match=f"the view '{name}' needs a square image, got 28 x 33: crop it"):
        view(name).apply(images(1, 1, 28, 33))


def test_the_simple_views_do_what_they_say():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    wanted = {
        "vflip": [[3, 4], [1, 2]], "hflip": [[2, 1], [4, 3]], "rot90": [[2, 4], [1, 3]], "rot180": [[4, 3], [2, 1]],
        "rot270": [[3, 1], [4, 2]], "transpose": [[1, 3], [2, 4]], "negate": [[-1, -2], [-3, -4]],
    }  # fmt: skip
    for name, table in wanted.items():
        assert view(name).apply(x)[0, 0].tolist() == table, name


def test_the_circle_turns_a_disc_and_leaves_the_border():
    x = images(1, 1, 64, 64)
    seen = view("circle").apply(x)
    assert torch.equal(seen[..., 24:40, 24:40], x.flip(-1, -2)[..., 24:40, 24:40])
    assert torch.equal(seen[..., :8, :], x[..., :8, :])


def test_the_hinge_turns_neighbouring_squares_in_opposite_directions():
    x = images(1, 1, 28, 28)
    seen = view("hinge").apply(x)
    assert torch.equal(seen[..., :9, :9], x[..., :9, :9].rot90(-1, (-2, -1)))
    assert torch.equal(seen[..., :9, 9:18], x[..., :9, 9:18].rot90(1, (-2, -1)))
    assert torch.equal(seen[..., 27:, :], x[..., 27:, :])


def test_the_skew_slides_columns_and_keeps_what_is_in_them():
    x = images(1, 1, 28, 28)
    seen = view("skew").apply(x)
    assert torch.equal(seen[..., 27], x[..., 27].roll(20))  # 1.5 · 13.5 = 20.25 pixels
    assert torch.equal(seen[..., 0], x[..., 0].roll(-20))


def test_patches_of_an_upscaled_image_are_the_upscaled_patches():
    x = images(1, 3, 28, 28)
    A = patches(4, seed=5)
    upscaled = lambda x: x.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(A.apply(upscaled(x)), upscaled(A.apply(x)))
    assert torch.equal(patches(8).apply(x)[..., 24:, :], x[..., 24:, :])  # 28 = 8 · 3 + 4


def test_a_jigsaw_piece_turns_about_the_centre_into_a_twins_place():
    side = torch.arange(64) - 31.5
    radius = (side**2 + side[:, None] ** 2).view(1, 1, 64, 64)
    assert torch.equal(view("jigsaw", seed=2).apply(radius), radius)
    corner = torch.zeros(1, 1, 64, 64)
    corner[..., :8, :8] = 1  # inside a corner piece, away from its knobs
    turned = [corner.rot90(k, (-2, -1)) for k in range(4)]
    assert any(torch.equal(view("jigsaw", seed=2).apply(corner), other) for other in turned)
    x = images(1, 1, 64, 64)
    assert not torch.equal(view("jigsaw", seed=2).apply(x), view("jigsaw", seed=3).apply(x))


def test_jigsaw_pieces_interlock_so_their_squares_do_not_move_as_one():
    square = torch.zeros(1, 1, 64, 64)
    square[..., :16, :16] = 1
    seen = view("jigsaw", seed=2).apply(square)
    assert not any(torch.equal(seen, square.rot90(k, (-2, -1))) for k in range(4))
    assert max(float((seen * square.rot90(k, (-2, -1))).sum()) for k in range(4)) > 0.8 * 256  # knobs are small
    corner = torch.zeros(1, 1, 64, 64)
    corner[..., 8, [4, 18]] = 1  # its middle, and the knob that it has in its neighbour's square
    for seed in range(5):
        assert any(torch.equal(view("jigsaw", seed).apply(corner), corner.rot90(k, (-2, -1))) for k in range(4))


@pytest.mark.parametrize(
    "name, apply, undo, number",
    [
        (
            "tilt",
            lambda x: TF.rotate(x, 45, TF.InterpolationMode.BILINEAR),
            lambda x: TF.rotate(x, -45, TF.InterpolationMode.BILINEAR),
            r"0\.65 from AᵀA = I, 0\.7",
        ),
        ("blur", gaussian(2), gaussian(2), r"0\.92 from AᵀA = I, 0\.99"),
        ("brighter", lambda x: 2 * x, lambda x: x / 2, r"2\.7 from AᵀA = I, 0 from its inverse"),
        ("clip", lambda x: x.clamp(-1, 1), lambda x: x, r"0\.88 from linear"),
        ("wrong way back", lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(1, (-2, -1)), r"e-16 from AᵀA = I, 1\.4"),
        ("crop", lambda x: x[..., 1:], lambda x: x, r"keep the image's shape, got \(3, 64, 63\) from \(3, 64, 64\)"),
    ],
)
def test_a_view_that_would_change_the_noise_is_refused_with_the_number(name, apply, undo, number):
    with pytest.raises(ValueError, match=number):
        View(name, apply, undo).check()


def test_a_move_that_loses_pixels_is_refused():
    with pytest.raises(ValueError, match="from its inverse"):
        permutation("smear", torch.zeros_like).check()


@pytest.mark.parametrize("name", NAMES)
def test_a_view_shows_noise_as_noise(name):
    z = torch.randn(400, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = view(name).apply(z)
    covariance = seen.flatten(1).T @ seen.flatten(1) / 400
    assert_close(covariance, torch.eye(144, dtype=torch.float64), atol=0.3, rtol=0)  # 5.9 sigma


def test_an_unknown_view_lists_the_known_ones():
    assert list(views()) == NAMES
    with pytest.raises(ValueError, match="there is no view 'flip': choose one of identity, vflip, hflip, .*, circle"):
        view("flip")


def test_any_whole_number_is_a_seed():
    """PyTorch takes 64 bits: a larger seed is taken modulo 2**64, and a negative one as well."""
    for name in ("pixels", "patches", "jigsaw"):
        x = images(1, 1, 28, 28)
        for seed in (2**64, 2**64 + 5, 2**200 + 5, -1):
            assert torch.equal(view(name, seed).apply(x), view(name, seed % 2**64).apply(x))
            view(name, seed).check((1, 28, 28), seed)
        assert not torch.equal(view(name, 2**64 + 5).apply(x), view(name, 6).apply(x))
