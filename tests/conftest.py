"""Shared fixtures, and the one place that decides what is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# No tests; and a module `select` there would be taken for Python's own.
collect_ignore = ["drill", "emu", "fakegpu", "fuzz"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; where CUDA is demanded, a skip is a failure."""
    if item.get_closest_marker("cuda"):
        import gcext

        why = gcext.build_info()["why_no_cuda"]
        if why and os.environ.get("GCEXT_DEMAND_CUDA") == "1":
            pytest.fail(f"CUDA is demanded but off: {why}")
        if why:
            pytest.skip(why)
    if item.get_closest_marker("large") and os.environ.get("GCEXT_LARGE") != "1":
        pytest.skip("needs 20 GB of memory; set GCEXT_LARGE=1")


@pytest.fixture(autouse=True)
def _torch_as_found() -> Iterator[None]:
    """Every test starts from one seed and leaves torch's thread count as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
