"""Denoisers whose answers are known: the tests' ground truth."""

import functools
import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidiff import mnist
from minidiff.diffusion import predict_eps

gc.freeze()  # what is imported stays: the collector need not look at it again and again, a tenth of all time
gc.set_threshold(100_000)
mnist.load = functools.cache(mnist.load)  # the four files are checked and unpacked once, not once a test


def one_image(mu, alpha_bar):
    """The ideal denoiser of a data set that is the one image mu: ε = (x_t − √ᾱ_t μ) / √(1 − ᾱ_t)."""
    return lambda x_t, t: (predict_eps(x_t, mu, alpha_bar[t]), None)


def gaussian(var, alpha_bar, v=None):
    """The ideal denoiser of N(0, var) data: ε = √(1 − ᾱ) / (ᾱ var + 1 − ᾱ) x_t. A formula of its own, not the
    library's."""

    def denoise(x_t, t):
        a = float(alpha_bar[t])
        return (1 - a) ** 0.5 / (a * var + 1 - a) * x_t, None if v is None else torch.full_like(x_t, v)

    return denoise


def impulses(count):
    """Draws for an impulse response: draw i is 1 in batch row i and 0 elsewhere. A linear walk's output variance is
    then the sum of squares."""
    rows = iter(torch.eye(count, dtype=torch.float64))
    return lambda like: next(rows)[:, None, None, None].clone()


@pytest.fixture
def mu():
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1


@pytest.fixture
def x_T():
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def refused(capsys):
    """refused(script, arguments, says): the script exits with code 2, and says this in one line."""

    def check(script, arguments, says):
        assert script.main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1

    return check


@pytest.fixture
def _no_preview(monkeypatch):
    """Training without its sample grids, which take longer than a short run."""
    monkeypatch.setattr("minidiff.digit_tasks.preview", lambda net, settings: Image.new("L", (1, 1)))


@pytest.fixture
def two_processes():
    """two_processes(command): runs a script as `torchrun --nproc_per_node=2` does, without its own seconds; both end
    well."""

    def run(*command):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        how = {
            "stderr": subprocess.PIPE,
            "stdout": subprocess.DEVNULL,
            "text": True,
            "cwd": Path(__file__).parent.parent,
        }
        command = [sys.executable, *map(str, command)]
        processes = [subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, **how) for rank in "01"]
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said

    return run
