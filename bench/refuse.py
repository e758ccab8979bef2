"""The row refuse: what a message that is not accepted costs whoever receives it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from xxhash import xxh3_64_intdigest

import gcext

from .case import Case, Setting
from .timing import Variant


def refuse(setting: Setting, compiled: bool) -> Case:
    """A message that is wrong after its last field, so all of it is checked.

    Also those that are refused sooner: for their checksum, their shape, their cost. The baseline is
    to decode the right one; the floor is the checksum of its bytes.
    """
    tensor = torch.randn(setting.n, generator=setting.generator())
    message = gcext.stc(tensor, setting.p).to_bytes()
    shape = (setting.n,)
    body = message[:-8]
    longer = body + b"\0"
    wrong: dict[str, tuple[bytes, dict[str, Any]]] = {
        "length": (longer + xxh3_64_intdigest(longer).to_bytes(8, "little"), {"expect": shape}),
        "checksum": (body + bytes(8), {"expect": shape}),
        "expect": (message, {"expect": (setting.n + 1,)}),
        "budget": (message, {"budget": gcext.Budget(work=1)}),
    }
    ours, *also = (
        Variant("gcext" if code == "length" else code, partial(_code, *each), partial(_is, code))
        for code, each in wrong.items()
    )
    decode = partial(gcext.Packet.from_bytes, message, expect=shape)
    floor = Variant(
        "floor",
        partial(xxh3_64_intdigest, body),
        lambda got: "" if got.to_bytes(8, "little") == message[-8:] else "another checksum",
        does="xxh3_64 of the bytes",
    )
    facts = {"bytes": len(message), "bound_ms": 0.01 + 1e-6 * len(message)}
    return Case("refuse", setting, ours, (Variant("decode", decode),), floor, tuple(also), facts)


def _code(message: bytes, arguments: dict[str, Any]) -> str:
    try:
        gcext.Packet.from_bytes(message, **arguments)
    except gcext.DecodeError as error:
        return error.code
    return "accepted"


def _is(code: str, got: str) -> str:
    return "" if got == code else f"must be {code}, got {got}"
