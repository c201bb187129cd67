"""Ideal denoisers of a 1000-level schedule, and images: what the tests of combinators and editors are made of."""

import conftest
import torch

from minidiff.schedule import linear

T = 1000
ALPHA_BAR = linear(T)


def one_image(mu, v=None):
    """The ideal denoiser when the data are the one image mu, with a v of its own."""
    ideal = conftest.one_image(torch.as_tensor(mu), ALPHA_BAR)
    return lambda x_t, t: (ideal(x_t, t)[0], v)


def gaussian_data(var):
    """The ideal denoiser when pixels are N(0, var). It is linear, so variances can be followed."""
    return conftest.gaussian(var, ALPHA_BAR)


def images(*shape, seed=0):
    """Random pixels in [-1, 1], float64."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
