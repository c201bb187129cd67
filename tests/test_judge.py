"""The classifier, what is read with it, and scores: pictures, distances and numbers whose answers are known."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from minidiff import judge, mnist
from minidiff.files import load_tensors, save_tensors
from minidiff.judge import (
    Reader,
    RealDigits,
    alignment,
    concealment,
    frechet,
    load_reader,
    plausible,
    psnr,
    rank_digits,
    read_as,
    readings,
    real_digits,
    to_nearest,
)
from minidiff.networks.mnist_classifier import Classifier
from minidiff.shipped import WEIGHTS


@pytest.fixture
def _nothing_measured(monkeypatch, tmp_path):
    """As on a new machine: nothing is kept, in memory or in a file; nor afterwards of what the test makes up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(judge, "_measured", {})


@pytest.fixture(scope="module")
def shipped():
    return load_reader()


@pytest.fixture(scope="module")
def digits():
    x, labels = mnist.load(train=False)
    return mnist.to_pixels(x[:600], 0, 1), labels[:600]


class Mean(nn.Module):
    """A reader of brightness, with one feature."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(1, 10)

    def features(self, x):
        return x.flatten(1).mean(1, keepdim=True)


def flat(values):
    """Images of one grey each."""
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)


def test_the_classifier_is_its_blocks_in_their_order():
    torch.manual_seed(0)
    net, x = Classifier(3).eval(), torch.rand(5, 1, 28, 28)
    features = nn.functional.gelu(net.down2(net.down1(net.enter(x))).mean((2, 3)))
    assert_close(net.features(x), features)
    assert features.shape == (5, 12)
    assert_close(net(x), features @ net.read.weight.T + net.read.bias)
    assert sum(p.numel() for p in Classifier().parameters()) == 267_010
    for shape in [(5, 28, 28), (5, 3, 28, 28), (5, 1, 32, 32)]:
        with pytest.raises(ValueError, match="expected images"):
            net(torch.zeros(shape))


def test_the_shipped_classifier_reads_the_test_digits(shipped, digits):
    """The first 600; weights/README.md has the number for all."""
    x, labels = digits
    log_probs = shipped.log_probs(shipped.features(x))
    assert float(read_as(log_probs, labels).float().mean()) >= 0.994
    assert_close(log_probs.exp().sum(1), torch.ones(600))
    _, record = load_tensors(WEIGHTS / "mnist-classifier.safetensors")
    assert record["test_accuracy"] >= 0.994


def test_pictures_are_read_in_parts_and_stay_in_their_order(shipped, digits):
    x, _ = digits
    features = shipped.features(x)
    log_probs = shipped.log_probs(features)
    with torch.no_grad():
        assert_close(features[498:503], shipped.classifier.features(x[498:503]), rtol=1e-4, atol=1e-5)
        assert_close(log_probs[-2:], shipped.classifier(x[-2:]).log_softmax(1), rtol=1e-4, atol=1e-5)
    assert not features.requires_grad
    assert_close(shipped.log_probs(features.view(300, 2, -1)), log_probs.view(300, 2, 10))


def test_no_more_than_a_part_is_in_the_network_at_a_time(monkeypatch):
    seen = []
    net = Mean()
    monkeypatch.setattr(net, "features", lambda x: seen.append(len(x)) or x.flatten(1)[:, :1])
    Reader(net).features(flat(torch.zeros(1001)))
    assert seen == [500, 500, 1]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(2, 28, 28), "expected images"),
        (torch.zeros(0, 1, 28, 28), "expected images"),
        (flat([-1.0, 1.0]), "expected pixels in \\[0, 1\\], got -1 to 1"),
        (flat([0.0, 255.0]), "got 0 to 255"),
        (flat([float("nan"), 0.5]), "got nan to nan"),
    ],
)
def test_pictures_that_would_be_misread_are_refused(images, says):
    with pytest.raises(ValueError, match=says):
        Reader(Mean()).features(images)


def test_the_distance_to_the_kth_nearest_on_a_line():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert_close(to_nearest(torch.tensor([[2.0], [-1.0]]), line, 1), torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert_close(to_nearest(torch.tensor([[2.0], [-1.0]]), line, 3), torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert_close(to_nearest(line, line, 2), torch.tensor([1.0, 1.0, 2.0, 4.0], dtype=torch.float64))
    many = torch.randn(1203, 2, generator=torch.Generator().manual_seed(0))
    assert_close(to_nearest(many, many[:5], 5), (many[:, None] - many[:5]).norm(dim=2).amax(1).double())
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and the 4 others, got {k}"):
            to_nearest(line, line, k)


@pytest.mark.usefixtures("_nothing_measured")
def test_real_digits_set_the_limit_each_against_the_others(monkeypatch):
    """Greys 0, 1, … 100 of 255: the 5th nearest other is 3 levels away, but 4 and 5 at the two ends: of 101, 5 is the
    last but one too."""
    greys = torch.arange(101, dtype=torch.uint8)
    monkeypatch.setattr(mnist, "load", lambda train: (flat(greys + (30 if train else 0)).to(torch.uint8), None))
    real = real_digits(Reader(Mean()))
    assert real.limit == pytest.approx(5 / 255, rel=1e-4)
    assert real.floor == pytest.approx((30 / 255) ** 2, rel=1e-4)  # 101 training digits, the same but 30 brighter
    assert real.features.shape == (101, 1)
    inside = plausible(torch.tensor([[50.5], [100.0], [100.9], [101.1], [-20.0]]) / 255, real)
    # the 5th nearest, 96, is at most 5 levels away, up to 101
    assert inside.tolist() == [True, True, True, False, False]


@pytest.mark.usefixtures("_nothing_measured")
def test_of_2000_training_digits_no_more_are_taken(monkeypatch):
    """The floor is that of 2,000 images, and so comparable with 2,000 samples."""
    seen = []
    greys = {True: torch.arange(2100) % 97, False: torch.arange(300) % 97}
    monkeypatch.setattr(mnist, "load", lambda train: (flat(greys[train]).to(torch.uint8), None))
    monkeypatch.setattr(judge, "frechet", lambda a, b: seen.append((len(a), len(b))) or 0.0)
    real_digits(Reader(Mean()))
    assert seen == [(2000, 300)]


def made_up(monkeypatch, measured):
    """Few real digits, and a note of each time that they are measured."""
    honest = mnist.load
    few = {train: (honest(train)[0][:50], None) for train in (True, False)}
    monkeypatch.setattr(mnist, "load", lambda train: measured.append(train) or few[train])


@pytest.mark.usefixtures("_nothing_measured")
def test_real_digits_are_measured_once_and_kept_in_a_file_that_a_later_process_reads(shipped, monkeypatch, tmp_path):
    measured = []
    made_up(monkeypatch, measured)
    real = real_digits(shipped)
    assert measured == [False, True]
    assert real_digits(load_reader()) is real  # another reader of the same weights, in the same process
    (path,) = (tmp_path / "minidiff").iterdir()
    judge._measured.clear()  # another process
    again = real_digits(shipped)
    assert measured == [False, True]
    assert_close(again.features, real.features, rtol=0, atol=0)
    assert (again.limit, again.floor) == (real.limit, real.floor)
    judge._measured.clear()
    path.write_bytes(path.read_bytes()[:-9])
    assert real_digits(shipped).limit == real.limit  # a damaged file is not believed, and written anew
    assert measured == [False, True] * 2
    assert load_tensors(path)[1]["limit"] == real.limit
    other = Classifier(2).eval()
    assert real_digits(Reader(other)).features.shape == (50, 8)  # another classifier has its own
    assert measured == [False, True] * 3


@pytest.mark.usefixtures("_nothing_measured")
def test_a_home_that_cannot_be_written_costs_time_and_nothing_else(shipped, monkeypatch, tmp_path):
    (tmp_path / "minidiff").write_text("a file where the folder would be")
    made_up(monkeypatch, [])
    assert real_digits(shipped).features.shape[0] == 50


@pytest.mark.usefixtures("_nothing_measured")
def test_an_illusion_ranks_higher_where_its_worst_view_reads_better_and_its_views_are_nearer_to_real_digits(
    shipped, digits, monkeypatch
):
    made_up(monkeypatch, [])
    x, labels = digits
    four, seven, grey = x[labels == 4][:1], x[labels == 7][:1], flat([0.5])
    seen = torch.stack([torch.cat(pair) for pair in ((four, seven), (four, grey), (seven, four))])
    both, first = rank_digits(seen, [4, 7], 2), rank_digits(seen, [4, 7], 1)
    assert both[0] > both[1]
    assert both[0] > both[2]
    assert first[1] > both[1]  # the second view need not be lifelike: nor is what is seen from afar
    features = shipped.features(seen.flatten(0, 1)).unflatten(0, (3, 2))
    S, real = readings(shipped.log_probs(features), torch.tensor([4, 7])), real_digits(shipped)
    distance = to_nearest(features.flatten(0, 1), real.features).view(3, 2) / real.limit
    assert_close(both, alignment(S) - distance.amax(1))
    assert_close(first, alignment(S) - distance[:, 0])


@pytest.mark.usefixtures("_nothing_measured")
def test_real_digits_are_plausible_and_what_is_none_is_not(shipped, monkeypatch):
    """1,000 test digits in place of 10,000. Two digits laid over each other, noise and grey are all read as
    something."""
    (x, labels), (more, _) = mnist.load(train=False), mnist.load(train=True)
    monkeypatch.setattr(mnist, "load", lambda train: (more[:2] if train else x[:1000], None))
    real, test = real_digits(shipped), mnist.to_pixels(x, 0, 1)
    fresh, other = shipped.features(test[1000:1300]), labels[:100] != labels[100:200]
    noise = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    laid_over = shipped.features(torch.maximum(test[:100], test[100:200])[other])
    assert float(plausible(fresh, real).float().mean()) > 0.95
    assert float(plausible(laid_over, real).float().mean()) < 0.6
    assert not bool(plausible(shipped.features(torch.cat([noise, flat([0.5, 1.0])])), real).any())
    assert 5 * frechet(fresh, real.features) < frechet(laid_over, real.features)


def test_readings_are_of_views_as_rows_and_labels_as_columns(shipped, digits):
    x, labels = digits
    four, seven = (shipped.log_probs(shipped.features(x[labels == c][:3])) for c in (4, 7))
    S = readings(torch.stack([four, seven], 1), torch.tensor([4, 7]))
    assert S.shape == (3, 2, 2)
    assert_close(S[:, 0, 1], four[:, 7], rtol=0, atol=0)
    assert float(alignment(S).min()) > -0.1
    assert float(alignment(readings(torch.stack([seven, four], 1), torch.tensor([4, 7]))).max()) < -1
    each = readings(torch.stack([four, seven], 1), torch.tensor([[4, 7], [7, 4], [1, 2]]))
    assert_close(each[1], S[1].flip(1), rtol=0, atol=0)


def test_a_file_that_holds_no_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a network of kind 'class', expected classifier"):
        load_reader("mnist-class")
    tensors, record = load_tensors(WEIGHTS / "mnist-classifier.safetensors")
    for name, change, settings in [
        ("missing", {k: v for k, v in tensors.items() if k != "read.bias"}, record),
        ("more", tensors | {"read.more": torch.zeros(1)}, record),
        ("wider", tensors, record | {"width": 25}),
        ("nan", tensors | {"read.bias": torch.full((10,), float("nan"))}, record),
    ]:
        save_tensors(change, tmp_path / f"{name}.safetensors", settings)
        says = "not finite" if name == "nan" else "does not hold the network that its settings describe"
        with pytest.raises(ValueError, match=says):
            load_reader(tmp_path / f"{name}.safetensors")


def test_what_is_as_far_as_the_limit_is_plausible():
    real = RealDigits(torch.zeros(5, 1), limit=2.0, floor=0.0)
    assert plausible(torch.tensor([[2.0], [2.001]]), real).tolist() == [True, False]


# ---------------------------------------------------------------- scores


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
    # rows 3/5, 1/2; columns 3/4, 1/3
    S = torch.tensor([[[math.log(3), math.log(2)], [0.0, 0.0]]], dtype=torch.float64)
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
    a, b = randn(60, 10), randn(70, 10, seed=1) @ randn(10, 10, seed=2)
    turn = torch.linalg.qr(randn(10, 10, seed=3)).Q
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
