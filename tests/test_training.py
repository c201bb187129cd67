import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from minidiff.diffusion import add_noise, velocity
from minidiff.schedule import linear
from minidiff.training import classifier_loss, denoiser_loss, diffusion_loss, drop_labels, moved, update_ema

LINEAR = linear(300)


class Formula(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x, t=None, c=None):
        return self.f(x, t, c)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(5)
    x_0, eps = torch.rand(4, 1, 3, 3, generator=g), torch.randn(4, 1, 3, 3, generator=g)
    return x_0, eps, torch.tensor([1, 7, 150, 300])


def test_denoiser_loss_is_the_mean_squared_distance_to_the_clean_image(batch):
    x_0, eps, _ = batch
    z = x_0 + 0.5 * eps
    assert float(denoiser_loss(Formula(lambda x, t, c: x_0), x_0, eps, 0.5)) == 0
    assert_close(denoiser_loss(Formula(lambda x, t, c: x), x_0, eps, 0.5), (z - x_0).square().mean())
    assert_close(denoiser_loss(Formula(lambda x, t, c: x), x_0, eps, 0.5), 0.25 * eps.square().mean())


def test_the_ideal_networks_have_no_loss(batch):
    x_0, eps, t = batch
    a = LINEAR[t].float()[:, None, None, None]
    ideal_eps = Formula(lambda x, t, c: (x - a.sqrt() * x_0) / (1 - a).sqrt())
    ideal_velocity = Formula(lambda x, t, c: velocity(x_0, (x - a.sqrt() * x_0) / (1 - a).sqrt(), a))
    assert float(diffusion_loss(ideal_eps, x_0, t, eps, LINEAR)) < 1e-8
    assert float(diffusion_loss(ideal_velocity, x_0, t, eps, LINEAR, target="velocity")) < 1e-8


def test_a_network_that_answers_zero_has_the_power_of_the_target_as_its_loss(batch):
    x_0, eps, t = batch
    a = LINEAR[t].float()[:, None, None, None]
    zero = Formula(lambda x, t, c: 0 * x)
    assert_close(diffusion_loss(zero, x_0, t, eps, LINEAR), eps.square().mean())
    assert_close(
        diffusion_loss(zero, x_0, t, eps, LINEAR, target="velocity"),
        (a.sqrt() * eps - (1 - a).sqrt() * x_0).square().mean(),
    )


def test_the_network_sees_each_image_at_its_own_level_told_as_t_over_T(batch):
    x_0, eps, t = batch
    seen = {}
    diffusion_loss(Formula(lambda x, t, c: seen.update(x=x, t=t, c=c) or x), x_0, t, eps, LINEAR, c=torch.ones(4, 10))
    assert_close(seen["t"], torch.tensor([[1 / 300], [7 / 300], [0.5], [1.0]]))
    for k in range(4):
        assert_close(seen["x"][k], add_noise(x_0[k], LINEAR[t[k]], eps[k]).float())
    assert_close(seen["c"], torch.ones(4, 10))


@pytest.mark.parametrize("t", [0, 301])
def test_levels_outside_1_to_T_are_refused(t, batch):
    x_0, eps, _ = batch
    with pytest.raises(ValueError, match="between 1 and T = 300"):
        diffusion_loss(Formula(lambda x, t, c: x), x_0, torch.full((4,), t), eps, LINEAR)


def test_kept_labels_are_one_hot_and_dropped_ones_all_zero():
    rows = drop_labels(torch.tensor([2, 2, 0]), torch.tensor([True, False, True]), classes=4)
    assert_close(rows, torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]))


def test_an_image_is_turned_counter_clockwise_then_moved_right_and_down(batch):
    x, zero = batch[0].double(), torch.zeros(4, dtype=torch.float64)
    still = torch.zeros(4, 2, dtype=torch.float64)
    quarter = torch.tensor([0, 1, 2, 3], dtype=torch.float64) * torch.pi / 2
    assert_close(moved(x, zero, still), x)
    assert_close(moved(x, quarter, still), torch.stack([x[k].rot90(k, (1, 2)) for k in range(4)]))
    right, up = moved(x, zero, still + torch.tensor([1.0, 0.0])), moved(x, quarter, still + torch.tensor([0.0, -1.0]))
    assert_close(right, F.pad(x, (1, -1)))
    assert_close(up[1], F.pad(x[1].rot90(1, (1, 2)), (0, 0, -1, 1)))


def test_half_a_pixel_is_the_mean_of_two_and_a_wide_image_keeps_its_pixels_square(batch):
    x, zero = batch[0].double(), torch.zeros(4, dtype=torch.float64)
    half = moved(x, zero, torch.tensor([0.5, 0.0], dtype=torch.float64).expand(4, 2))
    assert_close(half[..., 1:], (x[..., 1:] + x[..., :-1]) / 2)
    wide = torch.cat([x, x, x.flip(3)], 3)[:, :, :, 1:-1]  # 3 x 7: a quarter turn keeps the 3 x 3 in its middle
    assert_close(
        moved(wide, zero + torch.pi / 2, torch.zeros(4, 2, dtype=torch.float64))[..., 2:5],
        wide[..., 2:5].rot90(1, (2, 3)),
    )


def test_a_classifier_that_knows_nothing_loses_ln_10_and_a_sure_one_what_it_was_sure_of(batch):
    c = torch.tensor([0, 3, 3, 9])
    assert_close(classifier_loss(Formula(lambda x, t, c: torch.ones(4, 10)), batch[0], c), torch.tensor(10.0).log())
    # three right, one 20 nats off
    sure = torch.full((4, 10), 0.0).index_put((torch.arange(4), torch.tensor([0, 3, 3, 8])), torch.tensor(20.0))
    assert_close(classifier_loss(Formula(lambda x, t, c: sure), batch[0], c), torch.tensor(5.0))


def test_ema_moves_parameters_and_batchnorm_statistics_by_one_minus_decay():
    old, new = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        new.weight.fill_(3.0)
        new.running_mean.fill_(8.0)
        new.num_batches_tracked.fill_(5)
    update_ema(old, new, 0.75)
    assert_close(old.weight.detach(), torch.full((3,), 1.5))
    assert_close(old.running_mean, torch.full((3,), 2.0))
    assert int(old.num_batches_tracked) == 5
    assert_close(new.weight.detach(), torch.full((3,), 3.0))


def test_one_level_outside_1_to_T_among_others_is_refused():
    x = torch.zeros(2, 1, 3, 3)
    with pytest.raises(ValueError, match="between 1 and T = 300, got 0 … 7"):
        diffusion_loss(lambda x, t, c: x, x, torch.tensor([7, 0]), x, linear(300))
