"""Which rows there are, and which of them each entry of the command line makes."""

from __future__ import annotations

from collections.abc import Callable

from bench import codes, server, stc, vote
from bench.case import Case, Setting

Maker = Callable[[Setting, bool], Case]

ROWS: dict[str, Maker] = {
    "stc": stc.stc,
    "stc-ef": stc.stc_ef,
    "stc-plain": stc.stc_plain,
    "stc-wire": stc.stc_wire,
    "select": stc.select,
    "rice": codes.rice,
    "bits-pack": codes.bits_pack,
    "bits-unpack": codes.bits_unpack,
    "combine": server.combine,
    "gram": server.gram,
    "vote": vote.vote,
}

ENTRIES: dict[str, tuple[str, ...]] = {
    "stc": ("stc", "stc-ef", "stc-plain", "stc-wire"),
    "select": ("select",),
    "rice": ("rice",),
    "bits": ("bits-pack", "bits-unpack"),
    "combine": ("combine",),
    "gram": ("gram",),
    "vote": ("vote",),
    "all": tuple(ROWS),
}

HELP = {
    "stc": "Sparse ternary compression whole: in place, two slots, without memory, and as bytes.",
    "select": "The fused accumulate and exact top-k alone.",
    "rice": "Sorted indices to Rice-coded gaps, against NumPy.",
    "bits": "Fixed-width planes, to bytes and back, against NumPy.",
    "combine": "The weighted sum of m packets.",
    "gram": "All dot products of m packets.",
    "vote": "The majority of m packets of signs.",
    "all": "Every row.",
}
