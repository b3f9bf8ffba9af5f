# SPDX-License-Identifier: Apache-2.0
"""The page of the integrations, and their docstrings, run as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from typing import Any

import pytest
import torch
from _readme import ROOT, blocks, readers_names

import prune_engine as pe
from prune_engine.integrations.packages import need

PAGE = ROOT / "prune_engine" / "integrations" / "README.md"


def sections() -> dict[str, str]:
    """Return heading -> text, of the parts that have code."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {heading: text for heading, text in pairs if blocks(text)}


@pytest.mark.parametrize("heading", sections())
def test_the_blocks_of_a_section_run(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    space = readers_names(tmp_path)
    found = blocks(sections()[heading])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _, code in found:
            line = text.count("\n", 0, text.index(code))
            exec(compile("\n" * line + code, str(PAGE), "exec", dont_inherit=True), space)


def test_every_integration_has_a_section_with_code():
    code = "".join(sections().values())
    assert {name for name in pe.integrations.EXTRAS if f"integrations.{name}" not in code} == set()


@pytest.mark.parametrize("name", pe.integrations.EXTRAS)
def test_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = getattr(pe.integrations, name)
    report: list[str] = []
    cases = [case for case in doctest.DocTestFinder().find(module, name) if case.examples]
    for case in cases:
        doctest.DocTestRunner(verbose=False).run(case, out=report.append)
    assert "".join(report) == ""
    assert cases


@pytest.mark.parametrize("name", pe.integrations.EXTRAS)
def test_public_names_are_documented(name):
    module: Any = importlib.import_module(f"prune_engine.integrations.{name}")
    for public in module.__all__:
        thing = getattr(module, public)
        assert (inspect.getdoc(thing) or "").split("\n")[0].endswith("."), public
        assert inspect.isclass(thing) or ">>>" in inspect.getdoc(thing), public
        members = vars(thing) if inspect.isclass(thing) else {}
        for member, value in members.items():
            if not member.startswith("_") and callable(value):
                assert value.__doc__, f"{public}.{member}"


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'prune_engine\[ignite\]'"):
        need("no_such_framework.engine", "ignite")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        need("ignite.no_such_module", "ignite")
