"""What the README names is there: files, commands, recipes, keys."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bertcli import errors
from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.console import Console
from bertcli.errors import RecipeError
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_pretrain_recipe, load_recipe, shipped_recipes
from bertcli.recipe.schema import TrainingSection
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.folder import RunFolder, RunOptions
from bertcli.tasks import TASKS

from .conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
TOUR = next(text for kind, text in BLOCKS if kind == "console")
LINES = [line.removeprefix("$ ") for kind, text in BLOCKS if kind in ("bash", "console") for line in text.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("bertcli")]


def test_the_package_tree_is_the_package() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("bertcli/"))
    named = set(re.findall(r"^  ([\w.]+)/?\s", tree, re.MULTILINE))
    there = {path.name for path in (REPOSITORY / "bertcli").iterdir() if not path.name.startswith("__")}
    assert named == there
    for folder in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (REPOSITORY / folder).is_dir()


def test_the_run_tree_is_the_run_folder() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("runs/"))
    named = set(re.findall(r"^  ([\w.]+)/?\s", tree, re.MULTILINE))
    properties = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    assert named == {getattr(RunFolder(Path()), name).name for name in properties}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_named(name: str) -> None:
    assert name in README or all(f"`{part}`" in README or f"`{part}/`" in README for part in name.split("/"))


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "yaml"])
def test_recipe_snippets_are_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.yaml").write_text(text, "utf-8")
    load = load_pretrain_recipe if "corpus:" in text else load_finetuning
    load(str(tmp_path / "snippet.yaml"))


def test_the_example_with_own_files_runs(encoder: Path) -> None:
    """A new data set takes one section of a recipe: the README's, as it stands there."""
    text = next(text for kind, text in BLOCKS if kind == "yaml" and "files:" in text)
    Path("own.yaml").write_text(text, "utf-8")
    for name in ("reviews.csv", "final.csv"):
        Path(name).write_text("text,label\n" + "a fine film,positive\nawful soup,negative\n" * 20, "utf-8")
    words = [f"model.name={encoder}", "training.max_steps=2", "data.max_length=32"]
    results = finetune(load_recipe("own.yaml", words), Path("run"), RunOptions(console=Console(quiet=True)))
    assert set(results["metrics"]["validation"]) == {"accuracy", "f1_macro", "loss"}
    assert evaluate("run", split="test", console=Console(quiet=True))["num_examples"] == 40


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command.partition(" #")[0])[1:]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    if words[0] == "finetune":
        keys = [word for word in words[2:] if "=" in word and not word.startswith("-")]
        assert load_finetuning(words[1], keys)
    if words[0] == "pretrain":
        load_pretrain_recipe(words[1], [word for word in words[2:] if "=" in word])
    if words[0] == "submit":
        assert CliRunner().invoke(app, [*words, "--print"]).exit_code == 0


@pytest.fixture
def mirror(encoder: Path, tmp_path: Path) -> Path:
    """A few rows of the data sets and a tiny model under the names that the README's commands know."""
    datasets = pytest.importorskip("datasets")
    for name in ("nreimers/MiniLM-L6-H384-uncased", "google-bert/bert-base-uncased"):
        shutil.copytree(encoder, tmp_path / "mirror" / "models" / name)
    folder = tmp_path / "mirror" / "datasets" / "nyu-mll" / "glue"
    configs = []
    for name in ("sst2", "stsb", "cola", "mrpc", "rte", "mnli"):
        task = TASKS[f"glue/{name}"]
        splits = ["train", str(task.splits.validation), *task.splits.more_validation]
        label = datasets.ClassLabel(names=list(task.labels)) if task.labels else datasets.Value("float32")
        features = {column: datasets.Value("string") for column in task.text_columns} | {"label": label}
        rows = [dict.fromkeys(task.text_columns, f"a fine film {at}") | {"label": at % 2} for at in range(40)]
        (folder / name).mkdir(parents=True)
        for split in splits:
            made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
            made.to_parquet(folder / name / f"{split}.parquet")
        files = [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", "utf-8")
    shutil.copytree(encoder, "my-encoder")
    return tmp_path / "mirror"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run_one_after_the_other(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those that need the hub or a cluster, which have tests of their own; trainings are cut short."""
    monkeypatch.setenv("BERTCLI_MIRROR", str(mirror))
    monkeypatch.setenv("BERTCLI_CACHE", "cache")
    short = ["training.max_steps=4", "data.max_eval_examples=20", "data.max_length=32", "evaluation.every_steps=2"]
    away = ("bertcli fetch", "bertcli submit", "bertcli push runs/sample-sentiment me/sentiment --private")
    commands = [command for command in COMMANDS if not command.startswith(away)]
    for command in sorted(commands, key=lambda one: not one.startswith("bertcli pretrain")):
        words = shlex.split(command.partition(" #")[0])[1:]
        more = short if words[0] == "finetune" else ["training.max_steps=4"] if words[0] == "pretrain" else []
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, (command, result.output)
    for made in ("runs/grid", "runs/glue", "runs/student", "runs/lora"):
        assert Path(made, "report.html").is_file()
    for made in ("compared.html", "plots/loss.png", "exported/model.onnx"):
        assert Path(made).is_file()


def test_the_tour_begins_as_it_is_shown() -> None:
    """What training says is the machine's; what is planned is not."""
    shown, _, rest = TOUR.partition("\nstep ")
    command, *plan = shown.splitlines()
    result = CliRunner().invoke(app, [*shlex.split(command)[2:], "--dry-run"])
    assert result.stderr.splitlines()[: len(plan)] == plan
    assert 'next      bertcli predict runs/sample-sentiment --text "…"' in rest


def test_the_keys_of_the_ways_to_fine_tune_are_those_of_training() -> None:
    table = README.partition("## Ways to fine-tune")[2].partition("```")[0]
    named = {code.partition(":")[0] for code in re.findall(r"`([^`]+)`", table.partition("| --- | --- |")[2])}
    assert named <= set(TrainingSection.model_fields)


def test_the_results_are_those_of_the_recipes_table() -> None:
    rows = re.findall(r"^\| (`[^`]+`) \| (\w[\w ]* 0[^|]*?) \| ([\d.]*) ?\|$", README, re.MULTILINE)
    assert len(rows) >= 5
    measured = (REPOSITORY / "recipes" / "README.md").read_text("utf-8").splitlines()
    for recipe, score, published in rows:
        assert any(line.startswith(f"| {recipe}") and score in line and published in line for line in measured), recipe


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BertcliError)]
    codes = {kind.exit_code for kind in kinds} | {0}
    codes |= {errors.exit_code_of(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert told == codes == {0, 1, 2, 85, 130, 143}
    assert app.info.epilog
    for text in (app.info.epilog, errors.__doc__ or ""):
        assert codes <= {int(code) for code in re.findall(r"\b\d+\b", text)}


def test_every_verb_is_in_the_table() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    table = {words.split()[1] for words in re.findall(r"^\| `(bertcli [^`]*)`", README, re.MULTILINE)}
    assert table == verbs


def test_the_shown_mistakes_are_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("my.yaml")).splitlines()
    text = "task: glue/rte\nmodel:\n  dropout: 0.1\n  learning_rate: 1\ntraining:\n  epochs: 1\n  schedule: linera\n"
    Path("my.yaml").write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("my.yaml")
    assert caught.value.problems == shown
    other = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("command line"))
    key = other.split("'")[1]
    with pytest.raises(RecipeError) as caught:
        load_recipe("glue/sst2", [f"training.{key}=8"])
    assert caught.value.problems == other.splitlines()
