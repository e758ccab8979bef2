"""Break-even: the link speed below which a data-parallel step is sooner done with a method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch

from gcext._packet.packet import Packet
from gcext._recipes.recipe import recipe

__all__ = ["Breakeven", "breakeven", "parse_rate"]

SPECS = (
    "fp16",
    "int8",
    "qsgd:bits=3",
    "sign:feedback=true",
    "stc:p=0.1",
    "stc:p=0.01",
    "stc:p=0.001",
)
MOST = 4_000_000  # elements that are measured; of more, the times are scaled

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}


class Breakeven(NamedTuple):
    """What one method does to the exchange of a step's gradients.

    Attributes:
        spec: of the recipe.
        nbytes: of each rank's message, or of what is all-reduced, at the number of parameters
            asked for.
        encode_ms: to compress and pack a rank's own gradients.
        decode_ms: to unpack the messages of all ranks and take their mean.
        megabits: link speed in Mbit/s below which the exchange is sooner done than a ring
            all-reduce of float32; 0 where it never is.
        seconds: of an exchange over the link asked for, coding included; 0.0 where none was.
        speedup: of the ring all-reduce's seconds over these; 0.0 where no link was asked for.
    """

    spec: str
    nbytes: int
    encode_ms: float
    decode_ms: float
    megabits: float
    seconds: float
    speedup: float


def parse_rate(text: str) -> float:
    """Return bit/s of ``10M``, ``10Mbit`` or ``1G``, decimal units as of networks.

    Raises ValueError for anything else, or less than 1 kbit/s.

    >>> parse_rate("1Gbit"), parse_rate("2.5M")
    (1000000000.0, 2500000.0)
    """
    short = text.strip().removesuffix("bit").upper()
    try:
        rate = float(short[:-1]) * _UNITS[short[-1:]]
    except (KeyError, ValueError):
        rate = 0.0
    if not 1e3 <= rate < float("inf"):
        raise ValueError(
            f"rate must be a number with K, M or G, at least 1K, got {text!r}. Write 10M or 1G."
        )
    return rate


def ring_bytes(nbytes: float, ranks: int) -> float:
    """Return what each rank of a ring all-reduce sends."""
    return 2 * (ranks - 1) / ranks * nbytes


def breakeven(
    params: int,
    link: float | None = None,
    ranks: int = 2,
    specs: Sequence[str] | None = None,
    repeat: int = 5,
) -> list[Breakeven]:
    """Measure methods on this machine, and return where each pays, least bytes first.

    The model, of N ranks, n parameters and messages of b bytes, over links of B bit/s:

        float32:  2 (N-1)/N 32n/B        a method:  (N-1) 8b/B + encode + decode

    The first is a ring all-reduce, the second the all-gather of packets that ``gcext.ddp`` uses
    (fp16 and bf16 of more than two ranks are all-reduced in 16 bits, 16n in place of 32n); neither
    hides behind the backward pass here, and latency is left out. Gradients are normal, with
    a residual where the method keeps one. Above 4 million parameters a part is measured, and times
    and bytes are scaled.

    Args:
        params: parameters of the model.
        link: bit/s of each rank's link, for the seconds of a step's exchange.
        ranks: that exchange, at least 2.
        specs: of recipes; None: a choice of them.
        repeat: times that each is measured; the median counts.

    Raises ValueError for arguments out of range or a recipe that works by tensor, and what
    ``gcext.recipe`` raises.

    >>> import gcext
    >>> row = gcext.breakeven(100_000, specs=["stc:p=0.01"], link=1e6)[0]
    >>> row.spec, row.nbytes < 2000, row.speedup > 10
    ('stc:p=0.01', True, True)
    """
    for name, value, least in (("params", params, 1), ("ranks", ranks, 2), ("repeat", repeat, 1)):
        if value < least:
            raise ValueError(f"breakeven: {name} must be at least {least}, got {value}.")
    if link is not None and not 0 < link < float("inf"):
        raise ValueError(f"breakeven: link must be positive bit/s, got {link}.")
    part = min(params, MOST)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(part, generator=generator) for _ in range(repeat + 1)]
    plain = 8 * ring_bytes(4 * params, ranks)
    rows = []
    for spec in SPECS if specs is None else specs:
        made = recipe(spec)
        if made.by_tensor:
            raise ValueError(
                f"breakeven: {spec} must work on flat tensors; its bytes depend on the model's "
                "shapes. Measure it with gcext.advise, or `python -m bench link`."
            )
        sender, message = made.up.sender(0), b""
        encode, decode = [], []
        dtype = made.up.reduced(ranks)
        for gradient in gradients:
            begun = time.perf_counter()
            if dtype is None:
                message = sender.compress(gradient, "model").to_bytes()
            else:
                summed = gradient.to(dtype)
            between = time.perf_counter()
            if dtype is None:
                packets = {
                    rank: Packet.from_bytes(message, expect=gradient.shape) for rank in range(ranks)
                }
                made.up.receiver().aggregate(packets, losses=dict.fromkeys(packets, 1.0))
            else:
                summed.float().div_(ranks)
            encode.append(between - begun)
            decode.append(time.perf_counter() - between)
        scale = params / part
        coding = scale * (median(encode[1:]) + median(decode[1:]))  # the first has fresh memory
        nbytes = scale * (len(message) if dtype is None else part * dtype.itemsize)
        sent = 8 * ((ranks - 1) * nbytes if dtype is None else ring_bytes(nbytes, ranks))
        seconds = 0.0 if link is None else sent / link + coding
        rows.append(
            Breakeven(
                spec,
                round(nbytes),
                1e3 * scale * median(encode[1:]),
                1e3 * scale * median(decode[1:]),
                max(0.0, (plain - sent) / coding / 1e6),
                seconds,
                0.0 if link is None else plain / link / seconds,
            )
        )
    return sorted(rows, key=lambda row: row.nbytes)
