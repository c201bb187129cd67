"""Chapter 9: views move noise to noise, and combined one-image denoisers return the combined images."""

import pytest
import torch
import torchvision.transforms.functional as TF
from formulas import ALPHA_BAR, T, images, one_image
from torch.testing import assert_close

from minidiff.guidance import cfg
from minidiff.illusions import (
    View,
    anagram,
    bands,
    colour_hybrid,
    factorised,
    gaussian,
    grey,
    hybrid,
    moved,
    patches,
    triple_hybrid,
    view,
    views,
)
from minidiff.sampling import last, sample
from minidiff.schedule import strided

NAMES = ["identity", "vflip", "hflip", "rot90", "rot180", "rot270", "transpose", "negate", "pixels", "patches", "jigsaw", "skew", "hinge", "circle"]
SQUARES = [(1, 1, 1, 1), (2, 1, 5, 5), (2, 1, 28, 28), (1, 3, 27, 27), (1, 3, 64, 64)]


def walked(denoise, x):
    return last(sample(denoise, x, strided(T, 100), ALPHA_BAR))


# Views


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
    with pytest.raises(ValueError, match=f"the view '{name}' wants a square image, got 28 x 33"):
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
    assert torch.equal(A.apply(x.repeat_interleave(4, -1).repeat_interleave(4, -2)), A.apply(x).repeat_interleave(4, -1).repeat_interleave(4, -2))
    assert torch.equal(patches(8).apply(x)[..., 24:, :], x[..., 24:, :])  # 28 = 8 · 3 + 4


def test_a_jigsaw_piece_turns_about_the_centre_into_a_twins_place():
    side = torch.arange(64) - 31.5
    radius = (side**2 + side[:, None] ** 2).view(1, 1, 64, 64)
    assert torch.equal(view("jigsaw", seed=2).apply(radius), radius)
    corner = torch.zeros(1, 1, 64, 64)
    corner[..., :8, :8] = 1  # inside a corner piece, away from its knobs
    turned = [corner.rot90(k, (-2, -1)) for k in range(4)]
    assert any(torch.equal(view("jigsaw", seed=2).apply(corner), other) for other in turned)
    assert not torch.equal(view("jigsaw", seed=2).apply(images(1, 1, 64, 64)), view("jigsaw", seed=3).apply(images(1, 1, 64, 64)))


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
        ("tilt", lambda x: TF.rotate(x, 45, TF.InterpolationMode.BILINEAR), lambda x: TF.rotate(x, -45, TF.InterpolationMode.BILINEAR), r"0\.65 from AᵀA = I, 0\.7"),
        ("blur", gaussian(2), gaussian(2), r"0\.92 from AᵀA = I, 0\.99"),
        ("brighter", lambda x: 2 * x, lambda x: x / 2, r"2\.7 from AᵀA = I, 0 from its inverse"),
        ("clip", lambda x: x.clamp(-1, 1), lambda x: x, r"0\.88 from linear"),
        ("wrong way back", lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(1, (-2, -1)), r"e-16 from AᵀA = I, 1\.4"),
        ("crop", lambda x: x[..., 1:], lambda x: x, r"makes \(3, 64, 63\) of \(3, 64, 64\)"),
    ],
)
def test_a_view_that_would_change_the_noise_is_refused_with_the_number(name, apply, undo, number):
    with pytest.raises(ValueError, match=number):
        View(name, apply, undo).check()


def test_a_refused_view_stops_the_anagram_at_its_first_image():
    blur = View("blur", gaussian(1), gaussian(1))
    with pytest.raises(ValueError, match="seen through the view 'blur' would not stay"):
        anagram([one_image(0), one_image(0)], [view("identity"), blur])(images(1, 1, 28, 28), 5)


def test_a_move_that_loses_pixels_is_refused():
    with pytest.raises(ValueError, match="from its inverse"):
        moved("smear", torch.zeros_like).check()


def test_an_unknown_view_lists_the_known_ones():
    assert list(views()) == NAMES
    with pytest.raises(ValueError, match="there is no view 'flip': choose one of identity, vflip, hflip, .*, circle"):
        view("flip")


# Anagrams


@pytest.mark.parametrize("name", NAMES)
def test_an_anagram_of_two_images_is_their_mean_through_the_view(name):
    mu_1, mu_2, A = images(1, 3, 28, 28), images(1, 3, 28, 28, seed=1), view(name)
    found = walked(anagram([one_image(mu_1), one_image(mu_2)], [view("identity"), A]), images(2, 3, 28, 28, seed=2))
    assert_close(found, ((mu_1 + A.undo(mu_2)) / 2).expand_as(found))


def test_weights_and_guidance_enter_an_anagram_as_in_the_formula():
    mu = [images(1, 1, 8, 8, seed=seed) for seed in range(3)]
    A = [view("vflip"), view("rot90"), view("negate")]
    guided = cfg(one_image(mu[0]), one_image(mu[1]), 3.0)
    found = walked(anagram([guided, one_image(mu[1]), one_image(mu[2])], A, weights=[3, 2, 1]), images(1, 1, 8, 8, seed=9))
    exaggerated = mu[1] + 3 * (mu[0] - mu[1])
    assert_close(found, (3 * A[0].undo(exaggerated) + 2 * A[1].undo(mu[1]) + A[2].undo(mu[2])) / 6)


def test_v_is_moved_back_and_averaged_but_never_negated():
    v = images(1, 1, 8, 8) / 2 + 0.5
    views = [view("negate"), view("rot90")]
    _, found = anagram([one_image(0, v), one_image(0, 0 * v)], views)(images(1, 1, 8, 8), 7)
    assert_close(found, v / 2)
    _, found = anagram([one_image(0, 0 * v), one_image(0, v)], views, weights=[1, 3])(images(1, 1, 8, 8), 7)
    assert_close(found, 0.75 * view("rot90").unpermute(v))
    assert anagram([one_image(0, v), one_image(0)], views)(v, 7)[1] is None


def test_alternate_asks_one_view_a_level_in_turn():
    asked = []

    def noting(name):
        return lambda x_t, t: (asked.append((name, t)), one_image(0)(x_t, t))[1]

    timesteps = strided(T, 250)  # 1000, 750, 500, 250, 0: all even, so t itself could not tell the turn
    last(sample(anagram([noting("a"), noting("b")], [view("identity"), view("rot180")], alternate=timesteps), images(1, 1, 8, 8), timesteps, ALPHA_BAR))
    assert asked == [("a", 1000), ("b", 750), ("a", 500), ("b", 250)]


def test_alternate_undoes_the_view_that_it_asked():
    mu, A = images(1, 1, 8, 8), view("rot90")
    eps, _ = anagram([one_image(0), one_image(mu)], [view("identity"), A], alternate=[20, 10, 0])(images(1, 1, 8, 8, seed=1), 10)
    assert_close(eps, one_image(A.undo(mu))(images(1, 1, 8, 8, seed=1), 10)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_view_shows_noise_as_noise(name):
    z = torch.randn(400, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = view(name).apply(z)
    assert_close(seen.flatten(1).T @ seen.flatten(1) / 400, torch.eye(144, dtype=torch.float64), atol=0.3, rtol=0)  # 5.9 sigma


@pytest.mark.parametrize(
    "count, options, message",
    [
        (1, {}, "got 1 prompts and 2 views"),
        (2, {"weights": [1]}, "weights must be 2 finite numbers"),
        (2, {"weights": [1, -1]}, "weights must be 2 finite numbers"),
        (2, {"weights": [1, float("nan")]}, "weights must be 2 finite numbers"),
        (2, {"weights": [1, float("inf")]}, "weights must be 2 finite numbers"),
        (2, {"weights": [0, 0]}, "weights must be 2 finite numbers"),
        (2, {"weights": [1, 2], "alternate": [1, 0]}, "only without `alternate`"),
    ],
)
def test_an_anagram_that_does_not_add_up_is_refused(count, options, message):
    with pytest.raises(ValueError, match=message):
        anagram([one_image(0)] * count, [view("identity"), view("vflip")], **options)


def test_a_level_that_was_not_announced_is_refused():
    with pytest.raises(ValueError, match="level 7 is none of the 2 levels"):
        anagram([one_image(0)], [view("identity")], alternate=[10, 0])(images(1, 1, 8, 8), 7)


# Hybrids


@pytest.mark.parametrize("size, sigma, kernel", [(28, 0.9, 15), (64, 2.0, 33), (33, 2.0, 33)])
def test_the_low_pass_is_torchvisions_gaussian_blur(size, sigma, kernel):
    x = images(2, 3, size, size + 3)
    assert_close(gaussian(sigma)(x), TF.gaussian_blur(x, kernel, sigma), rtol=0, atol=1e-8)


@pytest.mark.parametrize("H, W", [(1, 1), (2, 5), (7, 7), (28, 28)])
def test_the_low_pass_keeps_a_grey_image_at_any_size_and_any_sigma(H, W):
    for sigma in (0.3, 2.0, 50.0):
        assert_close(gaussian(sigma)(torch.full((1, 1, H, W), 0.3, dtype=torch.float64)), torch.full((1, 1, H, W), 0.3, dtype=torch.float64))


def test_the_low_pass_of_white_noise_has_the_variance_of_its_kernel():
    impulse = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    impulse[..., 32, 32] = 1
    low = gaussian(2)(impulse)
    assert_close(low.square().sum(), torch.tensor(0.0199, dtype=torch.float64), atol=5e-5, rtol=0)  # 1 / (4π σ²)
    assert_close((impulse - low).square().sum(), torch.tensor(0.9403, dtype=torch.float64), atol=1e-4, rtol=0)


def test_parts_between_low_passes_sum_to_the_image():
    x = images(2, 3, 28, 28)
    parts = bands(gaussian(4), gaussian(1))
    assert len(parts) == 3
    assert_close(sum(part(x) for part in parts), x)
    assert_close(parts[1](x), gaussian(1)(x) - gaussian(4)(x))


def test_a_hybrid_is_the_coarse_of_one_and_the_fine_of_the_other():
    far, near, low = images(1, 3, 28, 28), images(1, 3, 28, 28, seed=1), gaussian(2)
    found = walked(hybrid(one_image(far), one_image(near), low), images(1, 3, 28, 28, seed=2))
    assert_close(found, low(far) + near - low(near))


def test_a_triple_hybrid_is_three_bands():
    mu, coarse, fine = [images(1, 1, 28, 28, seed=seed) for seed in range(3)], gaussian(3), gaussian(1)
    found = walked(triple_hybrid(*map(one_image, mu), coarse, fine), images(1, 1, 28, 28, seed=9))
    assert_close(found, coarse(mu[0]) + fine(mu[1]) - coarse(mu[1]) + mu[2] - fine(mu[2]))


def test_a_colour_hybrid_has_the_greys_of_one_and_the_colours_of_the_other():
    mu_1, mu_2 = images(1, 3, 8, 8), images(1, 3, 8, 8, seed=1)
    found = walked(colour_hybrid(one_image(mu_1), one_image(mu_2)), images(1, 3, 8, 8, seed=2))
    assert_close(grey(found), grey(mu_1))
    assert_close(found - grey(found), mu_2 - grey(mu_2))


def test_v_of_a_hybrid_is_the_mean():
    v = images(1, 1, 8, 8)
    assert_close(hybrid(one_image(0, v), one_image(0, 3 * v), gaussian(1))(v, 5)[1], 2 * v)
    assert hybrid(one_image(0, v), one_image(0), gaussian(1))(v, 5)[1] is None


def test_parts_that_do_not_sum_to_the_identity_are_refused_with_the_number():
    denoise = factorised([one_image(0), one_image(0)], [gaussian(1), gaussian(1)])
    with pytest.raises(ValueError, match=r"differ from it, summed, by 0\.\d+, wanted at most 1e-06"):
        denoise(images(1, 1, 28, 28), 5)
    with pytest.raises(ValueError, match="got 1 prompts and 2 parts"):
        factorised([one_image(0)], bands(gaussian(1)))


@pytest.mark.parametrize("sigma", [0, -1, float("nan"), float("inf")])
def test_a_blur_without_width_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a number of pixels above 0"):
        gaussian(sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_combinators_keep_the_dtype_and_leave_their_arguments_alone(dtype):
    x = images(1, 1, 28, 28).to(dtype)
    before, answers = x.clone(), images(1, 1, 28, 28, seed=1).to(dtype)
    kept = answers.clone()

    def fixed(x_t, t):
        return answers, answers

    for denoise in (anagram([fixed, fixed], [view("negate"), view("jigsaw")]), hybrid(fixed, fixed, gaussian(2)), colour_hybrid(fixed, fixed)):
        eps, v = denoise(x, 5)
        assert eps.dtype == v.dtype == dtype
    assert torch.equal(x, before) and torch.equal(answers, kept)
