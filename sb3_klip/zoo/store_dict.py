"""``key:value`` arguments of a command line, with mistakes explained."""

import argparse
from collections.abc import Sequence
from typing import Any

from rl_zoo3.utils import StoreDict


class CheckedStoreDict(StoreDict):
    """
    RL Zoo's parser of ``key:value`` arguments, whose values are Python expressions.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str] | Any,
        option_string: str | None = None,
    ) -> None:
        for item in values:
            key, colon, value = item.partition(":")
            if not colon:
                raise argparse.ArgumentError(self, f"{item!r} is not of the form key:value")
            try:
                super().__call__(parser, namespace, [item], option_string)
            except Exception as error:  # the value is any Python expression, so it may raise anything
                raise argparse.ArgumentError(
                    self,
                    f"{value!r} is not a Python expression ({type(error).__name__}: {error}); "
                    f"a text needs quotes of its own, for example {key}:\"'text'\"",
                ) from error
        super().__call__(parser, namespace, values, option_string)
