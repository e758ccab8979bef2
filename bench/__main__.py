"""``python -m bench``: gcext against PyTorch and the floor, each checked against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Annotated

import typer
from rich.console import Console

from . import feedback, gpu, gpu_count, link, options, polar, race, recipes, report, rows, server
from .case import Setting

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


def _command(entry: str) -> Callable[..., None]:
    def command(
        n: options.Counts = ["10M"],  # noqa: B006 (typer copies it)
        p: options.Shares = ["0.01"],  # noqa: B006
        device: Annotated[str, typer.Option(help="Only cpu; for CUDA: gpu.")] = "cpu",
        threads: options.Threads = 0,
        rounds: options.Rounds = 0,
        seed: options.Seed = 0,
        m: Annotated[
            str, typer.Option(help="Packets, of gram and others; tensors, of batch.")
        ] = "10",
        data: Annotated[
            str,
            typer.Option(help="Of stc and select: normal,layered,sorted,heavy."),
        ] = "normal",
        torch: Annotated[bool, typer.Option(help="Time PyTorch's formulations too.")] = True,
        compile: Annotated[bool, typer.Option(help="Time torch.compile too.")] = True,
        peak: options.Peak = True,
        variants: Annotated[bool, typer.Option(help="Show every variant.")] = False,
        json_: options.Json = None,
    ) -> None:
        if device != "cpu":
            raise ValueError(f"bench: device must be cpu, got {device}. Leave --device out.")
        sizes = product(options.parse_counts(n), options.parse_shares(p), data.split(","))
        packets = options.parse_count(m, "m")
        settings = [Setting(n, p, seed, packets, kind) for n, p, kind in sizes]
        options.set_threads(threads)
        with Console(stderr=True).status("starting") as status:
            found = rows.run(
                entry,
                settings,
                rounds=rounds,
                baselines=torch,
                compiled=compile,
                peak=peak,
                progress=status.update,
            )
        report.save(found, json_)
        report.show(found, rows.COLUMNS, rows.TITLE, variants)
        if any(row.failed for row in found):
            raise typer.Exit(1)

    return command


def _add(name: str, command: Callable[..., None], help: str | None = None) -> None:
    app.command(name, help=help)(options.exits_on_error()(command))


for _entry, (_help, _) in rows.ENTRIES.items():
    _add(_entry, _command(_entry), _help)
_add("feedback", feedback.command)
_add("recipes", recipes.command)
_add("polar", polar.command)
_add("gpu", gpu.command)
_add("gpu-count", gpu_count.command)
_add("server", server.command)
_add("link", link.command)
_add("race", race.command)


if __name__ == "__main__":
    app(prog_name="python -m bench")
