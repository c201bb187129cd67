import pytest
import torch
from torch.testing import assert_close

from minidiff.networks.gelu import gelu
from minidiff.networks.mnist_unet import UNet

COUNTS = {
    32: (495_137, 500_545, 506_817),
    64: (1_975_361, 1_996_417, 2_019_201),
    128: (7_891_073, 7_974_145, 8_060_673),
}


@pytest.mark.parametrize("D", COUNTS)
def test_parameter_counts_are_the_courses(D):
    with torch.device("meta"):
        networks = (UNet(D), UNet(D, time=True), UNet(D, time=True, classes=10))
    assert tuple(sum(p.numel() for p in n.parameters()) for n in networks) == COUNTS[D]


def inputs(B):
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 1, 28, 28, generator=g), torch.rand(B, 1, generator=g), torch.eye(10)[torch.arange(B) % 10]


def settled(*, time=True, classes=10):
    """A small network whose BatchNorm has seen data, so that every path carries a signal; in eval mode."""
    torch.manual_seed(2)
    unet = UNet(8, time, classes)
    for module in unet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    x, t, c = inputs(32)
    with torch.no_grad():
        unet(x, t if time else None, c if classes else None)
    return unet.eval()


def test_in_eval_mode_image_k_does_not_depend_on_its_batch():
    unet, (x, t, c) = settled(), inputs(6)
    with torch.no_grad():
        together = unet(x, t, c)
        for k in range(6):
            assert_close(unet(x[k : k + 1], t[k : k + 1], c[k : k + 1]), together[k : k + 1], rtol=1e-5, atol=1e-5)


def reference(unet, x, t, c):
    """The course's figures once more, from its leaves: every block, skip and condition in its place."""
    a = unet.enter(x)
    b = unet.down1(a)
    d = unet.down2(b)
    z = unet.unflatten(torch.nn.functional.gelu(d.mean((2, 3), keepdim=True)))
    z = unet.class1(c)[..., None, None] * z + unet.time1(t)[..., None, None]
    u1 = unet.up1(torch.cat((d, z), 1))
    u1 = unet.class2(c)[..., None, None] * u1 + unet.time2(t)[..., None, None]
    u2 = unet.up2(torch.cat((b, u1), 1))
    return unet.leave(torch.cat((a, u2), 1))


def test_label_scales_and_time_shifts_the_two_places():
    unet, (x, t, c) = settled(), inputs(3)
    with torch.no_grad():
        unet, x, t, c = (a.double() for a in (unet, x, t, c))
        assert_close(unet(x, t, c), reference(unet, x, t, c))


def test_shapes_on_the_way_are_those_of_the_course():
    unet, (x, t, c), shapes = settled(), inputs(2), {}
    for name in ("enter", "down1", "down2", "flatten", "unflatten", "up1", "up2", "leave"):
        unet.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: shapes.update({name: tuple(o.shape[1:])})
        )
    unet(x, t, c)
    assert shapes == {
        "enter": (8, 28, 28), "down1": (8, 14, 14), "down2": (16, 7, 7), "flatten": (16, 1, 1),
        "unflatten": (16, 7, 7), "up1": (8, 14, 14), "up2": (8, 28, 28), "leave": (1, 28, 28),
    }  # fmt: skip


def test_each_block_is_convolution_batchnorm_gelu_in_this_order_and_the_output_a_bare_convolution():
    leaves = [type(m).__name__ for m in UNet(8).modules() if not list(m.children())]
    down, up = ["Conv2d", "BatchNorm2d", "GELU"], ["ConvTranspose2d", "BatchNorm2d", "GELU"]
    bottleneck = ["AvgPool2d", "GELU", "FromOnePixel", *up[1:]]
    assert leaves == [*down * (2 + 3 + 3), *bottleneck, *up, *down * 2, *up, *down * 2, *down * 2, "Conv2d"]


def test_the_picture_painted_from_one_pixel_is_that_of_the_transposed_convolution():
    layer = UNet(8).double().unflatten[0]
    z = torch.randn(3, 16, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.nn.functional.conv_transpose2d(z, layer.weight, layer.bias, stride=7)
    assert_close(layer(z), wanted, rtol=0, atol=1e-14)


def test_a_condition_passes_two_linear_layers_with_a_gelu_between():
    unet = UNet(8, time=True, classes=10)
    for block in (unet.time1, unet.time2, unet.class1, unet.class2):
        assert [type(m).__name__ for m in block] == ["Linear", "GELU", "Linear"]


def test_time_and_label_change_the_answer():
    unet, (x, t, c) = settled(), inputs(2)
    with torch.no_grad():
        first = unet(x, t, c)
        for other in (unet(x, t * 0.5, c), unet(x, t, c.roll(1, 1)), unet(x, t, c * 0)):
            assert float((first - other).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(2, 1, 32, 32)}, r"images \(B, 1, 28, 28\), got \(2, 1, 32, 32\)"),
        ({"x": torch.zeros(2, 3, 28, 28)}, r"got \(2, 3, 28, 28\)"),
        ({"t": torch.zeros(2)}, r"t of shape \(2, 1\), got \(2,\)"),
        ({"t": None}, r"t of shape \(2, 1\), got None"),
        ({"c": torch.zeros(2, 9)}, r"c of shape \(2, 10\), got \(2, 9\)"),
        ({"c": None}, "got None"),
    ],
)
def test_wrong_shapes_are_refused_and_never_broadcast(change, says):
    x, t, c = inputs(2)
    with pytest.raises(ValueError, match=says):
        settled()(**({"x": x, "t": t, "c": c} | change))


def test_the_denoiser_takes_neither_time_nor_label():
    x, t, _ = inputs(2)
    assert settled(time=False, classes=0)(x).shape == x.shape
    with pytest.raises(ValueError, match="t of shape None"):
        settled(time=False, classes=0)(x, t)


def test_every_batchnorm_is_as_pytorch_makes_it():
    """The course's networks leave ε and the momentum alone; no weight in a file would tell of another."""
    norms = [m for m in UNet(8, time=True, classes=10).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_gelu_reads_a_channels_last_picture_in_the_order_of_memory(monkeypatch):
    seen, x = [], torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda z: seen.append(z.is_contiguous()) or z)
    assert torch.equal(gelu(x), x)
    assert seen == [True]
