"""Codecs on CPU tensors as they are on a GPU: CUDA's kernels, deferred packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from emu import adacomp, bin_means, encode_codes, natural, quantize, select_chunks
from emu import dct as emulated_dct
from emu import sketch as emulated_sketch
from emu import threshold as emulated_threshold
from emu import wangni as emulated_wangni
from emu.backends import POISON
from emu.select import Emu, Schedule
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gcext import Packet
from gcext._codecs.base import Codec, Scope
from gcext._codecs.input import CodecInput
from gcext._native import chunks, dct, lists, ops, sketch, threshold, wangni
from gcext._native import encode_codes as codes_kernel
from gcext._native import natural as natural_ops
from gcext._native.codes import TABLES


@dataclass(frozen=True)
class DeferredCodec(Codec):
    """The codec ``of``, on a GPU."""

    of: Codec

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.of.name

    @property
    def spec(self) -> str:
        return self.of.spec

    @property
    def stochastic(self) -> bool:
        return self.of.stochastic

    @property
    def contracts(self) -> bool:  # type: ignore[override]
        return self.of.contracts

    def contraction(self, n: int) -> float:
        return self.of.contraction(n)

    @property
    def defers_residual(self) -> bool:
        return self.of.defers_residual

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        with on_a_gpu(), NoSynchronization():
            return self.of.encode_input(acc, seed)

    def encode_inputs(
        self, accs: Sequence[CodecInput], seeds: Sequence[int], scope: Scope = "tensor"
    ) -> list[Packet]:
        there = [acc._replace(tensor=acc.tensor.as_subclass(OnDevice)) for acc in accs]
        with on_a_gpu(), NoSynchronization():
            return self.of.encode_inputs(there, seeds, scope)


class OnDevice(Tensor):
    """A tensor that passes for one on a GPU where is_cuda is asked."""

    is_cuda = True


class NoSynchronization(TorchFunctionMode):
    """Raises where a GPU would be synchronized: where the host reads a tensor's contents."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__"), name
        return func(*args, **(kwargs or {}))


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Put the emulated kernels under the codecs. Polar codes keep the CPU's, which never wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "select", _device(_select))
        patch.setattr(lists, "select_many", _device(_select_many))
        patch.setattr(chunks, "select_chunks", _device(_select_chunks))
        patch.setattr(chunks, "adacomp", _device(_adacomp))
        patch.setattr(chunks, "bin_means", _unguarded(_bin_means))
        patch.setattr(ops, "sign", _device(_sign))
        patch.setattr(ops, "levels", _device(_levels))
        patch.setattr(natural_ops, "natural", _device(_natural))
        patch.setattr(codes_kernel, "encode_codes", _device(_encode_codes))
        patch.setattr(sketch, "sketch", _device(_sketch))
        patch.setattr(dct, "dct_select", _device(_dct_select))
        patch.setattr(threshold, "threshold", _device(_threshold))
        patch.setattr(wangni, "wangni", _device(_wangni, infos=2))
        yield


def _device(kernel: Callable[..., Any], infos: int = 1) -> Callable[..., Any]:
    """Let the emulator read contents, as a device does. infos: how many come last."""

    def run(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            made = kernel(*args)
            heads = (info.as_subclass(OnDevice) for info in made[-infos:])
            return *made[:-infos], *heads

    return run


def _unguarded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Let the emulator read contents, of a kernel that has no info of its own."""

    def run(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return kernel(*args)

    return run


_HOW = Schedule(tiny=0)


def _select(
    tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int, a: float, b: float,
    ternary: bool, sent: Tensor | None = None, next: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return Emu(_HOW).select(tensor, memory, out, k, a, b, ternary, False, sent, next)


def _select_many(
    tensor: list[Tensor], memory: list[Tensor], out: list[Tensor], k: list[int],
    a: float, b: float, ternary: bool, sent: Sequence[Tensor] = (), next: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    none, rest = [None] * len(tensor), (k, a, b, ternary, False, sent, next)
    got = Emu(_HOW).select_many(tensor, memory or none, out or none, *rest)
    index, value, info = zip(*got, strict=True)
    return torch.cat(index), torch.cat(value), torch.stack(info)


def _select_chunks(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return select_chunks.Emu().select_chunks(tensor, *rest)


def _adacomp(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if tensor.numel() == 0:  # nothing is launched
        return torch.ops.gcext.adacomp(tensor, *rest)
    return adacomp.Emu().adacomp(tensor, *rest)


def _threshold(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if tensor.numel() == 0:
        return torch.ops.gcext.threshold(tensor, *rest)
    return emulated_threshold.Emu().threshold(tensor, *rest)


def _wangni(tensor: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if tensor.numel() == 0:
        return torch.ops.gcext.wangni(tensor, *rest)
    return emulated_wangni.Emu().wangni(tensor, *rest)


def _bin_means(*args: Any) -> tuple[Tensor, Tensor]:
    return bin_means.Emu().bin_means(*args)


def _sign(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if tensor.numel() == 0:  # nothing is launched
        return torch.ops.gcext.sign(tensor, *rest)
    return quantize.Emu().sign(tensor, *rest)


def _encode_codes(
    tensor: Tensor, memory: Any, out: Any, decay: float, table: str, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    source = tensor, memory, out, decay, TABLES.index(table)
    if tensor.numel() == 0:
        return torch.ops.gcext.encode_codes(*source, *rest)
    return encode_codes.Emu().encode_codes(*source, *rest)


def _sketch(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if tensor.numel() == 0:
        return torch.ops.gcext.sketch(tensor, *rest)
    return emulated_sketch.Emu().sketch(tensor, *rest)


def _dct_select(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if tensor.numel() == 0:
        return torch.ops.gcext.dct_select(tensor, *rest)
    index, value, info = emulated_dct.Emu().dct_select(tensor, *rest)
    missing = (0, tensor.numel() - index.numel())  # the operator allocates more, too
    pad = torch.nn.functional.pad
    return pad(index, missing, value=POISON), pad(value, missing, value=float(POISON)), info


def _levels(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = tensor.numel()
    if n == 0:
        return torch.ops.gcext.levels(tensor, *rest[:-1], ops.signed(rest[-1]))
    norms, at, level, info = quantize.Emu().levels(tensor, *rest)
    missing = (0, n - at.numel())  # the operator allocates all elements
    pad = torch.nn.functional.pad
    return norms, pad(at, missing, value=POISON), pad(level, missing, value=POISON), info


def _natural(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if tensor.numel() == 0:
        return torch.ops.gcext.natural(tensor, *rest)
    return natural.Emu().natural(tensor, *rest)
