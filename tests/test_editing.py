"""Chapter 11: the start and the constraint of a walk, against closed forms for one-image and Gaussian data."""

from itertools import pairwise

import pytest
import torch
from conftest import impulses
from formulas import ALPHA_BAR, T, gaussian_data, images, one_image
from torch.testing import assert_close

from minidiff.editing import hold, inpaint, resampled, sdedit
from minidiff.illusions import gaussian, grey
from minidiff.sampling import ddim_step, ddpm_large_step, last, sample
from minidiff.schedule import strided

HALF = torch.zeros(1, 1, 8, 8)
HALF[..., 4:] = 1


def noting(seen, denoise):
    """The denoiser, and a list of what it was asked."""

    def noted(x_t, t):
        seen.append((t, x_t))
        return denoise(x_t, t)

    return noted


# Image-to-image


@pytest.mark.parametrize("start", [1, 3, 5, 7, 10, 20])
def test_an_edit_ends_in_the_image_that_the_denoiser_knows(start):
    mu = images(1, 3, 8, 8)
    found = last(sdedit(one_image(mu), images(2, 3, 8, 8, seed=1), strided(991, 30)[start:], ALPHA_BAR))
    assert_close(found, mu.expand(2, 3, 8, 8))


def test_an_edit_begins_with_the_picture_noised_to_the_first_level():
    x_orig, z, seen = images(1, 1, 8, 8), images(1, 1, 8, 8, seed=1), []
    next(sdedit(noting(seen, one_image(0)), x_orig, [690, 660, 0], ALPHA_BAR, noise=lambda like: z))
    [(t, x)] = seen
    assert t == 690
    assert_close(x, ALPHA_BAR[690].sqrt() * x_orig + (1 - ALPHA_BAR[690]).sqrt() * z)


def test_a_short_edit_keeps_more_of_the_picture():
    """Data N(0, ¼): the ODE maps levels to levels, so the factor is known."""
    x_orig, how = torch.ones(1, 1, 1, 1, dtype=torch.float64), {"step": ddim_step, "noise": torch.zeros_like}
    for t in (900, 500, 100):
        found = last(sdedit(gaussian_data(0.25), x_orig, strided(t, 1), ALPHA_BAR, **how))
        kept = (ALPHA_BAR[t] * 0.25 / (ALPHA_BAR[t] * 0.25 + 1 - ALPHA_BAR[t])).sqrt()
        assert_close(found.squeeze(), kept, rtol=0.02, atol=0)


# Holding a part


def test_the_held_part_is_the_pictures_and_the_rest_is_the_denoisers():
    mu, x_orig = images(1, 3, 28, 28), images(1, 3, 28, 28, seed=1)
    for part in (gaussian(2), grey, lambda x: x - grey(x)):
        constrain, x_T = hold(part, x_orig, ALPHA_BAR), images(1, 3, 28, 28, seed=2)
        steps = sample(one_image(mu), x_T, strided(T, 100), ALPHA_BAR, constrain=constrain)
        assert_close(last(steps), mu - part(mu) + part(x_orig))


# RePaint's list of levels


def test_resampling_goes_up_and_down_again_as_in_the_reference():
    assert resampled([6, 5, 4, 3, 2, 1, 0], 2, 2) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert resampled([4, 3, 2, 1, 0], 1, 3) == [4, 3, 4, 3, 4, 3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]
    assert resampled([900, 500, 100, 0], 2, 2) == [900, 500, 100, 900, 500, 100, 0]
    assert resampled([4, 3, 2, 1, 0], 9, 1) == [4, 3, 2, 1, 0]


def test_resampling_asks_the_denoiser_as_often_as_the_paper_says():
    levels = resampled(strided(250, 1), 10, 10)  # RePaint: T = 250, j = 10, r = 10
    downs = sum(t > t_next for t, t_next in pairwise(levels))
    assert downs == 250 + 24 * 9 * 10
    assert levels[0] == 250 and levels[-1] == 0 and levels.count(0) == 1


@pytest.mark.parametrize("jump, rounds", [(0, 2), (4, 2), (1, 0)])
def test_a_jump_that_does_not_fit_is_refused(jump, rounds):
    with pytest.raises(ValueError, match=f"between 1 and 3 for 4 steps, got rounds = {rounds}, jump = {jump}"):
        resampled([4, 3, 2, 1, 0], jump, rounds)


# Inpainting


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("first", [T, 600])
def test_inpainting_paints_where_the_mask_is_1_and_keeps_the_rest_bit_for_bit(rounds, first):
    mu, x_orig = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    found = last(inpaint(one_image(mu), x_orig, HALF, strided(first, 100), ALPHA_BAR, jump=2, rounds=rounds))
    assert torch.equal(found[..., :4], x_orig[..., :4])
    assert_close(found[..., 4:], mu[..., 4:])


@pytest.mark.parametrize("mask", [HALF, HALF.bool(), HALF[0, 0] * torch.ones(2, 3, 1, 1), 0.1 + 0.6 * HALF])
def test_a_mask_is_cut_at_one_half_and_may_be_given_per_image_and_channel(mask):
    x_orig = images(2, 3, 8, 8)
    found = last(inpaint(one_image(5.0), x_orig, mask, [T, 500, 0], ALPHA_BAR))
    assert torch.equal(found != x_orig, (HALF > 0.5).expand(2, 3, 8, 8))


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_both_sides_of_the_mask_have_the_variance_of_their_level_at_every_step(rounds):
    """Data N(0, 1), whose exact step has variance β; the kept pixel is 0.

    Outside the mask the variance is 1 − ᾱ_t, inside it 1, after a jump up as well. (The last step adds no noise: it
    returns the mean √ᾱ_125 x_125.)
    """
    x_orig = torch.zeros(150, 1, 1, 2, dtype=torch.float64)
    mask = torch.tensor([[[[0.0, 1.0]]]])
    how = {"jump": 3, "rounds": rounds, "step": ddpm_large_step, "noise": impulses(150)}
    for t, x in inpaint(gaussian_data(1.0), x_orig, mask, strided(T, 125), ALPHA_BAR, **how):
        kept, painted = x.square().sum(0).flatten()
        assert_close(painted, torch.tensor(1.0, dtype=torch.float64) if t > 0 else ALPHA_BAR[125])
        assert_close(kept, 1 - ALPHA_BAR[t])


@pytest.mark.parametrize("rounds", [1, 3])
def test_without_noise_the_kept_part_is_the_scaled_picture_at_every_level_that_is_asked(rounds):
    x_orig, seen = images(1, 1, 8, 8), []
    denoise, how = noting(seen, one_image(0)), {"jump": 2, "rounds": rounds, "noise": torch.zeros_like}
    steps = [t for t, _ in inpaint(denoise, x_orig, HALF, strided(T, 250), ALPHA_BAR, **how)]
    for t, x in seen:
        assert_close(x[..., :4], ALPHA_BAR[t].sqrt() * x_orig[..., :4])
    assert [t for t, _ in seen[:2]] == [1000, 750] and steps[-1] == 0
    assert len(seen) == (4 if rounds == 1 else 4 + 2 * 2)


def test_a_hole_begins_as_noise_from_T_and_as_the_picture_from_a_lower_level():
    x_orig, seen = images(1, 1, 8, 8), []
    next(inpaint(noting(seen, one_image(0)), x_orig, HALF, [T, 0], ALPHA_BAR, noise=torch.zeros_like))
    next(inpaint(noting(seen, one_image(0)), x_orig, HALF, [600, 0], ALPHA_BAR, noise=torch.zeros_like))
    assert not seen[0][1][..., 4:].any()
    assert_close(seen[1][1], ALPHA_BAR[600].sqrt() * x_orig)


def test_resampling_brings_the_hole_nearer_to_what_the_kept_part_implies():
    """Two pixels, N(0, 1) with correlation 0.9: when the left one is 1, the mean of the right one is 0.9."""
    covariance = torch.tensor([[1, 0.9], [0.9, 1]], dtype=torch.float64)
    precision = torch.linalg.inv(ALPHA_BAR[:, None, None] * covariance + (1 - ALPHA_BAR[:, None, None]) * torch.eye(2))

    def denoise(x_t, t):
        return (1 - ALPHA_BAR[t]).sqrt() * x_t @ precision[t], None

    x_orig, mask = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64), torch.tensor([[[[0.0, 1.0]]]])

    def mean_of(rounds):
        steps = inpaint(denoise, x_orig, mask, strided(T, 20), ALPHA_BAR, rounds=rounds, noise=torch.zeros_like)
        return last(steps)[..., 1].item()

    mean = [mean_of(rounds) for rounds in (1, 4, 16)]
    assert mean[0] < 0.61 and 0.81 < mean[1] < mean[2]
    assert mean[2] == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 7), (3, 1, 8, 8), (1, 2, 8, 8)])
def test_a_mask_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"the picture's shape, \(2, 3, 8, 8\), or with 1 for B or C, got \("):
        next(inpaint(one_image(0), images(2, 3, 8, 8), torch.zeros(shape), [T, 0], ALPHA_BAR))


def test_levels_that_do_not_fall_are_refused_at_the_door():
    def edit(levels):
        return sdedit(one_image(0), images(1, 1, 8, 8), levels, ALPHA_BAR)

    def paint(levels):
        return next(inpaint(one_image(0), images(1, 1, 8, 8), HALF, levels, ALPHA_BAR))

    for door in (edit, paint):
        with pytest.raises(ValueError, match="timesteps must be strictly decreasing"):
            door([0, 500])
        with pytest.raises(ValueError, match="timesteps must be strictly decreasing"):
            door([2000, 0])
