"""Messages of a run: bound to client and round, counted once, refused; and dropped clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from packet_kit import single
from test_sender_threads import at_once

import gcext
from gcext.aggregate import (
    LastValues,
    Mean,
    Median,
    Message,
    MessageError,
    Predicted,
    Projection,
    Round,
    Rounds,
)

RUN = 2**63 + 5


def packet(*values: float) -> gcext.Packet:
    return gcext.codec("dense").encode(torch.tensor(values, dtype=torch.float32))


def whole(number: int) -> Any:
    """A number that is no int."""
    return np.int64(number)


def sent(client: Any, round: int, *values: float, run: int = RUN) -> bytes:
    return Message(run, client, round, packet(*values)).to_bytes()


class TestMessage:
    @pytest.mark.parametrize("client", [0, 7, -4, 2**64 - 1, 10**30, "", "7", "it's", "é" * 99])
    def test_round_trip(self, client: Any) -> None:
        for run, round in ((0, 0), (2**64 - 1, 2**64 - 1), (5, 3)):
            message = Message(run, client, round, packet(1, 2))
            data = message.to_bytes()
            got = Message.from_bytes(data, expect=(2,))
            assert got == message and got.to_bytes() == data
            name = len(str(client).encode()) + isinstance(client, str)
            assert len(data) == 32 + name + len(message.packet.to_bytes())
            assert type(got.client) is type(client)

    def test_other_buffers(self) -> None:
        data = sent(1, 2, 3)
        expected = Message.from_bytes(data)
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        others: list[Any] = [bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)]
        for each in [*others, tensor]:
            assert Message.from_bytes(each) == expected
        with pytest.raises(TypeError, match="Message: must be bytes"):
            Message.from_bytes("text")  # type: ignore[arg-type]

    def test_every_prefix_and_every_flipped_bit(self) -> None:
        data = sent("ada", 2, 3)
        for end in range(len(data)):
            with pytest.raises(gcext.DecodeError) as error:
                Message.from_bytes(data[:end])
            assert error.value.code in ("truncated", "checksum")
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(gcext.DecodeError) as error:
                Message.from_bytes(flipped)
            assert error.value.code in ("magic", "version", "checksum")

    def test_what_a_checksum_does_not_find(self) -> None:
        """Messages that are signed as they should be, but are none."""
        from xxhash import xxh3_64_intdigest

        def signed(body: bytes) -> bytes:
            return body + xxh3_64_intdigest(body).to_bytes(8, "little")

        body = sent(12, 2, 3)[:-8]
        for name in (b"1x", b"012"[1:] + b" ", b"+1", b"\xff\xfe", b"a1", "٣".encode()):
            with pytest.raises(gcext.DecodeError) as error:
                head = body[:6] + len(name).to_bytes(2, "little") + body[8:24]
                Message.from_bytes(signed(head + name + body[26:]))
            assert error.value.code == "client" and error.value.offset == 24
        with pytest.raises(gcext.DecodeError, match="a client of 65535 bytes"):
            Message.from_bytes(signed(body[:6] + b"\xff\xff" + body[8:]))
        with pytest.raises(gcext.DecodeError) as error:
            Message.from_bytes(signed(body[:-1]))  # the packet's own checksum is cut
        assert error.value.code in ("truncated", "checksum")

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="run must be from 0"):
            Message(-1, 1, 1, packet(1))
        with pytest.raises(ValueError, match="round must be from 0"):
            Message(1, 1, 2**64, packet(1))
        with pytest.raises(TypeError, match="whole number or a string"):
            Message(1, 1.5, 1, packet(1))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a packet, got bytes"):
            Message(1, 1, 1, packet(1).to_bytes())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at most 65,534 bytes"):
            Message(1, "x" * 65_535, 1, packet(1))
        assert Message(1, whole(3), 5, packet(1)).client == 3


class TestRound:
    def test_the_first_ids_type_is_checked(self) -> None:
        """One that could not be aggregated is refused as it comes, not by finish."""
        for client in (1.5, None, b"a", (1,), [1]):
            arriving = Round(Mean())
            with pytest.raises(TypeError, match="Round: a client must be a whole number"):
                arriving.add(client, packet(1))  # type: ignore[arg-type]
            assert len(arriving) == 0
            arriving.add(1, packet(1))
            with pytest.raises(TypeError, match="all numbers or all strings"):
                arriving.add("1", packet(2))
            assert torch.equal(single(arriving.finish()), torch.tensor([1.0]))

    def test_a_tensor_or_array_is_the_number_it_holds(self) -> None:
        arriving = Round(Mean())
        assert arriving.add(torch.tensor(3), packet(1))  # type: ignore[arg-type]
        assert not arriving.add(whole(3), packet(1))
        assert not arriving.add(3, packet(1)) and arriving.clients == (3,)

    @pytest.mark.parametrize("first", [None, 2.0])
    def test_all_have_a_weight_or_none(self, first: float | None) -> None:
        second = None if first else 2.0
        arriving = Round(Mean())
        arriving.add(1, packet(1), weight=first)
        with pytest.raises(
            ValueError, match=f"all clients must have a weight or none, got {second}"
        ):
            arriving.add(2, packet(5), weight=second)
        with pytest.raises(MessageError, match="something else from client 1"):
            arriving.add(1, packet(1), weight=second)
        arriving.add(3, packet(3), weight=first)
        assert arriving.clients == (1, 3)
        assert torch.equal(single(arriving.finish()), torch.tensor([2.0]))

    def test_a_client_is_dropped(self) -> None:
        """As if it had never sent; it may then send something else."""
        arriving = Round(Mean())
        arriving.add(1, packet(1), weight=None)
        arriving.add(2, packet(9))
        assert arriving.drop(2) and not arriving.drop(2) and not arriving.drop(7)
        assert arriving.drop(1)
        arriving.add(2, packet(4), weight=1.0)  # the one without a weight is gone
        assert arriving.drop(whole(2)) and len(arriving) == 0
        arriving.add(3, packet(5), weight=3.0)
        assert torch.equal(single(arriving.finish()), torch.tensor([5.0]))
        with pytest.raises(RuntimeError, match="drop: the round is finished"):
            arriving.drop(3)

    def test_nan_is_nan_in_a_resend(self) -> None:
        arriving = Round(Mean())
        assert arriving.add(1, packet(1), loss=math.nan)
        assert not arriving.add(1, packet(1), loss=float("nan"))
        for loss in (None, 0.0):
            with pytest.raises(MessageError, match="something else") as error:
                arriving.add(1, packet(1), loss=loss)
            assert error.value.reason == "conflict"
        with pytest.raises(ValueError, match="finite, got nan"):
            Round(Projection()).add(1, packet(1), loss=math.nan)

    def test_what_is_expected_fits_bytes_and_objects(self) -> None:
        sized = packet(1, 2, 3, 4)
        group = gcext.Packet.group([sized])
        shapes: list[tuple[gcext.Packet, list[Any]]] = [
            (sized, [[4], (4,), torch.Size([4]), np.array([4]), [np.int64(4)], sized]),
            (group, [[[4]], ((4,),), [torch.zeros(4)], {"w": torch.zeros(4)}, group]),
        ]
        for each, expects in shapes:
            for expect in [*expects, torch.zeros(4)] if each is sized else expects:
                assert Round(Mean(), expect=expect).add(1, each)
                assert Round(Mean(), expect=expect).add(1, each.to_bytes())

    def test_a_round_of_a_run(self) -> None:
        arriving = Round(Mean(), number=5, run=RUN)
        assert arriving.add(1, sent(1, 5, 3))
        assert not arriving.add(1, Message(RUN, 1, 5, packet(3)))
        for message, reason in (
            (sent(2, 5, 3, run=7), "foreign"),
            (sent(2, 4, 3), "stale"),
            (sent(2, 6, 3), "early"),
            (sent(3, 5, 3), "client"),
        ):
            with pytest.raises(MessageError) as error:
                arriving.add(2, message)
            assert error.value.reason == reason and arriving.clients == (1,)
        with pytest.raises(gcext.DecodeError):
            arriving.add(2, packet(3).to_bytes())
        with pytest.raises(TypeError, match="takes messages, got a packet from client 2"):
            arriving.add(2, packet(3))
        with pytest.raises(TypeError, match="a message needs a round of a run"):
            Round(Mean()).add(1, Message(RUN, 1, 5, packet(3)))
        with pytest.raises(gcext.DecodeError):
            Round(Mean()).add(1, sent(1, 5, 3))
        with pytest.raises(ValueError, match="needs its number, got none"):
            Round(Mean(), run=RUN)
        assert torch.equal(single(arriving.finish()), torch.tensor([3.0]))


class TestRounds:
    def test_every_way_of_refusing_is_counted(self) -> None:
        rounds = Rounds(Mean(), RUN, expect=(1,))
        with pytest.raises(MessageError) as before:
            rounds.add(1, sent(1, 1, 3))
        assert before.value.reason == "early"
        assert rounds.begin([1, 2]) == 1
        assert rounds.add(1, sent(1, 1, 3)) and not rounds.add(1, sent(1, 1, 3))
        flipped = bytearray(sent(2, 1, 3))
        flipped[40] ^= 1
        wrong: list[tuple[int, Any, str]] = [
            (2, bytes(flipped), "damaged"),
            (2, sent(2, 2, 3), "early"),
            (2, sent(2, 0, 3), "stale"),
            (2, sent(2, 1, 3, run=1), "foreign"),
            (2, sent(1, 1, 3), "client"),
            (3, sent(3, 1, 3), "uninvited"),
            (1, sent(1, 1, 4), "conflict"),
            (2, sent(2, 1, 3, 4), "damaged"),  # of another shape
        ]
        for client, message, _ in wrong:
            with pytest.raises((MessageError, gcext.DecodeError)):
                rounds.add(client, message)
            assert rounds.clients == (1,)
        with pytest.raises(ValueError, match="positive and finite"):
            rounds.add(2, sent(2, 1, 3), weight=-1.0)
        assert rounds.add(2, sent(2, 1, 5))
        assert torch.equal(single(rounds.finish()), torch.tensor([4.0]))
        assert (rounds.last_of(1), rounds.last_of(2), rounds.last_of(3)) == (1, 1, None)
        for open_ in (False, True):  # after the round, and in the next one
            with pytest.raises(MessageError, match="a message counts once") as error:
                rounds.add(1, sent(1, 1, 3))
            assert error.value.reason == "replay"
            with pytest.raises(MessageError) as error:
                rounds.add(3, sent(3, 1, 3))
            assert error.value.reason == "stale"
            if not open_:
                rounds.begin()
        expected = {"counted": 2, "duplicate": 1, "refused": 1, "replay": 2, "stale": 3}
        expected |= {"damaged": 2, "early": 2, "foreign": 1, "client": 1, "uninvited": 1}
        assert rounds.counts == expected | {"conflict": 1}

    def test_rounds_begin_and_end_in_turn(self) -> None:
        rounds = Rounds(Mean(), RUN)
        for call in (rounds.finish, rounds.abandon, lambda: rounds.drop(1)):
            with pytest.raises(RuntimeError, match="no round is open"):
                call()
        rounds.begin()
        with pytest.raises(RuntimeError, match="round 1 is open"):
            rounds.begin()
        with pytest.raises(ValueError, match="at least one client's packet"):
            rounds.finish()
        rounds.add(1, sent(1, 1, 3))
        assert rounds.drop(1) and rounds.add(1, sent(1, 1, 4))
        rounds.abandon()
        assert rounds.last_of(1) is None and rounds.begin() == 2
        with pytest.raises(MessageError) as error:
            rounds.add(1, sent(1, 1, 4))
        assert error.value.reason == "stale"
        assert repr(rounds) == f"Rounds(run {RUN}, round 2: Round(0 packets for Mean()))"
        with pytest.raises(TypeError, match="needs an aggregator"):
            Rounds(3, RUN)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a client must be"):
            Rounds(Mean(), RUN).begin([1.5])  # type: ignore[list-item]

    def test_the_state_refuses_what_has_counted(self) -> None:
        rounds = Rounds(Projection(), RUN)
        for number in (1, 2):
            rounds.begin()
            for client in (1, 2):
                rounds.add(client, sent(client, number, client + number), loss=0.5)
            with pytest.raises(RuntimeError, match="between rounds"):
                rounds.state_dict()
            rounds.finish()
        state, other = rounds.state_dict(), Rounds(Projection(), RUN)
        other.load_state_dict(state)
        assert other.state_dict() == state and other.counts == rounds.counts
        for each in (rounds, other):
            each.begin()
            with pytest.raises(MessageError) as error:
                each.add(1, sent(1, 2, 3), loss=0.5)
            assert error.value.reason == "replay"
            each.add(1, sent(1, 3, 7), loss=0.5)
        assert torch.equal(single(rounds.finish()), single(other.finish()))
        with pytest.raises(ValueError, match="run must be the state's"):
            Rounds(Projection(), 3).load_state_dict(state)
        before = other.state_dict()
        changes: list[dict[str, Any]] = [{"last": [(1, 99)]}, {"number": -1}, {"last": 5}]
        for change in [*changes, {"aggregator": {}}]:
            with pytest.raises(ValueError, match=r"^(Rounds|History): "):
                other.load_state_dict(state | change)
            assert other.state_dict() == before

    def test_clients_of_both_kinds_in_one_run(self) -> None:
        """Round by round of one kind; a state is of both."""
        for server in (LastValues(), Predicted(1), Median(), Projection()):
            rounds = Rounds(server, RUN)
            drawn: list[list[Any]] = [[1, 2], ["a", "b"]]
            for number, clients in enumerate(drawn, 1):
                rounds.begin()
                for client in clients:
                    rounds.add(client, sent(client, number, 1.0), loss=0.5)
                rounds.finish()
            state = rounds.state_dict()
            assert [client for client, _ in state["last"]] == [1, 2, "a", "b"]
            Rounds(type(server)(), RUN).load_state_dict(state)


def test_threads_that_add_to_one_round() -> None:
    """Of copies that arrive at once one is new; what is counted is all there was."""
    for number in range(10):
        rounds = Rounds(Mean(), RUN, expect=(1,))
        rounds.begin()
        messages = [sent(client, 1, client) for client in range(20)]

        def add(_: int, messages: list[bytes] = messages, rounds: Rounds = rounds) -> list[bool]:
            return [rounds.add(client, each) for client, each in enumerate(messages)]

        results = at_once(4, add)
        assert [sum(each) for each in zip(*results, strict=True)] == [1] * 20, number
        assert rounds.counts == {"counted": 20, "duplicate": 60}
        assert torch.equal(single(rounds.finish()), torch.tensor([9.5]))
