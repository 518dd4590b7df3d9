"""``atoms serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gradatoms_cli.output import bars

Folder = Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")]


def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="Another dictionary to compare; repeatable.")
    ] = None,
    stores: Annotated[list[Path] | None, typer.Option("--store", help="A store to compare; repeatable.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, where it has moved; default: the one the atoms were made with.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's let others in.")
    ] = "127.0.0.1",
) -> None:
    """Browse the atoms, take gradients and steer, in a local web page."""
    try:
        from gradatoms.catalog.server import open_shelf
        from gradatoms.catalog.server import serve as run
    except ModuleNotFoundError as error:
        from gradatoms.errors import ConfigError

        raise ConfigError(
            f"expected {error.name} for pages, it is not installed; pip install 'gradatoms[catalog]'"
        ) from None
    with bars() as progress:
        shelf = open_shelf(folder, others=others or [], stores=stores or [], model=model, progress=progress)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: {host} lets other machines in; anyone who reaches it can run the model", file=sys.stderr)
    run(shelf, host=host, port=port, ready=lambda url: print(f"{folder} at {url}  (Ctrl-C ends it)", flush=True))
