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

from pathlib import Path
from typing import Annotated

from gcext.fl._cli import fl
from gcext.inspect import inspect_file

HELP = "Gradient compression for PyTorch: federated runs, a packet's fields, benchmarks."

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(fl)


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
