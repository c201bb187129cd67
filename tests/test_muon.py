"""Muon against its definition: singular values, the update written out, which weights it is for."""

import torch
from torch.testing import assert_close

from minidiff.muon import Muon, matrices, orthogonal
from minidiff.networks.if_unet import IFUNet
from minidiff.text_model import unet_config


def test_all_singular_values_become_about_one_and_the_directions_stay():
    u = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    for matrix in (u, u.mT):
        found = torch.linalg.svdvals(orthogonal(matrix).float())
        assert float(found.min()) > 0.6
        assert float(found.max()) < 1.3
    a, _, b = torch.linalg.svd(u[0], full_matrices=False)
    assert float((orthogonal(u)[0].float() * (a @ b)).sum() / 20) > 0.8  # the mean of its singular values, along A Bᵀ


def test_a_step_is_the_update_written_out():
    """Two steps of convolutions and a linear layer; each matrix on its own, with the momentum of the step before."""
    g = torch.Generator().manual_seed(2)
    weights = [torch.nn.Parameter(torch.randn(*shape, generator=g)) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (6, 16))]
    wanted, momentum = [w.detach().clone() for w in weights], [torch.zeros_like(w) for w in weights]
    muon = Muon(weights, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        for k, w in enumerate(weights):
            w.grad = torch.randn(w.shape, generator=g)
            momentum[k] = 0.95 * momentum[k] + 0.05 * w.grad
            u = 0.95 * momentum[k] + 0.05 * w.grad
            rows, columns = len(w), w[0].numel()
            step = orthogonal(u.reshape(1, rows, columns)).float().reshape(w.shape)
            wanted[k] = wanted[k] * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(rows, columns) ** 0.5 * step
        muon.step()
    for w, expected in zip(weights, wanted):
        assert_close(w.detach(), expected, rtol=0.02, atol=0.02)  # bfloat16, and another order of the columns


def test_muon_is_for_the_matrices_inside():
    settings = {
        "widths": [32, 32],
        "attends": [False, True],
        "cross": 32,
        "head_dim": 16,
        "groups": 8,
        "size": 16,
        "d_model": 32,
        "heads": 4,
        "depth": 1,
    }
    unet = IFUNet(unet_config(settings, second=False))
    theirs = {id(p) for p in matrices(unet)}
    named = {name: id(p) in theirs for name, p in unet.named_parameters()}
    assert named["mid_block.resnets.0.conv1.weight"] and named["encoder_hid_proj.weight"]
    assert not any(
        named[name]
        for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias", "add_embedding.pool.positional_embedding")
    )
