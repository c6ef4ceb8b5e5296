"""Untrusted names, texts and files: no escape sequences, path traversal, formula injection or code execution."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.cli.options import default_run_folder
from bertcli.console import Console, escape_control, format_table
from bertcli.data.sources import load_rows, resolve_dataset
from bertcli.errors import DataError, ModelError, RecipeError
from bertcli.inference.prediction_formats import TextWriter
from bertcli.models import pickled_weights
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import load_recipe
from bertcli.recipe.suite import load_finetuning, load_suite, recipes_by_folder
from bertcli.runs.environment import describe_environment
from bertcli.runs.folder import RunOptions

from .conftest import QUIET

ESCAPE = "\x1b[31mred\x1b[0m \x9b2J \u202egnp.exe [bold]x[/bold]"
FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1"]


def test_console_escapes_control_characters_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say(ESCAPE)
    console.warn(ESCAPE)
    output = capsys.readouterr().err
    assert not any(control in output for control in ("\x1b[31m", "\x9b", "\u202e"))
    assert output.count("[bold]x[/bold]") == 2
    assert "\\u001b[31mred" in output


def test_error_messages_escape_control_characters() -> None:
    Path("bad.yaml").write_text('task: "\\e[31mred"\n')
    result = CliRunner().invoke(app, ["finetune", "bad.yaml"])
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(("rank", "prefix"), [("0", ""), ("3", "process 3: ")])
def test_tracebacks_escape_control_characters_and_name_the_process(
    monkeypatch: pytest.MonkeyPatch, rank: str, prefix: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    result = CliRunner().invoke(app, ["eval", "no\x1b[31mwhere", "--task", "sample/sentiment", "--debug"])
    lines = [line for line in result.stderr.splitlines() if line]
    assert f"{prefix}Traceback (most recent call last):" in lines
    assert all(line.startswith(prefix) for line in lines)
    assert any("no\\u001b[31mwhere" in line for line in lines)
    assert "\x1b" not in result.stderr


def written(texts: list[str], kind: str) -> tuple[str, str | None]:
    """The content of a file with predictions for texts, and the warning about it."""
    file, writer = io.StringIO(), TextWriter(kind)
    writer.write([[({"text": text}, {"label": "a"}) for text in texts]], file)
    return file.getvalue(), writer.warning


def test_predictions_escape_control_characters_in_json_and_formulas_in_tables() -> None:
    texts = [ESCAPE, *FORMULAS]
    content, _ = written(texts, "jsonl")
    assert [json.loads(line)["text"] for line in content.splitlines()] == texts
    assert not {"\x1b", "\x9b", "\u202e"} & {*content}
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        content, warning = written(texts, kind)
        assert warning is not None
        assert warning.startswith("cells that differ from the original text: 6; ")
        assert "an apostrophe precedes" in warning
        cells = [row["text"] for row in csv.DictReader(io.StringIO(content), delimiter=delimiter)]
        escaped = ["'" + text for text in FORMULAS]
        if kind == "tsv":  # cannot hold a tab
            escaped[-1] = " =1"
        assert cells == [escape_control(ESCAPE), *escaped]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_negative_numbers_in_tables_are_not_formulas(kind: str) -> None:
    numbers = ["-5", "-0.5", "-.5", "-1e-05", "-2."]
    content, warning = written(numbers, kind)
    assert [line[: -len(",a")] for line in content.splitlines()[1:]] == numbers
    assert warning is None
    for text in ("-5 ", "-5-1", "-", "--5", "-A1", "-\u0665"):
        content, warning = written([text], kind)
        assert "an apostrophe precedes = + - @ at the start of a cell, except in" in str(warning)
        assert content.splitlines()[1].startswith(f"'{text}")


def test_format_table_escapes_column_separators() -> None:
    lines = format_table(["run", "score"], [["a|b\nc\x1b", "1"]]).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines] == [3, 3, 3]


@pytest.mark.parametrize("name", ["../../secret", "a/../../../secret"])
def test_names_cannot_escape_the_mirror(tmp_path: Path, name: str) -> None:
    for kind in ("models", "datasets"):
        (tmp_path / "mirror" / kind / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "mirror" / "secret").mkdir()
    if name.startswith("."):
        with pytest.raises(ModelError, match="found no folder"):
            ModelSource(name, tmp_path / "mirror")
    else:
        assert ModelSource(name, tmp_path / "mirror").path == name
    assert resolve_dataset(name, tmp_path / "mirror") == name


@pytest.mark.parametrize("name", ["../evil", "../../etc/evil.yaml", ".", "glue/sst2"])
def test_default_run_folder_is_inside_runs(name: str) -> None:
    assert Path(os.path.normpath(default_run_folder(name))).parts[0] == "runs"
    assert ".." not in default_run_folder(name).parts


@pytest.mark.parametrize("hostile", ["../../../x", "/tmp/x", "..", ".hidden", "a/./../b", "a\nb", "a\x7fb"])
def test_grid_points_are_inside_the_run_folder(hostile: str) -> None:
    grid = load_finetuning("sample/sentiment", [f"training.teacher={json.dumps([hostile, 'runs/b'])}"])
    assert isinstance(grid, Grid)
    assert [point.training.teacher for point in grid.points.values()] == [hostile, "runs/b"]
    assert list(grid.points)[1] == "teacher=runs-b"
    for run in recipes_by_folder(grid, Path("runs/grid")):
        assert Path(os.path.normpath(run)).parent == Path("runs/grid")
        assert run.name.isprintable()


def test_runs_with_the_same_folder_are_rejected() -> None:
    with pytest.raises(RecipeError, match="two grid points named 'teacher=a-b'"):
        load_finetuning("sample/sentiment", ["training.teacher=[a/b, a-b]"])
    for name in ("a.yaml", "a.yml"):
        Path(name).write_text("task: sample/topics\n")
    Path("suite.yaml").write_text("suite: [a.yaml, glue/rte, a.yml]\n")
    with pytest.raises(RecipeError, match=r"the runs of a\.yaml and a\.yml would both use the folder a;"):
        load_suite("suite.yaml")


@pytest.mark.parametrize("file", ["../../outside", "/tmp/outside", "a/b", "", "a\nb"])
def test_submission_files_are_inside_the_output_folder(file: str) -> None:
    task = {"files": {"train": "a.csv"}, "text_columns": ["text"], "submission": {"files": {"test": file}}}
    Path("mine.yaml").write_text(f"task: {json.dumps(task)}\n")
    with pytest.raises(RecipeError, match="submission") as caught:
        load_recipe("mine.yaml")
    assert "letters, digits" in str(caught.value)


def test_code_in_pickled_weights_is_not_run(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with monkeypatch.context() as patch:  # a child process takes a second
        patch.setattr(pickled_weights, "convert_weights", pickled_weights._convert)
        with pytest.raises(ModelError, match=r"^refused to load .*pickled/pytorch_model\.bin: .*could run any code"):
            ModelSource(str(folder)).load_model("AutoModel")
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: it uses posix\.mkdir, and could run any code"):
        ModelSource(str(folder)).load_model("AutoModel")
    assert not Path("exploded").exists()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_custom_code_of_a_model_is_not_run(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "custom"
    folder.mkdir()
    for path in encoder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("import os; os.mkdir('exploded')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers prompts for confirmation by default
    with pytest.raises(ModelError):
        ModelSource(str(folder)).load_model("AutoModel")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("location", ["mirror", "folder"])
def test_custom_code_of_a_dataset_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    mirror = tmp_path / "mirror"
    folder = mirror / "datasets" / "some" / "set"
    folder.mkdir(parents=True)
    name, mirror_or_none = ("some/set", mirror) if location == "mirror" else (str(folder), None)
    (folder / "train.csv").write_text("text,label\na,b\n")
    for script in ("__init__.py", "dataset.py", "set.py"):
        assert load_rows(name, None, "train", mirror_or_none)["text"][:] == ["a"]
        (folder / script).write_text(f"import os; os.mkdir({str(tmp_path / 'exploded')!r})\n")
    with pytest.raises(DataError, match=r"some/set.*found set\.py"):  # the name that `datasets` would run
        load_rows(name, None, "train", mirror_or_none)
    assert not (tmp_path / "exploded").exists()


def test_recipe_yaml_constructs_no_python_objects() -> None:
    Path("bad.yaml").write_text("task: !!python/object/apply:os.mkdir [exploded]\n")
    result = CliRunner().invoke(app, ["finetune", "bad.yaml"])
    assert result.exit_code == 2
    assert not Path("exploded").exists()


def test_hub_token_on_the_command_line_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setattr("sys.argv", ["bertcli", "finetune", "x", "model.name=hf_secretsecret"])
    assert "secret" not in json.dumps(describe_environment())


def test_run_files_are_writable_only_by_the_owner(encoder: Path, reviews: Path) -> None:
    from bertcli.finetuning.run import finetune

    Path("small.yaml").write_text(
        f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
        f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\ntraining: {{max_steps: 2, seed: 1}}\n"
    )
    finetune(load_recipe("small.yaml"), Path("run"), RunOptions(console=QUIET))
    for path in Path("run").rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert not mode & 0o022, path
        assert mode & 0o400, path
