"""Chapter 12: one batched call gives what separate calls give, and evaluates no row twice."""

import sys

import pytest
import torch
from formulas import images
from torch.testing import assert_close

from minidiff.adapters import labelled
from minidiff.editing import inpaint
from minidiff.guidance import cfg
from minidiff.illusions import anagram, colour_hybrid, gaussian, hybrid, triple_hybrid
from minidiff.networks.mnist_unet import UNet
from minidiff.one_forward import one_forward, sequential, stacked
from minidiff.sampling import ddim_step, last, sample
from minidiff.schedule import linear
from minidiff.views import view, views

ALPHA_BAR = linear(50)
NONE = torch.tensor([-1])


def label(c):
    return torch.tensor([c])


@pytest.fixture(scope="module")
def network():
    """A small U-Net of digits, untrained, as `one_forward` takes it."""
    torch.manual_seed(0)
    unet = UNet(4, time=True, classes=10)
    with torch.no_grad():
        unet(torch.randn(16, 1, 28, 28), torch.rand(16, 1), torch.eye(16, 10))  # statistics for BatchNorm
    unet.eval().double()
    return lambda x_t, t, c: labelled(unet, c, ALPHA_BAR, 10, "velocity")(x_t, t)


def counting(network):
    """The network, and a list of the rows of each call."""
    calls = []

    def counted(x_t, t, c):
        calls.append(len(x_t))
        return network(x_t, t, c)

    return counted, calls


def guided(net, c, scale=3.0):
    return cfg(net(label(c)), net(label(-1)), scale)


def two(net, *names, **options):
    """A guided anagram of a 4 and a 7, each seen through a view."""
    return anagram([guided(net, 4), guided(net, 7)], [view(name) for name in names], **options)


FORMULAS = {  # name: (formula, rows that it takes, calls that it takes without one_forward)
    "plain": (lambda net: net(label(3)), 1, 1),
    "guided": (lambda net: guided(net, 3), 2, 2),
    "guided by exactly 1": (lambda net: guided(net, 3, scale=1), 1, 1),
    "anagram": (lambda net: anagram([net(label(4)), net(label(7))], [view("identity"), view("rot180")]), 2, 2),
    "guided anagram": (lambda net: two(net, "identity", "rot180", weights=[1, 2]), 4, 4),
    "guided anagram, one view per level": (lambda net: two(net, "identity", "vflip", alternate=[40, 20, 0]), 2, 2),
    "guided anagram, a view twice": (lambda net: two(net, "vflip", "vflip"), 3, 4),
    "guided anagram of one digit in one view": (lambda net: anagram([guided(net, 4)] * 2, [view("vflip")] * 2), 2, 4),
    "guided hybrid": (lambda net: hybrid(guided(net, 8), guided(net, 3), gaussian(1.5)), 3, 4),
    "guided triple hybrid": (
        lambda net: triple_hybrid(*(guided(net, c) for c in (8, 3, 1)), gaussian(3), gaussian(1)), 4, 6,
    ),
    "guided colour hybrid": (lambda net: colour_hybrid(guided(net, 8), guided(net, 3)), 3, 4),
    "an anagram in a hybrid": (
        lambda net: hybrid(two(net, "identity", "rot90"), guided(net, 1), gaussian(2)), 5, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", FORMULAS)
def test_one_pass_answers_as_separate_passes_do_and_counts_rows_as_promised(network, name, B):
    formula, wanted_rows, wanted_calls = FORMULAS[name]
    x = torch.randn(B, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone, alone_calls = counting(network)
    together, calls = counting(network)
    with torch.no_grad():
        wanted, _ = sequential(alone, formula)(x, 20)
        found, v = one_forward(together, formula)(x, 20)
    assert v is None
    assert_close(found, wanted)
    assert calls == [wanted_rows * B]
    assert alone_calls == [B] * wanted_calls


@pytest.mark.parametrize("name", views())
def test_every_view_can_be_asked_in_one_pass(network, name):
    def formula(net):
        return anagram([guided(net, 2), guided(net, 5)], [view("identity"), view(name)])

    x = torch.randn(1, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(one_forward(network, formula)(x, 20), sequential(network, formula)(x, 20))


def test_whole_walks_agree_and_call_the_network_once_a_step(network):
    x_T = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    formula = FORMULAS["guided hybrid"][0]
    counted, calls = counting(network)
    walks = [
        last(sample(make, x_T, [50, 30, 10, 0], ALPHA_BAR, step=ddim_step))
        for make in (one_forward(counted, formula), sequential(network, formula))
    ]
    assert_close(*walks)
    assert calls == [6, 6, 6]


def test_editors_walk_a_formula_in_one_pass_as_they_walk_any_denoiser(network):
    x_orig, mask = images(1, 1, 28, 28), torch.ones(1, 1, 28, 28)
    counted, calls = counting(network)
    last(inpaint(one_forward(counted, lambda net: guided(net, 3)), x_orig, mask, [50, 30, 10, 0], ALPHA_BAR, rounds=2))
    assert calls == [2] * 5


def test_labels_may_differ_from_image_to_image(network):
    c, x = torch.tensor([3, 1, 4]), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        found, _ = one_forward(network, lambda net: cfg(net(c), net(NONE), 2.0))(x, 20)
        assert_close(found, cfg(lambda x, t: network(x, t, c), lambda x, t: network(x, t, None), 2.0)(x, 20)[0])


def test_v_is_answered_in_the_rows_of_its_question():
    def network(x_t, t, c):
        return x_t + c[:, None, None], c[:, None, None].expand_as(x_t)

    def formula(net):
        return anagram([net(torch.tensor([[1.0]])), net(torch.tensor([[3.0]]))], [view("vflip"), view("negate")])

    eps, v = one_forward(network, formula)(torch.zeros(2, 1, 4, 4), 5)
    assert_close(eps, torch.full((2, 1, 4, 4), (1.0 - 3.0) / 2))
    assert_close(v, torch.full((2, 1, 4, 4), 2.0))


def test_conditions_are_tensors_with_one_row_or_all_or_tuples_of_them_or_none():
    one, three = torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0], [4.0]])
    assert stacked([one, three], 3).flatten().tolist() == [1, 1, 1, 2, 3, 4]
    (keys, (values,)) = stacked([(one, (three,)), (three, (one,))], 3)
    assert keys.flatten().tolist() == [1, 1, 1, 2, 3, 4] and values.flatten().tolist() == [2, 3, 4, 1, 1, 1]
    assert stacked([None], 3) is None


def test_conditions_of_several_parts_are_the_same_when_all_their_parts_are():
    """A prompt's state with a low-resolution image, as in stage II: two of a guided hybrid's four questions are one."""
    calls = []

    def network(x_t, t, c):
        (keys, values), low = c
        calls.append(len(x_t))
        return keys * values * low, None

    def state(value):
        return torch.full((1, 1, 1, 1), value), torch.full((1, 1, 1, 1), value)

    low, empty = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4), state(1.0)
    denoise = one_forward(
        network,
        lambda net: hybrid(
            cfg(net((state(3.0), low)), net((empty, low)), 2.0),
            cfg(net((state(2.0), low)), net((state(1.0), low)), 2.0),
            gaussian(1),
        ),
    )
    eps, _ = denoise(torch.zeros(2, 1, 4, 4), 5)
    assert calls == [2 * 3]
    assert_close(eps[:, 0, 0, 0], torch.tensor([17.0, 34.0]))  # constants are coarse: the far prompt, 1 + 2 (9 − 1)


def test_a_formula_that_asks_by_what_was_answered_is_refused():
    def network(x_t, t, c):
        return x_t + 1, None

    def twice(net):
        return lambda x_t, t: net(None)(net(None)(x_t, t)[0], t)

    def thrice(net):
        def denoise(x_t, t):
            eps, v = net(None)(x_t, t)
            return net(None)(-x_t, t) if eps.any() else (eps, v)

        return denoise

    for formula in (twice, thrice):
        with pytest.raises(ValueError, match="the same questions whatever the answers, got others: use `sequential`"):
            one_forward(network, formula)(torch.zeros(1, 1, 4, 4), 5)
    assert_close(sequential(network, twice)(torch.zeros(1, 1, 4, 4), 5)[0], torch.full((1, 1, 4, 4), 2.0))


def test_a_formula_that_asks_about_another_level_or_shape_is_refused():
    def network(x_t, t, c):
        return x_t, None

    for formula in (
        lambda net: lambda x_t, t: net(None)(x_t, t - 1),
        lambda net: lambda x_t, t: net(None)(x_t[..., :2], t),
    ):
        with pytest.raises(ValueError, match="questions about level 5 and .*, got level .*: use `sequential`"):
            one_forward(network, formula)(torch.zeros(1, 1, 4, 4), 5)


def test_labels_beyond_the_network_are_refused_and_minus_one_is_none(network):
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(network(x, 5, torch.tensor([-1, -1]))[0], network(x, 5, None)[0])
    for c in (10, -2):
        with pytest.raises(ValueError, match="labels must be between 0 and 9, or -1 for none"):
            network(x, 5, torch.tensor([c, 0]))


@pytest.mark.parametrize(
    ("one", "other", "rows_asked"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0]), 2),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), 4),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), 4),
        ((torch.tensor([1.0]),), (torch.tensor([1.0]), torch.tensor([2.0])), 4),
        ((torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([1.0]), torch.tensor([2.0])), 2),
        (torch.tensor([1.0]), (torch.tensor([1.0]),), 4),
    ],
    ids=["equal", "dtype", "shape", "length", "equal tuples", "kind"],
)
def test_conditions_are_one_question_only_when_equal_in_every_respect(one, other, rows_asked, monkeypatch):
    monkeypatch.setattr(sys.modules[one_forward.__module__], "stacked", lambda conditions, B: None)
    network, calls = counting(lambda x_t, t, c: (x_t, None))
    one_forward(network, lambda net: cfg(net(one), net(other), 2.0))(torch.zeros(2, 1, 2, 2), 5)
    assert calls == [rows_asked]
