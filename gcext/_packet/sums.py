"""Packets that are sums of packets of one tensor: docs/wire-format.md, "sum"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.codes import Code, Contents, register_code
from gcext._packet.deferred import Deferred

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["MOST_TERMS", "Sum", "make"]

MOST_TERMS = 64  # kMaxTerms of csrc/wire/sum.h
_NO_TERMS = ("group", "merged", "sum", "lowrank", "sketch", "dct")


@register_code
@dataclass(frozen=True, eq=False)
class Sum(Code):
    """The values of several packets of one tensor, added up in float32 in their order.

    terms: 2 to 64 packets of one shape, dtype and device, of any method but _NO_TERMS.
    """

    terms: tuple[Packet, ...]

    method = "sum"

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.terms[0].device

    @cached_property
    def _union(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The union of the terms' elements, rising, and where in it those of each term are.

        None: a term holds every element.
        """
        if any(term.support is None and _is_whole(term.coded) for term in self.terms):
            return None
        listed = [index for term in self.terms if (index := term.places()) is not None]
        union, at = torch.cat(listed).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return union, at.split([len(index) for index in listed])

    @property
    def place(self) -> Tensor | None:
        """See Code. The union of the terms' elements, rising."""
        return None if self._union is None else self._union[0]

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        everywhere = torch.empty(0, dtype=torch.int32, device=self.device)
        union = self._union
        value = ops.new_floats(everywhere, sent if union is None else union[0].numel()).zero_()
        for number, term in enumerate(self.terms):
            index, its = term.entries()
            if union is not None:
                index = union[1][number]
            ops.combine_add_(value, everywhere if index is None else index, its, 1.0)
        return value

    def tensors(self) -> list[Tensor]:
        """See Code."""
        return [each for term in self.terms for each in term.contents.tensors()]

    def map(self, move: Callable[[Tensor], Tensor]) -> Sum:
        """See Code."""
        return Sum(tuple(_with(term, term.contents.map(move)) for term in self.terms))


def _is_whole(coded: Tensor | Code) -> bool:
    """Return whether there is a value for every element of the support."""
    return isinstance(coded, Tensor) or coded.place is None


def make(kind: type[Packet], terms: Sequence[Packet]) -> Packet:
    """Return the sum of packets; it is deferred where they are. See Packet.sum."""
    if not 2 <= len(terms) <= MOST_TERMS:
        raise ValueError(f"Packet.sum: needs 2 to {MOST_TERMS} packets, got {len(terms)}.")
    first = terms[0]
    for term in terms:
        if term.method in _NO_TERMS:
            raise ValueError(f"Packet.sum: a term must not be a {term.method} packet.")
        if (term.shape, term.dtype, term.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                "Packet.sum: packets must have one shape, dtype and device, got "
                f"{first.shape} {first.dtype} on {first.device} and "
                f"{term.shape} {term.dtype} on {term.device}."
            )

    def finish(contents: Sequence[Contents]) -> Contents:
        made = (_with(term, each) for term, each in zip(terms, contents, strict=True))
        return Contents(None, Sum(tuple(made)))

    held = [term.deferred for term in terms]
    waiting = [each for each in held if each is not None]
    if len(waiting) == len(terms) and (deferred := Deferred.of_many(waiting, finish)) is not None:
        return kind("sum", first.shape, first.dtype, deferred=deferred)
    return kind("sum", first.shape, first.dtype, finish([term.contents for term in terms]))


def _with(packet: Packet, contents: Contents) -> Packet:
    return type(packet)(packet.method, packet.shape, packet.dtype, contents)
