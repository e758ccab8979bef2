"""What a caller may expect of a packet, and the error where it is not met."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy_decoder as reference
import pytest
import wire_bodies as wire
from wire_kit import golden, peak_growth, seal

from gcext._packet.errors import DecodeError

MIB = 1 << 20


def test_expected_shapes() -> None:
    single, group = golden("valid", "ternary-float32"), golden("valid", "group-3")
    wire.unpack(single, expect_shape=(20, 30))
    wire.unpack(single, expect_shape=[20, 30])
    wire.unpack(group, expect_shape=[(16, 3, 3, 3), (10,), (2,)])
    wire.unpack(golden("valid", "ternary-0d"), expect_shape=())
    wrong: list[tuple[bytes, Any, str]] = [
        (single, (600,), "dims"),
        (single, (30, 20), "dims"),
        (single, (), "dims"),
        (single, [(20, 30)], "method"),
        (group, (16, 3, 3, 3), "count"),
        (group, [(16, 3, 3, 3), (10,)], "count"),
        (group, [(16, 3, 3, 3), (10,), (3,)], "members[2].dims"),
    ]
    for message, shape, field in wrong:
        with pytest.raises(DecodeError) as caught:
            wire.unpack(message, expect_shape=shape)
        assert (caught.value.code, caught.value.field) == ("expect", field)
        with pytest.raises(reference.Refused, match="expect"):
            reference.decode(message, shape)


def test_expected_shapes_may_hold_any_integers() -> None:
    single = wire.pack(wire.Body("dense", (3,), value=np.ones(3, np.float32)))
    group = wire.pack(wire.Body("group", members=(wire.unpack(single),)))
    for shape in ((np.int64(3),), np.array([3]), [np.uint8(3)]):
        assert wire.unpack(single, expect_shape=shape).shape == (3,)
        assert wire.unpack(group, expect_shape=[shape]).members[0].shape == (3,)
    assert len(wire.unpack(group, expect_shape=np.array([[3]])).members) == 1


@pytest.mark.parametrize(
    "expect",
    [
        (7, (3,)),
        ((3,), 7),
        "3",
        ("3",),
        b"3",
        3,
        (3.0,),
        (None,),
        np.array([3.0]),
        np.array(3),
        {3},
    ],
)
def test_what_is_no_shape_is_named(expect: Any) -> None:
    message = wire.pack(wire.Body("dense", (3,), value=np.ones(3, np.float32)))
    for sent in (message, wire.pack(wire.Body("group", members=(wire.unpack(message),)))):
        with pytest.raises(ValueError, match=r"must be a shape.*, got .*\. Pass") as caught:
            wire.unpack(sent, expect_shape=expect)
        assert not isinstance(caught.value, DecodeError)


@pytest.mark.parametrize("dim", [2**63, 2**70, -(2**70), -1])
def test_a_dimension_that_no_packet_can_have_is_never_met(dim: int) -> None:
    message = wire.pack(wire.Body("dense", (3,), value=np.ones(3, np.float32)))
    with pytest.raises(DecodeError) as caught:
        wire.unpack(message, expect_shape=(dim,))
    assert (caught.value.code, caught.value.field) == ("expect", "dims")
    with pytest.raises(DecodeError) as caught:
        wire.unpack(message[:-1], expect_shape=(dim,))
    assert caught.value.code == "checksum"


def test_an_unmet_expectation_names_what_was_wanted_and_what_was_found() -> None:
    single, group = golden("valid", "ternary-float32"), golden("valid", "group-3")
    texts: list[tuple[bytes, Any, str]] = [
        (single, (600,), "must be (600,), as the caller expects, got (20, 30)."),
        (single, (), "must be (), as the caller expects, got (20, 30)."),
        (single, (2**70,), "must be (beyond 64 bits,), as the caller expects, got (20, 30)."),
        (single, [(20, 30)], "must be a group of 1, as the caller expects, got a single packet."),
        (group, (10,), "must be a single packet, as the caller expects, got a group of 3."),
        (group, [(10,)], "must be a group of 1, as the caller expects, got a group of 3."),
        (group, [(16, 3, 3, 3), (7,), (2,)], "must be (7,), as the caller expects, got (10,)."),
    ]
    for message, shape, text in texts:
        with pytest.raises(DecodeError, match=re.escape(text)):
            wire.unpack(message, expect_shape=shape)


def test_a_group_of_many_members_is_refused_by_its_count() -> None:
    count = 200_000  # empty dense members of three bytes
    body = b"\x05" + bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    message = seal(b"\x89GCX\x01" + body + b"\x01\x01\x00" * count + bytes(8))

    def refused() -> None:
        for expect, field in (([(0,)] * 3, "count"), ((0,), "count")):
            with pytest.raises(DecodeError) as caught:
                wire.unpack(message, expect_shape=expect)
            assert (caught.value.code, caught.value.field) == ("expect", field)

    refused()
    assert peak_growth(refused) < MIB
    assert len(wire.unpack(message).members) == count
