"""How commands stand together. Loads nothing but typer."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class ListingGroup(TyperGroup):
    """A group that lists when it is called without a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front of options that stand alone."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def new_app(name: str | None = None, about: str | None = None, *, lists: bool = False) -> typer.Typer:
    """Commands of one module: a group with a name, or commands that stand beside those of other modules.

    Args:
        name: of the group.
        about: its help.
        lists: whether the group alone means its command `list`.
    """
    return typer.Typer(
        name=name,
        help=about,
        cls=ListingGroup if lists else TyperGroup,
        no_args_is_help=not lists,
        add_completion=False,
        rich_markup_mode=None,  # plain help, which loads in half the time
        pretty_exceptions_enable=False,
    )
