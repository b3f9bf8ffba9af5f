# SPDX-License-Identifier: Apache-2.0
"""A claim in a README is a test: every python block runs, every table names what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from _readme import README, ROOT, blocks, readers_names

SKIP = {".venv", "build", "dist", "node_modules", ".git", "runs"}
# Its blocks need the frameworks: tests/integrations/test_page.py runs them.
OF_FRAMEWORKS = ROOT / "prune_engine" / "integrations" / "README.md"


def readmes() -> list[Path]:
    found = ROOT.rglob("*.md")
    return sorted(path for path in found if not SKIP & set(path.relative_to(ROOT).parts))


def execute(name: str, text: str, space: dict[str, Any]) -> int:
    """Run a text's python blocks in order in one namespace; return how many there were."""
    found = blocks(text)
    for line, code in found:
        padded = "\n" * (line - 1) + code  # so that a traceback names the line of the file
        exec(compile(padded, name, "exec", dont_inherit=True), space)
    return len(found)


def test_readme_has_python_blocks_and_they_all_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():  # the plain loader and the model draw from it
        torch.manual_seed(0)
        space = readers_names(tmp_path)
        assert execute(str(README), README.read_text(), space) > 0, "no code proves nothing"


@pytest.mark.parametrize(
    "path",
    [p for p in readmes() if p not in (README, OF_FRAMEWORKS)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_blocks_of_other_pages_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        count = execute(str(path), text, readers_names(tmp_path))
    assert count == len(re.findall("^```python", text, re.MULTILINE))


def test_control_a_broken_block_fails_with_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        execute("page.md", "text\n\n```python\nx = 1\n```\n\n```python\n\nx / 0\n```\n", {})
    assert caught.traceback[-1].lineno == 8  # counted from 0: line 9 of the page


def test_no_block_is_hidden_from_this_test():
    # Indented fences, other spellings and doctest blocks would not be run.
    text = README.read_text()
    assert not re.findall(r"^[ \t]+```[ \t]*py", text, re.MULTILINE)
    assert not re.findall(r"^```(?:py|python3|pycon|Python)\s*$", text, re.MULTILINE)
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
    assert ">>>" not in "".join(code for _, code in blocks(text))
