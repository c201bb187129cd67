"""How a script is run: every error is one sentence, on a console of any kind, alone or as one of many processes.

    sys.exit(run("sample.py", main, sys.argv[1:]))

Exit codes: 0 done, 2 refused or failed, 130 stopped by Ctrl-C, 143 by the system. A mistake of ours keeps its
traceback. Of the processes of torchrun the first that fails says why, and all end: they meet in a store, which lives
in the first of them.
"""

import _thread
import argparse
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")  # in a RuntimeError of PyTorch
LOST = (
    "another process ended without a word, or cannot be reached: see what its machine says of it, then start all again"
)
POLL = 0.3  # seconds after which a process looks after the others again
GRACE = 3.0  # that a process has to end by itself when another failed
LINGER = 10.0  # that the first waits for all to have ended
SILENCE = 30.0  # after which one that gives no sign of life must have been killed


class Parser(argparse.ArgumentParser):
    """Wrong arguments become a ValueError: a script says every error the same way, in one sentence, exit code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        """What argparse calls for wrong arguments."""
        raise ValueError(f"{message}: {self.prog} --help lists what it takes")


def run(script: str, main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """main(argv), and the exit code. Under torchrun a process that fails ends here."""
    others, first = None, os.environ.get("RANK", "0") == "0"
    with _safe_streams(), warnings.catch_warnings(), _terminated():
        warnings.showwarning = lambda message, *_: first and print(f"{script}: {message}", file=sys.stderr)
        try:
            others = Others(script) if "RANK" in os.environ else None
            code = main(argv) or 0
            sys.stdout.flush()
        except SystemExit:  # --help
            code = None
            raise
        except BaseException as error:
            says, code = (LOST, 2) if others and others.told else sentence(error)
            if others is None and says is None:
                raise
            code = others.failed(code) if others else code
            if others is None or others.speaks:
                who = f"process {others.rank} of {others.world}: " if others and others.rank else ""
                with suppress(OSError):
                    print(f"{script}: {who}{says}" if says else traceback.format_exc().rstrip(), file=sys.stderr)
        finally:
            _flush()
            if others:
                others.end(code)
    return code


def sentence(error: BaseException) -> tuple[str | None, int]:
    """What an error says, in one line, and the exit code. None for a mistake of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        how, code = ("stopped by the system (SIGTERM)", 143) if isinstance(error, Terminated) else ("stopped", 130)
        return how + (f"; {text}" if text else ""), code
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)):
        why = text[:160] or "of this process"
        return f"the memory is used up ({why}): ask for less at a time, or end other programs", 2
    if isinstance(error, BrokenPipeError):
        return "nobody reads what it prints any more: leave the pipe open, or write into a file", 2
    if isinstance(error, OSError) and error.strerror and error.filename:
        name = " ".join(str(error.filename).split())
        return f"cannot use {name} ({error.strerror}): check the path, and whether you may", 2
    if isinstance(error, ValueError | OSError):
        return text or type(error).__name__, 2
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)):
        return LOST, 2
    return None, 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, as from scancel or a full time limit: like Ctrl-C, so that nothing is left half-written."""


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM raises Terminated. Not under torchrun: its processes may be waiting for others, deaf to it."""

    def stop(*_) -> None:
        raise Terminated

    alone = threading.current_thread() is threading.main_thread() and "RANK" not in os.environ
    before = (
        signal.signal(signal.SIGTERM, stop) if alone and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else None
    )
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------------------------------- the console


class _Replacing:
    """A stream that shows a question mark for what its encoding lacks."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeError:
            return self._stream.write(text.encode("ascii", "replace").decode())

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _safe(stream):
    """The stream, made one that takes any text: a terminal, a file, a notebook's, or none at all."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="replace")
    try:
        stream.reconfigure(errors="replace")
    except (AttributeError, OSError, ValueError):
        return _Replacing(stream)
    return stream


@contextmanager
def _safe_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_safe, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _flush() -> None:
    """Write out what was printed. Where that fails, it is dropped, or Python would try again at its end, and say so."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# ------------------------------------------------------------------------------------------------------- the processes

_here: "Others | None" = None


class Others:
    """The processes that torchrun started, seen from this one. Raises ValueError when they cannot be reached.

    The store's keys: `failed` has the exit code and rank of the first that failed, `well` is there when process 0 is
    through, `beat/N` counts while process N lives, `left/N` is there when it has ended, and `ended` counts those.
    """

    def __init__(self, script: str):
        global _here
        lost = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if lost:
            raise ValueError(
                f"RANK is set and {lost[0]} is not: start several processes with torchrun, or one with RANK unset"
            )
        self.script, self.rank, self.world = script, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.store, self.speaks, self.told, self.done = self._connected(self.hosts), True, False, threading.Event()
        self.store.add(f"beat/{self.rank}", 1)
        _here = self
        threading.Thread(target=self._watch, daemon=True).start()

    def _connected(self, hosts: bool) -> dist.Store:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store = dist.TCPStore(
                address, port, self.world, hosts, timedelta(minutes=5), wait_for_workers=False, multi_tenant=True
            )
        except RuntimeError as error:
            why = " ".join(str(error).split())[:160]
            raise ValueError(
                f"the processes cannot meet at {address}:{port} ({why}): start all with torchrun, or on another port"
            ) from None
        return dist.PrefixStore(f"minidiff/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _watch(self) -> None:
        """End this process when another failed, whatever it is doing."""
        heard = {}  # rank -> its last beat, and when that was
        with suppress(Exception):
            store = self._connected(False)
            while not self.done.wait(POLL):
                store.add(f"beat/{self.rank}", 1)
                if store.check(["well"]):
                    return
                if store.check(["failed"]) or (self.rank == 0 and self._silent(store, heard)):
                    break
        if not self.done.is_set():
            self.told = True
            _thread.interrupt_main()
            if not self.done.wait(GRACE):  # it waits for the one that failed
                with suppress(Exception):
                    if store.compare_set("failed", "", f"2 {self.rank}").decode() == f"2 {self.rank}":
                        print(f"{self.script}: {LOST}", file=sys.stderr, flush=True)
                    store.add("ended", 1)
                os._exit(2)

    def _silent(self, store: dist.Store, heard: dict[int, tuple[int, float]]) -> bool:
        """Whether a process that began has neither ended nor given a sign of life for so long: it was killed."""
        for rank in range(1, self.world):
            beat, now = store.add(f"beat/{rank}", 0), time.monotonic()
            if heard.get(rank, (0, 0))[0] != beat:
                heard[rank] = beat, now
            elif beat and now - heard[rank][1] > SILENCE and not store.check([f"left/{rank}"]):
                return True
        return False

    def failed(self, code: int) -> int:
        """Tell all that this process failed. Returns its exit code; if it is the first, it `speaks`: it says why."""
        self.done.set()  # or the watch of this process would take it for another's failure
        try:
            first = self.store.compare_set("failed", "", f"{code} {self.rank}").decode()
        except RuntimeError:  # its host is gone: process 1 says so
            first = f"{code} {self.rank if self.rank == 1 or not self.told else 0}"
        self.speaks = int(first.split()[1]) == self.rank
        return code if self.speaks else 130 if first.startswith("130 ") else 2

    def end(self, code: int | None) -> None:
        """Leave the others. The host of the store waits some seconds for them to leave."""
        self.done.set()
        with suppress(RuntimeError):
            if not code and dist.is_initialized():
                dist.destroy_process_group()
            if not code and self.rank == 0:
                self.store.set("well", "")
            self.store.set(f"left/{self.rank}", "")
            left, until = self.store.add("ended", 1), time.monotonic() + LINGER
            while self.hosts and left < self.world and time.monotonic() < until:
                time.sleep(POLL / 3)
                left = self.store.add("ended", 0)
        if code:
            os._exit(code)  # and not by Python's end, which might wait for the others


def start_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes) under torchrun, (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    backend, how = dist.get_default_backend_for_device(device), {}
    if _here is not None:
        how = {"store": dist.PrefixStore("group", _here.store), "rank": _here.rank, "world_size": _here.world}
    dist.init_process_group(backend, **how)
    return dist.get_rank(), dist.get_world_size()
