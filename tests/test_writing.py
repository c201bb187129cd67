"""What the end of a run needs is proved at its beginning, and what cannot be written all the same is kept in another
place.
"""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidiff import files, images

LONG = "x" * 300


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with everything in it that is no place for a file."""
    monkeypatch.chdir(tmp_path)
    for link, target in {
        "out": "not-mounted",
        "loop": "loop",
        "link.png": "/not-mounted/x.png",
        "loop.png": "loop.png",
        "good.png": "folder/x.png",
    }.items():
        os.symlink(target, link)
    Path("file").touch()
    Path("folder").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
    return tmp_path


BAD = [
    "out/x.png",
    "out/a/x.png",
    "loop/x.png",
    "loop.png",
    "link.png",
    "file/x.png",
    "file/a/b/x.png",
    "folder",
    "",
    "..",
    "/",
    "pipe",
    f"{LONG}.png",
    f"new/{LONG}/x.png",
    f"new/newer/{LONG}",
    "/".join(["y" * 200] * 30),
    "a\0b.png",
    "/dev/null",
    "/proc/x/y.png",
]


@pytest.mark.parametrize("path", BAD, ids=lambda path: ascii(path)[:20])
def test_a_place_that_cannot_be_written_is_refused_before_and_after_the_work_and_nothing_is_left(here, path):
    before = sorted(here.rglob("*"))
    with pytest.raises(ValueError, match=r"cannot write .*\(.+\): name a place"):
        files.check_writable(path)
    with pytest.raises(OSError, match="cannot write"), files.replaced(path) as temporary:
        temporary.touch()
    assert sorted(here.rglob("*")) == before


NAMES = ["a\nb", "é" * 120, "x" * 247, "日" * 81, "😀", "\u202eabc", " ", "-", "...", "a.minidiff"]


@pytest.mark.parametrize("stem", NAMES, ids=lambda stem: ascii(stem)[:20])
def test_any_name_that_the_disk_takes_passes_and_is_written(tmp_path, stem):
    for suffix in (".npz", ".png"):
        path = tmp_path / "new" / "newer" / f"{stem}{suffix}"
        files.check_writable(path)
        assert os.listdir(tmp_path) == []
        if suffix == ".png":
            images.save_png(Image.new("L", (1, 1)), path, {"prompt": stem})
        else:
            files.save_arrays({"a": torch.ones(1)}, path, {"prompt": stem})
        assert os.listdir(path.parent) == [path.name]
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()


def test_a_link_to_a_file_is_followed_and_stays_a_link(here):
    files.check_writable("good.png")
    with files.replaced("good.png") as temporary:
        temporary.write_text("new")
    assert os.path.islink("good.png") and Path("folder/x.png").read_text() == "new"


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def unknown(*args):
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("room", [unknown, None], ids=["no fallocate of the disk", "no fallocate of the system"])
def test_room_is_tried(tmp_path, monkeypatch, room):
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        ValueError, match=r"No space left on device\): name a place that can be written, with 3,000,000 bytes of room"
    ):
        files.check_writable(tmp_path / "x.png", 3_000_000)
    monkeypatch.setattr(os, "posix_fallocate", room) if room else monkeypatch.delattr(os, "posix_fallocate")
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(len(data)) or write(handle, data))
    files.check_writable(tmp_path / "x.png", 3_000_000)
    assert sum(written) == 3_000_000
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ValueError, match="No space left"):
        files.check_writable(tmp_path / "x.png", 3_000_000)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone can be another user for a moment"
)
def test_a_file_of_another_user_in_a_folder_for_all_is_refused(tmp_path):
    os.chmod(tmp_path, 0o1777)
    (tmp_path / "x.png").touch()
    (tmp_path / "x.png").chmod(0o666)
    for folder in [*tmp_path.parents][:2]:
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="it belongs to another user"):
            files.check_writable(tmp_path / "x.png")
    finally:
        os.seteuid(0)


def test_a_disk_that_knows_no_chmod_and_no_fsync_is_written_and_one_that_lost_the_data_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", unknown)
    monkeypatch.setattr(os, "fsync", unknown)
    files.check_writable(tmp_path / "x.png")
    images.save_png(Image.new("L", (1, 1)), tmp_path / "x.png")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device"):
        images.save_png(Image.new("L", (1, 1)), tmp_path / "y.png")
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), ValueError("too large"), MemoryError(), TypeError("a bug")],
    ids=repr,
)
def test_arrays_that_cannot_be_written_are_kept_and_the_error_says_where(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    arrays = {}
    with (
        pytest.raises((OSError, RuntimeError), match="the arrays are kept in ") as raised,
        files.rescued(arrays, tmp_path / "no" / "x.png", {"out": Path("no/x.png")}),
    ):
        arrays |= {"images": torch.arange(3.0), "labels": None}
        raise error
    tensors, record = files.load_tensors(str(raised.value).split(" are kept in ")[1])
    assert tensors["images"].tolist() == [0, 1, 2] and record == {"out": "no/x.png"}
    assert isinstance(raised.value, RuntimeError) == isinstance(error, TypeError) == (raised.value.__cause__ is error)


def test_where_nothing_is_to_be_kept_or_can_be_the_error_is_as_it_was(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="^first$"), files.rescued({}, tmp_path / "x.png", {}):
        raise OSError("first")
    monkeypatch.setattr(files, "save_tensors", full)
    with pytest.raises(OSError, match="^first$"), files.rescued({"a": torch.ones(1)}, tmp_path / "x.png", {}):
        raise OSError("first")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork of this one")
def test_temporary_files_of_killed_runs_are_removed_and_only_those(tmp_path, monkeypatch):
    process = os.fork()
    if process == 0:
        with files.replaced(tmp_path / "state.safetensors") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    monkeypatch.setattr(files, "RUN", "01234567")  # the next run
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".state.")
    made, host, number = files.HIDDEN.fullmatch(left.name), files.HOST, int(files.HIDDEN.fullmatch(left.name)[2])
    assert made[1] == host and number != os.getpid()
    others = {
        left.name.replace(host, "0" * 8),  # of another machine
        left.name.replace(f"-{number}-", f"-{os.getppid()}-"),  # of a process that lives
        left.name.replace(f"-{number}-", f"-{os.getpid()}-").replace(made[3], files.RUN),  # ours
        ".state.safetensors.abcd1234",
        ".state",
        "state.minidiff-1",
        left.name[1:],
    }
    mine_once = left.name.replace(
        f"-{number}-", f"-{os.getpid()}-"
    )  # another run had our number: in a container every one has
    for name in [*others, mine_once]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    files.check_writable(tmp_path / "other.png")
    assert set(os.listdir(tmp_path)) == others
