# SPDX-License-Identifier: Apache-2.0
"""The layout is a contract: who may import whom, one op one file, clean text."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "prune_engine"

# A module may import from its own folder and from what is lower, never from above or beside it.
HEIGHTS = {
    "cli": 10,
    "recipes": 9,
    "integrations": 8,
    "terminal_view": 8,
    "loggers": 8,
    "engine": 7,
    "checkpoint": 7,
    "sharding": 5,
    "recording": 5,
    "policies": 5,
    "data": 5,
    "coresets": 5,
    "schedule": 5,
    "epoch": 4,
    "ops": 3,
    "backends": 2,
    "losses": 1,
    "host": 1,
    "_host": 0,
    "_ops": 0,
    "files": 0,
    "lasting": 0,
    "plain": 0,
    "bands": 0,
    "errors": 0,
}
USERS = HEIGHTS["integrations"]  # from here up, the public API's front door is the way in
FRONT_DOOR = ("", "__main__")  # __init__ re-exports everything, __main__ starts cli
# A policy never sees a kernel; nor does anything between the engine and the operators.
SEES_BACKENDS = ("cli", "recipes", "integrations", "engine", "epoch.score_buffer", "ops")

CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|tmp|opt|farm|mnt|Users)/\w")
SPDX = "SPDX-License-Identifier: Apache-2.0"


def text_files() -> list[Path]:
    """List the files that are, or are about to be, tracked; without git, all that is no output."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        outputs = (".venv/", "build/", "dist/", "runs/")  # at the top: csrc/build is no output
        found = [path for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
        paths = [path for path in found if not relative(path).startswith(outputs)]
    return [path for path in paths if path.is_file() and is_text(path)]


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Yield the absolute names a module's source imports from the package, wherever they stand."""
    base = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = base[: len(base) - node.level + 1] if node.level else []
            stem = ".".join([*parents, *([node.module] if node.module else [])])
            # `from prune_engine import ops` names a module, `... import Rule` a thing in one.
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == PACKAGE else [stem]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def room(module: str) -> str:
    """Return the file or folder at the top of the package that a module is in; "" for itself."""
    return [*module.split("."), ""][1]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return what is wrong with a module's imports, one sentence each."""
    home = room(module)
    if home in FRONT_DOOR:
        return []
    if home not in HEIGHTS:
        return [f"{module} has no height; give it one in tests/release/test_layout.py"]
    found: list[str] = []
    seer = f"{module}.".startswith(tuple(f"{PACKAGE}.{name}." for name in SEES_BACKENDS))
    for name in imported(source, module, is_package):
        target = room(name)
        if target not in HEIGHTS:
            if HEIGHTS[home] < USERS:
                found.append(f"{module} imports {name} through the front door")
        elif target != home and HEIGHTS[target] >= HEIGHTS[home]:
            found.append(f"{module} imports {name}, which is not below it")
        elif target == "backends" and not seer and home != "backends":
            found.append(f"{module} imports {name}: only the operators see kernels")
    return found


def module_name(path: Path) -> str:
    words = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def test_imports_point_downwards() -> None:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    found = [
        line
        for path in files
        for line in violations(
            path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"
        )
    ]
    assert files
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prune_engine.policies.infobatch", "from prune_engine.backends import reference"),
        ("prune_engine.policies.infobatch", "from prune_engine import engine"),
        ("prune_engine.policies.infobatch", "from ..engine import PruneEngine"),
        ("prune_engine.backends.native", "from prune_engine.policies.infobatch import InfoBatch"),
        ("prune_engine.epoch.score_buffer", "def late():\n    import prune_engine.data.sampler"),
        ("prune_engine.bands", "from . import ops"),
        ("prune_engine.engine", "from prune_engine import InfoBatch"),
        ("prune_engine.misplaced", "import torch"),
        ("prune_engine.epoch.run", "from prune_engine.policies import BPAS"),
        ("prune_engine.epoch.run", "from ..policies.batches.stability_memory import BatchMemory"),
        ("prune_engine.epoch.score_buffer", "from prune_engine.sharding.layout import owned"),
        ("prune_engine.epoch.run", "from prune_engine.data.stream import Walk"),
        ("prune_engine.epoch.run", "from prune_engine import backends"),
        ("prune_engine.sharding.run", "from prune_engine.policies import Policy"),
        ("prune_engine.policies.bandit", "import prune_engine.data.sampler"),
    ],
)
def test_a_forbidden_import_is_caught(module: str, source: str) -> None:
    assert violations(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prune_engine.cli", "import prune_engine as pe\nfrom prune_engine import InfoBatch"),
        ("prune_engine.engine", "from . import ops\nfrom .policies import InfoBatch"),
        ("prune_engine.policies.infobatch", "from ..epoch.policy import Policy"),
        ("prune_engine.epoch.score_buffer", "from prune_engine import backends"),
        ("prune_engine.data.sampler", "from .stream import Pass"),
        ("prune_engine.ops", "from prune_engine.backends import load\nimport torch"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def declared_ops(source: str) -> list[str]:
    return re.findall(r'm\.def\(\s*"(\w+)\(', source)


def incomplete_ops(names: Iterable[str], root: Path) -> list[str]:
    """Return what the ops lack: a kernel file, a test file or a row of the table."""
    table = (root / "csrc/README.md").read_text(encoding="utf-8")
    lacking: list[str] = []
    for name in names:
        stem = name.rstrip("_")  # an in-place form is in the files of its operator
        kernels = (f"csrc/cpu/{stem}.cpp", f"csrc/cuda/{stem}.cu", f"csrc/cuda/{stem}.cpp")
        for path in (*kernels, f"tests/ops/test_{stem}.py"):
            if not (root / path).is_file():
                lacking.append(path)
        if not re.search(rf"^\| `{name}` \|", table, re.MULTILINE):
            lacking.append(f"row of {name} in csrc/README.md")
    return lacking


def test_every_op_has_its_kernel_its_test_and_its_row() -> None:
    names = declared_ops((ROOT / "csrc/ops.cpp").read_text(encoding="utf-8"))
    assert len(names) >= 6
    assert incomplete_ops(names, ROOT) == []


def test_an_op_without_its_files_is_caught() -> None:
    names = declared_ops('m.def("plan(Tensor x) -> Tensor"); m.def(\n  "ghost(Tensor x) -> ()");')
    assert names == ["plan", "ghost"]
    assert len(incomplete_ops(names, ROOT)) == 5


def repeated_types(sources: Iterable[str]) -> list[str]:
    """Return the C++ types that are defined more than once; specialisations are no definitions."""
    pattern = r"^\s*(?:struct|class|enum class) (?:alignas\(\d+\) )?(\w+)(?: : \w+)? \{"
    names = [name for text in sources for name in re.findall(pattern, text, re.MULTILINE)]
    return sorted({name for name in names if names.count(name) > 1})


def test_no_two_types_of_the_native_code_share_a_name() -> None:
    paths = [path for path in ROOT.glob("csrc/**/*") if path.suffix in CODE - {".py"}]
    assert len(paths) > 50
    assert repeated_types(path.read_text(encoding="utf-8") for path in paths) == []


def test_two_types_of_one_name_are_caught() -> None:
    sources = ("struct Batch {\n};\nstruct Row;\n", "namespace cuda {\nstruct Batch {\n};\n}")
    assert repeated_types(sources) == ["Batch"]


def test_the_op_table_names_no_op_that_does_not_exist() -> None:
    table = (ROOT / "csrc/README.md").read_text(encoding="utf-8")
    declared = declared_ops((ROOT / "csrc/ops.cpp").read_text(encoding="utf-8"))
    for part in table.split("\n## On a GPU\n"):  # each half has a table
        assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == declared


def faults(name: str, text: str) -> list[str]:
    """Return what is wrong with a file's text: no licence line, a machine's path."""
    found: list[str] = []
    lines = text.splitlines()
    code = Path(name).suffix in CODE
    if code and lines and SPDX not in lines[0] and not (lines[0][:2] == "#!" and SPDX in lines[1]):
        found.append(f"{name} does not begin with {SPDX}")
    for number, line in enumerate(lines, 1):
        if MACHINE_PATH.search(line):
            found.append(f"{name}:{number} names a path of one machine")
    return found


def test_files_are_licensed_and_free_of_machine_paths() -> None:
    files = text_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        line for path in files for line in faults(relative(path), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n",
        f"# {SPDX}\nDATA = '{'/'.join(['', 'home', 'someone', 'data'])}'\n",
    ],
    ids=["unlicensed", "path"],
)
def test_a_faulty_file_is_caught(text: str) -> None:
    assert len(faults("prune_engine/sample.py", text)) == 1


def make_words(text: str) -> set[str]:
    """Return the targets that a page of Markdown tells its reader to make."""
    spans = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    pattern = r"^(?:\$ )?make ([a-z][a-z-]*)"
    return {word for span in spans for word in re.findall(pattern, span.strip("`"), re.MULTILINE)}


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/README.md"])
def test_every_make_command_of_the_documents_exists(page: str) -> None:
    words = make_words((ROOT / page).read_text(encoding="utf-8"))
    assert words
    assert words <= make_targets()


def test_a_make_command_that_does_not_exist_is_caught() -> None:
    words = make_words("Run `make test`, make sure it passes:\n```sh\n$ make everything\n```\n")
    assert words == {"test", "everything"}
    assert not words <= make_targets()
