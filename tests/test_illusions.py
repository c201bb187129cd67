"""Chapter 10: combined one-image denoisers return the combined images."""

import pytest
import torch
import torchvision.transforms.functional as TF
from formulas import ALPHA_BAR, T, images, one_image
from torch.testing import assert_close

from minidiff.guidance import cfg
from minidiff.illusions import anagram, bands, colour_hybrid, factorised, gaussian, grey, hybrid, triple_hybrid
from minidiff.sampling import last, sample
from minidiff.schedule import strided
from minidiff.views import View, view, views

NAMES = list(views())


def walked(denoise, x):
    return last(sample(denoise, x, strided(T, 100), ALPHA_BAR))


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
    found = walked(
        anagram([guided, one_image(mu[1]), one_image(mu[2])], A, weights=[3, 2, 1]), images(1, 1, 8, 8, seed=9)
    )
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
    last(
        sample(
            anagram([noting("a"), noting("b")], [view("identity"), view("rot180")], alternate=timesteps),
            images(1, 1, 8, 8),
            timesteps,
            ALPHA_BAR,
        )
    )
    assert asked == [("a", 1000), ("b", 750), ("a", 500), ("b", 250)]


def test_alternate_undoes_the_view_that_it_asked():
    mu, A = images(1, 1, 8, 8), view("rot90")
    eps, _ = anagram([one_image(0), one_image(mu)], [view("identity"), A], alternate=[20, 10, 0])(
        images(1, 1, 8, 8, seed=1), 10
    )
    assert_close(eps, one_image(A.undo(mu))(images(1, 1, 8, 8, seed=1), 10)[0])


def test_a_refused_view_stops_the_anagram_at_its_first_image():
    blur = View("blur", gaussian(1), gaussian(1))
    with pytest.raises(ValueError, match="seen through the view 'blur' would not stay"):
        anagram([one_image(0), one_image(0)], [view("identity"), blur])(images(1, 1, 28, 28), 5)


@pytest.mark.parametrize(
    "count, options, message",
    [
        (1, {}, "one view for each denoiser, got 1 denoisers and 2 views"),
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
    with pytest.raises(ValueError, match="7 is not one of the 2 levels"):
        anagram([one_image(0)], [view("identity")], alternate=[10, 0])(images(1, 1, 8, 8), 7)


# Hybrids


@pytest.mark.parametrize("size, sigma, kernel", [(28, 0.9, 15), (64, 2.0, 33), (33, 2.0, 33)])
def test_the_low_pass_is_torchvisions_gaussian_blur(size, sigma, kernel):
    x = images(2, 3, size, size + 3)
    assert_close(gaussian(sigma)(x), TF.gaussian_blur(x, kernel, sigma), rtol=0, atol=1e-8)


@pytest.mark.parametrize("H, W", [(1, 1), (2, 5), (7, 7), (28, 28)])
def test_the_low_pass_keeps_a_grey_image_at_any_size_and_any_sigma(H, W):
    for sigma in (0.3, 2.0, 50.0):
        assert_close(
            gaussian(sigma)(torch.full((1, 1, H, W), 0.3, dtype=torch.float64)),
            torch.full((1, 1, H, W), 0.3, dtype=torch.float64),
        )


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
    with pytest.raises(ValueError, match=r"a sum that differs from its input by 0\.\d+, expected at most 1e-06"):
        denoise(images(1, 1, 28, 28), 5)
    with pytest.raises(ValueError, match="one part for each denoiser, got 1 denoisers and 2 parts"):
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

    for denoise in (
        anagram([fixed, fixed], [view("negate"), view("jigsaw")]),
        hybrid(fixed, fixed, gaussian(2)),
        colour_hybrid(fixed, fixed),
    ):
        eps, v = denoise(x, 5)
        assert eps.dtype == v.dtype == dtype
    assert torch.equal(x, before) and torch.equal(answers, kept)
