import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from minidiff.schedule import check_timesteps, cosine, evenly_spaced, from_beta, linear, linear_to_noise, strided


def close(x, y, rtol=2e-4):
    x, y = (torch.tensor(float(value), dtype=torch.float64) for value in (x, y))
    assert_close(x, y, rtol=rtol, atol=0)


@pytest.mark.parametrize("alpha_bar", [linear(300), linear_to_noise(300), cosine(1000)])
def test_alpha_bar_is_one_at_the_clean_image_and_falls_strictly(alpha_bar):
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0] == 1
    assert bool((alpha_bar.diff() < 0).all())


def test_linear_has_T_betas_from_beta_1_to_beta_T():
    alpha_bar = linear(300)
    assert alpha_bar.shape == (301,)
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert_close(beta, torch.tensor([1e-4 + (0.02 - 1e-4) * i / 299 for i in range(300)], dtype=torch.float64))


def test_alpha_bar_is_the_product_by_hand():
    assert_close(
        from_beta(torch.tensor([0.5, 0.2])), torch.tensor([1.0, 0.5, 0.4], dtype=torch.float64), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize(("T", "end"), [(300, 0.0481), (400, 0.0175), (500, 0.0064), (1000, 4.0e-5)])
def test_terminal_signal_of_the_linear_schedule(T, end):
    close(linear(T)[-1], end, rtol=1e-2)


def test_the_scaled_linear_schedule_ends_in_noise():
    close(linear_to_noise(300)[-1], 3.4e-5, rtol=2e-2)
    assert_close(linear_to_noise(1000), linear(1000))


IF_COSINE = {
    0: 0.999959, 30: 0.99647, 250: 0.84589, 500: 0.49229, 690: 0.21452, 750: 0.14318, 990: 1.9672e-4, 999: 2.4288e-9,
}  # fmt: skip


@pytest.mark.parametrize("t", IF_COSINE)
def test_cosine_has_the_values_of_deepfloyd_if(t):
    close(cosine(1000)[t + 1], IF_COSINE[t], rtol=1e-4)  # published counting from 0


def test_cosine_betas_are_cut_at_0_999():
    alpha_bar = cosine(1000)
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    close(beta[0], 4.1284e-5, rtol=1e-4)
    close(beta[998], 0.75, rtol=1e-3)
    close(beta[999], 0.999, rtol=1e-9)


def test_cosine_is_the_closed_form_where_nothing_is_cut():
    g = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1000)]
    assert_close(cosine(1000)[:1000], torch.tensor(g, dtype=torch.float64) / g[0])


def test_strided_starts_at_T_and_ends_at_the_clean_image():
    assert strided(10, 4) == [10, 6, 2, 0]
    assert strided(1000, 30)[:2] == [1000, 970]
    assert strided(5, 1) == [5, 4, 3, 2, 1, 0]
    assert strided(7, 100) == [7, 0]


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 299, 300])
def test_evenly_spaced_makes_exactly_that_many_steps_from_T_to_0(steps):
    levels = evenly_spaced(300, steps)
    check_timesteps(levels, 300)
    assert (levels[0], levels[-1], len(levels)) == (300, 0, steps + 1)
    gaps = [a - b for a, b in pairwise(levels)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("levels", [[3, 3, 0], [0, 3], [3], [], [11, 0], [3, -1]])
def test_levels_that_do_not_fall_inside_the_schedule_are_refused(levels):
    with pytest.raises(ValueError, match=r"strictly decreasing, from at most T = 10 to at least 0, got \[.*\]"):
        check_timesteps(levels, 10)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: linear(0), "T >= 1"),
        (lambda: linear(10, 0.02, 0.01), "rise"),
        (lambda: linear(10, 0.1, 1.0), "inside"),
        (lambda: linear_to_noise(20), "T >= 21"),
        (lambda: strided(10, 0), "at least 1, got 0"),
        (lambda: evenly_spaced(300, 0), "between 1 and T = 300, got 0"),
        (lambda: evenly_spaced(300, 301), "between 1 and T = 300, got 301"),
        (lambda: from_beta(torch.tensor([0.1, 1.0])), r"\[0, 1\)"),
    ],
)
def test_bad_schedules_are_refused_with_the_number_expected(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_ends_of_what_is_allowed_are_allowed():
    """T = 21 for the scaled schedule; β = 0, which adds no noise."""
    assert float(linear_to_noise(21)[-1]) < 1e-4
    for alpha_bar in (from_beta(torch.tensor([0.0, 0.5])), linear(2, 0, 0.5)):
        assert alpha_bar.tolist() == [1, 1, 0.5]


def test_the_betas_are_float64_to_the_last_digits():
    beta = 1 - linear(300)[1:] / linear(300)[:-1]
    wanted = torch.tensor([1e-4 + (0.02 - 1e-4) * i / 299 for i in range(300)], dtype=torch.float64)
    assert_close(beta, wanted, rtol=0, atol=1e-14)


def test_evenly_spaced_levels_are_the_nearest_whole_ones():
    assert evenly_spaced(300, 7) == [300, 257, 214, 171, 129, 86, 43, 0]  # 300 · 3/7 = 128.57
