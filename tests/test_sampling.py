from functools import partial

import pytest
import torch
from conftest import gaussian, impulses, one_image
from torch.testing import assert_close

from minidiff.diffusion import clip_to, predict_eps
from minidiff.editing import sdedit
from minidiff.sampling import ddim_step, ddpm_large_step, ddpm_step, dpm_step, last, noise_per_image, sample, seeded
from minidiff.schedule import cosine, evenly_spaced, linear, strided

COSINE = cosine(1000)
STEPS = {
    "ddpm": ddpm_step,
    "ddpm-large": ddpm_large_step,
    "ddim": ddim_step,
    "ddim-half": partial(ddim_step, eta=0.5),
    "ddim-1": partial(ddim_step, eta=1),
    "dpm": dpm_step,
}


def output_variance(var, levels, step, alpha_bar=COSINE, v=None):
    noise = impulses(len(levels) + 1)
    walk = sample(gaussian(var, alpha_bar, v), noise(None), levels, alpha_bar, step=step, noise=noise)
    return float(last(walk).square().sum())


WALKS = [strided(1000, 1), strided(1000, 7), strided(1000, 30), [1000, 0], [1000, 999, 4, 3, 0]]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("levels", WALKS, ids=len)
def test_one_image_data_is_returned_by_every_sampler_at_any_stride(name, levels, mu, x_T):
    walk = sample(one_image(mu, COSINE), x_T, levels, COSINE, step=STEPS[name])
    assert_close(last(walk), mu, rtol=1e-6, atol=1e-6)


# Exact output variances for data N(0, var), cosine schedule, computed without this library.
GAUSSIAN = [
    (0.25, [*range(991, 0, -30), 0], 0.2068, 0.2641, 0.2280),
    (0.25, [*range(991, 0, -10), 0], 0.2328, 0.2546, 0.2424),
    (0.25, [*range(1000, -1, -1)], 0.2480, 0.2504, 0.2492),
    (1.0, [*range(991, 0, -30), 0], 0.8774, 1.0, 0.9297),
    (1.0, [*range(991, 0, -10), 0], 0.9546, 1.0, 0.9759),
    (1.0, [*range(1000, -1, -1)], 0.9951, 1.0, 0.9975),
]


@pytest.mark.parametrize(("var", "levels", "beta_tilde", "beta", "ddim_0"), GAUSSIAN)
def test_gaussian_data_come_out_with_the_exact_variance(var, levels, beta_tilde, beta, ddim_0):
    assert output_variance(var, levels, ddpm_step) == pytest.approx(beta_tilde, abs=5e-5)
    assert output_variance(var, levels, ddpm_large_step) == pytest.approx(beta, abs=5e-5)
    assert output_variance(var, levels, ddim_step) == pytest.approx(ddim_0, abs=5e-5)


def test_gaussian_data_on_the_linear_schedule_at_stride_10_and_1():
    alpha_bar = linear(1000)
    assert output_variance(0.25, [*range(1000, -1, -1)], ddpm_step, alpha_bar) == pytest.approx(0.246125, abs=5e-7)
    assert output_variance(0.25, strided(1000, 10), ddpm_step, alpha_bar) == pytest.approx(0.219229, abs=5e-7)
    assert output_variance(0.25, strided(1000, 10), ddpm_large_step, alpha_bar) == pytest.approx(0.256767, abs=5e-7)


def test_beta_is_exact_for_unit_gaussian_data_at_any_stride():
    """Variance 1 at every noisy level; the last step, which adds none, leaves ᾱ of the level it came from."""
    for levels in ([1000, 400, 399, 0], strided(1000, 77)):
        assert output_variance(1.0, levels, ddpm_large_step) == pytest.approx(float(COSINE[levels[-2]]), abs=1e-9)


def test_learned_variance_of_0_and_1_are_beta_tilde_and_beta():
    levels = strided(1000, 50)
    small, large = output_variance(0.25, levels, ddpm_step), output_variance(0.25, levels, ddpm_large_step)
    assert output_variance(0.25, levels, ddpm_step, v=0.0) == pytest.approx(small, rel=1e-12)
    assert output_variance(0.25, levels, ddpm_step, v=1.0) == pytest.approx(large, rel=1e-12)
    assert small < output_variance(0.25, levels, ddpm_step, v=0.5) < large


@pytest.mark.parametrize("levels", [strided(1000, 1), strided(1000, 30), [900, 250, 249, 0]], ids=len)
def test_ddim_with_eta_1_is_ddpm_with_beta_tilde(levels, x_T):
    def walk(step):
        g = torch.Generator().manual_seed(9)
        noise = lambda like: torch.randn(like.shape, generator=g, dtype=like.dtype)
        return last(sample(gaussian(0.3, COSINE), x_T, levels, COSINE, step=step, noise=noise))

    assert_close(walk(partial(ddim_step, eta=1)), walk(ddpm_step), rtol=1e-9, atol=1e-9)


def test_dpm_step_is_second_order_and_ddim_first():
    """N(0, var) data: the exact answer is x_0 = √var x_T / √(ᾱ_T var + 1 − ᾱ_T). Halve h: errors fall by 4, by 2."""
    var, T = 0.25, 4000
    alpha_bar = cosine(T)
    a = float(alpha_bar[3200])
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def error(step, steps, end=400):
        b = float(alpha_bar[end])
        exact = ((b * var + 1 - b) / (a * var + 1 - a)) ** 0.5
        levels = [round(3200 + (end - 3200) * i / steps) for i in range(steps + 1)]
        return abs(float(last(sample(gaussian(var, alpha_bar), x, levels, alpha_bar, step=step))) - exact)

    assert 3.4 < error(dpm_step, 20) / error(dpm_step, 40) < 4.6
    assert 1.8 < error(ddim_step, 20) / error(ddim_step, 40) < 2.2
    assert error(dpm_step, 40) < error(ddim_step, 40) / 10


def test_the_noise_of_ddim_is_eta_times_the_root_of_beta_tilde_and_its_direction_makes_room_for_it():
    """By hand, at ᾱ_t = 0.36 and ᾱ_t′ = 0.64: β̃ = (0.36/0.64)(1 − 0.36/0.64) = 0.24609375."""
    a, b = torch.tensor([0.36, 0.64], dtype=torch.float64)
    one = torch.ones(1, 1, 1, 1).double()
    zero = 0 * one

    def step(x, eps, z):
        return float(ddim_step(x, eps, None, a, b, noise=lambda like: z * one, eta=0.5))

    sigma = 0.5 * 0.24609375**0.5
    assert step(zero, zero, 1.0) == pytest.approx(sigma, rel=1e-12)
    # pure noise, x_0 = 0: x_t = √(1 − ᾱ_t) ε, and what comes out is √(1 − ᾱ_t′ − σ²) ε
    assert step(0.8 * one, one, 0.0) == pytest.approx((0.36 - sigma**2) ** 0.5, rel=1e-12)


def test_dpm_step_extrapolates_x0_to_the_middle_of_an_uneven_step():
    """λ = −1, 0 and 3: after a step of 1 the middle of a step of 3 is 1.5 on, D = x_0 + 1.5 (x_0 − x_0,before)."""
    lam = torch.tensor([3.0, 0.0, -1.0]).double()
    alpha_bar = torch.cat([torch.ones(1).double(), torch.sigmoid(2 * lam)])  # ᾱ = 1/(1 + e^−2λ)
    answers = {3: 0.2, 2: 0.5}
    denoise = lambda x, t: (predict_eps(x, answers[t], alpha_bar[t]), None)
    states = dict(sample(denoise, torch.ones(1, 1, 1, 1).double(), [3, 2, 1], alpha_bar, step=dpm_step))
    sigma = (1 - alpha_bar).sqrt()
    D = 0.5 + 1.5 * (0.5 - 0.2)
    wanted = sigma[1] / sigma[2] * states[2] + alpha_bar[1].sqrt() * (1 - torch.exp(torch.tensor(-3.0).double())) * D
    assert_close(states[1], wanted)


def test_the_first_and_the_last_step_of_dpm_step_are_ddim_steps(x_T):
    def one(step, levels):
        return last(sample(gaussian(0.25, COSINE), x_T, levels, COSINE, step=step))

    assert_close(one(dpm_step, [800, 500]), one(ddim_step, [800, 500]))
    states = list(sample(gaussian(0.25, COSINE), x_T, [800, 500, 0], COSINE, step=dpm_step))
    assert_close(states[-1][1], one(ddim_step, [800, 500, 0]))


def test_dpm_step_forgets_the_walk_before_when_it_is_used_again(x_T):
    levels = evenly_spaced(1000, 8)
    walks = [last(sample(gaussian(0.25, COSINE), x_T, levels, COSINE, step=dpm_step)) for _ in range(2)]
    assert_close(walks[0], walks[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", STEPS)
def test_the_last_step_adds_no_noise_and_gives_the_estimate_itself(name, mu, x_T):
    calls = []
    noise = lambda like: calls.append(1) or torch.full_like(like, 1e6)
    assert_close(last(sample(one_image(mu, COSINE), x_T, [1, 0], COSINE, step=STEPS[name], noise=noise)), mu)
    assert not calls


def test_deterministic_samplers_draw_nothing():
    def forbidden(like):
        raise AssertionError("drew noise")

    denoise, x, levels = gaussian(0.25, COSINE), torch.ones(1, 1, 1, 1), strided(1000, 100)
    for step in (ddim_step, dpm_step):
        last(sample(denoise, x, levels, COSINE, step=step, noise=forbidden))


@pytest.mark.parametrize("name", STEPS)
def test_the_estimate_of_x0_is_clipped_in_every_step(name, mu):
    far, how = 3 * torch.ones_like(mu), {"step": STEPS[name], "clip": clip_to(-1, 1)}
    walk = sample(one_image(far, COSINE), torch.zeros_like(mu), strided(1000, 100), COSINE, **how)
    assert_close(last(walk), torch.ones_like(mu), rtol=1e-6, atol=1e-6)


def test_ddim_derives_eps_again_from_the_clipped_x0():
    a, b = COSINE[900], COSINE[500]
    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    x_0 = torch.ones_like(x)  # the estimate (x − 0)/√ᾱ is far above 1
    eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
    assert_close(ddim_step(x, torch.zeros_like(x), None, a, b, clip_to(-1, 1)), b.sqrt() * x_0 + (1 - b).sqrt() * eps)


def test_the_walk_yields_each_level_after_its_step_and_obeys_the_constraint(mu, x_T):
    seen = []
    walk = sample(one_image(mu, COSINE), x_T, [9, 5, 2, 0], COSINE, constrain=lambda x, t: seen.append(t) or x * 0 + t)
    assert [(t, float(x.mean())) for t, x in walk] == [(5, 5.0), (2, 2.0), (0, 0.0)]
    assert seen == [5, 2, 0]


def test_the_denoiser_is_asked_at_the_level_of_the_image(mu, x_T):
    asked = []
    denoise = one_image(mu, COSINE)
    last(sample(lambda x, t: asked.append(t) or denoise(x, t), x_T, [9, 5, 2, 0], COSINE))
    assert asked == [9, 5, 2]


def test_image_k_is_the_same_for_any_batch(x_T):
    like = torch.empty(5, 1, 3, 3)
    together = noise_per_image(seeded(7, 0, 5))
    first, second = together(like), together(like)
    alone = noise_per_image(seeded(7, 3, 1))
    assert_close(alone(like[:1]), first[3:4], rtol=0, atol=0)
    assert_close(alone(like[:1]), second[3:4], rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])


def test_seeds_and_images_are_all_different_streams():
    draws = {float(torch.randn((), generator=g)) for seed in (0, 1, 137) for g in seeded(seed, 0, 50)}
    assert len(draws) == 150


def test_noise_per_image_is_standard_normal():
    z = noise_per_image(seeded(1, 0, 200))(torch.empty(200, 1, 20, 20))
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1) < 0.02


def test_an_image_that_is_not_finite_stops_the_walk():
    with pytest.raises(ValueError, match="not finite after the step 9 -> 5"):
        last(sample(lambda x, t: (x * float("nan"), None), torch.ones(1, 1, 1, 1), [9, 5, 0], COSINE))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="strictly decreasing"):
        next(sample(gaussian(1, COSINE), torch.ones(1, 1, 1, 1), [5, 9, 0], COSINE))
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 2"):
        next(sample(gaussian(1, COSINE), torch.ones(1, 1, 1, 1), [9, 5, 0], COSINE, step=partial(ddim_step, eta=2)))
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        noise_per_image(seeded(1, 0, 2))(torch.empty(3, 1, 2, 2))


def test_the_large_step_takes_beta_whatever_variance_was_learned():
    levels = strided(1000, 50)
    large = output_variance(0.25, levels, ddpm_large_step)
    assert output_variance(0.25, levels, ddpm_large_step, v=0.0) == pytest.approx(large, rel=1e-12)


def test_a_negative_eta_and_too_many_generators_are_refused():
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got -0.5"):
        next(sample(gaussian(1, COSINE), torch.ones(1, 1, 1, 1), [9, 5, 0], COSINE, step=partial(ddim_step, eta=-0.5)))
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        noise_per_image(seeded(1, 0, 3))(torch.empty(2, 1, 2, 2))


def test_one_image_of_many_that_is_not_finite_stops_the_walk():
    spoiled = torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1)
    with pytest.raises(ValueError, match="not finite after the step 9 -> 5"):
        last(sample(lambda x, t: (x + spoiled, None), torch.ones(2, 1, 1, 1), [9, 5, 0], linear(300)))


def test_a_walk_keeps_no_graph_of_its_steps():
    weight = torch.ones(1, requires_grad=True)
    walk = sample(lambda x, t: (weight * x, None), torch.ones(1, 1, 1, 1), [9, 5, 0], linear(300))
    assert not last(walk).requires_grad


def test_dpm_step_begins_anew_when_the_batch_has_another_size(x_T):
    """A walk from the level at which the one before stopped, but of one image and not of two."""
    denoise, alpha_bar = lambda x, t: (x / 2, None), linear(1000)
    last(sample(denoise, x_T, [800, 500], alpha_bar, step=dpm_step))
    dpm, ddim = (last(sample(denoise, x_T[:1], [500, 200], alpha_bar, step=step)) for step in (dpm_step, ddim_step))
    assert_close(dpm, ddim)


def test_a_walk_stopped_early_leaves_nothing_behind_in_dpm_step(x_T):
    """Stop at level 500, and edit another picture from there: its first step has no previous one, so it is DDIM's."""
    denoise, picture = gaussian(0.25, COSINE), x_T.flip(0).clamp(-1, 1)
    for t, _ in sample(denoise, x_T, [1000, 800, 500, 200, 0], COSINE, step=dpm_step):
        if t == 500:
            break
    dpm, ddim = (
        next(sdedit(denoise, picture, [500, 200, 0], COSINE, step=step, noise=lambda like: x_T))
        for step in (dpm_step, ddim_step)
    )
    assert_close(dpm, ddim)


def test_the_last_image_of_a_walk_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, got none"):
        last(iter([]))


def test_a_step_that_returns_no_image_is_refused(x_T):
    for step in (lambda *a: None, lambda x, *a: x[:1], lambda x, *a: (x, x)):
        with pytest.raises(ValueError, match=r"the next image, \(2, 1, 4, 4\), got"):
            next(sample(gaussian(1, COSINE), x_T, [9, 0], COSINE, step=step))


def test_dpm_step_remembers_the_estimate_as_it_was_clipped(x_T):
    """The estimate is 5 at every level, and 1 after the clip: it does not change, so both orders agree."""
    alpha_bar, clip = linear(1000), clip_to(-1, 1)
    denoise = one_image(torch.full_like(x_T, 5.0), alpha_bar)
    dpm, ddim = (
        last(sample(denoise, x_T, [900, 600, 300, 100], alpha_bar, step=step, clip=clip))
        for step in (dpm_step, ddim_step)
    )
    assert_close(dpm, ddim)
