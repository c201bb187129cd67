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

from minidiff import files, images, mnist

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
    with pytest.raises(ValueError, match=r"is no file of tensors \(its settings are \[1, 2\]"):
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
        ("truncated", "no whole safetensors"),
        ("tampered", "sha256"),
        ("tampered settings", "sha256"),
        ("empty", "no whole safetensors"),
        ("pickle", "no whole safetensors"),
        ("huge header", "no whole safetensors"),
        ("someone else's", "no minidiff settings"),
        ("a folder", "there is no file"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, kind, says):
    with pytest.raises(ValueError, match=says) as error:
        files.load_tensors(damaged(tmp_path, kind))
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    "save", [images.save_png, lambda picture, path: images.save_gif([picture, picture], path)], ids=["png", "gif"]
)
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


def test_all_test_digits_of_a_kind_can_be_asked_for():
    assert set(mnist.test_digits(892, [5])[1].tolist()) == {5}


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
