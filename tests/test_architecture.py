"""Imports run one way, from the command line down: each room imports only rooms on lower floors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bertcli

PACKAGE = Path(bertcli.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (  # from the top
    {"__main__"},
    {"cli"},
    {"commands"},
    {"experiments"},
    {"finetuning", "pretraining"},
    {"inference"},
    {"training"},
    {"reports", "cluster", "heads"},
    {"runs", "models", "data", "mirror"},
    {"recipe", "metrics", "cache"},
    {"tasks", "hub", "files"},
    {"console", "errors", "malloc"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = (
    "errors",
    "tasks",
    "recipe",
    "cli",
    "commands/finetune.py",
    "runs/folder.py",
    "runs/members.py",
    "runs/claim.py",
    "inference/prediction_outputs.py",
    "__main__",
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(tree: ast.AST) -> set[str]:
    """Modules of this package that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bertcli."):
            names.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "bertcli":
            names |= {f"bertcli.{alias.name}" for alias in node.names if alias.name in FLOOR}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("bertcli.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for module in imported_modules(ast.parse(path.read_text("utf-8"))):
        imported = module.split(".")[1]
        assert imported == room or FLOOR[imported] > FLOOR[room], module


def test_no_command_imports_another() -> None:
    for path in (PACKAGE / "commands").glob("*.py"):
        found = imported_modules(ast.parse(path.read_text("utf-8")))
        assert not {name for name in found if name.startswith("bertcli.commands")}, path


def test_steps_know_no_disk_no_console_and_no_task() -> None:
    for name in ("loop", "optimizer", "schedule", "meters"):
        found = imported_modules(ast.parse((PACKAGE / "training" / f"{name}.py").read_text("utf-8")))
        rooms = {module.split(".")[1] for module in found}
        assert rooms <= {"training", "data", "recipe"}, name


@pytest.mark.parametrize("light", LIGHT)
def test_light_rooms_import_nothing_heavy_at_the_top(light: str) -> None:
    for path in MODULES:
        if path.relative_to(PACKAGE).as_posix().startswith(light):
            for node in ast.parse(path.read_text("utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "datasets", "numpy"}


def test_only_metrics_imports_evaluate() -> None:
    found = [path.name for path in MODULES if re.search(r"^ *import evaluate$", path.read_text("utf-8"), re.MULTILINE)]
    assert found == ["evaluate_metric.py"]


def test_files_and_functions_stay_short() -> None:
    for path in MODULES:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.name}"


def test_tests_stand_at_the_path_of_what_they_test() -> None:
    tests = Path(__file__).parent
    for path in sorted(tests.glob("*/test_*.py")):
        folder = PACKAGE / path.parent.name
        if folder.is_dir():
            modules = [module.stem for module in folder.glob("*.py")]
            assert any(path.stem.removeprefix("test_").startswith(module) for module in modules), path
