"""Three decoders, one answer: ``python tests/fuzz/differential.py --seconds 60``.

Each message, right or wrong, goes to the C++ decoder (below Python and through it), to the NumPy
decoder that the format's page was made into, and to the CUDA kernels on the CPU. All must agree on
acceptance and the error's code, on the arrays, and, bit for bit, on the values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy_decoder as reference
import numpy_values
import wire_bodies as wire
from emu import codes, dct, natural, quantize, rice, sketch
from emu.backends import same_bits
from fuzz.run import build, inputs_of
from wire_kit import assert_same_as_reference, seal

import gcext
from gcext._packet.device import MOST
from gcext._packet.errors import DecodeError

SMALL = 600  # elements whose values are compared one by one
OPS: Any = torch.ops.gcext


def messages(seed: int, count: int, target: str) -> Iterator[tuple[str, bytes]]:
    """Yield what the C++ decoder answers, and the message, sealed."""
    command = [str(build("asan")), target, "--seed", str(seed), "--emit", str(count)]
    done = subprocess.run(
        [*command, *inputs_of(target)], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        verdict, text = line.split(" ")
        yield verdict, seal(bytes.fromhex(text) + bytes(8))


def answer(decode: Any, message: bytes) -> tuple[str, Any]:
    try:
        return "ok", decode(message)
    except (DecodeError, reference.Refused) as error:
        return str(error.code), None


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def check_values(body: wire.Body, read: dict[str, Any]) -> int:
    """Hold the values of a small packet against NumPy's, and CUDA's operators against the CPU's."""
    numel = int(np.prod(body.shape, dtype=object))
    if numel > SMALL or body.method == "group":
        return 0
    if read["method"] > 5 and read.get("block", 0) <= 256:
        index, value = numpy_values.pairs(read)
        dense = np.zeros(numel, np.float32)
        dense[index] = value
        whole: Any = gcext.Packet.from_bytes(wire.pack(body)).to_dense()
        got = whole.flatten().numpy()
        assert (got == dense).all(), "values"
    pair = cuda_and_cpu(body, numel)
    if pair is None:
        return 0
    assert same_bits(*pair), "CUDA's values"
    return 1


def cuda_and_cpu(body: wire.Body, numel: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the values by CUDA's kernel, emulated, and by the CPU's, where both have one."""
    code = body.code
    arguments: tuple[Any, ...]
    k = body.index.k if isinstance(body.index, wire.Drawn) else None
    if body.method == "codes":
        table, width, bucket, scales, bits = code
        n = numel if body.index is None else len(body.index) if k is None else k
        tables = ["values", "uniform", "dynamic8", "float16", "bfloat16"]
        arguments = tensor(bits), tensor(scales), n, tables.index(table), width, bucket
        return codes.make("emu").code_values(*arguments), OPS.code_values(*arguments)
    if body.method == "powers":
        scale, power = code
        return (
            natural.make("emu").power_values(tensor(power), scale),
            OPS.power_values(tensor(power), scale),
        )
    if body.method in ("levels", "levels2") and len(code[3]) > 0:
        steps, bucket, norms, at, level = code
        arguments = tensor(norms), tensor(at), tensor(level), bucket, steps
        return quantize.make("emu").level_values(*arguments), OPS.level_values(*arguments)
    if body.method == "sketch":
        rows, cols, seed, table = code
        signed = seed - 2**64 if seed >= 2**63 else seed
        arguments = tensor(table), None, numel, rows, cols, signed
        return sketch.make("emu").sketch_query(*arguments), OPS.sketch_query(*arguments)
    if body.method == "dct" and numel > 0:
        rows, cols, block, _, index, value, *_ = code
        arguments = tensor(index), tensor(value), rows, cols, block
        return dct.make("emu").dct_values(*arguments), OPS.dct_values(*arguments)
    return None


def check_device(message: bytes, body: wire.Body | None) -> int:
    """Hold what CUDA's kernel makes of the ternary packets against the host's answer."""
    try:
        closed = wire.locate(message)
    except DecodeError:
        assert body is None, "refused for a device, accepted for the host"
        return 0
    members = closed.members if closed.method == "group" else (closed,)
    left = [(i, m) for i, m in enumerate(members) if isinstance(m.encoded, wire.Located)]
    if not left or sum(m.encoded.k for _, m in left) > 20_000:
        return 0
    places = []
    for _, member in left:
        k, begin, end, remainder_bytes, scale, _ = member.encoded
        numel = int(np.prod(member.shape, dtype=object))
        places.append(rice.Located(begin, end, remainder_bytes, k, numel, scale))
    if any(place.numel > MOST for place in places):  # opened on the host
        return 0
    wide = any(place.numel >= 2**31 for place in places)
    emulator = rice.make("emu")
    assert isinstance(emulator, rice.Emu)
    opened = emulator.unpack(message, places, wide)
    assert (body is None) or not any(got.wrong for got in opened), "flagged by the device alone"
    if body is None:
        assert any(got.wrong for got in opened), "accepted by the device alone"
        return 1
    whole = body.members if body.method == "group" else (body,)
    for (i, _), got in zip(left, opened, strict=True):
        assert got.index.tolist() == whole[i].index.tolist(), "indices"
        assert got.value.numpy().tobytes() == whole[i].value.tobytes(), "values"
    return 1


def check(verdict: str, message: bytes, counts: Counter[str]) -> None:
    """One message; AssertionError where two disagree."""
    code, body = answer(wire.unpack, message)
    other, read = answer(reference.decode, message)
    assert verdict == code == other, (verdict, code, other)
    counts[code] += 1
    counts["device"] += check_device(message, body)
    if body is not None:
        assert wire.pack(body) == message, "pack(unpack(m)) is not m"
        assert_same_as_reference(body, read)
        counts["values"] += check_values(body, read)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    end, seed, total = time.time() + options.seconds, options.seed, 0
    while time.time() < end:
        for target in ("decode", "merge"):
            for verdict, message in messages(seed, 500, target):
                try:
                    check(verdict, message, counts)
                except Exception:
                    print(f"seed {seed}: {message.hex()}", file=sys.stderr)
                    raise
                total += 1
        seed += 1
    print(json.dumps({"messages": total, "seeds": seed - options.seed, **counts}))


if __name__ == "__main__":
    main()
