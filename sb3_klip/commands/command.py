"""What a subcommand is, and how its arguments are parsed. Imports nothing that takes time."""

import argparse
import importlib
import textwrap
from typing import Any, NamedTuple, NoReturn

from sb3_klip.errors import InputError


class Command(NamedTuple):
    """
    One subcommand of ``sb3-klip``.

    :param name: what the user types
    :param target: ``"module:function"``, imported when the command runs and not before; the function is given
        the command and its arguments, and returns the exit code
    :param summary: what it does, in half a line without a full stop
    :param details: sentences for its own help text
    :param examples: command lines for its own help text
    """

    name: str
    target: str
    summary: str
    details: str
    examples: tuple[str, ...]

    def run(self, arguments: list[str]) -> int:
        """
        :param arguments: command line after the name of the command
        :return: exit code
        :raises InputError: if the user gave something that cannot be used
        """
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(module), function)(self, arguments)


class SentenceParser(argparse.ArgumentParser):
    """
    A parser that reports a mistake as one sentence, and prints its help texts line by line as they are written.

    :param options: options of :class:`argparse.ArgumentParser`
    """

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (help: {self.prog} --help)")


class CommandParser(SentenceParser):
    """
    The parser of one command: its help ends with examples.

    :param command: the command
    """

    def __init__(self, command: Command):
        super().__init__(
            prog=f"sb3-klip {command.name}",
            description=textwrap.fill(f"{command.summary}. {command.details}", width=100),
            epilog="\n".join(["examples:", *(f"  {example}" for example in command.examples)]),
        )
