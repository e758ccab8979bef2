"""The models, their parameters as one flat vector, so that a client sends one packet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gcext.fl._data import Data
from gcext.fl._settings import Stream, torch_seed

__all__ = ["FlatModel", "build", "cnn", "digits", "initial", "shapes", "vgg11"]


class FlatModel:
    """A network whose parameters and gradients are views of two flat float32 vectors.

    So an SGD step, a copy and an update are one vector operation each, in the order of
    ``net.parameters()``.
    """

    def __init__(self, net: nn.Module) -> None:
        params = list(net.parameters())
        self.net = net
        self.weights = torch.cat([p.detach().reshape(-1) for p in params])
        self.grad = torch.zeros_like(self.weights)
        self.shapes = tuple(tuple(p.shape) for p in params)
        sizes = [p.numel() for p in params]
        views = zip(
            params, torch.split(self.weights, sizes), torch.split(self.grad, sizes), strict=True
        )
        for param, weight, grad in views:
            param.data = weight.view(param.shape)
            param.grad = grad.view(param.shape)

    @property
    def numel(self) -> int:
        return self.weights.numel()

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def cnn() -> nn.Sequential:
    """Three convolutions for 28 x 28 grey images, 338,006 parameters (1.35 MB).

    Pooling stands before the ReLU: the two commute, and the ReLU then has a quarter of the work.
    """
    return nn.Sequential(
        *(_conv(1, 16), nn.MaxPool2d(2), nn.ReLU()),
        *(_conv(16, 32), nn.MaxPool2d(2), nn.ReLU()),
        *(_conv(32, 64), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def vgg11() -> nn.Sequential:
    """VGG11* of Sattler et al. (2019) for 32 x 32 colour images, 865,482 parameters (3.46 MB)."""
    layers: list[nn.Module] = []
    channels = 3
    for step in (32, "M", 64, "M", 128, 128, "M", 128, 128, "M", 128, 128, "M"):
        if isinstance(step, int):
            layers += [_conv(channels, step), nn.ReLU()]
            channels = step
        else:
            layers[-1:] = [nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(128, 10))
    # Eleven layers without normalisation: PyTorch's default shrinks the signal until nothing
    # learns, He's initialisation diverges at a learning rate of 0.1.
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def digits() -> nn.Sequential:
    """Two convolutions for scikit-learn's 8 x 8 digits, 21,546 parameters."""
    return nn.Sequential(
        *(_conv(1, 16), nn.MaxPool2d(2), nn.ReLU()),
        *(_conv(16, 32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


_MODELS = {"digits": digits, "mnist": cnn, "fashion": cnn, "cifar10": vgg11}


def build(data: str | Data) -> FlatModel:
    """Return the model of a data set, its weights to be overwritten.

    >>> build("mnist").numel, build("cifar10").numel
    (338006, 865482)
    """
    if isinstance(data, Data):
        return FlatModel(data.model()) if data.model is not None else build(data.name)
    return FlatModel(_MODELS[data]())


def shapes(data: str | Data) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a model's tensors, in the order of the flat weights."""
    with torch.random.fork_rng(devices=[]):
        return build(data).shapes


def initial(data: str | Data, seed: int) -> Tensor:
    """Return the common initial weights, float32 and flat; torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.INIT))
        return build(data).weights
