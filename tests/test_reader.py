"""The classifier and what is read with it: pictures, distances and thresholds whose answers are known."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from minidiff import mnist, reader
from minidiff.files import load_tensors, save_tensors
from minidiff.networks.mnist_classifier import Classifier
from minidiff.pretrained import WEIGHTS
from minidiff.judge import Reader, RealDigits, load_reader, plausible, read_as, readings, real_digits, real_floor, to_nearest
from minidiff.judge import alignment, frechet


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
        with pytest.raises(ValueError, match="built for images"):
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
        (torch.zeros(2, 28, 28), "wants images"),
        (torch.zeros(0, 1, 28, 28), "wants images"),
        (flat([-1.0, 1.0]), "pixels in \\[0, 1\\], got -1 to 1"),
        (flat([0.0, 255.0]), "got 0 to 255"),
        (flat([float("nan"), 0.5]), "finite"),
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


def test_real_digits_set_the_limit_each_against_the_others(monkeypatch):
    """Greys 0, 1, … 100 of 255: the 5th nearest other is 3 levels away, but 4 and 5 at the two ends: of 101, 5 is the last but one too."""
    greys = torch.arange(101, dtype=torch.uint8)
    monkeypatch.setattr(mnist, "load", lambda train: (flat(greys + (30 if train else 0)).to(torch.uint8), None))
    real = real_digits(Reader(Mean()))
    assert real.limit == pytest.approx(5 / 255, rel=1e-4)
    assert real_floor(Reader(Mean()), real) == pytest.approx((30 / 255) ** 2, rel=1e-4)  # 101 training digits, the same but 30 brighter
    assert real.features.shape == (101, 1)
    inside = plausible(torch.tensor([[50.5], [100.0], [100.9], [101.1], [-20.0]]) / 255, real)
    assert inside.tolist() == [True, True, True, False, False]  # the 5th nearest, 96, is at most 5 levels away, up to 101


def test_of_2000_training_digits_no_more_are_taken(monkeypatch):
    """The floor is that of 2,000 images, and so comparable with 2,000 samples."""
    seen = []
    monkeypatch.setattr(mnist, "load", lambda train: (flat(torch.arange(2100 if train else 300) % 97).to(torch.uint8), None))
    monkeypatch.setattr(reader, "frechet", lambda a, b: seen.append((len(a), len(b))) or 0.0)
    real_floor(Reader(Mean()), real_digits(Reader(Mean())))
    assert seen == [(2000, 300)]


def test_real_digits_are_plausible_and_what_is_none_is_not(shipped, monkeypatch):
    """1,000 test digits in place of 10,000. Two digits laid over each other, noise and grey are all read as something."""
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
    assert_close(readings(torch.stack([four, seven], 1), torch.tensor([[4, 7], [7, 4], [1, 2]]))[1], S[1].flip(1), rtol=0, atol=0)


def test_a_file_that_holds_no_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a network of kind 'class', wanted classifier"):
        load_reader("mnist-class")
    tensors, record = load_tensors(WEIGHTS / "mnist-classifier.safetensors")
    for name, change, settings in [
        ("missing", {k: v for k, v in tensors.items() if k != "read.bias"}, record),
        ("more", tensors | {"read.more": torch.zeros(1)}, record),
        ("wider", tensors, record | {"width": 25}),
        ("nan", tensors | {"read.bias": torch.full((10,), float("nan"))}, record),
    ]:
        save_tensors(change, tmp_path / f"{name}.safetensors", settings)
        with pytest.raises(ValueError, match="not finite" if name == "nan" else "does not hold the network that its settings describe"):
            load_reader(tmp_path / f"{name}.safetensors")


def test_what_is_as_far_as_the_limit_is_plausible():
    assert plausible(torch.tensor([[2.0], [2.001]]), RealDigits(torch.zeros(5, 1), 2.0)).tolist() == [True, False]
