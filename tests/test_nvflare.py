"""NVFlare's filters: its own DXO, Shareable and FLContext; and a job of its simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gcext

pytest.importorskip("nvflare", reason="needs nvflare")

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_bytes, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.decomposers import numpy_decomposers

from gcext._packet.codes import Contents
from gcext.nvflare import Compress, Decompress

ROOT = Path(__file__).parents[1]


def context(client: str = "site-1", task: str = "1", job: str = "job") -> Any:
    """The context that a client's filters get."""
    manager = FLContextManager(identity_name=client, job_id=job)
    made = manager.new_context()
    made.set_prop(ReservedKey.TASK_ID, task, private=True, sticky=False)
    assert made.get_identity_name() == client and made.get_job_id() == job
    assert made.get_prop(FLContextKey.TASK_ID) == task
    return made


def diff(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "weight": random.normal(size=(30, 20)).astype(np.float32),
        "half": random.normal(size=40).astype(np.float16),
        "double": random.normal(size=(2, 3)).T,
        "empty": np.zeros((0, 2), np.float32),
        "scale": np.array(0.5, np.float32),
        "torch": torch.from_numpy(random.normal(size=(8, 4))).bfloat16(),
        "count": np.array([3, 4]),
    }


def shareable(data: dict[str, Any], kind: str = DataKind.WEIGHT_DIFF, **meta: Any) -> Shareable:
    return DXO(kind, data, {MetaKey.NUM_STEPS_CURRENT_ROUND: 7, **meta}).to_shareable()


def compressed(filter: Compress, data: dict[str, Any], **where: str) -> DXO:
    return from_shareable(filter.process(shareable(data), context(**where)))


def test_what_travels_is_one_packet_and_comes_back_as_it_was() -> None:
    numpy_decomposers.register()
    client, server = Compress("dense"), Decompress()
    result = client.process(shareable(diff()), context())
    there = from_shareable(result)
    assert set(there.data) == {"gcext", "count"} and type(there.data["gcext"]) is bytes
    assert there.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 7
    result = server.process(from_bytes(there.to_bytes()).update_shareable(result), context())
    back = from_shareable(result)
    assert back.data_kind == DataKind.WEIGHT_DIFF
    assert back.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 7
    assert back.meta[MetaKey.FILTER_HISTORY] == ["Compress", "Decompress"]
    assert MetaKey.PROCESSED_ALGORITHM not in back.meta and len(back.meta) == 2
    for name, value in diff().items():
        got = back.data[name]
        assert type(got) is type(value) and got.dtype == value.dtype and got.shape == value.shape
        np.testing.assert_allclose(_plain(got), _plain(value), rtol=1e-7)
    assert client.sent_bytes == server.received_bytes == len(there.data["gcext"])


def _plain(value: Any) -> Any:
    return value.float().numpy() if isinstance(value, torch.Tensor) else value


def test_a_packet_counts_once_another_task_has_come() -> None:
    """The same task once more, as after an error, gets what the first try was made of."""
    client, sender = Compress("stc:p=0.1"), gcext.ErrorFeedback("stc:p=0.1")
    for task, repeats in (("1", 1), ("2", 3), ("3", 1)):
        data = {"weight": diff(int(task))["weight"]}
        expected = sender.compress({"weight": torch.from_numpy(data["weight"])}).to_bytes()
        for _ in range(repeats):
            assert compressed(client, data, task=task).data["gcext"] == expected


def test_each_client_and_job_has_residuals_and_seeds_of_its_own() -> None:
    client = Compress("terngrad:bucket=64")
    data = {"weight": diff()["weight"]}
    packets = {
        compressed(client, data, client=name, job=job).data["gcext"]
        for name in ("site-1", "site-2")
        for job in ("a", "b")
    }
    assert len(packets) == 4
    again = compressed(Compress("terngrad:bucket=64"), data, client="site-2", job="a")
    assert again.data["gcext"] in packets


def test_nan_raises_and_changes_nothing() -> None:
    client, other = Compress("stc:p=0.1"), Compress("stc:p=0.1")
    good, bad = ({"weight": diff(seed)["weight"]} for seed in (1, 2))
    bad["weight"][3, 4] = np.nan
    for each in (client, other):
        compressed(each, good, task="1")
    with pytest.raises(ValueError, match="'weight'"):
        compressed(client, bad, task="2")
    assert client.sent_bytes == other.sent_bytes
    expected = compressed(other, good, task="3").data["gcext"]
    assert compressed(client, good, task="3").data["gcext"] == expected


def test_what_is_no_weight_difference_passes() -> None:
    client, server = Compress("stc:p=0.1"), Decompress()
    for given in (
        shareable(diff(), kind=DataKind.WEIGHTS),
        shareable({"count": np.array([1])}),
        make_reply(ReturnCode.EXECUTION_EXCEPTION),
    ):
        before = {key: str(value) for key, value in given.items()}
        for each in (client, server):
            after = each.process(given, context())
            dxo = after.get("DXO")
            if dxo:
                dxo["meta"].pop(MetaKey.FILTER_HISTORY, None)
            assert {key: str(value) for key, value in after.items()} == before
    assert client.sent_bytes == 0


def test_what_another_filter_has_encoded_is_refused() -> None:
    given = shareable(diff(), **{MetaKey.PROCESSED_ALGORITHM: "float16"})
    with pytest.raises(ValueError, match="as it was trained, got one of 'float16'"):
        Compress("stc:p=0.1").process(given, context())


def test_a_packet_of_one_large_tensor_without_a_name_is_refused() -> None:
    """A few bytes may stand for any number of zeros."""
    good = compressed(Compress("stc:p=0.1"), {"weight": diff()["weight"]})
    data = {"gcext": bytes(gcext.stc(torch.zeros(2**20), p=1))}
    bad = DXO(DataKind.WEIGHT_DIFF, data, good.meta | {"gcext_members": []})
    with pytest.raises(ValueError, match="must hold the tensors that its DXO names"):
        Decompress().process_dxo(bad, Shareable(), context())


def test_hostile_results_are_refused() -> None:
    data = {"weight": diff()["weight"]}
    shapes = {"weight": [30, 20]}
    good = compressed(Compress("stc:p=0.1"), data)
    same = DXO(DataKind.WEIGHT_DIFF, good.data, good.meta)
    assert "weight" in Decompress(shapes).process_dxo(same, Shareable(), context()).data
    members = good.meta["gcext_members"]
    bad: list[tuple[dict[str, Any], dict[str, Any], type[Exception]]] = [
        ({"gcext": good.data["gcext"][:-1]}, {}, gcext.DecodeError),
        ({"gcext": bytes(gcext.stc(torch.ones(3), p=1))}, {}, gcext.DecodeError),
        ({}, {"gcext_members": [["other", "float32", "numpy"]]}, ValueError),
        ({}, {"gcext_members": members * 2}, ValueError),
        ({}, {"gcext_members": None}, ValueError),
        ({}, {"gcext_members": [["weight", "int64", "numpy"]]}, ValueError),
        ({}, {"gcext_members": [["weight", "float32", "os"]]}, ValueError),
    ]
    for change, meta, error in bad:
        wrong = DXO(DataKind.WEIGHT_DIFF, {**good.data, **change}, {**good.meta, **meta})
        server = Decompress(shapes)
        with pytest.raises(error):
            server.process_dxo(wrong, Shareable(), context())
        assert server.received_bytes == 0
    nothing = Contents(torch.empty(0, dtype=torch.int64), torch.empty(0))
    huge = gcext.Packet.group([gcext.Packet("sparse", (1 << 32,), torch.float32, nothing)])
    assert huge.nbytes < 100
    wrong = DXO(DataKind.WEIGHT_DIFF, {"gcext": bytes(huge)}, good.meta)
    with pytest.raises(ValueError, match="must hold the tensors"):
        Decompress().process_dxo(wrong, Shareable(), context())


@pytest.mark.parametrize("recipe", ["pstc", "diloco", "ef21", "laq"])
def test_recipes_with_an_aggregator_of_their_own_are_refused(recipe: str) -> None:
    with pytest.raises(ValueError, match=r"NVFlare aggregates\. Use a codec's recipe"):
        Compress(recipe)


def test_a_job_in_the_simulator(tmp_path: Path) -> None:
    """Two clients, three rounds: the model is what error feedback makes of their differences."""
    import nvflare_kit

    command = [sys.executable, str(ROOT / "tests" / "nvflare_kit.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "job"), str(tmp_path / "work"), "stc:p=0.1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "work").rglob("server.npy")
    target = torch.from_numpy(nvflare_kit.TARGET)
    model, sender = torch.zeros_like(target), gcext.ErrorFeedback("stc:p=0.1")
    for _ in range(nvflare_kit.ROUNDS):
        sender.compress(0.5 * (target - model), "numpy_key").add_to_(model)
    torch.testing.assert_close(torch.from_numpy(np.load(file)), model)
