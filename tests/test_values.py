"""Packets of every support and value code: in memory they are packets like any other."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from emu import bits, quantize
from packet_kit import dense, single
from torch import Tensor

import gcext
from gcext import Packet
from gcext._packet import codes as values
from gcext._packet.codes import Code, Contents, Levels, Levels2, Random, Signs
from gcext._packet.powers import Powers
from gcext._packet.tables import Codes
from gcext.polar._values import Polar

N = 300
SUPPORTS = {
    "all": None,
    "indices": torch.randperm(N, generator=torch.Generator().manual_seed(0))[:170]
    .sort()[0]
    .to(torch.int32),
    "random": Random(seed=5, k=170),
}


def signs(sent: int) -> Code:
    bits = np.packbits(np.random.default_rng(sent).integers(0, 2, sent), bitorder="little")
    return Signs(0.75, torch.from_numpy(bits))


def levels(sent: int) -> Code:
    rng = np.random.default_rng(sent)
    level = torch.from_numpy(rng.integers(-3, 4, sent) * rng.integers(0, 2, sent))
    return Levels.of(level, 3, 64, torch.from_numpy(rng.random(-(-sent // 64), np.float32)))


def levels2(sent: int) -> Code:
    return Levels2(*levels(sent).fields())


def powers(sent: int) -> Code:
    rng = np.random.default_rng(sent)
    power = (rng.integers(140, 155, sent) * rng.integers(-1, 2, sent)).astype(np.int16)
    return Powers(0.75, torch.from_numpy(power))


def polar(sent: int) -> Code:
    x = torch.randn(sent, generator=torch.Generator().manual_seed(1))
    coded = gcext.polar.encode(x, block=64, soft=True)
    return Polar(coded.message, 64, coded.kept, True, torch.tensor([1.5]))


def rotated(sent: int) -> Code:
    x = torch.randn(sent, generator=torch.Generator().manual_seed(1))
    made = gcext.polar.encode_rotated(x, block=64, seed=9)
    return Polar(made.coded.message, 64, made.coded.kept, True, made.scale, 9)


def uniform(sent: int) -> Code:
    rng = np.random.default_rng(sent)
    scales = torch.from_numpy(rng.random(-(-sent // 64), np.float32))
    return Codes.of(torch.from_numpy(rng.integers(0, 8, sent)), "uniform", 3, 64, scales)


def halves(sent: int) -> Code:
    x = torch.randn(sent, generator=torch.Generator().manual_seed(1)).half()
    return Codes.of(x.view(torch.int16).int() & 0xFFFF, "float16", 16)


def make(support: str, code: str) -> Packet:
    sent = N if support == "all" else 170
    if code == "float":
        x = torch.randn(sent, generator=torch.Generator().manual_seed(2))
        return Packet("random", (20, 15), torch.float32, Contents(SUPPORTS[support], x))
    makers = {"sign": signs, "levels": levels, "polar": polar, "rotated": rotated}
    makers |= {"levels2": levels2, "powers": powers}
    makers |= {"uniform": uniform, "halves": halves}
    coded = makers[code](sent)
    return Packet(coded.method, (20, 15), torch.float32, Contents(SUPPORTS[support], coded))


ALL = [
    ("random", "float"),
    *[(support, "sign") for support in ("all", "random")],
    *[(s, c) for s in SUPPORTS for c in ("levels", "polar", "rotated", "uniform", "halves")],
    *[(s, c) for s in SUPPORTS for c in ("levels2", "powers")],
]


def reference(packet: Packet) -> Tensor:
    """The decoded tensor by its definition, but for polar and table codes: those are trusted."""
    sent = packet.contents.sent(packet.numel)
    code = packet.coded
    if isinstance(code, Signs):
        bits = np.unpackbits(code.bits.numpy(), bitorder="little", count=sent)
        value = torch.from_numpy(np.where(bits, -0.75, 0.75).astype(np.float32))
    elif isinstance(code, Levels):
        value = torch.zeros(sent)
        for at, level in zip(code.at.tolist(), code.level.tolist(), strict=True):
            value[at] = float(code.norms[at // code.bucket]) * level / code.steps
    elif isinstance(code, Powers):
        power = code.power.double()
        value = (0.75 * power.sign() * 2 ** (power.abs() - 150)).float()
    elif isinstance(code, (Polar, Codes)):
        value = code.decode(sent)
    else:
        assert isinstance(code, Tensor)
        value = code
    flat = torch.zeros(N)
    support = packet.support
    if isinstance(support, Random):
        support = support.draw(N)
    flat[slice(None) if support is None else support.long()] = value
    return flat.view(20, 15)


@pytest.mark.parametrize(("support", "code"), ALL)
class TestPacket:
    def test_decodes(self, support: str, code: str) -> None:
        packet = make(support, code)
        whole = dense(packet)
        assert torch.equal(whole, reference(packet))
        assert packet.values().dtype == torch.float32 and packet.indices().dtype == torch.int64
        assert packet.values().numel() == packet.indices().numel() == packet.k
        pairs = torch.zeros(N)
        pairs[packet.indices()] = packet.values()
        assert torch.equal(pairs.view(20, 15), whole)
        assert packet.method in repr(packet)

    def test_what_is_returned_is_the_callers(self, support: str, code: str) -> None:
        packet = make(support, code)
        before = dense(packet)
        packet.values().zero_()
        packet.indices().zero_()
        dense(packet).zero_()
        assert torch.equal(dense(packet), before)

    def test_is_aggregated_like_any_other(self, support: str, code: str) -> None:
        packet, other = make(support, code), gcext.stc(torch.randn(20, 15), p=0.2)
        a, b = dense(packet).double(), dense(other).double()
        assert torch.equal(
            single(gcext.combine([packet, other], [0.5, 2.0])), (0.5 * a + 2 * b).float()
        )
        gram = gcext.gram([packet, other])
        want = torch.tensor([[(a * a).sum(), (a * b).sum()], [(a * b).sum(), (b * b).sum()]])
        assert torch.allclose(gram, want, rtol=1e-12, atol=1e-12)
        target = torch.ones(20, 15)
        packet.add_to_(target, alpha=2.0)
        assert torch.equal(target, 1 + 2 * dense(packet))
        projection = gcext.aggregate.Projection(alpha=0)
        assert single(projection.aggregate({0: packet, 1: other}, {0: 0.1, 1: 0.2})).shape == (
            20,
            15,
        )

    def test_moves_and_pickles(self, support: str, code: str) -> None:
        packet = make(support, code)
        for again in (packet.to("cpu"), pickle.loads(pickle.dumps(packet))):
            assert torch.equal(dense(again), dense(packet))
            assert again.device == packet.device
        group = Packet.group([packet, packet])
        assert [torch.equal(x, dense(packet)) for x in group.to_dense()] == [True, True]


def test_a_device_decodes_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The road to the kernels, which the emulator runs."""
    plane = torch.randint(0, 256, (40,), dtype=torch.uint8)
    packed = [(plane.clone(), *rest) for rest in ((313, 0.75, 0), (320, torch.tensor([2.5]), 0))]
    packed.append((plane, 320, torch.rand(3), 128))
    packed[0][0][-1] &= 1
    coded = [(levels(sent), sent) for sent in (0, 1, 300)]
    want = [values.signed(*each) for each in packed]
    want += [code.decode(sent) for code, sent in coded]
    monkeypatch.setattr(torch.ops.gcext, "unpack_signs", bits.Emu().unpack_signs)
    monkeypatch.setattr(torch.ops.gcext, "level_values", quantize.Emu().level_values)
    got = [values.signed(*each) for each in packed]
    got += [code.decode(sent) for code, sent in coded]
    assert all(torch.equal(*both) for both in zip(got, want, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize(("support", "code"), ALL)
def test_decodes_to_the_same_bits_on_a_gpu(support: str, code: str) -> None:
    packet = make(support, code)
    there = packet.to("cuda")
    assert there.device.type == "cuda"
    assert torch.equal(dense(there).cpu(), dense(packet))
    assert torch.equal(there.indices().cpu(), packet.indices())
    assert there.to_bytes() == packet.to_bytes()
    again = Packet.from_bytes(packet.to_bytes(), device="cuda", expect=(20, 15))
    assert torch.equal(single(gcext.combine([again, there], [1.0, 2.0])).cpu(), 3 * dense(packet))


def test_rotated_is_what_the_polar_coder_decodes() -> None:
    x = torch.randn(100_000)
    made = gcext.polar.encode_rotated(x, seed=-3)
    code = Polar(made.coded.message, 1024, made.coded.kept, True, made.scale, -3)
    packet = Packet("polar", (100_000,), torch.float32, Contents(None, code))
    assert torch.equal(dense(packet), made.to_dense())


def test_a_bucket_as_wide_as_the_tensor_is_stored_as_0() -> None:
    assert Levels.of(torch.tensor([1, 0]), 1, 2, torch.ones(1)).bucket == 0
    assert Levels.of(torch.tensor([1, 0]), 1, 1, torch.ones(2)).bucket == 1
