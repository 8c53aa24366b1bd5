"""What is built is what is here."""

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML by itself")
ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"sb3_klip", *(str(path.parent.relative_to(ROOT)) for path in (ROOT / "sb3_klip").rglob("__init__.py"))}
    found = {folder.replace("/", ".") for folder in folders}
    found |= {"sb3_klip." + str(path.parent.relative_to(ROOT)).replace("/", ".") for path in ROOT.glob("hyperparams/**/*.yml")}
    assert set(settings["packages"]) == found
