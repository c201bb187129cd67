"""Scores against values that can be worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from minidiff.judge import alignment, concealment, frechet, psnr


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_alignment_is_the_worst_view():
    S = torch.tensor([[[0.9, 0.99], [0.0, 0.3]], [[-1.0, 0.0], [5.0, 2.0]]])
    assert_close(alignment(S), torch.tensor([0.3, -1.0]))


def test_concealment_is_chance_when_every_view_reads_alike_and_1_when_each_reads_as_its_own():
    assert_close(concealment(torch.zeros(1, 3, 3)), torch.tensor([1 / 3]))
    assert_close(concealment(50 * torch.eye(3)[None]), torch.ones(1))
    assert_close(concealment(50 * torch.eye(3)[None].roll(1, -1)), torch.zeros(1))


def test_concealment_takes_the_softmax_both_ways():
    """S/τ = [[ln 3, 0], [ln 3, 0]]: along rows ¾ and ¼, mean ½; along columns ½ and ½. And transposed the same."""
    S = torch.tensor([[[math.log(3), 0.0], [math.log(3), 0.0]]], dtype=torch.float64)
    assert_close(concealment(S), torch.tensor([0.5], dtype=torch.float64))
    S = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]], dtype=torch.float64)  # rows ¾, ½; columns ¾, ½
    assert_close(concealment(S), torch.tensor([0.625], dtype=torch.float64))
    S = torch.tensor([[[math.log(3), math.log(2)], [0.0, 0.0]]], dtype=torch.float64)  # rows 3/5, 1/2; columns 3/4, 1/3
    assert_close(concealment(S), torch.tensor([(3 / 5 + 1 / 2 + 3 / 4 + 1 / 3) / 4], dtype=torch.float64))


def test_the_temperature_divides_the_scores():
    S = randn(4, 2, 2)
    assert_close(concealment(S, 0.01), concealment(100 * S))


@pytest.mark.parametrize("score", [alignment, concealment])
def test_scores_that_are_not_square_are_refused(score):
    for shape in [(2, 2), (3, 2, 4)]:
        with pytest.raises(ValueError, match="one row a view and one column a prompt"):
            score(torch.zeros(shape))


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="the temperature must be above 0, got 0"):
        concealment(torch.zeros(1, 2, 2), 0)


def test_the_distance_of_a_set_to_itself_is_0_in_any_order():
    a = randn(200, 32)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet(a, a[torch.randperm(200, generator=torch.Generator().manual_seed(1))]) == pytest.approx(0, abs=1e-12)


def test_a_shift_costs_its_square():
    a, shift = randn(100, 8), randn(8, seed=1)
    assert frechet(a, a + shift) == pytest.approx(float(shift.square().sum()), abs=1e-12)


def test_independent_axes_cost_the_squared_differences_of_their_deviations():
    a = torch.linalg.qr(randn(500, 6) - randn(500, 6).mean(0)).Q  # uncorrelated columns, but for their means
    a = torch.linalg.qr(a - a.mean(0)).Q * 499**0.5  # mean 0, covariance I
    std = torch.tensor([0.5, 1, 1, 2, 3, 0], dtype=torch.float64)
    assert frechet(a, a * std) == pytest.approx(float((std - 1).square().sum()), abs=1e-10)


def test_a_turn_of_all_features_changes_nothing():
    a, b, turn = randn(60, 10), randn(70, 10, seed=1) @ randn(10, 10, seed=2), torch.linalg.qr(randn(10, 10, seed=3)).Q
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-12)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)


def test_it_is_the_formula_with_the_root_of_the_product():
    a, b = randn(60, 5) @ randn(5, 5, seed=4), randn(70, 5, seed=1) @ randn(5, 5, seed=2) + 1
    root = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).sqrt().sum().real
    wanted = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * root
    assert frechet(a, b) == pytest.approx(float(wanted), rel=1e-10)


def test_fewer_pictures_than_features_will_do():
    a, b = randn(20, 64), randn(30, 64, seed=1)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet(a, b) > 30


def test_features_that_do_not_fit_are_refused():
    for a, b in [(randn(5, 3), randn(5, 4)), (randn(1, 3), randn(5, 3)), (randn(5), randn(5))]:
        with pytest.raises(ValueError, match="at least 2 rows each, got"):
            frechet(a, b)
    with pytest.raises(ValueError, match="features must be finite"):
        frechet(randn(5, 3), randn(5, 3) / 0)


def test_psnr_of_a_constant_error_is_its_level_and_images_are_averaged_in_db():
    x = torch.zeros(2, 1, 4, 4)
    assert psnr(x, x + 0.1) == pytest.approx(20)
    assert psnr(x, x + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)) == pytest.approx(30)


def test_one_feature_that_is_not_finite_is_enough():
    a = torch.randn(5, 3)
    with pytest.raises(ValueError, match="features must be finite"):
        frechet(a, a.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("inf"))))


def test_psnr_of_an_image_with_itself_is_100_and_not_infinite():
    assert psnr(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)) == pytest.approx(100)
