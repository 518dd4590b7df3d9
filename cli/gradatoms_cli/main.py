"""The ``atoms`` command. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import typer

from gradatoms_cli import catalog, data, dictionary, labels, run, store, weights, words

app = typer.Typer(
    name="atoms",
    help="Read what training pushes a language model toward: harvest gradients, learn atoms, name them, describe, steer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store_app = typer.Typer(
    help="Look at a gradient store, check it, bring it elsewhere.", no_args_is_help=True, rich_markup_mode=None
)
projector_app = typer.Typer(help="Train and test the projector.", no_args_is_help=True, rich_markup_mode=None)

app.command("demo")(run.demo)
app.command("harvest")(data.harvest)
app.add_typer(store_app, name="store")
for name, command in (
    ("info", store.info),
    ("verify", store.verify),
    ("view", store.view),
    ("merge", store.merge),
    ("export", store.export),
    ("import", store.import_),
):
    store_app.command(name)(command)
app.command("fit")(dictionary.fit)
app.command("eval")(dictionary.evaluate)
app.command("encode")(dictionary.encode)
app.command("label")(labels.label)
app.command("score")(labels.score)
app.command("ls")(dictionary.ls)
app.command("show")(dictionary.show)
app.command("search")(dictionary.search)
app.command("describe")(words.describe)
app.add_typer(projector_app, name="projector")
projector_app.command("train")(words.projector_train)
projector_app.command("eval")(words.projector_eval)
app.command("steer")(words.steer)
app.command("attribute")(weights.attribute)
app.command("audit")(weights.audit)
app.command("diff")(weights.diff)
app.command("serve")(catalog.serve)
app.command("export")(dictionary.export)
app.command("nearest")(dictionary.nearest)
app.command("push")(dictionary.push)
app.command("pull")(dictionary.pull)


def main() -> None:
    """Run a command; what goes wrong on purpose is one line and exit code 1, Ctrl-C is 130, SIGTERM 143."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")  # of 1,024 shapes, as by default, it takes gigabytes
    terminated = False

    def terminate(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except SystemExit as stop:  # typer turns Ctrl-C into exit code 130
        if stop.code == 130:
            print(
                "interrupted: nothing that was finished is lost; run the same command again to go on "
                "(harvest: with --resume, label: with --missing)",
                file=sys.stderr,
            )
            sys.exit(143 if terminated else 130)
        raise
    except Exception as error:
        if not _expected(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _expected(error: Exception) -> bool:
    from gradatoms.errors import GradAtomsError
    from gradatoms_store import StoreError

    return isinstance(error, GradAtomsError | StoreError | PermissionError) or (
        isinstance(error, OSError) and error.errno is not None and error.filename is not None
    )
