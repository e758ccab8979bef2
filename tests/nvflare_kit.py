"""An NVFlare job of two clients with gcext's filters: executor, folder, and how it is run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

ROUNDS, SHAPE = 3, (50, 40)
TARGET = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


class Train(Executor):  # type: ignore[misc, unused-ignore]
    """Moves the model half of the way to the target, on every client."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Return the weight difference."""
        held = from_shareable(shareable).data["numpy_key"]
        diff = 0.5 * (TARGET - held)
        return DXO(DataKind.WEIGHT_DIFF, {"numpy_key": diff}, {"steps": 1}).to_shareable()


def write(folder: Path, recipe: str) -> None:
    """Write the job's folder."""
    gcext = "gcext.nvflare."
    common = "nvflare.app_common."
    chain = {"tasks": ["train"]}
    server = {
        "format_version": 2,
        "task_result_filters": [{**chain, "filters": [{"path": gcext + "Decompress", "args": {}}]}],
        "task_data_filters": [],
        "components": [
            {
                "id": "persistor",
                "path": common + "np.np_model_persistor.NPModelPersistor",
                "args": {"model": np.zeros(SHAPE, np.float32).tolist()},
            },
            {
                "id": "shareable_generator",
                "path": common + "shareablegenerators.full_model_shareable_generator."
                "FullModelShareableGenerator",
                "args": {},
            },
            {
                "id": "aggregator",
                "path": common + "aggregators.intime_accumulate_model_aggregator."
                "InTimeAccumulateWeightedAggregator",
                "args": {"expected_data_kind": "WEIGHT_DIFF"},
            },
        ],
        "workflows": [
            {
                "id": "scatter_and_gather",
                "path": common + "workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": 2,
                    "num_rounds": ROUNDS,
                    "wait_time_after_min_received": 0,
                    "aggregator_id": "aggregator",
                    "persistor_id": "persistor",
                    "shareable_generator_id": "shareable_generator",
                    "train_task_name": "train",
                },
            }
        ],
    }
    compress: dict[str, Any] = {"path": gcext + "Compress", "args": {"recipe": recipe}}
    client = {
        "format_version": 2,
        "executors": [{**chain, "executor": {"path": "nvflare_kit.Train", "args": {}}}],
        "task_result_filters": [{**chain, "filters": [compress]}],
        "task_data_filters": [],
        "components": [],
    }
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    custom = (
        folder / "app" / "custom"
    )  # makes it a job with code of its own, which may name gcext's
    custom.mkdir()
    shutil.copy(__file__, custom)
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    meta = {"name": "job", "min_clients": 2, "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}}
    (folder / "meta.json").write_text(json.dumps(meta))


if __name__ == "__main__":
    from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

    job, workspace, recipe = sys.argv[1:]
    write(Path(job), recipe)
    sys.exit(SimulatorRunner(job, workspace, n_clients=2, threads=2).run())
