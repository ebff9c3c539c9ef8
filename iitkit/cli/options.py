"""Options of the commands that take no config. Standard library only."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from iitkit.errors import IITKitError, did_you_mean


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        hint = did_you_mean(unknown[1], known) if unknown else ""
        raise IITKitError(f"{self.prog.split()[-1]}: {message}.{hint} See {self.prog} --help")


def parser(command: str, about: str, usage: str) -> argparse.ArgumentParser:
    """Return a command's parser.

    Args:
        command: the command.
        about: what it does.
        usage: its arguments.
    """
    prog = f"iitkit {command}"
    made = _Parser(prog, usage=f"{prog} {usage} [options]", description=about, allow_abbrev=False)
    made._positionals.title = "arguments"
    return made


def options(made: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Return what is given; ``--create_pr`` is ``--create-pr``.

    Raises:
        IITKitError: an unknown option, or one or an argument that is missing.
    """
    known = {option for action in made._actions for option in action.option_strings}

    def spelled(argument: str) -> str:
        name, given, value = argument.partition("=")
        dashed = name.replace("_", "-")
        return dashed + given + value if dashed in known else argument

    return made.parse_args([spelled(argument) for argument in arguments])
