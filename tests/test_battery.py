"""Every lesson draws what it drew before the rebuilding."""

import json

import pytest
import torch
from battery import COMMANDS, FILE, arrays_of, digest, machine

WRITTEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_arrays_of_a_command_are_those_written_down(name):
    wanted, found = WRITTEN["commands"][name], {k: digest(v) for k, v in arrays_of(COMMANDS[name]).items()}
    assert found.keys() == wanted.keys()
    for k in wanted:
        assert found[k]["shape"] == wanted[k]["shape"], k
        torch.testing.assert_close(
            torch.tensor(found[k]["values"]), torch.tensor(wanted[k]["values"]), rtol=0, atol=1e-3
        )
        if machine() == WRITTEN["machine"]:
            assert found[k]["sha256"] == wanted[k]["sha256"], f"{k}: other bits"
