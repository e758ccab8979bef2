"""Processes train a small GPT on Python's help texts: python examples/outer_loop.py."""

import argparse
import copy
import math
import pydoc_data.topics
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gcext


class GPT(nn.Module):
    def __init__(self, symbols: int, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        form = {"dropout": 0.0, "batch_first": True, "norm_first": True, "bias": False}
        block = nn.TransformerEncoderLayer(width, width // 16, 4 * width, **form)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, symbols, False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.place.weight
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            y = block(y, src_mask=mask, is_causal=True)
        return self.head(self.norm(y))


def loss_of(model: GPT, pieces: Tensor) -> Tensor:
    return cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def train(rank: int, o: argparse.Namespace, text: Tensor, model: GPT, port: int) -> None:
    torch.set_num_threads(1)
    model = copy.deepcopy(model)  # the processes share what they were given
    store, random = dist.TCPStore("127.0.0.1", port), torch.Generator().manual_seed(rank)
    inner = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    outer = gcext.OuterOptimizer(
        *(model, o.recipe, o.every), lr=o.outer_lr, store=store, rank=rank, world=o.workers
    )
    n, cut = o.context + 1, len(text) // 10
    test, shard = text[:cut], text[cut:].chunk(o.workers)[rank]
    test = test[: cut // n * n].view(-1, n)[:: max(1, cut // n // 512)]
    for step in range(o.steps):
        share = min((step + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * step / o.steps))
        inner.param_groups[0]["lr"] = o.lr * share
        starts = torch.randint(len(shard) - n, (o.batch, 1), generator=random)
        inner.zero_grad()
        loss_of(model, shard[starts + torch.arange(n)]).backward()
        inner.step()
        if outer.step() and rank == 0 and outer.round % o.show == 0:
            fewer = sum(4 * p.numel() for p in model.parameters()) * outer.round / outer.sent_bytes
            loss = loss_of(model, test).item()
            print(f"round {outer.round:4}  loss {loss:.4f}  {fewer:.1f}x fewer bytes", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    sizes = {"workers": 2, "steps": 60, "every": 30, "width": 32, "layers": 2, "context": 32}
    for name, value in {**sizes, "batch": 8, "show": 1, "lr": 2e-3, "outer-lr": 1.0}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--recipe", default="sparseloco")
    o = parser.parse_args()
    raw = bytearray(Path(pydoc_data.topics.__file__).read_bytes())
    symbols, text = torch.frombuffer(raw, dtype=torch.uint8).unique(return_inverse=True)
    torch.manual_seed(0)
    model = GPT(len(symbols), o.width, o.layers, o.context)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(train, args=(o, text, model, store.port), nprocs=o.workers)
