"""The cases of ``bench gpu-count``: each CUDA operator as the product calls it, emulated.

A case makes its data, calls one adapter of tests/emu, and returns its floor: the words of 4 bytes
that any implementation must move, outputs and inputs once each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from .gpu import MODEL
from .gpu_kit import Case, Kit
from .gpu_transforms import TRANSFORMS

SHARES = (0.001, 0.01, 0.1)
CHUNK = 4096  # of sparseloco


def _feedback(p: float) -> Case:
    def run(kit: Kit, n: int) -> float:
        emu, k = kit.make("select"), int(p * n)
        old, new = kit.normal(n), kit.zeros(n)
        sent, following = (torch.zeros(3, dtype=torch.int64) for _ in range(2))
        if not kit.dry:  # a step before, so that the residual stands for a sum less what was sent
            emu.select(kit.normal(n), old, new, k, next=sent)
            old, new = new, old
        kit.start()
        emu.select(kit.normal(n), old, new, k, sent=sent, next=following)
        return 3 * n + 2 * k

    return Case("select", f"stc, feedback, p={p}", 10**7, "3n + 2k", run)


def _in_place(p: float) -> Case:
    def run(kit: Kit, n: int) -> float:
        kit.make("select").select(kit.normal(n), None, kit.normal(n), int(p * n))
        return 3 * n + 2 * int(p * n)

    return Case("select", f"stc, in place, p={p}", 10**6, "3n + 2k", run)


def _plain(kit: Kit, n: int) -> float:
    kit.make("select").select(kit.normal(n), None, None, n // 100)
    return n + 2 * (n // 100)


def _tiny(kit: Kit, n: int) -> float:
    n = kit.elements = min(n, 1 << 15)
    kit.make("select").select(kit.normal(n), kit.normal(n), kit.zeros(n), n // 100)
    return 3 * n + 2 * (n // 100)


def _model(kit: Kit, n: int) -> float:
    sizes = [max(size * n // sum(MODEL), 1) for size in MODEL[:160]]
    kit.elements = sum(sizes)
    tensors, memories = ([kit.normal(size) for size in sizes] for _ in range(2))
    slots = [[torch.zeros(3, dtype=torch.int64) for _ in sizes] for _ in range(2)]
    for sent in slots[0]:
        sent[0] = 0x7F800000  # nothing was sent
    kept = [max(size // 100, 1) for size in sizes]
    outs = [kit.zeros(size) for size in sizes]
    kit.make("select").select_many(
        tensors, memories, outs, kept, 1.0, 1.0, True, False, slots[0], slots[1]
    )
    return 3 * sum(sizes) + 2 * sum(kept)


def _rest(kit: Kit, n: int) -> float:
    sent = torch.tensor([0x3F800000, n // 2, -1])
    kit.make("select").select_rest(kit.normal(n), sent)
    return 2 * n


def _combine(kit: Kit, n: int) -> float:
    index, value = kit.packets(20, n, 0.01)
    kit.make("combine").combine(index, value, [0.05] * 20, n)
    return n + 2 * sum(each.numel() for each in index)


def _combine_dense(kit: Kit, n: int) -> float:
    none = torch.empty(0, dtype=torch.int32)
    kit.make("combine").combine([none] * 4, [kit.normal(n) for _ in range(4)], [0.25] * 4, n)
    return 5 * n


def _vote_signs(kit: Kit, n: int) -> float:
    planes = [torch.randint(0, 256, (n // 8,), dtype=torch.uint8) for _ in range(20)]
    kit.make("vote").vote(planes, [], [], 1.0, n)
    return n + 20 * n / 32


def _vote_sparse(kit: Kit, n: int) -> float:
    index, value = kit.packets(20, n, 0.01)
    kit.make("vote").vote([], index, value, 1.0, n)
    return n + 2 * sum(each.numel() for each in index)


def _trimmed_sparse(kit: Kit, n: int) -> float:
    index, value = kit.packets(20, n, 0.1)
    kit.make("robust").trimmed_mean(index, value, 2, n)
    return n + 2 * sum(each.numel() for each in index)


def _median_dense(kit: Kit, n: int) -> float:
    none = torch.empty(0, dtype=torch.int32)
    kit.make("robust").trimmed_mean([none] * 20, [kit.normal(n) for _ in range(20)], 9, n)
    return 21 * n


def _combine_add(kit: Kit, n: int) -> float:
    index, value = kit.packets(1, n, 0.01)
    kit.make("combine").combine_add_(kit.zeros(n), index[0], value[0], 1.0)
    return 4 * index[0].numel()


def _sign_feedback(kit: Kit, n: int) -> float:
    emu = kit.make("quantize")
    sent, following = (torch.zeros(3, dtype=torch.int64) for _ in range(2))
    old, new = kit.normal(n), kit.zeros(n)
    if not kit.dry:
        emu.sign(kit.normal(n), old, new, 1.0, None, sent)
        old, new = new, old
    kit.start()
    emu.sign(kit.normal(n), old, new, 1.0, sent, following)
    return 3 * n + n / 32


def _sign_in_place(kit: Kit, n: int) -> float:
    kit.make("quantize").sign(kit.normal(n), None, kit.normal(n), 1.0)
    return 3 * n + n / 32


def _sign(kit: Kit, n: int) -> float:
    kit.make("quantize").sign(kit.normal(n), None, None, 1.0)
    return n + n / 32


def _levels(kit: Kit, n: int, out: bool, steps: int, bucket: int, *norm: object) -> float:
    there = kit.normal(n) if out else None
    memory = kit.normal(n) if out else None
    norms, at, _, _ = kit.make("quantize", "kQuantizeBlocks").levels(
        kit.normal(n), memory, there, 1.0, steps, bucket, *norm, out, 7
    )
    return float((3 if out else 1) * n + norms.numel() + 1.5 * at.numel())


def _qsgd(kit: Kit, n: int) -> float:
    return _levels(kit, n, False, 15, 512, False, 0.0)


def _qsgd_feedback(kit: Kit, n: int) -> float:
    return _levels(kit, n, True, 15, 512, False, 0.0)


def _terngrad(kit: Kit, n: int) -> float:
    return _levels(kit, n, False, 1, 0, True, 2.5)


def _level_values(kit: Kit, n: int) -> float:
    k = n // 2
    at = kit.zeros(k, torch.int32) if kit.dry else torch.arange(0, 2 * k, 2, dtype=torch.int32)
    norms = kit.normal(-(-n // 512))
    emu = kit.make("quantize", "kDecodeBlocks")
    emu.level_values(norms, at, kit.zeros(k, torch.int16), 512, 15)
    return 2.5 * k + norms.numel()


def _gram(m: int, n: int) -> Case:
    def run(kit: Kit, n: int) -> float:
        index, value = kit.packets(m, n, 0.01)
        kit.make("gram").gram(index, value, [0.5] * m, n)
        return 2 * sum(each.numel() for each in index) + 2 * m * m

    return Case("gram", f"gram, {m} ternary packets, p=0.01", n, "2mk + 2m^2", run)


def _gram_mixed(kit: Kit, n: int) -> float:
    index, value = kit.packets(4, n, 0.01)
    index = [*index, *[torch.empty(0, dtype=torch.int32)] * 4]
    value = [*value, *(kit.normal(n) for _ in range(4))]
    kit.make("gram").gram(index, value, [0.5] * 4 + [0.0] * 4, n)
    return 4 * n + 8 * (n // 100) + 2 * 64


def _pack(kit: Kit, n: int) -> float:
    index, value = kit.packets(1, n, 0.01)
    emu, info = kit.make("rice"), torch.empty(0, dtype=torch.int64)
    out = emu.pack_ternary(index, value, [info], [n])
    return float(2 * value[0].numel() + out.numel() / 4)


def _unpack(kit: Kit, n: int) -> float:
    emu, k = kit.make("rice"), n // 100
    if kit.dry:
        size = emu.bound(k, n)
        emu.unpack_ternary(torch.zeros(size, dtype=torch.uint8), [0], [size], [size], [k], [n], [0])
        return float(2 * k + size / 4)
    index, value = kit.packets(1, n, 0.01)
    wire = importlib.import_module("wire_bodies")
    body = wire.Body("ternary", (n,), index=index[0].numpy(), value=value[0].numpy(), scale=0.5)
    packed = wire.pack(body)
    k, begin, end, remainder, scale, _ = wire.locate(packed).encoded
    message = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    emu.unpack_ternary(message, [begin], [end], [remainder], [k], [n], [scale])
    return float(2 * k + (end - begin) / 4)


def _adacomp(kit: Kit, n: int) -> float:
    result = kit.make("adacomp").adacomp(kit.normal(n), kit.normal(n), kit.zeros(n), 1.0, 500)
    return 3 * n + 2 * max(int(result[2][0]), 0)


def _threshold(kit: Kit, n: int) -> float:
    limit = kit.zeros(1, torch.int32).fill_(0x40200000)  # of 2.5: 1.2 % of normal values
    given = kit.normal(n), kit.normal(n), kit.zeros(n), 0.1, limit
    result = kit.make("threshold").threshold(*given, 0)
    return 3 * n + 2 * max(int(result[2][0]), 0)


def _wangni(kit: Kit, n: int) -> float:
    given = kit.normal(n), kit.normal(n), kit.zeros(n), 1.0, n / 100, 7
    made = kit.make("wangni").wangni(*given)
    return 3 * n + 2 * sum(max(int(info[0]), 0) for info in made[4:])


def _natural(kit: Kit, n: int) -> float:
    kit.make("natural").natural(kit.normal(n), kit.normal(n), kit.zeros(n), 1.0, 8 / 9, 7)
    return 3 * n + n / 2


def _power_values(kit: Kit, n: int) -> float:
    kit.make("natural").power_values(kit.zeros(n, torch.int16), 1.0)
    return n + n / 2


def _select_chunks(kit: Kit, n: int) -> float:
    chunks, k = -(-n // CHUNK), CHUNK // 64
    last = max((n - (chunks - 1) * CHUNK) // 64, 1)
    kit.make("select_chunks").select_chunks(
        kit.normal(n), kit.normal(n), kit.zeros(n), CHUNK, k, last, 1.0, 1.0, False
    )
    return 3 * n + 2 * ((chunks - 1) * k + last)


def _select_chunks_in_place(kit: Kit, n: int) -> float:
    chunks, k = -(-n // CHUNK), CHUNK // 64
    last = max((n - (chunks - 1) * CHUNK) // 64, 1)
    kit.make("select_chunks").select_chunks(
        kit.normal(n), None, kit.normal(n), CHUNK, k, last, 1.0, 1.0, False
    )
    return 3 * n + 2 * ((chunks - 1) * k + last)


def _bin_means(kit: Kit, n: int) -> float:
    index = kit.support(n, 1 / 64)
    k = index.numel()
    info = torch.tensor([k, 0, 0, 0])
    kit.make("bin_means").bin_means(index, kit.normal(k), info, kit.normal(n), 2, 6.0)
    return 4 * k + k / 16


def _encode(table: int, width: int, bucket: int, random: bool) -> Callable[[Kit, int], float]:
    def run(kit: Kit, n: int) -> float:
        scales, bits, _ = kit.make("encode_codes").encode_codes(
            kit.normal(n), kit.normal(n), kit.zeros(n), 1.0, table, width, bucket, random, random, 7
        )
        return float(3 * n + (4 * scales.numel() + bits.numel()) / 4)

    return run


def _codes(kit: Kit, n: int) -> float:
    width, bucket = 4, 512
    scales = kit.normal(-(-n // bucket))
    bits = kit.zeros((n * width + 7) // 8, torch.uint8)
    kit.make("codes").code_values(bits, scales, n, 1, width, bucket)
    return n + n * width / 32 + scales.numel()


def _bits(kit: Kit, n: int) -> float:
    kit.make("bits").unpack_signs(kit.zeros(-(-n // 8), torch.uint8), n, 0.5, None, 0)
    return n + n / 32


CASES = [
    *map(_feedback, SHARES),
    *map(_in_place, SHARES),
    Case("select", "topk, no residual, p=0.01", 10**6, "n + 2k", _plain),
    Case("select", "stc of 32,768, p=0.01", 1 << 15, "3n + 2k", _tiny),
    Case("select", "stc of a model of 160 tensors, p=0.01", sum(MODEL), "3n + 2k", _model),
    Case("select", "rest", 10**6, "2n", _rest),
    Case("select_chunks", "sparseloco, memory, 1/64", 10**6, "3n + 2k", _select_chunks),
    Case("select_chunks", "sparseloco, in place, 1/64", 10**6, "3n + 2k", _select_chunks_in_place),
    Case("bin_means", "bin_means, 2 bits of n/64", 10**6, "4k + k/16", _bin_means),
    Case("combine", "combine, 20 packets, p=0.01", 10**7, "n + 2mk", _combine),
    Case("combine", "combine, 4 dense packets", 10**6, "n + mn", _combine_dense),
    Case("combine", "combine_add, p=0.01", 10**6, "4k", _combine_add),
    Case("vote", "vote, 20 planes of signs", 10**6, "n + mn/32", _vote_signs),
    Case("vote", "vote, 20 packets, p=0.01", 10**6, "n + 2mk", _vote_sparse),
    Case("robust", "trimmed mean, 20 packets, p=0.1", 10**6, "n + 2mk", _trimmed_sparse),
    Case("robust", "median, 20 dense packets", 10**6, "n + mn", _median_dense),
    Case("quantize", "sign, feedback", 10**7, "3n + n/32", _sign_feedback),
    Case("quantize", "sign, in place", 10**6, "3n + n/32", _sign_in_place),
    Case("quantize", "sign, no residual", 10**6, "n + n/32", _sign),
    Case("quantize", "qsgd, 15 steps of 512", 10**6, "n + n/512 + 1.5k", _qsgd),
    Case("quantize", "qsgd, memory, by least squares", 10**6, "3n + n/512 + 1.5k", _qsgd_feedback),
    Case("quantize", "terngrad", 10**6, "n + 1.5k", _terngrad),
    Case("quantize", "level_values, k=n/2", 10**6, "2.5k + n/512", _level_values),
    _gram(20, 10**6),
    _gram(128, 10**5),
    Case("gram", "gram, 4 ternary and 4 dense packets", 10**6, "4n + 8k + 2m^2", _gram_mixed),
    Case("rice", "pack, p=0.01", 10**7, "2k + bytes/4", _pack),
    Case("rice", "unpack, p=0.01", 10**7, "2k + bytes/4", _unpack),
    *TRANSFORMS,
    Case("adacomp", "adacomp, bins of 500, memory", 10**6, "3n + 2k", _adacomp),
    Case("threshold", "threshold 2.5, memory", 10**6, "3n + 2k", _threshold),
    Case("wangni", "wangni, p=0.01, memory", 10**6, "3n + 2k", _wangni),
    Case("natural", "natural, memory", 10**6, "3n + n/2", _natural),
    Case("natural", "power_values", 10**6, "n + n/2", _power_values),
    Case("encode_codes", "two means, memory", 10**6, "3n + n/32", _encode(0, 1, 0, False)),
    Case("encode_codes", "uniform, 4 bits of 512, fitted", 10**6, "3n + n/8 + n/512",
         _encode(1, 4, 512, True)),
    Case("encode_codes", "dynamic8 of 4096, memory", 10**6, "3n + n/4", _encode(2, 8, 4096, False)),
    Case("encode_codes", "float16, memory", 10**6, "3n + n/2", _encode(3, 16, 0, False)),
    Case("codes", "code_values, 4 bits of 512", 10**6, "n + n/8 + n/512", _codes),
    Case("bits", "unpack_signs", 10**6, "n + n/32", _bits),
]  # fmt: skip
