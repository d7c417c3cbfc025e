"""Every tool can be started: those that run once in months are imported here with those that run daily."""

import importlib
from pkgutil import walk_packages

import pytest

import tools

MODULES = [module.name for module in walk_packages(tools.__path__, "tools.") if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_a_tool_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)


def test_an_option_is_not_broken_at_its_hyphens_on_the_site():
    from tools.site import on_page_content

    option = '<span class="option">--train-flops</span>'
    assert on_page_content("<p><code>plan --train-flops</code>") == f"<p><code>plan {option}</code>"
    assert on_page_content("<code>--train-flops 1</code>") == f"<code>{option} 1</code>"
    assert on_page_content("<p>a --dash and <code>x</code>") == "<p>a --dash and <code>x</code>"
