"""The wheel alone, in an empty folder: it has its recipes and pages, and the tour of the README goes through."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import REPOSITORY
from .test_readme import TOUR

SHORT = ["training.max_steps=4", "evaluation.every_steps=2", "data.max_eval_examples=20"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make dist` builds it, but with the build backend that is installed here."""
    pytest.importorskip("hatchling", reason="the build backend is missing; `make test-slow` installs it")
    folder = tmp_path_factory.mktemp("dist")
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)
    (built,) = folder.iterdir()
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_recipes_and_no_more(wheel: Path) -> None:
    roots = {REPOSITORY / "bertcli": "bertcli", REPOSITORY / "recipes": "bertcli/recipes"}
    files = [(root, path) for root in roots for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {f"{roots[root]}/{path.relative_to(root).as_posix()}" for root, path in files}
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("/licenses/LICENSE") for name in packed.namelist())
    assert names == wanted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_goes_through_with_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    words = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "bertcli", *arguments]
        done = subprocess.run(
            command, cwd=empty, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    where = "import bertcli; from bertcli.recipe.load import shipped_recipes_folder as f; print(bertcli.__file__, f())"
    told = subprocess.check_output([sys.executable, "-c", where], cwd=empty, env={"PYTHONPATH": str(site)}, text=True)
    assert told.split() == [str(site / "bertcli" / "__init__.py"), str(site / "bertcli" / "recipes")]
    assert "sample/sentiment" in call("recipes", "list", "sample")
    lines = [shlex.split(line.removeprefix("$ "))[1:] for line in TOUR.splitlines() if line.startswith("$ bertcli")]
    assert [words[0] for words in lines] == ["finetune", "eval", "predict"]
    trained, scored, answered = (call(*words, *(SHORT if words[0] == "finetune" else [])) for words in lines)
    assert trained == ""
    assert "accuracy" in scored
    assert json.loads(answered)["label"] in ("negative", "positive")
    call("report", "runs/sample-sentiment", "--html", "again.html")
    pages = [(empty / page).read_text("utf-8") for page in ("runs/sample-sentiment/report.html", "again.html")]
    assert all("<style>" in page and "</html>" in page for page in pages)
