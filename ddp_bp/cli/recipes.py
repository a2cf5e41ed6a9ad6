"""`ddp-bp recipes`: what can be trained as it is."""

from __future__ import annotations

import click

from ddp_bp.cli import options
from ddp_bp.cli.output import print_json, print_table
from ddp_bp.recipes import load_recipe, packaged_recipes


@click.command()
@options.json_option
def recipes(as_json: bool) -> None:
    """List the packaged recipes. Copy one with its TOML file as a start for your own."""
    rows = [{"name": name, "title": load_recipe(name)[0].title} for name in packaged_recipes()]
    if as_json:
        print_json(rows)
    else:
        print_table(("name", "title"), [(row["name"], row["title"]) for row in rows])
