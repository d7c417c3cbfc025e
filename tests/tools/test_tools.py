"""Every tool can be started: those that run once in months are imported here with those that run daily."""

import importlib
from pkgutil import walk_packages

import pytest

import tools

MODULES = [module.name for module in walk_packages(tools.__path__, "tools.") if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_a_tool_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)
