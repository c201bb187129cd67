import pytest
import torch
from conftest import one_image
from torch import nn
from torch.testing import assert_close

from minidiff import digits
from minidiff.adapters import labelled
from minidiff.diffusion import eps_from_velocity
from minidiff.digits import in_parts
from minidiff.guidance import cfg
from minidiff.sampling import ddim_step, last, sample
from minidiff.schedule import cosine, linear, strided

COSINE = cosine(1000)


def constant(eps, v=None):
    return lambda x_t, t: (torch.full_like(x_t, eps), None if v is None else torch.full_like(x_t, v))


@pytest.mark.parametrize(("scale", "eps"), [(0, 2.0), (1, 5.0), (7, 23.0), (-1, -1.0)])
def test_guidance_goes_from_uncond_past_cond(scale, eps):
    assert_close(cfg(constant(5.0), constant(2.0), scale)(torch.zeros(1, 1, 2, 2), 3)[0], torch.full((1, 1, 2, 2), eps))


def test_guidance_keeps_the_variance_of_the_conditional_branch():
    _, v = cfg(constant(5.0, 0.25), constant(2.0, 0.75), 7)(torch.zeros(1, 1, 2, 2), 3)
    assert_close(v, torch.full((1, 1, 2, 2), 0.25))


def test_guidance_of_scale_1_never_asks_the_unconditional_denoiser():
    def forbidden(x_t, t):
        raise AssertionError("asked")

    eps, _ = cfg(constant(5.0), forbidden, 1)(torch.zeros(1, 1, 2, 2), 3)
    assert_close(eps, torch.full((1, 1, 2, 2), 5.0))


def test_guided_one_image_data_end_in_the_exaggerated_image(mu, x_T):
    other = torch.flip(mu, [0])
    guided = cfg(one_image(mu, COSINE), one_image(other, COSINE), 3)
    found = last(sample(guided, x_T, strided(1000, 40), COSINE, step=ddim_step))
    assert_close(found, other + 3 * (mu - other), rtol=1e-6, atol=1e-6)


class Recorder(nn.Module):
    def forward(self, x, t, c=None):
        self.asked = (x, t, c)
        return x + 1


def test_the_network_is_told_the_level_as_a_fraction_of_T():
    unet, x = Recorder(), torch.zeros(3, 1, 2, 2)
    labelled(unet, None, linear(300))(x, 150)
    assert_close(unet.asked[1], torch.full((3, 1), 0.5))
    assert unet.asked[2] is None


def test_labels_arrive_as_one_hot_rows_and_dropped_ones_as_zeros():
    unet, x = Recorder(), torch.zeros(2, 1, 2, 2)
    labelled(unet, torch.tensor([3, 0]), linear(300), classes=4)(x, 1)
    assert_close(unet.asked[2], torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 0]]))
    labelled(unet, None, linear(300), classes=4)(x, 1)
    assert_close(unet.asked[2], torch.zeros(2, 4))


def test_a_network_of_velocities_becomes_a_denoiser_of_noise():
    x = torch.randn(2, 1, 2, 2)
    eps, _ = labelled(Recorder(), None, COSINE, target="velocity")(x, 400)
    assert_close(eps, eps_from_velocity(x, x + 1, COSINE[400]))
    assert_close(labelled(Recorder(), None, COSINE)(x, 400)[0], x + 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"c": torch.tensor([4]), "classes": 4}, "between 0 and 3"),
        ({"c": torch.tensor([-2]), "classes": 4}, "between 0 and 3, or -1 for none"),
        ({"c": torch.tensor([1])}, "knows no labels"),
        ({"c": None, "target": "x"}, "eps, velocity"),
    ],
)
def test_labels_that_the_network_does_not_know_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        labelled(Recorder(), alpha_bar=linear(300), **arguments)


def test_many_digits_go_through_the_network_a_few_at_a_time_and_stay_in_order():
    """On a CPU, where more would leave the cache; labels and levels go with their images, with and without labels."""
    seen = []

    def unet(x, t, one_hot):
        seen.append(len(x))
        return x + t[:, :, None, None] + (0 if one_hot is None else (one_hot @ torch.arange(10.0))[:, None, None, None])

    alpha_bar, c = linear(300), torch.arange(20) % 11 - 1
    x = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    eps, _ = in_parts(lambda x_t, t, c: labelled(unet, c, alpha_bar, 10)(x_t, t))(x, 150, c)
    assert_close(eps, x + 0.5 + c.clamp(min=0).view(20, 1, 1, 1))
    assert_close(in_parts(lambda x_t, t, c: labelled(unet, c, alpha_bar)(x_t, t))(x, 300, None)[0], x + 1)
    assert seen == [8, 8, 4] * 2


@pytest.mark.parametrize("words", [["3", ""], ["", "3"], ["3", "5"], ["", ""]])
def test_each_image_of_a_batch_is_guided_to_its_own_word_or_to_none(words):
    """A batch in which some words are empty: those images are unconditional, and the others are guided as alone."""
    settings = {"task": "class", "width": 4, "classes": 10, "schedule": "linear", "T": 50, "target": "eps"}
    unet = digits.network(settings | {"pixels": [-1, 1]}).eval().double()
    model = digits.model("small", unet, settings | {"pixels": [-1, 1]})
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        found, _ = model.denoiser(words, 3.0)(x, 20)
        for k, word in enumerate(words):
            c, alone = torch.tensor([int(word or -1)]), x[k : k + 1]
            cond, uncond = labelled(unet, c, linear(50), 10), labelled(unet, None, linear(50), 10)
            assert_close(found[k : k + 1], cfg(cond, uncond, 3.0)(alone, 20)[0])


def test_a_dropped_label_among_others_is_a_row_of_zeros_and_not_label_0():
    unet = Recorder()
    labelled(unet, torch.tensor([0, -1]), linear(300), classes=4)(torch.zeros(2, 1, 2, 2), 1)
    assert_close(unet.asked[2], torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
