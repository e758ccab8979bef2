"""Data files, splits and models of the federated loop."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gcext.fl import Data, FlatModel, Part, build, initial, load, split
from gcext.fl._models import cnn, vgg11
from gcext.fl._settings import Stream, generator


def real_data_dir() -> Path:
    folder = os.environ.get("GCEXT_DATA_DIR")
    return Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data"


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def idx_files(train: int = 30, test: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": (np.arange(train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (test, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(test) % 10).astype(np.uint8),
    }


def write_idx(folder: Path, zipped: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    files = idx_files()
    for name, array in files.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return files


def write_cifar(folder: Path, records: int = 4) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, (6 * records, 3073), np.uint8)
    table[:, 0] %= 10
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, chunk in zip(names, np.split(table, 6), strict=True):
        (folder / name).write_bytes(chunk.tobytes())
    return table


class TestData:
    def test_digits_are_whole(self) -> None:
        data = load("digits")
        assert (len(data.train), len(data.test)) == (1437, 360)
        assert set(data.test.labels.tolist()) == set(range(10))
        assert data.inputs(data.train, slice(0, 5)).shape == (5, 1, 8, 8)

    @pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
    @pytest.mark.parametrize("zipped", [False, True])
    def test_idx(self, tmp_path: Path, name: str, folder: str, zipped: bool) -> None:
        files = write_idx(tmp_path / folder / "raw", zipped)
        data = load(name, tmp_path)
        for part, images, labels in (
            (data.train, "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            (data.test, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ):
            assert np.array_equal(part.images.numpy()[..., 0], files[images])
            assert np.array_equal(part.labels.numpy(), files[labels])

    def test_cifar_binary(self, tmp_path: Path) -> None:
        table = write_cifar(tmp_path / "cifar-10-batches-bin")
        data = load("cifar10", tmp_path)
        assert (len(data.train), len(data.test)) == (20, 4)
        assert np.array_equal(data.train.labels.numpy(), table[:20, 0])
        planes = data.test.images.numpy().transpose(0, 3, 1, 2).reshape(4, -1)
        assert np.array_equal(planes, table[20:, 1:])

    def test_inputs_are_standardised_channels_last(self, tmp_path: Path) -> None:
        write_cifar(tmp_path / "cifar-10-batches-bin")
        data = load("cifar10", tmp_path)
        batch = data.inputs(data.train, torch.tensor([3, 0]))
        assert batch.shape == (2, 3, 32, 32)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        red = data.train.images[3, 5, 6, 0].item() / 255
        assert batch[0, 0, 5, 6].item() == pytest.approx((red - 0.4914) / 0.2470, rel=1e-5)

    @pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
    def test_missing_idx_files_are_named(self, tmp_path: Path, name: str, folder: str) -> None:
        write_idx(tmp_path / folder / "raw")
        (tmp_path / folder / "raw" / "t10k-labels-idx1-ubyte").unlink()
        (tmp_path / folder / "raw" / "train-images-idx3-ubyte").unlink()
        with pytest.raises(FileNotFoundError) as error:
            load(name, tmp_path)
        got = str(error.value).split("got no ")[1]
        assert got.startswith("train-images-idx3-ubyte, t10k-labels-idx1-ubyte. ")
        assert str(tmp_path / folder / "raw") in str(error.value)

    def test_missing_cifar_files_are_named(self, tmp_path: Path) -> None:
        write_cifar(tmp_path / "cifar-10-batches-bin")
        (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"got no data_batch_3\.bin\. "):
            load("cifar10", tmp_path)

    def test_nothing_there_names_everything(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as error:
            load("cifar10", tmp_path)
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            assert name in str(error.value).split("got no ")[1]

    def test_no_directory_and_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="Give --data-dir"):
            load("mnist")
        with pytest.raises(ValueError, match="got svhn"):
            load("svhn")

    @pytest.mark.parametrize("cut", [0, 3, 15, 100, -1])
    def test_truncated_idx(self, tmp_path: Path, cut: int) -> None:
        write_idx(tmp_path / "MNIST" / "raw")
        path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="t10k-images-idx3-ubyte must be an idx file"):
            load("mnist", tmp_path)

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "MNIST" / "raw", zipped=True)
        path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
        whole = path.read_bytes()
        for broken in (whole[:-9], b"not gzip at all", whole[:20] + b"\xff" * 9 + whole[29:]):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match="must be a gzip file"):
                load("mnist", tmp_path)

    def test_images_and_labels_must_match(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "MNIST" / "raw")
        path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
        path.write_bytes(idx(np.zeros(29, np.uint8)))
        with pytest.raises(ValueError, match="got 30 and 29"):
            load("mnist", tmp_path)

    def test_label_out_of_range(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "MNIST" / "raw")
        path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
        path.write_bytes(idx(np.full(30, 10, np.uint8)))
        with pytest.raises(ValueError, match="labels 0 to 9, got 10"):
            load("mnist", tmp_path)

    def test_cifar_of_odd_length(self, tmp_path: Path) -> None:
        write_cifar(tmp_path / "cifar-10-batches-bin")
        path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="records of 3073 bytes, got 12291"):
            load("cifar10", tmp_path)

    def test_digest_sees_one_label(self) -> None:
        data = load("digits")
        labels = data.test.labels.clone()
        labels[7] = (labels[7] + 1) % 10
        other = Data("digits", data.train, Part(data.test.images, labels), data.white)
        assert other.digest() != data.digest() == load("digits").digest()

    @pytest.mark.skipif(not (real_data_dir() / "MNIST").is_dir(), reason="no MNIST files")
    def test_real_mnist(self) -> None:
        data = load("mnist", real_data_dir())
        assert (len(data.train), len(data.test)) == (60_000, 10_000)
        inputs = data.inputs(data.train, slice(None))
        assert inputs.mean().item() == pytest.approx(0, abs=1e-3)
        assert inputs.std().item() == pytest.approx(1, abs=1e-3)


class TestSplit:
    labels = torch.from_numpy(np.random.default_rng(3).integers(0, 10, 3000))
    test_labels = torch.from_numpy(np.random.default_rng(4).integers(0, 10, 1000))

    @pytest.mark.parametrize("kind", ["shards", "iid", "dirichlet:0.5", "dirichlet:0.01"])
    def test_disjoint_and_complete(self, kind: str) -> None:
        got = split(kind, self.labels, self.test_labels, 25, seed=2)
        for parts, count in ((got.train, 3000), (got.test, 1000)):
            assert len(parts) == 25
            assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
        assert min(map(len, got.train)) >= 1

    def test_two_shards_a_client(self) -> None:
        """Each of 200 clients holds two runs of 150 of the label-sorted 60,000."""
        labels = torch.arange(60_000) % 10
        got = split("shards", labels, torch.arange(10_000) % 10, 200, seed=0)
        rank = np.empty(60_000, np.int64)
        rank[np.argsort(labels.numpy(), kind="stable")] = np.arange(60_000)
        shards = []
        for mine in got.train:
            runs = rank[mine].copy()
            runs.sort()
            assert len(runs) == 300
            for shard in runs.reshape(2, 150):
                assert shard[0] % 150 == 0 and np.array_equal(shard, shard[0] + np.arange(150))
                shards.append(shard[0] // 150)
        assert sorted(shards) == list(range(400))

    def test_shards_test_part_has_the_clients_labels(self) -> None:
        labels, test_labels = torch.arange(6000) % 10, torch.arange(1000) % 10
        got = split("shards", labels, test_labels, 20, seed=5)
        for mine, tested in zip(got.train, got.test, strict=True):
            assert set(labels[mine].tolist()) == set(test_labels[tested].tolist())
            assert len(set(labels[mine].tolist())) <= 2

    def test_dirichlet_concentrates_as_beta_falls(self) -> None:
        def labels_held(beta: float) -> float:
            parts = split(f"dirichlet:{beta}", self.labels, self.test_labels, 20, seed=0).train
            return float(np.mean([len(set(self.labels[p].tolist())) for p in parts]))

        assert labels_held(0.05) < labels_held(0.5) < labels_held(100) == 10

    def test_dirichlet_parts_share_their_proportions(self) -> None:
        got = split("dirichlet:0.3", self.labels, self.test_labels, 10, seed=1)
        for mine, tested in zip(got.train, got.test, strict=True):
            counts = np.bincount(self.labels[mine], minlength=10) / 3000
            tested_counts = np.bincount(self.test_labels[tested], minlength=10) / 1000
            assert np.abs(counts - tested_counts).max() < 0.02

    def test_seed_decides(self) -> None:
        one, same, other = (
            split("shards", self.labels, self.test_labels, 25, seed=s) for s in (0, 0, 1)
        )
        assert all(map(np.array_equal, one.train, same.train))
        assert not all(map(np.array_equal, one.train, other.train))

    @pytest.mark.parametrize(
        "kind", ["random", "shards:3", "dirichlet", "dirichlet:0", "dirichlet:x"]
    )
    def test_unknown_kind(self, kind: str) -> None:
        with pytest.raises(ValueError, match="split: "):
            split(kind, self.labels, self.test_labels, 10, seed=0)

    def test_more_shards_than_samples(self) -> None:
        with pytest.raises(ValueError, match="Lower --clients"):
            split("shards", self.labels[:99], self.test_labels, 50, seed=0)


class TestModels:
    @pytest.mark.parametrize(
        "data, numel",
        [("mnist", 338_006), ("fashion", 338_006), ("cifar10", 865_482), ("digits", 21_546)],
    )
    def test_parameters(self, data: str, numel: int) -> None:
        assert build(data).numel == numel

    @pytest.mark.parametrize("net, shape", [(cnn, (2, 1, 28, 28)), (vgg11, (2, 3, 32, 32))])
    def test_flat_views_follow_parameter_order(self, net: Any, shape: Any) -> None:
        model = FlatModel(net())
        flat = torch.cat([p.detach().reshape(-1) for p in model.net.parameters()])
        assert torch.equal(flat, model.weights)
        F.cross_entropy(model(torch.randn(shape)), torch.tensor([1, 2])).backward()
        grads = torch.cat(
            [p.grad.reshape(-1) for p in model.net.parameters() if p.grad is not None]
        )
        assert grads.abs().sum() > 0 and torch.equal(grads, model.grad)
        before = model(torch.ones(shape))
        model.weights.zero_()
        assert before.abs().sum() > 0 and not model(torch.ones(shape)).any()

    def test_pooling_reaches_seven_by_seven(self) -> None:
        assert cnn()[:7](torch.zeros(1, 1, 28, 28)).shape == (1, 64, 7, 7)

    def test_initial_is_of_the_seed_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first = initial("digits", 0)
        assert torch.equal(torch.rand(3), expected)
        assert torch.equal(first, initial("digits", 0))
        assert not torch.equal(first, initial("digits", 1))


def test_streams_are_their_key_alone() -> None:
    one = generator(0, Stream.BATCH, 3, 7).integers(0, 2**62, 4)
    assert np.array_equal(one, generator(0, Stream.BATCH, 3, 7).integers(0, 2**62, 4))
    for seed, stream, *key in (
        (1, Stream.BATCH, 3, 7),
        (0, Stream.DRAW, 3, 7),
        (0, Stream.BATCH, 7, 3),
        (0, Stream.BATCH, 3),
    ):
        assert not np.array_equal(one, generator(seed, stream, *key).integers(0, 2**62, 4))
