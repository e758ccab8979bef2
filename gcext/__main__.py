"""The command line: the command ``gcext``, or ``python -m gcext``."""

from __future__ import annotations

import sys
from importlib import import_module

from gcext import __version__, build_info

try:
    import typer
    from rich.console import Console
except ImportError:
    if sys.argv[1:] == ["--version"]:
        print(f"gcext {__version__}")
        sys.exit()
    sys.exit("gcext: the command line needs typer and rich. Run pip install 'gcext[fl]'.")

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
from rich.table import Table

from gcext._recipes import advise as advise_on
from gcext._recipes import breakeven as breakeven_rows
from gcext._recipes import methods as method_rows
from gcext._recipes.breakeven import parse_rate
from gcext.fl._cli import fl
from gcext.fl._compare import compare
from gcext.inspect import inspect_file

HELP = "Gradient compression for PyTorch: methods, federated runs, packets, benchmarks."

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(fl)
app.command()(compare)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gcext {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A packet, as to_bytes wrote it.")]) -> None:
    """Print a packet field by field beside its bytes; exit 1 where it is refused."""
    try:
        code = inspect_file(file, Console())
    except FileNotFoundError:
        code = _fail(f"inspect: FILE must exist, got {file}.")
    except OSError as error:
        code = _fail(f"inspect: FILE must be a readable file, got {file}: {error.strerror}.")
    raise typer.Exit(code)


def _fail(message: str) -> int:
    """Print an error; return the exit code of a command that could not begin."""
    aside = Console(stderr=True)
    aside.print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 2


JsonPath = Annotated[Path | None, typer.Option("--json", help="Write the rows as a list.")]


@app.command()
def methods(json_path: JsonPath = None) -> None:
    """Print every published method: bits an element, state, paper, and when to use it."""
    rows = method_rows()
    table = Table("method", "bits", "direction", "state", "unbiased", "paper", "when to use it")
    for row in rows:
        unbiased = "yes" if row.unbiased else "no"
        bits = f"{row.bits:.3f}"
        table.add_row(row.name, bits, row.direction, row.state, unbiased, row.paper, row.use)
    _show(table, [row._asdict() for row in rows], json_path)


@app.command()
def advise(
    file: Annotated[Path, typer.Argument(help="Gradients, as torch.save wrote them: tensors.")],
    codec: Annotated[
        list[str] | None,
        typer.Option(help="A codec's spec; repeat for several.", show_default="every one"),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Run every codec on gradients of your own: error, cosine, bytes, time, and where it pays."""
    try:
        rows = advise_on(_tensors(torch.load(file, weights_only=True)), codec or None)
    except FileNotFoundError:
        raise typer.Exit(_fail(f"advise: FILE must exist, got {file}.")) from None
    except (ValueError, TypeError) as error:
        raise typer.Exit(_fail(str(error))) from error
    except (OSError, UnpicklingError, RuntimeError) as error:
        problem = f"advise: FILE must hold tensors that torch.save wrote, got {file}."
        raise typer.Exit(_fail(f"{problem} {str(error).partition('.')[0]}.")) from error
    table = Table("codec", *_ADVICE)
    for row in rows:
        table.add_row(
            row.spec,
            str(row.nbytes),
            f"{row.ratio:.1f}x",
            f"{row.error:.3f}",
            f"{row.cosine:.3f}",
            f"{row.milliseconds:.2f}",
            f"{row.megabits:,.0f} Mbit/s" if row.megabits else "never",
        )
    _show(table, [row._asdict() for row in rows], json_path)


@app.command()
def breakeven(
    params: Annotated[str, typer.Option(help="Parameters of the model: 7e9, 338006.")],
    link: Annotated[
        str | None, typer.Option(help="Speed of each rank's link: 10M, 100Mbit, 1G.")
    ] = None,
    ranks: Annotated[int, typer.Option(help="Processes that exchange gradients.")] = 2,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A recipe's spec; repeat for several.", show_default="a choice"),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Measure methods on this machine: the link speed below which each pays in DDP."""
    try:
        rate = None if link is None else parse_rate(link)
        count = float(params)
        if not count.is_integer():
            raise ValueError(f"params must be a whole number, got {params}.")
        rows = breakeven_rows(int(count), rate, ranks, method or None)
    except (ValueError, OverflowError) as error:
        text = str(error).removeprefix("breakeven: ")
        raise typer.Exit(_fail(f"breakeven: {text}")) from error
    asked = () if link is None else (f"ms at {link}", "speed-up")
    table = Table("method", "bytes a rank", "ms encode", "ms decode", "pays below", *asked)
    for row in rows:
        pays = f"{row.megabits:,.0f} Mbit/s" if row.megabits else "never"
        times = () if link is None else (f"{1e3 * row.seconds:,.2f}", f"{row.speedup:.2f}x")
        coding = f"{row.encode_ms:,.2f}", f"{row.decode_ms:,.2f}"
        table.add_row(row.spec, f"{row.nbytes:,}", *coding, pays, *times)
    _show(table, [row._asdict() for row in rows], json_path)


_ADVICE = ("bytes", "float32 / this", "error", "cosine", "ms", "pays below")


def _tensors(loaded: Any) -> list[torch.Tensor]:
    """Return all tensors in what was loaded, of dicts and lists at any depth."""
    if isinstance(loaded, torch.Tensor):
        return [loaded]
    if not isinstance(loaded, dict | list | tuple):
        return []
    parts = loaded.values() if isinstance(loaded, dict) else loaded
    return [tensor for part in parts for tensor in _tensors(part)]


def _show(table: Table, rows: list[dict[str, Any]], json_path: Path | None) -> None:
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1) + "\n")
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


@app.command()
def info() -> None:
    """Print what was built and what runs here."""
    for key, value in build_info().items():
        Console().print(f"{key:14} {value}", highlight=False, markup=False)


@app.command(
    context_settings={
        "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []
    }
)  # fmt: skip
def bench(context: typer.Context) -> None:
    """Measure speed against PyTorch; see `gcext bench --help`."""
    benchmarks = _benchmarks()
    if benchmarks is None:
        raise typer.Exit(_fail("bench: needs the folder bench of the sources, found none."))
    benchmarks(context.args, prog_name=context.command_path)


def _benchmarks() -> typer.Typer | None:
    """Return the command line of a wheel's benchmarks, or of those beside the sources."""
    for package in ("gcext._bench", "bench"):
        try:
            found = import_module(f"{package}.__main__").app
        except ModuleNotFoundError as error:
            if error.name is None or not f"{package}.__main__".startswith(error.name):
                raise
        else:
            assert isinstance(found, typer.Typer)
            return found
    return None


def main() -> None:
    """Run the console command."""
    app(prog_name="gcext")


if __name__ == "__main__":
    app(prog_name="python -m gcext")
