import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from minidiff import files, images, mnist, pretrained
from minidiff.diffusion import clip_to
from minidiff.sampling import ddim_step, ddpm_step, last, noise_per_image, sample, seeded
from minidiff.schedule import cosine, linear, linear_to_noise

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.tensor([True, False])}


def test_tensors_and_their_record_come_back(tmp_path):
    files.save_tensors(TENSORS, tmp_path / "x.safetensors", {"seed": 1, "pixels": [-1, 1]})
    tensors, record = files.load_tensors(tmp_path / "x.safetensors")
    assert record == {"seed": 1, "pixels": [-1, 1]}
    for name, tensor in TENSORS.items():
        assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=f"^cannot write {tmp_path / 'x.safetensors'} "):
            files.save_tensors({"a": torch.zeros(10000)}, tmp_path / "x.safetensors", {})
        with pytest.raises(ValueError, match="name a place that can be written, with 3,000 bytes of room"):
            files.check_writable(tmp_path / "x.safetensors", 3000)
        files.check_writable(tmp_path / "x.safetensors", 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_record_that_is_no_dict_is_refused(tmp_path):
    files.save_tensors(TENSORS, tmp_path / "x.safetensors", [1, 2])
    with pytest.raises(ValueError, match=r"holds \[1, 2\] in place of its settings"):
        files.load_tensors(tmp_path / "x.safetensors")


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    x = torch.arange(6.0).view(1, 2, 3)
    files.save_tensors({"all": x, "row": x[:, 0], "again": x}, tmp_path / "x.safetensors", {})
    tensors, _ = files.load_tensors(tmp_path / "x.safetensors")
    assert_close(tensors, {"all": x, "row": x[:, 0], "again": x})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), files.replaced(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "the disk is full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def damaged(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    files.save_tensors(TENSORS, path, {"seed": 1})
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[:-5]
    elif kind == "tampered":
        data[-3] ^= 1
    elif kind == "tampered settings":
        data = data.replace(b'seed\\": 1', b'seed\\": 2')
    elif kind == "empty":
        data = b""
    elif kind == "pickle":
        data = pickle.dumps({"a": [1.0]})
    elif kind == "huge header":
        data[:8] = struct.pack("<Q", 2**60)
    elif kind == "someone else's":
        save_file({"a": torch.ones(2)}, path)
        return path
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
        return path
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "no whole safetensors"), ("tampered", "sha256"), ("tampered settings", "sha256"), ("empty", "no whole safetensors"), ("pickle", "no whole safetensors"),
        ("huge header", "no whole safetensors"), ("someone else's", "no minidiff settings"), ("a folder", "there is no file"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(tmp_path, kind, says):
    with pytest.raises(ValueError, match=says) as error:
        files.load_tensors(damaged(tmp_path, kind))
    assert "\n" not in str(error.value)


SETTINGS = {"task": "class", "width": 4, "T": 30, "schedule": "linear_to_noise", "target": "velocity", "pixels": [-1, 1], "classes": 10, "scale": 2.0}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    files.save_tensors(pretrained.build(SETTINGS).unet.state_dict(), path, SETTINGS)
    return path


def test_a_network_comes_back_with_its_schedule_range_and_scale_in_eval_mode(weights):
    model = pretrained.load_digits(weights, ("class",))
    assert (len(model.alpha_bar), model.pixels, model.classes, model.target, model.scale) == (31, (-1, 1), 10, "velocity", 2.0)
    assert not any(m.training for m in model.unet.modules())


@pytest.mark.parametrize(("name", "table"), [("linear", linear(30)), ("linear_to_noise", linear_to_noise(30)), ("cosine", cosine(30))])
def test_the_schedule_of_a_network_is_the_one_that_its_file_names(name, table):
    assert_close(pretrained.build(SETTINGS | {"schedule": name}).alpha_bar, table, rtol=0, atol=0)


class Far(torch.nn.Module):
    """A network whose noise is so wrong that the estimate of x_0 lies far above the pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, c=None):
        return x - 100


@pytest.mark.parametrize("pixels", [(-1, 1), (0, 1), (0, 2)])
def test_a_walk_is_clipped_to_the_range_that_the_network_was_trained_on(pixels):
    model = pretrained.Digits("time", Far(), linear(30), pixels, 0, "eps")
    x = last(model.draw(seeded(1, 0, 2), [30, 20, 10, 0], ddpm_step))
    assert_close(x, torch.full_like(x, pixels[1]))


def test_a_network_without_labels_is_guided_away_from_its_guide_without_label(weights, tmp_path):
    settings = SETTINGS | {"task": "time", "guide": str(weights), "scale": 3.0}
    del settings["classes"]
    files.save_tensors(pretrained.build(settings).unet.state_dict(), tmp_path / "time.safetensors", settings)
    model, guide = pretrained.load_digits(tmp_path / "time.safetensors", ("time",)), pretrained.load_digits(weights, ("class",))
    x = torch.randn(2, 1, 28, 28)
    own, weak = model.denoiser()(x, 7)[0], guide.denoiser()(x, 7)[0]
    assert_close(model.denoiser(None, 3.0)(x, 7)[0], weak + 3 * (own - weak))
    assert_close(model.denoiser(None, 1)(x, 7)[0], own)
    files.save_tensors(pretrained.build(settings).unet.state_dict(), tmp_path / "time.safetensors", settings | {"T": 40})
    with pytest.raises(ValueError, match="has another schedule"):
        pretrained.load_digits(tmp_path / "time.safetensors", ("time",))


def rewritten(path, change, settings=SETTINGS):
    tensors, _ = files.load_tensors(path)
    change(tensors)
    files.save_tensors(tensors, path, settings)
    return path


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (lambda t: t["down1.0.0.weight"].fill_(float("nan")), SETTINGS, "not finite .in down1.0.0.weight"),
        (lambda t: t.pop("down1.0.0.weight"), SETTINGS, "does not hold the network"),
        (lambda t: t.update(more=torch.ones(1)), SETTINGS, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 8}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 10**7}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"schedule": "square"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"pixels": [1, -1]}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"pixels": "ab"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"scale": None}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"T": 0}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"width": 0}, "does not hold the network"),
        (lambda t: None, {"task": "class"}, "does not hold the network"),
        (lambda t: None, SETTINGS | {"task": "time"}, "kind 'time', wanted class"),
    ],
)  # fmt: skip
def test_weights_that_are_not_what_they_say_are_refused_in_one_line(weights, change, settings, says):
    with pytest.raises(ValueError, match=says) as error:
        pretrained.load_digits(rewritten(weights, change, settings), ("class",))
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="mnist-class.*, got 'mnist-clas'"):
        pretrained.load_digits("mnist-clas", ("class",))


def test_pictures_show_pixels_cut_and_never_stretched(tmp_path):
    x = torch.tensor([[-1.0, 0.0, 1.0, 3.0]]).reshape(1, 1, 1, 4)
    assert_close(images.to_unit(x).flatten(), torch.tensor([0, 0.5, 1, 1]))
    images.save_png(images.grid(images.to_unit(x), 1, zoom=1), tmp_path / "x.png", {"seed": 3})
    picture = Image.open(tmp_path / "x.png")
    assert [picture.getpixel((i, 0))[0] for i in range(4)] == [0, 128, 255, 255]
    assert json.loads(picture.text["minidiff"]) == {"seed": 3}


def test_an_animation_holds_its_frames(tmp_path):
    frames = [images.grid(torch.full((1, 1, 4, 4), v), 1) for v in (0.0, 0.5, 1.0)]
    images.save_gif(frames, tmp_path / "x.gif")
    assert Image.open(tmp_path / "x.gif").n_frames == 3


def test_the_digits_are_the_canonical_ones_and_pixels_span_the_range():
    x, labels = mnist.load(train=False)
    assert x.shape == (10_000, 1, 28, 28)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    pixels = mnist.to_pixels(x[:100])
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert_close(mnist.to_pixels(x[:100], 0, 1), (pixels + 1) / 2)


@pytest.mark.parametrize(("state", "says"), [("missing", "is missing"), ("damaged", "is damaged")])
def test_a_missing_or_damaged_data_file_is_named(tmp_path, state, says):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist.DATA / "MNIST" / "raw").glob("*.gz"):
        os.link(path, raw / path.name) if path.name[0] != "t10k-labels-idx1-ubyte.gz" else None
    target = raw / "t10k-labels-idx1-ubyte.gz"
    target.unlink()
    if state == "damaged":
        target.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=f"t10k-labels-idx1-ubyte.gz {says}.*git checkout"):
        mnist.load(train=False, root=tmp_path)


def test_a_file_is_on_the_disk_before_it_takes_its_place_beside_and_all_may_read_it_that_could(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda one, other: done.append("replace") or replace(one, other))
    before = os.umask(0o027)
    try:
        with files.replaced(tmp_path / "x.txt") as temporary:
            assert temporary.parent.parent == tmp_path  # a rename is atomic on one file system alone
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert done == ["fsync", "replace"]
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_tensors_without_a_digest_and_arrays_that_are_pickles_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"minidiff": "{}"})
    with pytest.raises(ValueError, match="sha256"):
        files.load_tensors(tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="no whole .npz file of numbers"):
        files.load_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [images.save_png, lambda picture, path: images.save_gif([picture, picture], path)], ids=["png", "gif"])
def test_a_picture_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch, save):
    def half(picture, file, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="cannot write .*No space left on device"):
        save(Image.new("L", (4, 4)), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_loaded_network_asks_for_no_gradients(weights):
    assert not any(p.requires_grad for p in pretrained.load_digits(weights, ("class",)).unet.parameters())


def test_a_guide_of_another_range_of_pixels_is_refused(weights, tmp_path):
    settings = SETTINGS | {"task": "time", "guide": str(weights), "classes": 0, "pixels": [0, 1]}
    files.save_tensors(pretrained.build(settings).unet.state_dict(), tmp_path / "time.safetensors", settings)
    with pytest.raises(ValueError, match="has another schedule or range of pixels"):
        pretrained.load_digits(tmp_path / "time.safetensors", ("time",))


def test_a_walk_takes_the_step_the_labels_and_the_scale_that_it_is_given(weights):
    network, c, levels = pretrained.load_digits(weights, ("class",)), torch.tensor([3, 8]), [30, 20, 10, 0]
    noise = noise_per_image(seeded(1, 0, 2))
    by_hand = last(sample(network.denoiser(c, 30.0), noise(torch.empty(2, 1, 28, 28)), levels, network.alpha_bar, step=partial(ddim_step, eta=0.5), clip=clip_to(-1, 1), noise=noise))
    assert_close(last(network.draw(seeded(1, 0, 2), levels, partial(ddim_step, eta=0.5), c, 30.0)), by_hand, rtol=0, atol=0)


def test_all_test_digits_of_a_kind_can_be_asked_for():
    assert set(mnist.test_digits(892, [5])[1].tolist()) == {5}


def test_one_weight_that_is_not_finite_is_enough(weights):
    tensors, _ = files.load_tensors(weights)
    tensors["down1.0.0.weight"][0, 0, 0, 0] = float("inf")
    files.save_tensors(tensors, weights, SETTINGS)
    with pytest.raises(ValueError, match="not finite .in down1.0.0.weight"):
        pretrained.load_digits(weights, ("class",))


def test_arrays_of_an_npz_may_be_bools(tmp_path):
    files.save_arrays({"mask": torch.tensor([True, False])}, tmp_path / "x.npz", {})
    assert files.load_arrays(tmp_path / "x.npz")["mask"].tolist() == [True, False]


def test_the_test_digits_that_are_asked_for_come_with_their_own_labels():
    x, _ = mnist.load(train=False)
    own, c = mnist.test_digits(3, [5, 9])
    assert c.tolist() == [9, 5, 9]
    assert torch.equal(own, x[[7, 8, 9]])


def test_a_tensor_whose_shape_was_changed_is_refused(tmp_path):
    files.save_tensors({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "x.safetensors", {})
    data = (tmp_path / "x.safetensors").read_bytes()
    assert data.count(b"[2,3]") == 1
    (tmp_path / "x.safetensors").write_bytes(data.replace(b"[2,3]", b"[3,2]"))
    with pytest.raises(ValueError, match="sha256"):
        files.load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("setting", [{"scale": 10**400}, {"T": 10**400}], ids=["scale", "T"])
def test_a_setting_that_is_too_large_for_a_float_is_refused(weights, setting):
    files.save_tensors(files.load_tensors(weights)[0], weights, SETTINGS | setting)
    with pytest.raises(ValueError, match="does not hold the network"):
        pretrained.load_digits(weights, ("class",))
