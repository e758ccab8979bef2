"""Counts by tiles of bytes: from 64 packets on, where the processor has them, against integers."""

import numpy as np
import pytest
import torch

import gcext


@pytest.mark.parametrize("m", [63, 64, 65, 95, 96, 130])
@pytest.mark.parametrize("numel", [1, 64, 1023, 8192 + 1024 + 65])
def test_counts_are_the_integers(m: int, numel: int) -> None:
    """Panels half full, chunks of words begun, planes filled more than once; some packets empty."""
    rng = np.random.default_rng(m * numel)
    signs = rng.integers(-1, 2, (m, numel)) * (np.arange(m) % 7 > 0)[:, None]
    scale = np.float32(rng.uniform(0.5, 2, m))
    codec = gcext.codec("stc:p=1")
    packets = [
        codec.encode(torch.from_numpy(row.astype(np.float32) * s))
        for row, s in zip(signs, scale, strict=True)
    ]
    mu = np.array([packet.scale for packet in packets])
    assert np.array_equal(gcext.gram(packets).numpy(), mu[:, None] * mu * (signs @ signs.T))
