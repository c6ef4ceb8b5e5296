"""Every target of the Makefile is one that `make` can go through, with commands that are understood."""

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
GIVEN = ["MODEL=mine", "RECIPE=pretrain/novels", "KEYS=training.seed=7"]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")


def make(*words: str) -> list[str]:
    done = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_help_lists_the_targets() -> None:
    assert [line.split()[0] for line in make("help")] == TARGETS
    assert {"install", "demo", "test", "dist", "clean"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_made_of_commands_that_are_understood(target: str) -> None:
    lines = make("--dry-run", target, *GIVEN)
    assert lines
    for words in (shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/bertcli ")):
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
        if words[0] in ("finetune", "pretrain"):
            keys = [word for word in words[2:] if "=" in word]
            assert check_recipes([words[1]], keys) == {words[1]: []}
