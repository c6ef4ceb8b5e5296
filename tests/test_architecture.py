"""Imports run one way: cli → commands → {heads, training → data; models; metrics; runs} → recipe → tasks → errors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bertcli

PACKAGE = Path(bertcli.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
BASE = {"errors"}
WANTED = BASE | {"tasks", "recipe"}
MAY_IMPORT = {
    "errors": set(),
    "tasks": BASE,
    "recipe": BASE | {"tasks"},
    "manifest": set(),
    "memory": set(),
    "data": WANTED | {"manifest", "memory"},
    "metrics": WANTED,
    "models": WANTED,
    "runs": WANTED | {"manifest"},
    "hub": WANTED,
    "heads": WANTED | {"data"},
    "training": WANTED | {"data", "memory"},
    "commands": WANTED | {"data", "metrics", "models", "runs", "heads", "training", "hub", "cluster"},
    "cluster": WANTED | {"runs"},
    "options": WANTED,
    "guard": WANTED | {"runs"},
    "recipes_app": WANTED | {"options", "guard", "runs"},
    "helpers": WANTED | {"options", "guard", "recipes_app", "commands", "runs", "cluster"},
    "cli": WANTED | {"options", "guard", "helpers", "commands", "runs", "cluster"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bertcli."):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("bertcli.")}
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert imported_rooms(ast.parse(path.read_text("utf-8"))) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", ["errors", "tasks", "recipe", "options", "guard", "recipes_app", "helpers", "cli"])
def test_light_rooms_import_nothing_heavy_at_the_top(room: str) -> None:
    for path in MODULES:
        if room_of(path) == room:
            for node in ast.parse(path.read_text("utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "datasets", "numpy"}


def test_only_metrics_imports_evaluate() -> None:
    found = [path.name for path in MODULES if "import evaluate" in path.read_text("utf-8").splitlines()]
    assert found == ["bundled.py"]


def test_files_and_functions_stay_short() -> None:
    for path in MODULES:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.name}"
