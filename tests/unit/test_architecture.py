"""The house is built as docs/architecture.md draws it: who imports whom, how long a file is."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megaqk"
FILES = sorted(PACKAGE.rglob("*.py"))

ABOVE = {
    "errors": set[str](),
    "config": {"errors"},
    "runtime": {"errors"},
    "parallel": {"errors", "config", "runtime"},
    "data": {"errors", "config", "runtime"},
    "checkpoint": {"errors", "runtime"},
    "model": {"errors", "config", "runtime", "parallel"},
    "corpus": {"errors", "config", "runtime", "data"},
    "optim": {"errors", "config", "runtime", "parallel", "model"},
    "probing": {"errors", "config", "runtime", "model"},
    "training": {
        *("errors", "config", "runtime", "checkpoint", "parallel", "data", "model", "corpus", "optim", "probing"),
    },
    "analysis": {
        *("errors", "config", "runtime", "checkpoint", "parallel", "data", "model", "corpus", "optim", "probing"),
        "training",
    },
    "exchange": {"errors", "config", "runtime", "checkpoint", "parallel", "data", "model"},
    "evaluation": {"errors", "runtime", "checkpoint", "exchange", "training"},
    "generation": {"errors", "runtime", "exchange"},
    "preflight": {"errors", "config", "runtime", "parallel", "data", "model", "corpus", "training"},
    "studies": {"errors", "config", "runtime", "checkpoint", "data", "corpus", "training", "analysis", "evaluation"},
}
"""What each room may import beside itself; the files on top (the command line, `check`) may import all."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name.startswith("megaqk") and name not in MODULES:
                name = name.rpartition(".")[0]
            if name.startswith("megaqk"):
                yield name


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_and_imports_from_above(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    mine = room(module_of(path))
    if mine in ABOVE:
        wrong = {name for name in imports(path) if name != "megaqk" and room(name) not in {mine, *ABOVE[mine]}}
        assert not wrong


def test_no_imports_in_a_circle() -> None:
    graph = {module_of(path): {name for name in imports(path) if name != module_of(path)} for path in FILES}
    # A package imports what it exports; its modules import each other, not the package.
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_two_files_have_one_name() -> None:
    names = [path.name for path in FILES if path.name not in ("__init__.py", "cli.py")]
    assert sorted(names) == sorted(set(names))


def test_only_one_file_reads_what_launchers_say() -> None:
    words = ('"RANK"', '"WORLD_SIZE"', '"LOCAL_RANK"', '"LOCAL_WORLD_SIZE"', "OMPI_COMM_WORLD")
    readers = {path.name for path in FILES if any(word in path.read_text(encoding="utf-8") for word in words)}
    assert readers == {"launch.py"}


def test_the_picture_names_every_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert rooms == set(ABOVE) - {"errors"}
    assert all(f"`{name}/`" in text for name in rooms)


def test_data_is_less_than_a_third_of_the_house() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    data = sum(count for path, count in lines.items() if room(module_of(path)) in ("data", "corpus"))
    assert 3 * data < sum(lines.values())
