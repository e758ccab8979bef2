"""The operator bin_means: schema and refusals; tests/test_sparseloco.py has what it computes."""

from __future__ import annotations

import pytest
import torch

import gcext  # noqa: F401 - loads the operators

bin_means = torch.ops.gcext.bin_means.default


def test_op_passes_opcheck_and_refuses_what_does_not_fit() -> None:
    index, value = torch.tensor([1, 5, 7], dtype=torch.int32), torch.randn(3)
    info = torch.tensor([3, 0, 0, 0])
    torch.library.opcheck(bin_means, (index, value, info, torch.zeros(9), 2, 6.0))
    torch.library.opcheck(bin_means, (index, value, info, None, 8, 1.0))

    def refused(match: str, *args: object) -> None:
        with pytest.raises(RuntimeError, match=match):
            bin_means(*args)

    refused("bits must be in", index, value, info, None, 9, 6.0)
    refused("range must be", index, value, info, None, 2, 0.0)
    refused("index must name every value", index[:2], value, info, None, 2, 6.0)
    refused("info must be of these values", index, value, info + 1, None, 2, 6.0)
    refused("within out", index, value, info, torch.zeros(7), 2, 6.0)
    refused("wrong dtype", index, value.double(), info, None, 2, 6.0)
