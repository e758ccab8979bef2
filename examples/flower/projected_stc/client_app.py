"""A client: local SGD, and a mod that sends its update as a packet."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from gcext.flower import CompressMod
from projected_stc import task


def compress(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send the update by the recipe of the run's config."""
    config = context.run_config
    if not config["recipe"]:
        return call_next(msg, context)
    mod = CompressMod(
        str(config["recipe"]),
        seed=int(config["seed"]),
        initial=lambda context: task.start(context.run_config),
        folder=str(config["state-dir"]) or None,
    )
    return mod(msg, context, call_next)


app = ClientApp(mods=[compress])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train on this node's part of the data."""
    arrays, loss, samples = task.train(
        msg.content["arrays"],
        context.run_config,
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        int(msg.content["config"]["server-round"]),
    )
    metrics = MetricRecord({"train_loss": loss, "num-examples": samples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)
