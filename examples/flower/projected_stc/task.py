"""The data, the model, and local training: gcext's federated loop, as both apps use it."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from gcext.fl import Data, Split, build, initial, load, local_sgd, split
from gcext.fl._models import cnn


def enlarged() -> nn.Sequential:
    """Return MNIST's model on images of 8 x 8."""
    return nn.Sequential(nn.Upsample(size=28), *cnn())


@lru_cache(maxsize=1)
def dataset(name: str, folder: str, large: bool) -> Data:
    """Return a data set with its model."""
    data = load(name, Path(folder) if folder else None)
    if not large:
        return data
    parts = {
        part: replace(of, images=data.inputs(of, slice(0, len(of))))
        for part, of in (("train", data.train), ("test", data.test))
    }
    return Data("digits28", parts["train"], parts["test"], model=enlarged)


def data_of(config: Any) -> Data:
    """Return the data set that a run config names."""
    torch.set_num_threads(1)
    return dataset(config["data"], config["data-dir"], config["cnn"])


def start(config: Any) -> ArrayRecord:
    """Return the initial model, which every node makes from the seed."""
    return arrays(initial(data_of(config), config["seed"]))


def arrays(flat: torch.Tensor) -> ArrayRecord:
    """Return the flat model as Flower's arrays."""
    return ArrayRecord({"weights": Array(flat.numpy().copy())})


def train(
    given: ArrayRecord, config: Any, part: int, parts: int, number: int
) -> tuple[ArrayRecord, float, int]:
    """Return the model after an epoch on one part's samples, the mean loss, and their number."""
    data = data_of(config)
    labels = data.train.labels, data.test.labels
    plan: Split = split("iid", *labels, parts, config["seed"])
    index = torch.from_numpy(plan.train[part])
    model = build(data)
    rng = np.random.default_rng((config["seed"], number, part))
    _, loss = local_sgd(
        model,
        torch.from_numpy(given["weights"].numpy().copy()),
        data.inputs(data.train, index),
        data.train.labels[index],
        lr=config["lr"],
        batch=64,
        epochs=1,
        rng=rng,
    )
    return arrays(model.weights), loss, len(index)


def accuracy(given: ArrayRecord, config: Any) -> float:
    """Return the share of test images that a model classifies right."""
    data, part = data_of(config), data_of(config).test
    model = build(data)
    model.weights.copy_(torch.from_numpy(given["weights"].numpy().copy()))
    with torch.inference_mode():
        found = [
            model(data.inputs(part, slice(i, i + 500))).argmax(1) for i in range(0, len(part), 500)
        ]
    return float((torch.cat(found) == part.labels).double().mean())
