"""What the user can put right, and how the command line says it."""

import difflib
from collections.abc import Iterable

#: The extra of this package that brings a module.
EXTRAS = {
    "mujoco": "mujoco",
    "Box2D": "box2d",
    "matplotlib": "plots",
    "plotly": "plots",
    "seaborn": "plots",
    "ray": "ray",
    "wandb": "track",
}


class InputError(ValueError):
    """
    What the user gave cannot be used. The message is one sentence that says why, and what can.
    """


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """
    :param word: what the user wrote
    :param known: what would have been valid
    :param otherwise: what to say if nothing valid is near
    :return: the nearest valid words, as the end of a sentence
    """
    near = difflib.get_close_matches(word, sorted(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def explain(error: Exception) -> str | None:
    """
    Put an error that the user can put right into one sentence.

    :param error: what was raised
    :return: the sentence; ``None`` if the error is not known to be of that kind, and may be a bug
    """
    if isinstance(error, InputError):
        return " ".join(str(error).split())

    from gymnasium.error import DependencyNotInstalled

    if not isinstance(error, (ImportError, DependencyNotInstalled)):
        return None
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    module = getattr(cause, "name", None) or ""
    package = module.partition(".")[0]
    if package in EXTRAS:
        return f'{package} is not installed; run: pip install "sb3-klip[{EXTRAS[package]}]"'
    if package == "sb3_klip":
        return None
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {package!r} is not installed, or its name is wrong"
    # An import of a name that a module lacks is a bug; an error raised without a module explains itself
    return " ".join(str(error).split()) if isinstance(error, DependencyNotInstalled) or not module else None
