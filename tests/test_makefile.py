"""Every Makefile target expands to valid commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.recipe.catalogue import check_recipes

from .conftest import REPOSITORY

TARGETS = re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
VARIABLES = ["MODEL=mine", "RECIPE=pretrain/novels", "KEYS=training.seed=7"]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")


def make(*arguments: str) -> list[str]:
    process = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_make_help_lists_all_targets() -> None:
    assert [line.split()[0] for line in make("help")] == TARGETS
    assert {"install", "demo", "test", "dist", "clean"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_runs_valid_commands(target: str) -> None:
    lines = make("--dry-run", target, *VARIABLES)
    assert lines
    for arguments in (shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/bertcli ")):
        assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0
        if arguments[0] in ("finetune", "pretrain"):
            overrides = [argument for argument in arguments[2:] if "=" in argument]
            assert check_recipes([arguments[1]], overrides) == {arguments[1]: []}
