"""The command line: verbs as small functions, one line an error, `--json` for machines."""

from __future__ import annotations

import typer

from jobs import building, exchange, filtering, keeping, looking, quality, reviewing, training

app = typer.Typer(
    name="perceive",
    help="From region annotations to captioned, filtered shards, and to a trained PAM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)

for module in (building, filtering, looking, quality, reviewing, keeping, exchange, training):
    module.add_to(app)


def main() -> None:
    """The `perceive` command."""
    app()
