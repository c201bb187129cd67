"""Every error is one sentence, on any console; and of many processes, whichever fails, one sentence is said and all
end.
"""

import io
import os
import signal
import socket
import sys
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from minidiff import command


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Of tests that run in the background, Python is deaf to Ctrl-C from its start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def raising(error):
    def main(argv):
        raise error

    return main


def system_error(number, path=None):
    return OSError(number, os.strerror(number), path)


SENTENCES = [
    (ValueError("expected 1,\n  got 2: give 1"), 2, "x.py: expected 1, got 2: give 1"),
    (ValueError(), 2, "x.py: ValueError"),
    (OSError("cannot write x"), 2, "x.py: cannot write x"),
    (system_error(13, "a\nb"), 2, "x.py: cannot use a b (Permission denied): check the path, and whether you may"),
    (BrokenPipeError(32, "Broken pipe"), 2, "x.py: nobody reads what it prints any more"),
    (MemoryError(), 2, "x.py: the memory is used up (of this process): ask for less at a time"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        2,
        "x.py: the memory is used up (CUDA out of memory",
    ),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "x.py: the memory is used up"),
    (KeyboardInterrupt(), 130, "x.py: stopped"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "x.py: 'utf-8' codec"),
]


@pytest.mark.parametrize(("error", "code", "says"), SENTENCES, ids=lambda case: type(case).__name__)
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, says):
    assert command.run("x.py", raising(error), []) == code
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_memory_that_is_really_not_there_is_a_sentence(capsys):
    assert command.run("x.py", lambda argv: torch.empty(10**15), []) == 2
    assert "the memory is used up" in capsys.readouterr().err


@pytest.mark.parametrize("error", [TypeError("a bug"), RuntimeError("shapes"), KeyError("a"), SystemExit(0)], ids=repr)
def test_a_mistake_of_ours_keeps_its_traceback_and_help_ends_well(error):
    with pytest.raises(type(error)):
        command.run("x.py", raising(error), [])


def test_what_main_returns_is_the_exit_code_and_warnings_are_sentences(capsys):
    assert [command.run("x.py", lambda argv, code=code: code, []) for code in (None, 0, 3)] == [0, 0, 3]
    assert command.run("x.py", lambda argv: warnings.warn("too long", stacklevel=1), []) == 0
    assert capsys.readouterr().err == "x.py: too long\n"


class Notebook(io.StringIO):
    """Like ipykernel's: no reconfigure."""

    reconfigure = property()


class Narrow(Notebook):
    def write(self, text):
        text.encode("cp1252")
        return super().write(text)


TEXT = "γ = 3 😀 \udcff מ"
STREAMS = {
    "a notebook's": Notebook,
    "a notebook's that is narrow": Narrow,
    **{
        encoding: lambda encoding=encoding: io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
        for encoding in ("ascii", "cp1252", "utf-8", "cp932", "utf-16", "koi8-r")
    },
    "none": lambda: None,
}


@pytest.mark.parametrize("kind", STREAMS)
def test_any_console_takes_any_text(monkeypatch, kind):
    out, err = STREAMS[kind](), STREAMS[kind]()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert command.run("x.py", lambda argv: print(TEXT), []) == 0
    assert command.run("x.py", raising(ValueError(TEXT)), []) == 2
    assert (sys.stdout, sys.stderr) == (out, err)
    for stream in filter(None, (out, err)):
        said = (
            stream.getvalue() if isinstance(stream, io.StringIO) else stream.buffer.getvalue().decode(stream.encoding)
        )
        assert "= 3" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_what_cannot_be_printed_is_said(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command.run("x.py", lambda argv: print("done"), []) == 2
    assert capsys.readouterr().err == "x.py: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "x.py: stopped\n"), (signal.SIGTERM, 143, "x.py: stopped by the system (SIGTERM)\n")],
)
def test_a_stop_is_one_line_and_nothing_is_left(capsys, tmp_path, number, code, says):
    from minidiff.files import replaced

    def main(argv):
        with replaced(tmp_path / "new" / "x.png") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(5)

    before = signal.getsignal(number)
    assert command.run("x.py", main, []) == code
    assert (capsys.readouterr().err, list(tmp_path.iterdir()), signal.getsignal(number)) == (says, [], before)


def test_wrong_arguments_are_a_value_error():
    parser = command.Parser(prog="x.py")
    parser.add_argument("--number", type=int)
    with pytest.raises(ValueError, match="x.py --help lists what it takes"):
        parser.parse_args(["--numb", "3"])


# Several processes, each a fork of this one


def failing(error, ranks):
    """Fails before the processes meet."""

    def main(argv):
        if int(os.environ["RANK"]) in ranks:
            raise error

    return main


def together(inside):
    """main: the processes meet, inside(rank), and they wait for each other."""

    def main(argv):
        rank, world = command.start_processes(torch.device("cpu"))
        inside(rank)
        ranks = [None] * world
        dist.all_gather_object(ranks, rank)
        print(f"{rank} of {ranks}")

    return main


def killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def fails(error, *ranks):
    def inside(rank):
        if rank in ranks:
            raise error

    return inside


def busy(rank):
    if rank == 1:
        raise ValueError("no model here")
    time.sleep(30)


def too_late(argv):
    if command.start_processes(torch.device("cpu"))[0] == 0:
        time.sleep(0.3)
        raise OSError("cannot write x")


BUG = "TypeError: a bug\n"
TOGETHER = {  # name -> main, exit codes, what all say together: its end, or a part
    "all end well": (together(lambda rank: None), [0, 0], None),
    "all refuse the arguments": (failing(ValueError("bad"), (0, 1)), [2, 2], ": bad\n"),
    "the second, before they meet": (
        lambda argv: (failing(ValueError("bad"), (1,))(argv), together(lambda rank: None)(argv)),
        [2, 2],
        "x.py: process 1 of 2: bad\n",
    ),
    "the first, before they meet": (
        lambda argv: (failing(ValueError("bad"), (0,))(argv), together(lambda rank: None)(argv)),
        [2, 2],
        "x.py: bad\n",
    ),
    "the second": (together(fails(ValueError("bad"), 1)), [2, 2], "x.py: process 1 of 2: bad\n"),
    "the first": (together(fails(OSError("bad"), 0)), [2, 2], "x.py: bad\n"),
    "both": (together(fails(ValueError("bad"), 0, 1)), [2, 2], ": bad\n"),
    "while the first is busy": (together(busy), [2, 2], "x.py: process 1 of 2: no model here\n"),
    "after the second has ended": (too_late, [2, 0], "x.py: cannot write x\n"),
    "a mistake of ours": (together(fails(TypeError("a bug"), 1)), [2, 1], BUG),
    "killed": (together(killed), [2, -9], f"x.py: {command.LOST}\n"),
    "killed before they meet": (
        lambda argv: (killed(int(os.environ["RANK"])), together(lambda rank: None)(argv)),
        [2, -9],
        f"x.py: {command.LOST}\n",
    ),
    "Ctrl-C": (together(lambda rank: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30))), [130, 130], "stopped\n"),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks of this one")
@pytest.mark.parametrize("name", TOGETHER)
def test_whichever_process_fails_one_sentence_is_said_and_all_end(tmp_path, monkeypatch, name):
    main, codes, says = TOGETHER[name]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for variable, value in {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        monkeypatch.setenv(variable, value)
    for constant, seconds in {
        "POLL": 0.05,
        "GRACE": 1,
        "LINGER": 1 if "killed" in name else 20,
        "SILENCE": 1 if "killed" in name else 60,
    }.items():
        monkeypatch.setattr(command, constant, seconds)
    processes, files = [], [(tmp_path / f"{rank}").open("w+") for rank in range(2)]
    for rank, file in enumerate(files):
        processes.append(os.fork())
        if processes[-1] == 0:
            signal.alarm(60)
            sys.stdout = sys.stderr = file
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os._exit(command.run("x.py", main, []))
    ended = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    said = "".join((tmp_path / f"{rank}").read_text() for rank in range(2))
    assert ended == codes, said
    if says is None:
        assert said == "0 of [0, 1]\n1 of [0, 1]\n"
    else:
        assert (
            said.endswith(says)
            and said.count("\n") == 1
            or (says == BUG and said.startswith("Traceback") and said.count("Traceback") == 1)
        )


def test_many_processes_without_a_place_to_meet_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.run("x.py", lambda argv: 0, []) == 2
    assert (
        capsys.readouterr().err
        == "x.py: RANK is set and MASTER_ADDR is not: start several processes with torchrun, or one with RANK unset\n"
    )
