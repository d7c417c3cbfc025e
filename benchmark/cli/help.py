"""How `--help` looks: commands in panels, and no types of Python."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

COMPARE = "Compare"
CHECK = "Check"
LOOK_UP = "Look up"


class Command(TyperCommand):
    """A command whose help shows what a person types, not Python's types."""

    def get_help_option(self, ctx: Any) -> Any:
        return _plain(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> Any:
        return [_plain(parameter) for parameter in super().get_params(ctx)]


class Group(TyperGroup):
    """The same for a group of commands, and for the options that typer adds to one."""

    def get_help_option(self, ctx: Any) -> Any:
        return _plain(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> Any:
        return [_plain(parameter) for parameter in super().get_params(ctx)]


def _plain(parameter: Any) -> Any:
    """A flag or an argument without the name of its type; its own name says enough."""
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    elif parameter is not None and parameter.param_type_name == "argument":
        parameter.display_type_rich = lambda ctx: ""
        if shown := parameter.metavar:  # as it is written: some releases of typer set brackets around it
            parameter.get_usage_pieces = lambda ctx: [shown]
    return parameter
