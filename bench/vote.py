"""The row vote: the majority of m packets of signs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import gcext
from bench import oracle
from bench.case import Case, Setting, Variant


def vote(setting: Setting, compiled: bool) -> Case:
    """Bit-sliced counters against sums of decoded signs; the floor is a new tensor of zeros."""
    generator = setting.generator()
    encode = gcext.codec("sign").encode
    packets = [encode(torch.randn(setting.n, generator=generator)) for _ in range(setting.m)]
    decoded = [packet.to_dense().sign() for packet in packets]
    right = torch.stack(decoded).sum(dim=0).sign().numpy() + 0.0  # small integers: exact

    def check(got: Tensor) -> str:
        return oracle.differs("votes", got.numpy() + 0.0, right)

    by_client = dict(enumerate(packets))
    return Case(
        "vote",
        setting,
        Variant("gcext", partial(gcext.aggregate.Vote().aggregate, by_client), check),
        (
            Variant("sum of decoded", partial(_sum, decoded), check),
            Variant("decode and sum", partial(_decode_and_sum, packets), check),
        ),
        Variant(
            "floor",
            partial(torch.zeros, setting.n),
            lambda got: "zeros: not all" if got.any() else "",
        ),
        "torch.zeros(n)",
        facts={"m": setting.m},
    )


def _sum(decoded: list[Tensor]) -> Tensor:
    """What torch does once the signs are dense float32."""
    out = decoded[0].clone()
    for signs in decoded[1:]:
        out += signs
    return out.sign_()


def _decode_and_sum(packets: list[gcext.Packet]) -> Tensor:
    out = torch.zeros(packets[0].shape)
    for packet in packets:
        out += packet.to_dense().sign_()
    return out.sign_()
