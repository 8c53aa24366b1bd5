"""``key:value`` arguments whose values are data, not code: Python literals or YAML."""

import argparse
import ast
from typing import Any

import yaml


def key_value(text: str) -> tuple[str, Any]:
    """
    Parse one argument in the RL Zoo's style, for example ``softness:0.05``, ``softness:lin_0.1`` or
    ``upper:{name: sigmoid, softness: 0.05}``.

    :param text: what the user typed
    :return: the key and the value
    :raises argparse.ArgumentTypeError: if it has no key, or the value is neither Python nor YAML
    """
    key, colon, value = text.partition(":")
    if not (key and colon and value.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key:value")
    try:
        return key, _parse(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} is neither a Python literal nor YAML") from None


def _parse(text: str) -> Any:
    try:
        return _python(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return _numbers(yaml.safe_load(text))


def _python(node: ast.expr) -> Any:
    # dict(name='sigmoid') is no literal, but how one writes a dict for the Zoo
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _python(keyword.value) for keyword in node.keywords if keyword.arg}
    return ast.literal_eval(node)


def _numbers(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as text
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
