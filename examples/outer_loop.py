"""Workers train a small GPT on Python's help texts, with one outer step every H of their own.

In seconds: python examples/outer_loop.py; the experiment of docs/results/outer-loop.md is made by
its options. Packets go through a store: a worker that is late is left out of a round.
"""

from __future__ import annotations

import argparse
import copy
import math
import pydoc_data.topics
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gcext


class GPT(nn.Module):
    """Predicts the next of ``symbols`` symbols at each place: (batch, context) int64 to logits."""

    def __init__(self, symbols: int, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        form: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        block = nn.TransformerEncoderLayer(width, width // 16, 4 * width, **form)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        n, y = x.shape[1], self.embed(x) + self.place.weight[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        for block in self.blocks:
            y = block(y, src_mask=mask, is_causal=True)
        return self.head(y)


def train(rank: int, o: argparse.Namespace, text: Tensor, model: GPT, where: Any) -> None:
    """Train on one rank; ``where``: the store, or the port of its process."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", where) if isinstance(where, int) else where
    model, random = copy.deepcopy(model), torch.Generator().manual_seed(1000 * o.seed + rank)
    inner = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=(0.9, 0.95), weight_decay=0.1)
    options = {"lr": o.outer_lr, "momentum": o.momentum, "timeout": 600.0}
    outer = gcext.OuterOptimizer(
        model, o.recipe, o.every, store=store, rank=rank, world=o.workers, **options
    )
    held, shard = text[: len(text) // 10], text[len(text) // 10 :].chunk(o.workers)[rank]
    for step in range(o.steps):
        at = torch.randint(len(shard) - o.context - 1, (o.batch, 1), generator=random)
        piece = shard[at + torch.arange(o.context + 1)]
        share = min((step + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * step / o.steps))
        inner.param_groups[0]["lr"] = o.lr * share
        inner.zero_grad()
        cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten()).backward()
        inner.step()
        if outer.step() and rank == 0 and (outer.round % o.show == 0 or step + 1 == o.steps):
            with torch.no_grad():
                test = held[: len(held) // (o.context + 1) * (o.context + 1)].view(
                    -1, o.context + 1
                )
                test = test[:: max(1, len(test) // 512)]
                loss = cross_entropy(model(test[:, :-1]).flatten(0, 1), test[:, 1:].flatten())
            size = sum(4 * p.numel() for p in model.parameters()) * outer.round / outer.sent_bytes
            print(f"round {outer.round:4}  loss {loss:.4f}  {size:.1f}x fewer bytes", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    sizes = {"workers": 2, "steps": 60, "every": 30, "width": 32, "layers": 2, "context": 32}
    for name, value in {**sizes, "batch": 8, "seed": 0, "show": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--recipe", default="sparseloco")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--outer-lr", type=float)
    parser.add_argument("--momentum", type=float)
    parser.add_argument("--threads", action="store_true", help="workers in one process")
    o = parser.parse_args()
    raw = Path(pydoc_data.topics.__file__).read_bytes()
    symbols, text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).unique(return_inverse=True)
    torch.manual_seed(o.seed)
    model = GPT(len(symbols), o.width, o.layers, o.context)
    if o.threads:
        given = (o, text, model, dist.HashStore())
        ranks = [threading.Thread(target=train, args=(r, *given)) for r in range(o.workers)]
        for each in ranks:
            each.start()
    else:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(train, args=(o, text, model, store.port), nprocs=o.workers)
