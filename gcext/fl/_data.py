"""The data sets, read from their publishers' files; nothing is unpickled or downloaded."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["DATASETS", "Data", "Part", "load"]

DATASETS = ("digits", "mnist", "fashion", "cifar10")

Bytes = npt.NDArray[np.uint8]

_IDX_FOLDER = {"mnist": "MNIST", "fashion": "FashionMNIST"}
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_RECORD = 1 + 3 * 32 * 32

# Mean and standard deviation of the training pixels, per channel, on [0, 1].
_MOMENTS = {
    "digits": ([0.3053], [0.3760]),
    "mnist": ([0.1307], [0.3081]),
    "fashion": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}


@dataclass(frozen=True)
class Part:
    """Images uint8 (n, height, width, channels), or own inputs (n, ...); labels int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A training and a test part of one name.

    Own data takes any other name than those of ``DATASETS``, and a model; its inputs go to the
    model as they are, in float32.

    Attributes:
        name: of the data set.
        train: what the clients hold.
        test: what the server's model is tested on.
        white: the pixel value that means 1.0.
        model: makes the network, which returns logits (n, classes); None: the data set's own.

    >>> x, y = torch.randn(200, 5), torch.arange(200) % 2
    >>> mine = Data("mine", Part(x, y), Part(x, y), model=lambda: torch.nn.Linear(5, 2))
    >>> mine.inputs(mine.train, slice(0, 3)).shape
    torch.Size([3, 5])
    """

    name: str
    train: Part
    test: Part
    white: int = 255
    model: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.name not in DATASETS and self.model is None:
            raise ValueError(
                f"data: data of another name than {', '.join(DATASETS)} must come with a model, "
                f"got {self.name} without. Pass model=."
            )

    def inputs(self, part: Part, index: Tensor | slice) -> Tensor:
        """Return standardised float32 images (n, channels, height, width), channels-last.

        Channels-last even for one channel: oneDNN then keeps every activation so, and max pooling
        is vectorised (3x on MNIST's evaluation).
        """
        if self.name not in _MOMENTS:
            return part.images[index].to(torch.float32)
        mean, std = (torch.tensor(m) for m in _MOMENTS[self.name])
        pixels = part.images[index].to(torch.float32)
        return pixels.sub_(mean * self.white).div_(std * self.white).permute(0, 3, 1, 2)

    def digest(self) -> str:
        """Return a hash of all images and labels, so that no run is resumed on other data."""
        h = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.test):
            for tensor in (part.images, part.labels):
                h.update(repr(tuple(tensor.shape)).encode())
                h.update(tensor.numpy().tobytes())
        return h.hexdigest()


def load(name: str, data_dir: str | Path | None = None) -> Data:
    """Read a data set: ``digits`` needs no files, the others are read from ``data_dir``.

    ``data_dir`` holds ``MNIST/raw`` or ``FashionMNIST/raw`` (idx files, plain or ``.gz``, as
    torchvision lays them out) or ``cifar-10-batches-bin`` (the publisher's binary version).

    Raises ValueError for an unknown name or a malformed file, FileNotFoundError naming every file
    that is missing.

    >>> len(load("digits").test)
    360
    """
    if name == "digits":
        return _digits()
    if name not in DATASETS:
        raise ValueError(f"data: the name must be one of {', '.join(DATASETS)}, got {name}.")
    if data_dir is None:
        raise ValueError(f"data: {name} needs files, got no directory. Give --data-dir DIR.")
    if name == "cifar10":
        return _cifar(Path(data_dir) / _CIFAR_FOLDER)
    return _idx(name, Path(data_dir) / _IDX_FOLDER[name] / "raw")


def _digits() -> Data:
    """Every fifth image is for testing: the set is ordered by writer, and both parts need all."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "data: digits needs scikit-learn, got no such module. Run pip install 'gcext[fl]'."
        ) from error

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.reshape(-1, 8, 8, 1).astype(np.uint8))
    target = torch.from_numpy(labels.astype(np.int64))
    test = torch.arange(len(target)) % 5 == 0
    train, held_out = (Part(images[chosen], target[chosen]) for chosen in (~test, test))
    return Data("digits", train, held_out, white=16)


def _find(folder: Path, names: tuple[str, ...], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the path of every name; one error lists all that are missing."""
    found = [next((p for s in suffixes if (p := folder / (n + s)).is_file()), None) for n in names]
    missing = [n for n, path in zip(names, found, strict=True) if path is None]
    if missing:
        or_gz = " (plain or .gz)" if ".gz" in suffixes else ""
        raise FileNotFoundError(
            f"data: {folder} must hold {', '.join(names)}{or_gz}, got no {', '.join(missing)}. "
            "Put the files there or correct --data-dir."
        )
    return [path for path in found if path is not None]


def _idx(name: str, folder: Path) -> Data:
    names = tuple(n for pair in _IDX_FILES.values() for n in pair)
    paths = _find(folder, names, ("", ".gz"))
    return Data(name, _idx_part(*paths[:2]), _idx_part(*paths[2:]))


def _idx_part(image_path: Path, label_path: Path) -> Part:
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data: {image_path.name} and {label_path.name} must be of one length, "
            f"got {len(images)} and {len(labels)}. Fetch both again."
        )
    return _part(images[..., None], labels, label_path)


def _read_idx(path: Path, dims: int) -> Bytes:
    """An idx file of unsigned bytes: 0 0 8 dims, the sizes as big-endian u32, then the bytes."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"data: {path} must be a gzip file, got {error}. Fetch it again."
            ) from error
    head = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", raw[4:head]) if len(raw) >= head else ()
    if raw[:4] != bytes((0, 0, 8, dims)) or len(raw) - head != math.prod(shape):
        raise ValueError(
            f"data: {path} must be an idx file of {dims}-dimensional unsigned bytes, "
            f"got {len(raw)} bytes that start {raw[:4].hex()}. Fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _cifar(folder: Path) -> Data:
    _find(folder, (*_CIFAR_FILES["train"], *_CIFAR_FILES["test"]), ("",))
    parts = {}
    for part, names in _CIFAR_FILES.items():
        records = []
        for path in (folder / n for n in names):
            raw = np.frombuffer(path.read_bytes(), np.uint8)
            if raw.size == 0 or raw.size % _CIFAR_RECORD:
                raise ValueError(
                    f"data: {path} must hold records of {_CIFAR_RECORD} bytes, "
                    f"got {raw.size} bytes. Fetch it again."
                )
            records.append(raw.reshape(-1, _CIFAR_RECORD))
        table = np.concatenate(records)
        images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts[part] = _part(images, table[:, 0], folder)
    return Data("cifar10", parts["train"], parts["test"])


def _part(images: Bytes, labels: Bytes, path: Path) -> Part:
    if labels.size and labels.max() > 9:
        raise ValueError(
            f"data: {path} must hold labels 0 to 9, got {labels.max()}. Fetch it again."
        )
    return Part(
        torch.from_numpy(np.ascontiguousarray(images).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )
