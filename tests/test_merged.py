"""Merged packets: the very parts come back, and the value is their exact sum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy_decoder as reference
import pytest
import wire_bodies as wire
from wire_kit import assert_equal, assert_same_as_reference, golden, ternary


@pytest.mark.parametrize(
    ("parts", "numel", "k"), [(2, 50, 20), (5, 3000, 900), (64, 20_000, 300), (130, 700, 60)]
)
def test_merge_is_lossless_and_its_value_the_exact_sum(parts: int, numel: int, k: int) -> None:
    rng = np.random.default_rng(parts)
    packets = [
        wire.unpack(wire.pack(ternary(rng, numel, k, float(np.float32(s)))))
        for s in rng.lognormal(0, 3, parts)
    ]
    merged = wire.merge(packets)
    message = wire.pack(merged)
    back = wire.unpack(message)
    assert_equal(merged, back)
    for one, other in zip(packets, wire.unmerge(back), strict=True):
        assert wire.pack(one) == wire.pack(other)
    total: dict[int, list[float]] = {}
    for packet in packets:
        for i, v in zip(packet.index.tolist(), packet.value.tolist(), strict=True):
            total.setdefault(i, []).append(v)
    assert back.index.tolist() == sorted(total)
    expected = np.array([math.fsum(total[i]) for i in sorted(total)]).astype(np.float32)
    assert np.array_equal(back.value, expected)
    assert_same_as_reference(back, reference.decode(message))


def test_merge_rounds_once() -> None:
    # 1 + 2^-24 is a tie that goes down to 1; with 2^-60 more it goes up. Doubles would give 1.
    scales = (1.0, 2.0**-24, 2.0**-60)
    one = np.array([0], np.int32)
    packets = [
        wire.Body("ternary", (1,), index=one, value=np.array([s], np.float32), scale=s)
        for s in scales
    ]
    assert wire.merge(packets[:2]).value.tolist() == [1.0]
    assert wire.merge(packets).value.tolist() == [1.0 + 2.0**-23]
    least = float(np.float32(1e-45))
    tiny = [
        wire.Body("ternary", (1,), index=one, value=np.array([least], np.float32), scale=least)
    ] * 3
    assert wire.merge(tiny).value.tolist() == [3 * least]


def test_merge_refuses() -> None:
    rng = np.random.default_rng(0)
    a, b = ternary(rng, 50, 5), ternary(rng, 60, 5)
    value = np.array([3e38], np.float32)
    huge = wire.Body("ternary", (1,), index=np.array([0], np.int32), value=value, scale=3e38)
    for text, packets in {
        "at least 2": [a],
        "one shape": [a, b],
        "must be ternary": [a, wire.unpack(golden("valid", "dense-0d"))],
        "must be finite": [huge, huge],
    }.items():
        with pytest.raises(ValueError, match=text):
            wire.merge(packets)
    none = wire.Body("ternary", (2**62,), index=np.array([], np.int64), value=value[:0])
    with pytest.raises(ValueError, match=rf"below 2\^63, got {2**62} times 2\. Merge fewer"):
        wire.merge([none, none])
    fits = replace(none, shape=(2**62 - 1,))
    assert len(wire.unmerge(wire.merge([fits, fits]))) == 2
    with pytest.raises(ValueError, match="must be merged"):
        wire.unmerge(a)


def test_denormals_are_kept_in_flush_mode() -> None:
    torch = pytest.importorskip("torch")
    least = float(np.float32(1e-45))
    one = np.array([0], np.int32)
    body = wire.Body("ternary", (1,), index=one, value=np.array([least], np.float32), scale=least)
    message = wire.pack(body)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor has no flush mode")
        again, back = wire.pack(body), wire.unpack(message)
        merged = wire.pack(wire.merge([body, body]))
        parts = wire.unmerge(wire.unpack(merged))
    finally:
        torch.set_flush_denormal(False)
    assert again == message
    assert back.scale == least
    assert wire.unpack(merged).value.view(np.uint32).tolist() == [2]
    assert [wire.pack(part) for part in parts] == [message, message]


def test_a_merged_body_is_validated_in_a_group_too() -> None:
    body = wire.Body(
        "ternary", (4,), index=np.array([2], np.int32), value=np.ones(1, np.float32), scale=1.0
    )
    good = wire.merge([body, body])
    assert good.merged is not None
    scales = np.array([1, 0], np.float32)  # of a part that has a member
    bad = replace(good, merged=replace(good.merged, scales=scales))
    for broken in (bad, wire.Body("group", members=(body, bad))):
        with pytest.raises(ValueError, match=r"must be canonical\. Use merge"):
            wire.pack(broken)
