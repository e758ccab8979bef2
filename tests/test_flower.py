"""gcext.flower without processes: what is lost, repeated, hostile or restarted."""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flower_kit import Grid, Node, arrays_of, drift, identify, model, play, record
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

import gcext
from gcext.flower import CompressedFedAvg, CompressMod, ProjectedFedAvg
from gcext.flower._records import ContextStore, FileStore

STC = "stc:p=0.1"
FLOATS = ("weight", "bias")


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    identify(monkeypatch)


def federation(
    spec: str = STC, count: int = 2, folder: Path | None = None, **options: Any
) -> tuple[CompressedFedAvg, dict[int, Node]]:
    strategy = CompressedFedAvg(spec, fraction_evaluate=1.0, **options)
    return strategy, {n: Node(n, CompressMod(spec, folder=folder)) for n in range(1, count + 1)}


def state(node: Node, folder: Path | None = None) -> dict[str, Any]:
    name = str(node.context.node_config["partition-id"])
    store = FileStore(folder, node.context.run_id, name) if folder else None
    found = (store or ContextStore(node.context)).load()
    assert found is not None
    return found


def settled(node: Node, acknowledged: bool) -> torch.Tensor:
    """Return the residual that counts once the strategy's answer is known."""
    sender = state(node)["sender"]
    (residual,) = sender["pending"].values() if acknowledged else sender["residuals"].values()
    assert isinstance(residual, torch.Tensor)
    return residual


def raw(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def lose(node: int) -> Callable[[int, Message], Message | None]:
    return lambda n, reply: None if n == node else reply


def flat(arrays: dict[str, Any]) -> torch.Tensor:
    return torch.cat([torch.from_numpy(arrays[name].reshape(-1).copy()) for name in FLOATS])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


@pytest.mark.parametrize(
    "spec",
    [
        STC,
        "pstc:p=0.2,alpha=0.5,tau=1",
        "fedavg",
        "qsgd",
        "terngrad",
        "ef21",
        "resfed",
        "powersgd",
        "laq",
        "dgc",
        "adacomp",
    ],
)
def test_every_node_holds_the_models_bits(spec: str) -> None:
    strategy, nodes = federation(spec)
    got = model()
    for number in range(1, 5):
        after = play(strategy, nodes, number)
        assert after is not None
        for node in nodes.values():
            assert same(node.seen[-1], got)
        assert not same(after, got)
        got = after


def test_equals_links_by_hand() -> None:
    """The model after three rounds is what senders and a receiver make of the same updates."""
    strategy, nodes = federation()
    recipe = gcext.recipe(STC)
    senders = {n: recipe.up.sender() for n in nodes}
    receiver, down = recipe.up.receiver(), recipe.down.sender()
    weights, got = flat(model()), model()
    for number in range(1, 4):
        packets = {}
        for n in nodes:
            update = weights - flat(drift(got, n, number))
            packets[n] = senders[n].compress(update, "x")
        mean = receiver.aggregate(packets, weights={n: 10.0 * n for n in nodes})
        assert isinstance(mean, torch.Tensor)
        down.compress(mean, "model").add_to_(weights, alpha=-1.0)
        after = play(strategy, nodes, number)
        assert after is not None
        got = after
        assert torch.equal(flat(got), weights)


def test_what_is_no_float_travels_exactly() -> None:
    strategy, nodes = federation()
    trained = [drift(model(), n, 1) for n in nodes]
    after = play(strategy, nodes, 1)
    assert after is not None
    counter = after["norm.num_batches_tracked"]
    assert counter.dtype == np.int64 and counter == 2  # of 1 and 2, weighted 10 and 20, rounded
    wanted = sum(t["norm.running_var"].astype(np.float64) * w for t, w in
                 zip(trained, (1 / 3, 2 / 3), strict=True))  # fmt: skip
    np.testing.assert_allclose(after["norm.running_var"], wanted, rtol=1e-6)


def test_a_lost_reply_leaves_the_residual() -> None:
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    play(strategy, nodes, 2, change=lose(1))
    before = settled(nodes[1], acknowledged=False)
    play(strategy, nodes, 3)
    assert torch.equal(settled(nodes[1], acknowledged=False), before)
    after = settled(nodes[1], acknowledged=True)
    play(strategy, nodes, 4)
    assert torch.equal(settled(nodes[1], acknowledged=False), after)


@pytest.mark.parametrize("writes_are_kept", [True, False])
def test_a_failed_round_changes_nothing(writes_are_kept: bool) -> None:
    """Deployment keeps what was written before an exception, the simulation drops it."""
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    after_first = settled(nodes[1], acknowledged=True)

    def fail(arrays: dict[str, Any], node: int, number: int) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    nodes[1].train = fail
    before = copy.deepcopy(nodes[1].context)
    play(strategy, nodes, 2)
    if not writes_are_kept:
        nodes[1].context = before
    nodes[1].train = drift
    play(strategy, nodes, 3)
    assert torch.equal(settled(nodes[1], acknowledged=False), after_first)


def test_an_error_reply_of_the_app_passes_and_changes_nothing() -> None:
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    before = state(nodes[1])
    nodes[1].app = lambda m, c: Message(Error(99, "no battery"), reply_to=m)  # type: ignore[assignment,method-assign,unused-ignore]
    play(strategy, nodes, 2, change=lambda n, r: r)
    assert raw(state(nodes[1])) == raw(before)


@pytest.mark.parametrize("kind", ["nan", "shape", "name", "full disk"])
def test_a_failure_of_the_mod_changes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path if kind == "full disk" else None
    strategy, nodes = federation(folder=folder)
    play(strategy, nodes, 1)
    before = state(nodes[1], folder)

    def wrong(arrays: dict[str, Any], node: int, number: int) -> dict[str, Any]:
        trained = drift(arrays, node, number)
        if kind == "nan":
            trained["weight"][3, 3] = np.nan
        elif kind == "shape":
            trained["bias"] = trained["bias"][:5]
        elif kind == "name":
            trained["head"] = trained.pop("bias")
        return trained

    nodes[1].train = wrong
    seen: list[Message] = []
    with monkeypatch.context() as patch:
        if kind == "full disk":
            patch.setattr("os.fsync", _full_disk)
        play(strategy, nodes, 2, change=lambda n, r: seen.append(r) or r)  # type: ignore[func-returns-value,unused-ignore]
    assert seen[0].has_error()
    assert raw(state(nodes[1], folder)) == raw(before)
    nodes[1].train = drift
    assert play(strategy, nodes, 3) is not None


def _full_disk(file: int) -> None:
    raise OSError("no space left on device")


def test_an_acknowledgement_twice_counts_once() -> None:
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    sent = strategy.configure_train(2, record(model()), ConfigRecord(), Grid(nodes))  # type: ignore[arg-type,unused-ignore]
    message = next(m for m in sent if m.metadata.dst_node_id == 1)
    expected = settled(nodes[1], acknowledged=True)
    for _ in range(3):  # the same message again: what was pending of it is rolled back
        nodes[1].reply(message)
        assert torch.equal(settled(nodes[1], acknowledged=False), expected)


def test_conservation_through_losses_and_failures() -> None:
    """What nodes trained is what the server took plus what residuals hold; nothing twice."""
    strategy, nodes = federation("stc:p=0.05,down=dense", count=3)
    rng = np.random.default_rng(1)
    taken = {n: torch.zeros(630, dtype=torch.float64) for n in nodes}
    trained = {n: torch.zeros(630, dtype=torch.float64) for n in nodes}
    for number in range(1, 15):
        updates = {}

        def note(arrays: dict[str, Any], n: int, number: int) -> dict[str, Any]:
            if rng.random() < 0.2:
                raise RuntimeError("killed")
            after = drift(arrays, n, number)
            updates[n] = (flat(arrays) - flat(after)).double()  # noqa: B023
            return after

        def lossy(n: int, reply: Message) -> Message | None:
            if reply.has_error() or rng.random() < 0.3:
                return None
            (array,) = (a for a in reply.content["arrays"].values() if a.stype == "gcext.v1")
            sent = gcext.Packet.from_bytes(array.data).to_dense()
            assert isinstance(sent, torch.Tensor)
            taken[n] += sent.double()
            trained[n] += updates[n]  # noqa: B023
            return reply

        for node in nodes.values():
            node.train = note
        play(strategy, nodes, number, change=lossy)
    for node in nodes.values():
        node.train = drift
    play(strategy, nodes, 99, change=lambda n, r: None)  # settles what was pending
    for n, node in nodes.items():
        held = settled(node, acknowledged=False).double()
        torch.testing.assert_close(taken[n] + held, trained[n], atol=1e-4, rtol=0)
        assert float(held.abs().sum()) > 0


def test_state_survives_as_bytes() -> None:
    """A SuperNode's process of a message has the context alone, through Flower's own bytes."""
    from flwr.common.serde import context_from_proto, context_to_proto

    reference, plain = federation("dgc"), federation("dgc")
    for number in range(1, 5):
        play(*reference, number)
        play(*plain, number)
        for n, node in list(plain[1].items()):
            context = context_from_proto(context_to_proto(node.context))
            plain[1][n] = Node(n, CompressMod("dgc"), context=context)
    assert torch.equal(reference[0].server.weights, plain[0].server.weights)


def test_a_node_that_lost_its_state_gets_the_dense_model() -> None:
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    play(strategy, nodes, 2)
    nodes[1].context.state = RecordDict()
    seen: list[Message] = []
    play(strategy, nodes, 3, change=lambda n, r: seen.append(r) or r)  # type: ignore[func-returns-value,unused-ignore]
    assert "holds none" in str(seen[0].error.reason)
    after = play(strategy, nodes, 4)
    assert after is not None and len(nodes[1].seen) == 3
    assert same(nodes[1].seen[-1], nodes[2].seen[-1])


@pytest.mark.parametrize("counted", [True, False], ids=["aggregated", "lost"])
def test_a_node_back_under_another_id_keeps_its_residual(tmp_path: Path, counted: bool) -> None:
    """Killed after the reply left: the residual counts if, and only if, the packet did."""
    strategy, nodes = federation(folder=tmp_path, known_start=False)
    play(strategy, nodes, 1)
    play(strategy, nodes, 2, change=(lambda n, r: r) if counted else lose(1))
    kept = state(nodes[1], tmp_path)["sender"]
    (expected,) = (kept["pending"] if counted else kept["residuals"]).values()
    context = Context(7, 77, {"partition-id": 1}, RecordDict(), run_config={})
    back = Node(1, CompressMod(STC, folder=tmp_path), context=context)
    nodes = {2: nodes[2], 77: back}
    play(strategy, nodes, 3)
    (residual,) = state(back, tmp_path)["sender"]["residuals"].values()
    assert torch.equal(residual, expected)
    assert same(back.seen[-1], nodes[2].seen[-1])


def test_a_predictor_starts_anew_under_another_id(tmp_path: Path) -> None:
    """The receiver knows no last value of a new id, so the node must not subtract one."""
    strategy, nodes = federation("ef21", folder=tmp_path)
    play(strategy, nodes, 1)
    context = Context(7, 77, {"partition-id": 1}, RecordDict(), run_config={})
    nodes = {2: nodes[2], 77: Node(1, CompressMod("ef21", folder=tmp_path), context=context)}
    play(strategy, nodes, 2)
    held = state(nodes[77], tmp_path)["sender"]["stages"][0][1]
    assert held["held"] == {} and len(held["pending"]) == 1


def test_a_node_that_missed_rounds_catches_up() -> None:
    strategy, nodes = federation(count=3)
    play(strategy, nodes, 1)
    for number in (2, 3, 4):
        play(strategy, {n: nodes[n] for n in (1, 2)}, number)
    before = strategy.sent_bytes
    play(strategy, nodes, 5)
    assert same(nodes[3].seen[-1], nodes[1].seen[-1])
    assert strategy.sent_bytes - before < 4 * 630  # less than the dense model for one


def _changed(name: str) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        arrays = reply.content["arrays"]
        note, metrics = reply.content["gcext"], reply.content["metrics"]
        message = arrays["gcext.0"].data
        other: dict[str, bytes] = {
            "cut": message[:-3],
            "flipped": message[:30] + bytes([message[30] ^ 255]) + message[31:],
            "empty": b"",
            "of a million": gcext.stc(torch.ones(10**6), p=0.1).to_bytes(),
            "matrix": gcext.stc(torch.ones(21, 30), p=0.1).to_bytes(),
        }
        if name in other:
            arrays["gcext.0"] = Array("uint8", (1,), "gcext.v1", other[name])
        elif name == "no packet":
            del arrays["gcext.0"]
        elif name == "two packets":
            arrays["gcext.1"] = arrays["gcext.0"]
        elif name == "dense arrays":
            reply.content["arrays"] = record(model())
        elif name == "no note":
            del reply.content["gcext"]
        elif name == "no metrics":
            del reply.content["metrics"]
        elif name == "short counter":
            counter = "norm.num_batches_tracked"
            arrays[counter] = Array("int64", (4,), "gcext.exact.v1", b"1234")
        elif name == "infinite variance":
            inf = np.full(5, np.inf, np.float32).tobytes()
            arrays["norm.running_var"] = Array("float32", (20,), "gcext.exact.v1", inf)
        elif name == "future version":
            note["version"] = 99
        elif name == "long token":
            note["token"] = b"x" * 9
        else:
            key, value = {
                "no loss": ("train_loss", None),
                "NaN loss": ("train_loss", float("nan")),
                "list loss": ("train_loss", [1.0, 2.0]),
                "no samples": ("num-examples", 0),
                "infinite samples": ("num-examples", float("inf")),
            }[name]
            if value is None:
                del metrics[key]
            else:
                metrics[key] = value

    return change


HOSTILE = ["cut", "flipped", "empty", "of a million", "matrix", "no packet", "two packets"]
HOSTILE += ["dense arrays", "no note", "no metrics", "short counter", "infinite variance"]
HOSTILE += ["future version", "long token", "no loss", "NaN loss", "list loss", "no samples"]
HOSTILE += ["infinite samples"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_reply_is_left_out_by_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    strategy, nodes = federation("pstc:p=0.1", count=3)
    other, others = federation("pstc:p=0.1", count=3)
    for each, some in ((strategy, nodes), (other, others)):
        play(each, some, 1)
    logging.getLogger("flwr").propagate = True
    monster = _changed(name)

    def change(n: int, reply: Message) -> Message | None:
        if n == 2:
            monster(reply)
        return reply

    with caplog.at_level(logging.WARNING, logger="flwr"):
        got = play(strategy, nodes, 2, change)
    assert "left out node 2" in caplog.text
    wanted = play(other, others, 2, lose(2))
    assert got is not None and wanted is not None and same(got, wanted)
    residual = settled(nodes[2], acknowledged=False)
    play(strategy, nodes, 3)
    assert torch.equal(settled(nodes[2], acknowledged=False), residual)


def test_a_client_with_another_model_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    strategy, nodes = federation(count=3)
    logging.getLogger("flwr").propagate = True
    nodes[2].train = lambda arrays, n, number: model() | {"weight": np.zeros((3, 4), np.float32)}
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert play(strategy, nodes, 1) is not None
    assert "skipped node 2" in caplog.text and "weight" in caplog.text


def test_no_reply_leaves_the_model() -> None:
    strategy, nodes = federation()
    play(strategy, nodes, 1)
    before = strategy.server.weights.clone()
    assert play(strategy, nodes, 2, lambda n, r: None) is None
    assert torch.equal(strategy.server.weights, before)
    assert play(strategy, nodes, 3) is not None


def test_a_receiver_that_raises_leaves_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, nodes = federation("pstc:p=0.1")
    play(strategy, nodes, 1)
    before = raw(strategy.server.state_dict())
    tokens = dict(strategy.tokens)
    with monkeypatch.context() as patch:
        patch.setattr(strategy.server.sender, "compress", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            play(strategy, nodes, 2)
    assert raw(strategy.server.state_dict()) == before and strategy.tokens == tokens
    assert play(strategy, nodes, 2) is not None


def test_evaluation_sends_what_is_missed_and_no_more() -> None:
    strategy, nodes = federation()
    after = play(strategy, nodes, 1)
    assert after is not None
    sent = strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), Grid(nodes))  # type: ignore[arg-type,unused-ignore]
    for node in nodes.values():
        node.train = lambda arrays, n, number: arrays
    replies = [nodes[m.metadata.dst_node_id].reply(m) for m in sent]
    for reply in replies:  # an app returns metrics alone
        del reply.content["arrays"]
    assert strategy.aggregate_evaluate(1, replies) is not None
    assert all(same(node.seen[-1], after) for node in nodes.values())
    before = strategy.sent_bytes
    for node in nodes.values():
        node.train = drift
    play(strategy, nodes, 2)
    exact = 20 + 8
    assert strategy.sent_bytes - before == 2 * exact  # the nodes hold the model already


def test_evaluation_in_a_warm_up_leaves_a_node_able_to_train() -> None:
    """The codec of a round is kept with what the node kept in it."""
    strategy, nodes = federation("dgc:warmup=3")
    for number in (1, 2, 3):
        assert play(strategy, nodes, number) is not None
        sent = strategy.configure_evaluate(  # of the next round, as for nodes that did not train
            number + 1,
            ArrayRecord(),
            ConfigRecord(),
            Grid(nodes),  # type: ignore[arg-type,unused-ignore]
        )
        replies = [nodes[m.metadata.dst_node_id].reply(m) for m in sent]
        assert not any(reply.has_error() for reply in replies)


def test_other_strategies_messages_pass() -> None:
    node = Node(1, CompressMod(STC))
    content = RecordDict({"arrays": record(model()), "config": ConfigRecord({"server-round": 1})})
    reply = node.reply(Message(content, 1, "train"))
    assert same(arrays_of(reply.content["arrays"]), drift(model(), 1, 1))
    assert not node.context.state


def test_the_strategys_state_resumes() -> None:
    strategy, nodes = federation("pstc:p=0.1")
    play(strategy, nodes, 1)
    play(strategy, nodes, 2)
    kept = copy.deepcopy(strategy.state_dict())
    contexts = copy.deepcopy({n: node.context for n, node in nodes.items()})
    wanted = play(strategy, nodes, 3)
    other = CompressedFedAvg("pstc:p=0.1")
    other.begin(record(model()))
    other.load_state_dict(kept)
    again = {n: Node(n, CompressMod("pstc:p=0.1"), context=contexts[n]) for n in nodes}
    got = play(other, again, 3)
    assert got is not None and wanted is not None and same(got, wanted)


def test_seeds_differ_by_node_and_run() -> None:
    mod = CompressMod("qsgd", seed=5)
    contexts = [
        Context(run, node, {}, RecordDict(), run_config={}) for run in (1, 2) for node in (1, 2)
    ]
    assert len({mod.identity(context)[1] for context in contexts}) == 4


def test_what_cannot_be_followed_is_refused() -> None:
    for make in (CompressMod, CompressedFedAvg):
        with pytest.raises(ValueError, match="needs packets of its own for each client"):
            make("catchup")
        with pytest.raises(ValueError, match="trains 2500 elements of each tensor"):
            make("subset")
        with pytest.raises(ValueError, match="nothing"):
            make("nothing:p=1")
    with pytest.raises(ValueError, match="p must be"):
        ProjectedFedAvg(p=0)


def test_a_model_without_floats_is_refused() -> None:
    strategy = CompressedFedAvg(STC)
    with pytest.raises(ValueError, match="float arrays"):
        strategy.begin(ArrayRecord({"n": Array(np.asarray([1]))}))


def test_state_holds_no_pickle() -> None:
    strategy, nodes = federation("dgc")
    play(strategy, nodes, 1)
    for node in nodes.values():
        kept = node.context.state
        json.loads(str(kept["gcext.state"]["json"]))
        assert all(array.stype == "numpy.ndarray" for array in kept["gcext.tensors"].values())
        assert isinstance(kept["gcext.tensors"], ArrayRecord)
        assert not any(isinstance(each, MetricRecord) for each in kept.values())
