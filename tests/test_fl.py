"""The federated loop: what travels, what it counts, and that a round is whole or nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from packet_kit import dense, single

import gcext
from gcext.fl import (
    Data,
    Diverged,
    Federation,
    Part,
    Settings,
    Workers,
    build,
    initial,
    load,
    local_sgd,
    run,
)
from gcext.fl import _run as run_module
from gcext.fl._server import Download
from gcext.fl._settings import Stream, generator

METHODS = ("fedavg", "stc:p=0.1", "pstc:p=0.1,alpha=0.1,tau=2")
DATA = load("digits")


def settings(recipe: str = "stc:p=0.1", **changes: Any) -> Settings:
    usual = {"clients": 10, "participation": 0.3, "rounds": 5, "seed": 0, "target": 0.9}
    name = recipe.partition(":")[0]
    return Settings(data="digits", method=name, recipe=recipe, **(usual | changes))


@pytest.fixture
def federation(request: pytest.FixtureRequest) -> Iterator[Federation]:
    with Workers(DATA, 2) as workers:
        yield Federation(settings(**getattr(request, "param", {})), DATA, workers)


def methods(**changes: Any) -> pytest.MarkDecorator:
    """Run a test on a federation of every method."""
    return pytest.mark.parametrize(
        "federation", [{"recipe": m} | changes for m in METHODS], indirect=True, ids=METHODS
    )


def same(a: Any, b: Any) -> bool:
    """Deep equality, tensors by their bits."""
    if isinstance(a, torch.Tensor):
        return (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def frozen(state: Any) -> Any:
    """A copy that later rounds cannot reach."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {k: frozen(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(frozen, state))
    return state


def meaning(state: dict[str, Any]) -> dict[str, Any]:
    """The state without residuals of zeros: a client who never sent has one or has none."""
    sender = state["clients"]["sender"]
    if "residuals" in sender:
        residuals = {name: r for name, r in sender["residuals"].items() if r.any()}
        sender = sender | {"residuals": residuals}
    return state | {"clients": state["clients"] | {"sender": sender}}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def plain_rounds(plan: Settings, shares: list[np.ndarray]) -> torch.Tensor:
    """The weights after FedAvg or STC on dense tensors, written down from the papers."""
    codec = gcext.codec("dense" if plan.recipe == "fedavg" else plan.recipe)
    model, start = build("digits"), initial("digits", plan.seed)
    residuals = torch.zeros(plan.clients, start.numel())
    down_residual = torch.zeros_like(start)
    models = [start.clone() for _ in range(plan.clients)]
    for t in range(1, plan.rounds + 1):
        rng = generator(plan.seed, Stream.DRAW, t)
        packets, weights = [], []
        for c in sorted(rng.choice(plan.clients, plan.drawn, replace=False).tolist()):
            index = torch.from_numpy(shares[c])
            update, _ = local_sgd(
                model,
                models[c],
                DATA.inputs(DATA.train, index),
                DATA.train.labels[index],
                lr=plan.lr,
                batch=plan.batch,
                epochs=1,
                rng=generator(plan.seed, Stream.BATCH, t, c),
            )
            packets.append(codec.encode(update, residual=residuals[c]))
            weights.append(len(index))
        mean = single(gcext.aggregate.mean(packets, weights))
        broadcast = dense(codec.encode(mean, residual=down_residual))
        for weight in models:
            weight -= broadcast
    return models[0]


class TestRound:
    @pytest.mark.parametrize("recipe", ["fedavg", "stc:p=0.1"])
    def test_against_the_algorithm_written_plainly(self, recipe: str) -> None:
        """Dense tensors, one model a client, no bytes: the same weights, bit for bit."""
        plan = settings(recipe, rounds=6)
        with Workers(DATA, 1) as workers:  # holds torch to one thread here as well
            federation = Federation(plan, DATA, workers)
            for _ in range(plan.rounds):
                federation.step()
            expected = plain_rounds(plan, federation.split.train)
        assert bits(expected) == bits(federation.server.weights)

    @methods()
    def test_up_bytes_are_the_messages(
        self, federation: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = []
        compress = federation.clients.compress

        def spy(client: int, update: torch.Tensor) -> bytes:
            sent.append(compress(client, update))
            return sent[-1]

        monkeypatch.setattr(federation.clients, "compress", spy)
        for _ in range(3):
            sent.clear()
            record = federation.step()
            assert len(sent) == 3
            decoded = [gcext.Packet.from_bytes(m, expect=(federation.numel,)) for m in sent]
            assert record["up_bytes"] == sum(map(len, sent)) == sum(p.nbytes for p in decoded)

    @methods()
    def test_down_bytes_are_the_cheapest_download(self, federation: Federation) -> None:
        broadcasts: dict[int, bytes] = {}
        for _ in range(12):
            now = federation.server.version
            whole = len(gcext.codec("dense").encode(federation.server.weights).to_bytes())
            versions = list(federation.clients.version)
            record = federation.step()
            expected = 0
            for c in federation.drawn(now + 1):
                missed = [broadcasts[v] for v in range(versions[c] + 1, now + 1)]
                if not missed:
                    continue
                ways = [whole, sum(map(len, missed))]
                packets = [gcext.Packet.from_bytes(m) for m in missed]
                if len(packets) > 1 and packets[0].method == "ternary":
                    ways.append(len(gcext.Packet.merge(packets).to_bytes()))
                expected += min(ways)
            assert record["down_bytes"] == expected
            assert record["down_bytes"] == sum(k["bytes"] for k in record["down"].values())
            assert sum(k["clients"] for k in record["down"].values()) == 3
            if now + 1 in federation.server.history:
                broadcasts[now + 1] = federation.server.history[now + 1].message

    @methods(clients=12)
    def test_every_client_catches_up_bit_for_bit(self, federation: Federation) -> None:
        for _ in range(8):
            federation.step()
            server = federation.server
            for c in range(12):
                got = federation.clients.catch_up(c, server.download(federation.clients.version[c]))
                assert bits(got.weights) == bits(server.weights)
        assert len(set(federation.clients.version)) > 2

    @pytest.mark.parametrize("federation", [{"recipe": "stc:p=0.1", "clients": 40}], indirect=True)
    def test_every_kind_of_download_leads_to_the_same_model(self, federation: Federation) -> None:
        for _ in range(6):
            federation.step()
        server, clients = federation.server, federation.clients
        client = clients.version.index(0)
        messages = tuple(server.history[v].message for v in range(1, 7))
        merged = gcext.Packet.merge([server.history[v].packet for v in range(1, 7)])
        other = gcext.codec("dense").encode(server.weights)
        for download in (
            Download("single", messages),
            Download("merged", (merged.to_bytes(),)),
            Download("dense", (other.to_bytes(),)),
        ):
            assert bits(clients.catch_up(client, download).weights) == bits(server.weights)

    def test_a_wrong_download_is_noticed(self, federation: Federation) -> None:
        for _ in range(4):
            federation.step()
        history = federation.server.history
        history[3], history[4] = history[4], history[4]
        federation.server._downloads.clear()
        with pytest.raises(RuntimeError, match="must hold the server's model"):
            for _ in range(4):
                federation.step()

    def test_models_are_shared_and_dropped(self, federation: Federation) -> None:
        for _ in range(8):
            federation.step()
            assert set(federation.clients.held) == set(federation.clients.version)
            oldest, newest = min(federation.clients.version), federation.server.version
            assert set(federation.server.history) == set(range(oldest + 1, newest + 1))

    @pytest.mark.parametrize("federation", [{"recipe": "fedavg"}], indirect=True)
    def test_dense_broadcasts_are_not_kept(self, federation: Federation) -> None:
        for _ in range(6):
            federation.step()
        assert len(federation.server.history) <= 2

    def test_a_long_absence_ends_in_a_dense_download(self) -> None:
        """Broadcasts beyond a dense model's size are dropped, and no download gets larger."""
        with Workers(DATA, 2) as workers:
            federation = Federation(
                settings("stc:p=1", clients=60, participation=0.02), DATA, workers
            )
            for _ in range(80):
                federation.step()
        server = federation.server
        assert min(federation.clients.version) == 0
        signs = sum(b.packet.k for b in server.history.values())
        assert 0 < signs - 32 * federation.numel <= federation.numel + 8 * 64
        whole = len(gcext.codec("dense").encode(server.weights).to_bytes())
        for version in range(20, 80):
            versions = range(version + 1, 81)
            ways = [whole]
            if all(v in server.history for v in versions):
                missed = [server.history[v] for v in versions]
                ways.append(sum(len(b.message) for b in missed))
                if len(missed) > 1:
                    ways.append(gcext.Packet.merge([b.packet for b in missed]).nbytes)
            assert server.download(version).nbytes == min(ways)
        assert server.download(0).kind == "dense"

    def test_loss_is_the_mean_over_minibatches(self) -> None:
        model, start = build("digits"), initial("digits", 0)
        images, labels = DATA.inputs(DATA.train, slice(0, 150)), DATA.train.labels[:150]
        common: dict[str, Any] = {"lr": 0.1, "batch": 64}
        losses = []

        class Orders:
            def permutation(self, n: int) -> np.ndarray:
                return np.arange(n)

        common["rng"] = Orders()
        weights = start.clone()
        for i in (0, 64, 128):
            update, loss = local_sgd(
                model, weights, images[i : i + 64], labels[i : i + 64], epochs=1, **common
            )
            weights = weights - update
            losses.append(loss)
        update, loss = local_sgd(model, start, images, labels, epochs=1, **common)
        assert loss == pytest.approx(math.fsum(losses) / 3, rel=1e-6)
        assert torch.allclose(start - update, weights, atol=1e-6)
        assert torch.equal(start, initial("digits", 0))

    def test_accuracy_and_its_spread(self, federation: Federation) -> None:
        record = federation.step()
        model = build("digits")
        model.weights.copy_(federation.server.weights)
        with torch.inference_mode():
            right = model(DATA.inputs(DATA.test, slice(None))).argmax(1) == DATA.test.labels
        assert record["accuracy"] == right.double().mean().item()
        spread = np.std([right[index].double().mean().item() for index in federation.split.test])
        assert record["accuracy_std"] == pytest.approx(float(spread))

    def test_a_diverging_run_raises(self) -> None:
        with pytest.raises(
            Diverged, match=r"must be finite, got nan in round \d+. Lower --lr"
        ) as stop:
            run(settings(lr=1e20), DATA)
        assert stop.value.result is not None and stop.value.result["diverged"]
        assert f"round {len(stop.value.result['rounds']) + 1}." in str(stop.value)


class CrashError(Exception):
    pass


class TestWholeOrNothing:
    """A round cut off anywhere leaves every state as it was, and the run goes on unharmed."""

    @methods()
    @pytest.mark.parametrize("error", [KeyboardInterrupt, CrashError])
    @pytest.mark.parametrize("place", ["train", "up", "aggregate", "down", "test"])
    def test_cut_off(
        self,
        federation: Federation,
        monkeypatch: pytest.MonkeyPatch,
        place: str,
        error: type[BaseException],
    ) -> None:
        for _ in range(3):
            federation.step()
        state = frozen(federation.state_dict())
        calls = iter(range(100))

        def fail_on_second(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                if next(calls) == (1 if place in ("train", "up") else 0):
                    raise error
                return result

            return wrapper

        owner, name = {
            "train": (run_module, "local_sgd"),
            "up": (federation.clients.sender, "compress"),
            "aggregate": (federation.server.receiver, "aggregate"),
            "down": (federation.server.sender, "compress"),
            "test": (federation.workers, "test"),
        }[place]
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail_on_second(getattr(owner, name)))
            with pytest.raises(error):
                federation.step()
        assert federation.clients.sender.pending == federation.server.sender.pending == ()
        assert same(meaning(state), meaning(federation.state_dict()))
        federation.step()
        with Workers(DATA, 1) as workers:
            other = Federation(federation.settings, DATA, workers)
            for _ in range(4):
                other.step()
        assert same(meaning(other.state_dict()), meaning(federation.state_dict()))


class TestRun:
    @pytest.mark.parametrize("recipe", METHODS)
    def test_learns(self, recipe: str) -> None:
        result = run(settings(recipe, clients=5, participation=1.0, rounds=25, split="iid"), DATA)
        rounds = result["rounds"]
        assert rounds[-1]["accuracy"] > 0.85
        assert rounds[-1]["loss"] < rounds[0]["loss"] / 2
        assert rounds[-1]["test_loss"] < rounds[0]["test_loss"] / 2

    def test_result_is_json_with_the_promised_fields(self) -> None:
        result = json.loads(json.dumps(run(settings(rounds=3), DATA)))
        assert (result["method"], result["seed"], result["numel"]) == ("stc", 0, 21_546)
        assert [r["round"] for r in result["rounds"]] == [1, 2, 3]
        for record in result["rounds"]:
            for name in ("accuracy", "accuracy_std", "loss"):
                assert isinstance(record[name], float)
            for name in ("up_bytes", "down_bytes"):
                assert isinstance(record[name], int)
        assert result["rounds"][0]["down_bytes"] == 0  # all start from the common initial model
        assert result["rounds_to_target"] is None
        assert result["settings"]["lr"] == 0.1 and result["versions"]["torch"]

    def test_rounds_to_target_and_stop(self) -> None:
        result = run(settings("fedavg", rounds=9, target=0.1, stop_at_target=True), DATA)
        reached = result["rounds_to_target"]
        assert reached == len(result["rounds"]) < 9
        accuracy = [r["accuracy"] for r in result["rounds"]]
        assert accuracy[-1] >= 0.1 and all(a < 0.1 for a in accuracy[:-1])

    @pytest.mark.parametrize("recipe", METHODS)
    def test_deterministic_whatever_the_threads(self, recipe: str) -> None:
        one, two, other = (
            run(settings(recipe, seed=seed), DATA, threads=threads)
            for seed, threads in ((0, 1), (0, 3), (1, 1))
        )
        assert one["model_digest"] == two["model_digest"] != other["model_digest"]
        assert one["rounds"] == two["rounds"]

    def test_torch_threads_are_restored(self) -> None:
        before = torch.get_num_threads()
        run(settings(rounds=1), DATA)
        assert torch.get_num_threads() == before

    def test_local_epochs(self) -> None:
        one, two = (run(settings(rounds=1, epochs=e), DATA) for e in (None, 2))
        assert one["settings"]["epochs"] == 1 and two["settings"]["epochs"] == 2
        assert one["model_digest"] != two["model_digest"]

    def test_dirichlet_with_clients_who_have_no_test_images(self) -> None:
        plan = settings("pstc:p=0.1,alpha=0.1,tau=1", split="dirichlet:0.05", clients=30, rounds=3)
        result = run(plan, DATA)
        assert all(math.isfinite(r["accuracy_std"]) for r in result["rounds"])


def test_own_data_and_model() -> None:
    """Tabular, with three classes: three directions from which the inputs come."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    inputs = torch.randn(900, 6, generator=generator, dtype=torch.float64)
    inputs[torch.arange(900), labels] += 3.0
    data = Data(
        "mine",
        Part(inputs[:600], labels[:600]),
        Part(inputs[600:], labels[600:]),
        model=lambda: torch.nn.Linear(6, 3),
    )
    plan = dataclasses.replace(settings("stc:p=0.3", rounds=20), data="mine")
    result = run(plan, data, threads=1)
    assert result["numel"] == 21
    assert result["rounds"][-1]["accuracy"] > 0.9
    with pytest.raises(ValueError, match=r"data of another name .* must come with a model"):
        Data("mine", data.train, data.test)
