"""The server: projected STC over packets, or Flower's own FedAvg to compare with."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from gcext.flower import CompressedFedAvg
from projected_stc import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the rounds of the run's config, testing the model after each."""
    config = context.run_config
    options = {
        "fraction_train": float(config["fraction-train"]),
        "fraction_evaluate": 0.0,
        "min_train_nodes": int(config["min-nodes"]),
        "min_available_nodes": int(config["min-nodes"]),
    }
    recipe = str(config["recipe"])
    strategy = (
        CompressedFedAvg(recipe, int(config["seed"]), known_start=True, **options)
        if recipe
        else FedAvg(**options)
    )
    rounds = []

    def test(number: int, arrays: ArrayRecord) -> MetricRecord:
        found = {"round": number, "accuracy": task.accuracy(arrays, config)}
        if recipe:
            sent = {"down": strategy.sent_bytes, "up": strategy.received_bytes}
            found |= {f"{way}_bytes": nbytes for way, nbytes in sent.items()}
        rounds.append(found)
        if config["report"]:  # whole after every round
            Path(str(config["report"])).write_text(json.dumps(rounds, indent=1))
        return MetricRecord({"accuracy": found["accuracy"]})

    strategy.start(
        grid,
        task.start(config),
        num_rounds=int(config["rounds"]),
        timeout=float(config["round-timeout"]),
        evaluate_fn=test,
    )
