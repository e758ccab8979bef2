"""``python -m gcext``: the command line."""

from __future__ import annotations

import sys

try:
    import typer
    from rich.console import Console
except ImportError:
    sys.exit("gcext: the command line needs typer and rich. Run pip install 'gcext[fl]'.")

from pathlib import Path
from typing import Annotated

from gcext import build_info
from gcext.fl._cli import fl
from gcext.inspect import inspect_file

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(fl)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A packet, as to_bytes wrote it.")]) -> None:
    """Print a packet field by field beside its bytes; exit 1 where it is refused."""
    try:
        code = inspect_file(file, Console())
    except OSError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False)
        code = 2
    raise typer.Exit(code)


@app.command()
def info() -> None:
    """Print what was built and what runs here."""
    for key, value in build_info().items():
        Console().print(f"{key:14} {value}", highlight=False, markup=False)


if __name__ == "__main__":
    app(prog_name="python -m gcext")
