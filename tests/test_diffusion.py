import math

import pytest
import torch
from torch.testing import assert_close

from minidiff import diffusion
from minidiff.schedule import cosine, linear

PAIRS = [(691, 661), (1000, 1), (300, 299), (2, 1), (991, 961)]
ALPHA_BAR = cosine(1000)


def test_add_noise_keeps_signal_and_noise_by_their_square_roots():
    x_0, eps, a = torch.tensor([2.0]).double(), torch.tensor([3.0]).double(), torch.tensor(0.64).double()
    assert_close(diffusion.add_noise(x_0, a, eps), torch.tensor([0.8 * 2 + 0.6 * 3]).double())


def test_two_of_x0_eps_xt_give_the_third(mu, x_T):
    for a in (ALPHA_BAR[1], ALPHA_BAR[500], ALPHA_BAR[990]):
        x_t = diffusion.add_noise(mu, a, x_T)
        assert_close(diffusion.predict_x0(x_t, x_T, a), mu)
        assert_close(diffusion.predict_eps(x_t, mu, a), x_T)


def test_velocity_is_the_rotation_of_signal_and_noise(mu, x_T):
    a = torch.tensor(0.64).double()
    v = diffusion.velocity(mu, x_T, a)
    assert_close(v, 0.8 * x_T - 0.6 * mu)
    assert_close(diffusion.eps_from_velocity(diffusion.add_noise(mu, a, x_T), v, a), x_T)


def test_noising_in_two_jumps_has_the_marginal_of_one():
    a_s, a_t = ALPHA_BAR[300], ALPHA_BAR[500]
    one = torch.ones(1).double()
    signal = diffusion.add_more_noise(a_s.sqrt() * one, a_s, a_t, 0 * one)
    from_s = diffusion.add_more_noise((1 - a_s).sqrt() * one, a_s, a_t, 0 * one)
    fresh = diffusion.add_more_noise(0 * one, a_s, a_t, one)
    assert_close(signal, a_t.sqrt() * one)
    assert_close(from_s**2 + fresh**2, (1 - a_t) * one)


def test_noising_from_480_to_510_adds_std_0_299_on_the_linear_schedule():
    one = torch.ones(1).double()
    alpha_bar = linear(1000)
    std = float(diffusion.add_more_noise(0 * one, alpha_bar[481], alpha_bar[511], one))
    assert math.isclose(std, math.sqrt(1 - float(alpha_bar[511] / alpha_bar[481])), rel_tol=1e-12)
    cosine_std = float(diffusion.add_more_noise(0 * one, ALPHA_BAR[481], ALPHA_BAR[511], one))
    assert math.isclose(cosine_std, 0.299, abs_tol=1e-3)


def test_posterior_has_the_published_coefficients_at_690_to_660():
    a_t, a_s = ALPHA_BAR[691], ALPHA_BAR[661]
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    close = {"rtol": 0, "atol": 1e-5}
    assert_close(diffusion.posterior(zero, one, a_t, a_s).mean, torch.tensor([0.09995]).double(), **close)
    mean, beta_tilde, beta = diffusion.posterior(one, zero, a_t, a_s)
    assert_close(mean, torch.tensor([0.87254]).double(), **close)
    assert_close(beta, torch.tensor(0.15575).double(), **close)
    assert_close(beta_tilde, torch.tensor(0.14790).double(), **close)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_step_keeps_the_forward_marginal(t, s):
    a_t, a_s = ALPHA_BAR[t], ALPHA_BAR[s]
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    c_0 = diffusion.posterior(zero, one, a_t, a_s).mean
    c_t, beta_tilde, _ = diffusion.posterior(one, zero, a_t, a_s)
    assert_close(c_0 + c_t * a_t.sqrt(), a_s.sqrt() * one)
    assert_close(c_t**2 * (1 - a_t) + beta_tilde, (1 - a_s) * one)


def test_learned_variance_runs_from_beta_tilde_to_beta_in_the_log():
    small, large = torch.tensor(0.04).double(), torch.tensor(0.25).double()
    v = torch.tensor([0.0, 0.5, 1.0, 2.0]).double()
    assert_close(diffusion.reverse_std(v, small, large), torch.tensor([0.2, math.sqrt(0.2 * 0.5), 0.5, 1.25]).double())
    assert_close(diffusion.reverse_std(None, small, large), torch.tensor(0.2).double())


def test_dynamic_threshold_by_hand():
    x_0 = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 2.0]]).reshape(1, 1, 1, 5)
    # |x_0| sorted: 0 1 1 2 4; the 0.75 quantile is 2
    assert_close(diffusion.dynamic_threshold(0.75, 3.0)(x_0).flatten(), torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    at_most_1_5 = torch.tensor([-1.0, -1 / 1.5, 0.0, 1 / 1.5, 1.0])
    assert_close(diffusion.dynamic_threshold(0.75, 1.5)(x_0).flatten(), at_most_1_5)
    assert_close(diffusion.dynamic_threshold(0.75, 1.0)(x_0), x_0.clamp(-1, 1))


def test_dynamic_threshold_treats_each_image_alone_and_leaves_small_ones():
    x_0 = torch.stack([torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 9.0)])
    assert_close(diffusion.dynamic_threshold()(x_0), torch.stack([torch.full((1, 2, 2), 0.5), torch.ones(1, 2, 2)]))


def test_clip_to_keeps_the_range_of_the_training_pixels():
    assert_close(diffusion.clip_to(0, 1)(torch.tensor([-1.0, 0.5, 2.0])), torch.tensor([0.0, 0.5, 1.0]))
    assert_close(diffusion.unclipped(torch.tensor([9.0])), torch.tensor([9.0]))


def test_an_image_keeps_its_dtype_next_to_a_float64_schedule():
    x = torch.ones(1, 1, 2, 2)
    a, b = ALPHA_BAR[500], ALPHA_BAR[400]
    for function in (diffusion.predict_x0, diffusion.predict_eps, diffusion.velocity):
        assert function(x, x, a).dtype == torch.float32
    for y in (diffusion.add_noise(x, a, x), diffusion.posterior(x, x, a, b).mean):
        assert y.dtype == torch.float32
