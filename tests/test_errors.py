"""Arguments of a wrong type: what is refused, in which words, and that nothing changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gcext as typed
from gcext._codecs.registry import codec_class

gcext: Any = typed  # what is called here is what no type checker would let pass
Packet, Round = gcext.Packet, gcext.aggregate.Round
Mean, Median, Vote = gcext.aggregate.Mean, gcext.aggregate.Median, gcext.aggregate.Vote
Projection, TrimmedMean = gcext.aggregate.Projection, gcext.aggregate.TrimmedMean
MaxK, Momentum, NormBound = (
    gcext.aggregate.MaxK,
    gcext.aggregate.Momentum,
    gcext.aggregate.NormBound,
)
mean = gcext.aggregate.mean

X = torch.tensor([3.0, -1.0, 2.0])
P = gcext.stc(X, p=0.5)
GROUP = Packet.group([P, P])
Call = Callable[[], Any]


def check(call: Call, error: type[Exception], text: str) -> None:
    """The call raises exactly this class, and the text begins with ``text``."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value).startswith(text), str(caught.value)


def made(name: str, **options: Any) -> Any:
    return codec_class(name)(**options)


OPTIONS: list[tuple[Call, type[Exception], str]] = [
    (lambda: gcext.stc(X, p="a"), ValueError, "stc: p must be a number, got 'a'."),
    (lambda: gcext.stc(X, p=None), TypeError, "stc: p must be a number, got None."),
    (lambda: gcext.stc(X, p=[0.1]), TypeError, "stc: p must be a number, got [0.1]."),
    (lambda: gcext.stc(X, p=True), ValueError, "stc: p must be a number, got True."),
    (lambda: gcext.stc(X, p=float("nan")), ValueError, "stc: p must be in (0, 1], got nan."),
    (lambda: made("topk", p="a"), ValueError, "topk: p must be a number, got 'a'."),
    (lambda: made("qsgd", bits="a"), ValueError, "qsgd: bits must be a whole number, got 'a'."),
    (lambda: made("qsgd", bits=None), TypeError, "qsgd: bits must be a whole number, got None."),
    (lambda: made("qsgd", bits=2.5), ValueError, "qsgd: bits must be a whole number, got 2.5."),
    (lambda: made("qsgd", bits=float("inf")), ValueError, "qsgd: bits must be a whole number, got"),
    (lambda: made("qsgd", bits=float("nan")), ValueError, "qsgd: bits must be a whole number, got"),
    (lambda: made("polar", rotate="no"), ValueError, "polar: rotate must be True or False, got 'n"),
    (lambda: made("polar", rotate=None), TypeError, "polar: rotate must be True or False, got Non"),
    (lambda: gcext.codec(3), TypeError, "codec: needs a spec, name or name:key=value, got int."),
    (lambda: gcext.codec(made("stc")), TypeError, "codec: needs a spec, name or name:key=value"),
    (lambda: gcext.recipe(None), TypeError, "recipe: needs a spec, name or name:key=value, got No"),
    (lambda: gcext.ErrorFeedback(None), TypeError, "codec: needs a spec"),
    (lambda: gcext.Sender(3), TypeError, "codec: needs a spec"),
    (lambda: gcext.ErrorFeedback("stc", decay="a"), ValueError, "ErrorFeedback: decay must be a n"),
    (lambda: Projection(alpha="a"), ValueError, "Projection: alpha must be a number, got 'a'."),
    (lambda: Projection(history={}), TypeError, "Projection: history must be a gcext.History"),
    (lambda: TrimmedMean(None), TypeError, "TrimmedMean: beta must be a number, got None."),
    (lambda: Vote(scale="a"), ValueError, "Vote: scale must be a number, got 'a'."),
    (lambda: NormBound("a"), ValueError, "NormBound: bound must be a number, got 'a'."),
    (lambda: Momentum(beta=None), TypeError, "Momentum: beta must be a number, got None."),
    (lambda: Momentum(Mean), TypeError, "Momentum: inner must be an aggregator, got <class"),
    (lambda: MaxK(2, "mean"), TypeError, "MaxK: inner must be an aggregator, got 'mean'."),
    (lambda: Round(None), TypeError, "Round: needs an aggregator, got None."),
    (lambda: Round(Mean), TypeError, "Round: needs an aggregator, got <class"),
]


@pytest.mark.parametrize(("call", "error", "text"), OPTIONS)
def test_options_of_a_wrong_type(call: Call, error: type[Exception], text: str) -> None:
    check(call, error, text)


def test_options_of_a_type_that_converts() -> None:
    assert gcext.stc(X, p=np.float64(0.5)) == gcext.stc(X, p=torch.tensor(0.5)) == P
    assert gcext.stc(X, p=1) == gcext.stc(X, p=1.0)
    assert made("qsgd", bits=np.int8(3)) == made("qsgd", bits=3.0) == made("qsgd", bits=3)
    assert made("qsgd", bucket=2**53 + 1).bucket == 2**53 + 1
    assert made("polar", rotate=np.bool_(False)) == made("polar", rotate=0)


INPUTS: list[tuple[Call, str]] = [
    (lambda: made("stc").encode(None), "stc: tensor must be a torch.Tensor, got NoneType."),
    (lambda: made("stc").encode([X, None]), "stc[1]: tensor must be a torch.Tensor, got NoneType."),
    (lambda: gcext.stc(None), "stc: tensor must be a torch.Tensor, got NoneType."),
    (lambda: made("qsgd").encode([X, X], seed=3), "qsgd: seed must be a list as long as the tens"),
    (lambda: made("stc").encode([X, X], residual=3), "stc: residual must be a list as long as th"),
    (lambda: made("qsgd").encode(X, seed=[3]), "qsgd: seed must be a whole number, got [3]."),
    (lambda: made("qsgd").encode(X, seed="a"), "qsgd: seed must be a whole number, got 'a'."),
    (lambda: made("qsgd").encode([X, X], seed="ab"), "qsgd: seed must be a whole number, got 'a'."),
    (lambda: made("randomk").encode(X, seed=1.5), "randomk: seed must be a whole number, got 1.5."),
    (lambda: gcext.ErrorFeedback("qsgd", seed="a"), "ErrorFeedback: seed must be a whole number,"),
    (lambda: gcext.derive("a"), "derive: seed must be a whole number, got 'a'."),
    (lambda: Packet.group(P), "Packet.group: needs a list of packets, got Packet. Pass [packet]."),
    (lambda: Packet.group([X]), "Packet.group: needs packets, got Tensor as number 0. Encode it w"),
    (lambda: Packet.merge([P, X]), "Packet.merge: needs packets, got Tensor as number 1."),
]


@pytest.mark.parametrize(("call", "text"), INPUTS)
def test_inputs_of_a_wrong_type(call: Call, text: str) -> None:
    check(call, TypeError, text)


@pytest.mark.parametrize("given", [None, X.numpy(), "x"])
def test_senders_of_what_is_no_tensor(given: Any) -> None:
    for sender in (gcext.ErrorFeedback("stc"), gcext.Sender("stc")):
        text = f"tensor must be a torch.Tensor, got {type(given).__name__}. Convert"
        with pytest.raises(TypeError, match=re.escape(text)):
            sender.compress(given, "x")


def test_seeds_of_any_integer_type() -> None:
    codec = made("qsgd")
    want = codec.encode(X, seed=3)
    assert all(codec.encode(X, seed=s) == want for s in (np.int64(3), torch.tensor(3)))
    assert codec.encode([X, X], seed=np.array([3, 3])) == [want, want]


def test_an_input_that_is_refused_leaves_the_feedback_as_it_was() -> None:
    comp = gcext.ErrorFeedback("stc:p=0.4")
    comp.compress(X, "x")
    before = comp.residual("x")
    with pytest.raises(TypeError, match=r"tensor must be a torch\.Tensor, got NoneType"):
        comp.compress(None, "x")
    assert torch.equal(comp.residual("x"), before) and comp.pending == ()


SUMS: dict[str, Callable[[Any], Any]] = {
    "combine": lambda packets: gcext.combine(packets),
    "mean": lambda packets: mean(packets),
    "gram": lambda packets: gcext.gram(packets),
}
NO_LISTS: list[tuple[Any, type[Exception], str]] = [
    (P, TypeError, "needs a list of packets, got Packet. Pass [packet]."),
    (X, TypeError, "needs a list of packets, got Tensor."),
    (None, TypeError, "needs a list of packets, got NoneType."),
    ({0: P}, TypeError, "needs a list of packets, got dict. Pass list(packets.values())."),
    (b"abc", TypeError, "needs a list of packets, got bytes."),
    ([P, X], TypeError, "needs packets, got Tensor as number 1. Encode it with a codec."),
    (
        [bytes(P)],
        TypeError,
        "needs packets, got bytes as number 0. Decode it with Packet.from_bytes",
    ),
    (
        [[P], [P]],
        TypeError,
        "needs packets, got list as number 0. Make one packet of many with Pac",
    ),
    ([None], TypeError, "needs packets, got NoneType as number 0."),
    ([GROUP, P], ValueError, "packets must have one shape, got a group of ((3,), (3,)) and (3,)."),
    ([P, GROUP], ValueError, "packets must have one shape, got (3,) and a group of ((3,), (3,))."),
    ([], ValueError, "needs at least one packet, got none."),
]


@pytest.mark.parametrize("op", SUMS)
@pytest.mark.parametrize(("packets", "error", "text"), NO_LISTS)
def test_sums_of_what_are_no_packets(
    op: str, packets: Any, error: type[Exception], text: str
) -> None:
    check(lambda: SUMS[op](packets), error, f"{op}: {text}")


def test_sums_of_any_iterable() -> None:
    by_client = {1: P, 2: P}
    for call in SUMS.values():
        want = call([P, P])
        assert all(torch.equal(call(given), want) for given in (by_client.values(), iter([P, P])))


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (2, TypeError, "weights must be a list of numbers, one for each packet, got int."),
        ({0: 1, 1: 1}, TypeError, "weights must be a list of numbers, .*got dict."),
        ("11", TypeError, "weights must be a list of numbers, .*got str."),
        (torch.tensor(1.0), TypeError, "weights must be a list of numbers, .*got Tensor."),
        (["1", 1], TypeError, "weights must be numbers, got '1' for packet 0."),
        ([1, None], TypeError, "weights must be numbers, got None for packet 1."),
        ([1], ValueError, "needs a weight for every packet, got 1 for 2."),
    ],
)
def test_weights_of_a_wrong_type(weights: Any, error: type[Exception], text: str) -> None:
    for function in (gcext.combine, mean):
        with pytest.raises(error, match=f"^{function.__name__}: {text}"):
            function([P, P], weights)
    assert gcext.combine([P, P], torch.ones(2)).tolist() == [6, 0, 0]


AGGREGATORS = [Mean, Median, Vote, Projection, Momentum]


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_rounds_of_a_wrong_type(kind: Any) -> None:
    server, name = kind(), kind.__name__
    losses: Any = {0: 0.5, 1: 0.5, "a": 0.5, "1": 0.5}
    for packets, error, text in (
        ([P, P], TypeError, "needs a mapping of clients to packets, got list. Use dict(enumerate("),
        (P, TypeError, "needs a mapping of clients to packets, got Packet. Use dict(enumerate("),
        (
            {0: P, 1: X},
            TypeError,
            "needs packets, got Tensor from client 1. Encode it with a codec",
        ),
        (
            {0: bytes(P)},
            TypeError,
            "needs packets, got bytes from client 0. Decode it with Packet.",
        ),
        ({0: [P]}, TypeError, "needs packets, got list from client 0. Make one packet of many"),
        (
            {0: P, 1: GROUP},
            ValueError,
            "packets must have one shape, got (3,) from client 0 and a g",
        ),
        (
            {1: P, "1": P},
            TypeError,
            "clients must be all numbers or all strings, got int and str.",
        ),
        (
            {"a": P, 0: P},
            TypeError,
            "clients must be all numbers or all strings, got int and str.",
        ),
    ):
        state = server.state_dict()
        check(lambda: server.aggregate(packets, losses), error, f"{name}: {text}")  # noqa: B023
        assert server.state_dict() == state
    check(lambda: server.aggregate({0: P}, [0.5]), TypeError, f"{name}: losses must be a mapping")
    for clients in ([3, 1, 2], ["b", "c", "a"], list(np.arange(3))):
        by_name = server.aggregate(dict.fromkeys(clients, P), dict.fromkeys(clients, 0.5))
        assert isinstance(by_name, torch.Tensor)


def test_numbers_of_clients_of_a_wrong_type() -> None:
    text = "weights must be a mapping of clients to numbers, got list. Use dict(zip(clients, weig"
    check(lambda: Mean().aggregate({0: P}, weights=[1.0]), TypeError, f"Mean: {text}")
    text = "weights must be numbers, got 'a' for client 0."
    check(lambda: Mean().aggregate({0: P}, weights={0: "a"}), TypeError, f"Mean: {text}")
    text = "losses must be numbers, got [1] for client 0."
    check(lambda: Projection().aggregate({0: P}, {0: [1]}), TypeError, f"Projection: {text}")
    Mean().aggregate({0: P}, {0: "not used"})


class TestRound:
    @pytest.mark.parametrize(
        "expect", [[3], (3,), torch.Size([3]), np.array([3]), [np.int64(3)], X, P], ids=str
    )
    def test_expect_of_any_form(self, expect: Any) -> None:
        for sent in (P, bytes(P), torch.frombuffer(bytearray(bytes(P)), dtype=torch.uint8)):
            arriving = Round(Mean(), expect=expect)
            assert arriving.expect == (3,)
            assert arriving.add(1, sent)
            assert torch.equal(arriving.finish(), P.to_dense())
        arriving = Round(Mean(), expect=expect)
        for other in (gcext.stc(torch.ones(4)), GROUP):
            with pytest.raises(ValueError, match=r"Round: .* shape \(3,\), got .* from client 1"):
                arriving.add(1, other)
            with pytest.raises(gcext.DecodeError):
                arriving.add(1, bytes(other))
        assert len(arriving) == 0

    @pytest.mark.parametrize("expect", [[[3], [3]], ((3,), (3,)), [X, X], {"a": X, "b": X}, GROUP])
    def test_expect_of_groups(self, expect: Any) -> None:
        for sent in (GROUP, bytes(GROUP)):
            arriving = Round(Mean(), expect=expect)
            assert arriving.expect == ((3,), (3,))
            assert arriving.add(1, sent) and len(arriving.finish()) == 2
        with pytest.raises(ValueError, match=r"must have the shape \(\(3,\), \(3,\)\), got \(3,\)"):
            Round(Mean(), expect=expect).add(1, P)

    @pytest.mark.parametrize("expect", [3, "3", (3.0,), {3}, [None], b"3"])
    def test_what_is_no_shape(self, expect: Any) -> None:
        check(
            lambda: Round(Mean(), expect), ValueError, "Round: expect must be a shape of integers"
        )

    def test_ids_of_mixed_types(self) -> None:
        arriving = Round(Mean())
        arriving.add(7, P)
        text = "Round: clients must be all numbers or all strings, got int and str."
        check(lambda: arriving.add("7", P), TypeError, text)
        assert len(arriving) == 1
        named = Round(Projection())
        assert named.add("bo", P, loss=0.5) and named.add("ada", P, loss=0.5)
        assert not named.add("bo", P, loss=0.5)
        assert torch.equal(named.finish(), P.to_dense())

    def test_what_is_no_message(self) -> None:
        arriving = Round(Mean())
        check(lambda: arriving.add(1, X), TypeError, "from_bytes: a tensor must be uint8")
        check(lambda: arriving.add(1, None), TypeError, "from_bytes: message must be bytes")
        assert len(arriving) == 0
