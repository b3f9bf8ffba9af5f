# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring runs; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import prune_engine as pe

# What is not a function or class: a string, a table; __main__ starts the command line.
NOT_DOCUMENTED = {"__version__", "TABLE", "NUM_CLASSES"}  # no docstring can be theirs
NOT_IMPORTED = {"prune_engine.__main__"}
COMPILED = ("prune_engine._",)  # libraries: no docstrings of ours


def of_a_framework(name: str) -> bool:
    """Say whether a module needs a framework: the tests of the integrations run its examples."""
    return bool(pe.integrations.EXTRAS.get(name.removeprefix("prune_engine.integrations.")))


def module_names() -> list[str]:
    walked = pkgutil.walk_packages(pe.__path__, "prune_engine.")
    found = [info.name for info in walked if not of_a_framework(info.name)]
    names = [n for n in found if n not in NOT_IMPORTED and not n.startswith(COMPILED)]
    return ["prune_engine", *names]


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [case for case in doctest.DocTestFinder().find(module, name) if case.examples]


def failures(case: doctest.DocTest) -> str:
    """Run one docstring's examples; return what went wrong."""
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(case, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", module_names())
def test_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    importlib.import_module(name)
    problems = "".join(failures(case) for case in examples_of(name))
    assert problems == ""
    assert list(tmp_path.iterdir()) == [], "examples leave no files"


def test_there_are_examples_and_a_wrong_one_is_seen():
    assert sum(len(examples_of(name)) for name in module_names()) > 40
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected" in failures(wrong)


def public() -> dict[str, Any]:
    """Return every public name, those of the public packages by their path."""
    top = {name: getattr(pe, name) for name in pe.__all__ if name not in NOT_DOCUMENTED}
    packages = {name: thing for name, thing in top.items() if hasattr(thing, "__path__")}
    inner = {
        f"{package}.{name}": getattr(thing, name)
        for package, thing in packages.items()
        for name in getattr(thing, "__all__", ())
        if name not in NOT_DOCUMENTED
    }
    return {**top, **inner}


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing) or ""
    assert text.split("\n")[0].endswith((".", "?")), "one line that is a sentence"
    if inspect.ismodule(thing):
        named = (getattr(thing, part) for part in getattr(thing, "__all__", ()))
        homes = {thing.__name__, *(getattr(part, "__module__", "") for part in named)} - {""}
        assert any(map(examples_of, homes)), "its functions have examples"
    elif inspect.isfunction(thing) or not (
        issubclass(thing, Exception)
        or inspect.isabstract(thing)
        or getattr(thing, "_is_protocol", False)
    ):
        assert "Example" in text, "an example that runs"
        assert ">>>" in text


def undocumented(thing: type) -> list[str]:
    """Return a class's public methods and properties without a docstring of their own."""
    members = {
        name: getattr(member, "fget", None) or member
        for name, member in vars(thing).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }
    return [name for name, member in members.items() if not getattr(member, "__doc__", None)]


@pytest.mark.parametrize("name", [n for n, thing in PUBLIC.items() if inspect.isclass(thing)])
def test_public_methods_are_documented(name):
    assert undocumented(PUBLIC[name]) == []


def test_control_a_method_without_docstring_is_seen():
    class Bare:
        def method(self):
            pass

    assert undocumented(Bare) == ["method"]


def test_all_is_sorted_complete_and_importable():
    assert sorted(pe.__all__, key=str) == sorted(set(pe.__all__), key=str)
    assert all(hasattr(pe, name) for name in pe.__all__)
    assert set(pe.__all__) <= set(dir(pe))
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(pe, "no_such_name")  # noqa: B009
