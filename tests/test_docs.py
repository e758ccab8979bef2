"""What the documents show is run."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest

from gcext._codecs.registry import _CODECS

DOCS = Path(__file__).parents[1] / "docs"


def test_adding_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gcext._codecs.registry"], "_CODECS", dict(_CODECS))
    done = doctest.testfile(str(DOCS / "adding-a-method.md"), module_relative=False)
    assert done.attempted > 10 and not done.failed
