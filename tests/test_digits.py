"""Digits: a network comes back from its file as it was, or is refused in one line; a guide; labels of any kind."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from minidiff import digits, files
from minidiff.diffusion import clip_to
from minidiff.digits import load_digits, model, network
from minidiff.pretrained import load
from minidiff.sampling import ddim_step, last, noise_per_image, sample, seeded
from minidiff.schedule import cosine, linear, linear_to_noise
from minidiff.walk import Walk

SETTINGS = {
    "task": "class", "width": 4, "T": 30, "schedule": "linear_to_noise", "target": "velocity", "pixels": [-1, 1],
    "classes": 10, "scale": 2.0,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    files.save_tensors(network(SETTINGS).state_dict(), path, SETTINGS)
    return path


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(1)
    return model("untrained", network(SETTINGS).eval().requires_grad_(False), SETTINGS)


def guided(tmp_path, weights, settings):
    """The path of a network of time whose guide is `weights`."""
    path = tmp_path / "time.safetensors"
    files.save_tensors(network(settings).state_dict(), path, settings)
    return path


def test_a_network_comes_back_with_its_schedule_range_and_scale_in_eval_mode(weights):
    found = load_digits(weights, tasks=("class",))
    assert (len(found.alpha_bar), found.pixels, len(found.words), found.scale) == (31, (-1, 1), 10, 2.0)
    assert not any(m.training for m in found.unet.modules())
    assert not any(p.requires_grad for p in found.unet.parameters())
    tensors, _ = files.load_tensors(weights)
    assert found.unet.state_dict().keys() == tensors.keys()
    for name, tensor in found.unet.state_dict().items():
        assert_close(tensor, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "table"), [("linear", linear(30)), ("linear_to_noise", linear_to_noise(30)), ("cosine", cosine(30))]
)
def test_the_schedule_of_a_network_is_the_one_that_its_file_names(name, table):
    assert_close(digits.schedule(SETTINGS | {"schedule": name}), table, rtol=0, atol=0)


class Far(torch.nn.Module):
    """A network whose noise is so wrong that the estimate of x_0 lies far above the pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, c=None):
        return x - 100


@pytest.mark.parametrize("pixels", [(-1, 1), (0, 1), (0, 2)])
def test_a_walk_is_clipped_to_the_range_that_the_network_was_trained_on(pixels):
    settings = {"task": "time", "schedule": "linear", "T": 30, "pixels": pixels, "target": "eps"}
    x = last(model("far", Far(), settings).walk("", 2, Walk("ddpm", 3, seed=1)))
    assert_close(x, torch.full((2, 1, 28, 28), float(pixels[1])))


def test_a_network_without_labels_is_guided_away_from_its_guide_without_label(weights, tmp_path):
    settings = SETTINGS | {"task": "time", "guide": str(weights), "scale": 3.0}
    del settings["classes"]
    path = guided(tmp_path, weights, settings)
    found, guide = load_digits(path, tasks=("time",)), load_digits(weights, tasks=("class",))
    x = torch.randn(2, 1, 28, 28)
    own, weak = found.denoiser(scale=1)(x, 7)[0], guide.denoiser()(x, 7)[0]
    assert_close(found.denoiser(scale=3.0)(x, 7)[0], weak + 3 * (own - weak))
    assert_close(found.denoiser()(x, 7)[0], weak + 3 * (own - weak))
    alone = model("alone", found.unet, settings)
    assert_close(alone.denoiser()(x, 7)[0], own)
    files.save_tensors(network(settings).state_dict(), path, settings | {"T": 40})
    with pytest.raises(ValueError, match="has another schedule"):
        load_digits(path, tasks=("time",))


def test_a_guide_of_another_range_of_pixels_is_refused(weights, tmp_path):
    settings = SETTINGS | {"task": "time", "guide": str(weights), "classes": 0, "pixels": [0, 1]}
    with pytest.raises(ValueError, match="has another schedule or range of pixels"):
        load_digits(guided(tmp_path, weights, settings), tasks=("time",))


def test_a_network_without_labels_and_without_a_guide_is_drawn_as_it_is_and_takes_no_scale():
    settings = SETTINGS | {"task": "time", "classes": 0}
    plain = model("plain", network(settings).eval().requires_grad_(False), settings)
    x = plain.sample(n=2, steps=2, progress=False)
    assert_close(plain.to_unit(last(plain.walk(n=2, walk=Walk(steps=2)))), x, rtol=0, atol=0)
    with pytest.raises(ValueError, match="plain has neither labels nor a guide to be guided by, got scale 2: leave it"):
        plain.sample(n=2, steps=2, scale=2)
    with pytest.raises(ValueError, match="plain knows no labels, got '3'"):
        plain.sample(3)


def rewritten(path, change, settings=SETTINGS):
    tensors, _ = files.load_tensors(path)
    change(tensors)
    files.save_tensors(tensors, path, settings)
    return path


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (lambda t: t["down1.0.0.weight"].fill_(float("nan")), SETTINGS, "not finite .in down1.0.0.weight"),
        (lambda t: t["down1.0.0.weight"][0, 0, 0].fill_(float("inf")), SETTINGS, "not finite .in down1.0.0.weight"),
        (lambda t: t.pop("down1.0.0.weight"), SETTINGS, "does not hold the network"),
        (lambda t: t.update(more=torch.ones(1)), SETTINGS, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 8}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 10**7}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"schedule": "square"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"pixels": [1, -1]}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"pixels": "ab"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"scale": None}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"scale": 10**400}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"T": 0}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"T": 10**400}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 0}, "does not hold the network"),
        (lambda t: None, {"task": "class"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"task": "time"}, "kind 'time', expected class"),
        (lambda t: None, SETTINGS | {"task": ["class"]}, r"kind \['class'\], expected class"),
    ],
)  # fmt: skip
def test_weights_that_are_not_what_they_say_are_refused_in_one_line(weights, change, settings, says):
    with pytest.raises(ValueError, match=says) as error:
        load_digits(rewritten(weights, change, settings), tasks=("class",))
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"mnist-class, mnist-denoiser, mnist-time.*, got 'mnist-clas'"):
        load("mnist-clas")
    with pytest.raises(ValueError, match="kind 'classifier', expected time or class or denoiser"):
        load(str(digits.WEIGHTS / "mnist-classifier.safetensors"))


def test_a_walk_takes_the_step_the_labels_and_the_scale_that_it_is_given(weights):
    found, levels, noise = load_digits(weights), [30, 20, 10, 0], noise_per_image(seeded(1, 0, 2))
    denoise, how = found.denoiser([3, 8], 30.0), {"step": partial(ddim_step, eta=0.5), "clip": clip_to(-1, 1)}
    by_hand = last(sample(denoise, noise(torch.empty(2, 1, 28, 28)), levels, found.alpha_bar, noise=noise, **how))
    walk = Walk("ddim", 3, eta=0.5, scale=30.0, seed=1)
    assert_close(last(found.walk([3, 8], walk=walk)), by_hand, rtol=0, atol=0)
    mine = Walk(partial(ddim_step, eta=0.5), 3, scale=30.0, seed=1)  # the same, as a step of the caller's
    assert_close(last(found.walk([3, 8], walk=mine)), by_hand, rtol=0, atol=0)


@pytest.mark.parametrize(
    "words", [3, "3", [3], ["3"], (3, 3), torch.tensor(3), torch.tensor([3]), torch.tensor([3, 3]), [torch.tensor(3)]]
)
def test_a_label_may_be_a_number_a_text_a_list_or_a_tensor_one_for_all_or_one_an_image(untrained, words):
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert_close(untrained.denoiser(words)(x, 9)[0], untrained.denoiser([3, "3"])(x, 9)[0], rtol=0, atol=0)


@pytest.mark.parametrize("words", ["", -1, None, [""], [-1, ""], torch.tensor(-1), torch.tensor([-1, -1])])
def test_no_label_may_be_said_in_any_way_and_is_not_guided(untrained, words):
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert_close(untrained.denoiser(words)(x, 9)[0], untrained.denoiser(3, 0.0)(x, 9)[0])
    counting = Counting()
    model("counting", counting, SETTINGS | {"target": "eps"}).denoiser(words, 5.0)(x, 9)
    assert counting.rows == [2]


class Counting(Far):
    """A network that notes how many images it is asked about."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, t, c=None):
        self.rows.append(len(x))
        return x


def test_some_of_a_batch_may_be_without_a_label_and_the_others_are_guided(untrained):
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    both = untrained.denoiser([3, ""], 4.0)(x, 9)[0]
    assert_close(both[:1], untrained.denoiser(3, 4.0)(x[:1], 9)[0], rtol=1e-4, atol=1e-5)
    assert_close(both[1:], untrained.denoiser("")(x[1:], 9)[0], rtol=1e-4, atol=1e-5)


def test_what_is_asked_of_a_batch_is_answered_a_few_images_at_a_time():
    counting = Counting()
    model("counting", counting, SETTINGS | {"target": "eps"}).denoiser("")(torch.zeros(19, 1, 28, 28), 3)
    assert counting.rows == [8, 8, 3]


@pytest.mark.parametrize("level", [0, 31, -1])
def test_a_denoiser_is_not_asked_about_levels_that_its_network_does_not_know(untrained, level):
    with pytest.raises(ValueError, match=f"untrained knows the levels 1 to 30, got {level}: walk with its own"):
        untrained.denoiser(3)(torch.zeros(1, 1, 28, 28), level)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"steps": 0}, "steps must be between 1 and 30, the level where the walk begins, got 0"),
        ({"steps": 31}, "steps must be between 1 and 30, the level where the walk begins, got 31"),
        ({"steps": "smart27"}, "steps must be a whole number for digits, got 'smart27'"),
        ({"steps": 2.5}, "steps must be a whole number, or for prompts a name like smart27, got 2.5"),
        ({"steps": 3, "start": 2}, "steps must be between 1 and 2, the level where the walk begins, got 3"),
        ({"start": 31}, "start must be between 1 and T = 30, got 31"),
        ({"start": 0}, "start must be between 1 and T = 30, got 0"),
    ],
)
def test_levels_that_do_not_fit_are_refused(untrained, how, says):
    with pytest.raises(ValueError, match=says):
        untrained.timesteps(**how)


def test_the_levels_are_those_that_suit_the_sampler():
    settings = SETTINGS | {"T": 300}
    large = model("large", network(settings).eval(), settings)
    assert [len(large.timesteps(sampler=name)) - 1 for name in ("dpm", "ddim", "ddpm", "ddpm-large")] == [
        20,
        50,
        300,
        300,
    ]
    assert large.timesteps(3, start=90) == [90, 60, 30, 0]
    assert large.timesteps("3") == [300, 200, 100, 0]
    assert len(large.timesteps(start=10)) - 1 == 10  # no more steps than levels
    assert large.timesteps(sampler=ddim_step) == large.timesteps(sampler="ddim")
