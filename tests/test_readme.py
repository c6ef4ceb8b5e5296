"""Files, commands, recipes, keys and numbers in the READMEs exist and are right."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli import errors
from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.errors import RecipeError
from bertcli.finetuning.run import finetune
from bertcli.metrics.scores import AVERAGES, METRICS
from bertcli.recipe.load import load_pretrain_recipe, load_recipe, shipped_recipes
from bertcli.recipe.schema import TrainingSection
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.folder import RunFolder, RunOptions
from bertcli.tasks import TASKS

from .conftest import QUIET, REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
RECIPES, RESULTS = ((REPOSITORY / "recipes" / name).read_text("utf-8") for name in ("README.md", "results.md"))
STRATEGIES = (REPOSITORY / "recipes" / "strategies" / "README.md").read_text("utf-8")
BLOCKS = [
    block
    for text in (README, RECIPES, RESULTS, STRATEGIES)
    for block in re.findall(r" *```(\w+)\n(.*?)```", text, re.DOTALL)
]
TOUR = next(text for kind, text in BLOCKS if kind == "console")
LINES = [line.removeprefix("$ ") for kind, text in BLOCKS if kind in ("bash", "console") for line in text.splitlines()]
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("bertcli") and "$" not in line))


def test_package_tree_matches_the_package() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("bertcli/"))
    listed = set(re.findall(r"^  ([\w.]+)/?\s", tree, re.MULTILINE))
    entries = {path.name for path in (REPOSITORY / "bertcli").iterdir() if not path.name.startswith("__")}
    assert listed == entries
    for folder in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (REPOSITORY / folder).is_dir()


def test_files_of_the_package_exist() -> None:
    files = re.findall(r"`(bertcli/[\w/.]+)`", README + RECIPES + RESULTS + STRATEGIES)
    assert len(files) >= 5
    assert [file for file in files if not (REPOSITORY / file).exists()] == []


def test_run_tree_matches_the_run_folder() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("runs/"))
    listed = set(re.findall(r"^  ([\w.]+)/?\s", tree, re.MULTILINE))
    properties = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    assert listed == {getattr(RunFolder(Path()), name).name for name in properties}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_listed(name: str) -> None:
    assert name in README or all(f"`{part}`" in README or f"`{part}/`" in README for part in name.split("/"))


@pytest.mark.parametrize("text", [textwrap.dedent(text) for kind, text in BLOCKS if kind == "yaml"])
def test_recipe_snippets_are_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.yaml").write_text(text, "utf-8")
    load = load_pretrain_recipe if "corpus:" in text else load_finetuning
    load(str(tmp_path / "snippet.yaml"))


def test_example_with_own_data_runs(encoder: Path) -> None:
    """A new dataset takes one section of a recipe, as README shows."""
    text = next(text for kind, text in BLOCKS if kind == "yaml" and "files:" in text)
    Path("own.yaml").write_text(text, "utf-8")
    for name in ("reviews.csv", "final.csv"):
        Path(name).write_text("text,label\n" + "a fine film,positive\nawful soup,negative\n" * 20, "utf-8")
    words = [f"model.name={encoder}", "training.max_steps=2", "data.max_length=32"]
    results = finetune(load_recipe("own.yaml", words), Path("run"), RunOptions(console=QUIET))
    assert set(results.metrics["validation"]) == {"accuracy", "f1_macro", "loss"}
    assert evaluate("run", split="test", console=QUIET).num_examples == 40


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    words = shlex.split(command.partition(" #")[0])[1:]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    if words[0] == "finetune" and not words[1].startswith("mine/"):  # a copy that another command writes
        keys = [word for word in words[2:] if "=" in word and not word.startswith("-")]
        assert load_finetuning(words[1], keys)
    if words[0] == "pretrain":
        load_pretrain_recipe(words[1], [word for word in words[2:] if "=" in word])
    if words[0] == "submit":
        assert CliRunner().invoke(app, [*words, "--print"]).exit_code == 0


@pytest.fixture
def mirror(encoder: Path, tmp_path: Path) -> Path:
    """A few rows of the datasets and a tiny model under the names that the README's commands know."""
    datasets = pytest.importorskip("datasets")
    for name in ("nreimers/MiniLM-L6-H384-uncased", "google-bert/bert-base-uncased"):
        shutil.copytree(encoder, tmp_path / "mirror" / "models" / name)
    folder = tmp_path / "mirror" / "datasets" / "nyu-mll" / "glue"
    configs = []
    for name in ("sst2", "stsb", "cola", "mrpc", "rte", "mnli"):
        task = TASKS[f"glue/{name}"]
        splits = ["train", str(task.splits.validation), *task.splits.extra_validation]
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


@pytest.fixture
def data_files() -> None:
    """The files that the examples of `bertcli init` read."""
    texts = [f"{text} {number}" for number in range(20) for text in ("a fine film", "awful soup")]
    tables = {
        "reviews.csv": ["text,label", *(f"{text},{text.split()[1]}" for text in texts)],
        "tweets.csv": [f"{text.split()[1]},{row},{text}" for row, text in enumerate(texts)],
        "data/train.csv": ["text,stars", *(f"{text},{row % 5 + 1}" for row, text in enumerate(texts))],
        "data/dev.csv": ["text,stars", *(f"{text} too,{row % 5 + 1}" for row, text in enumerate(texts))],
    }
    for name, lines in tables.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("\n".join([*lines, ""]), "utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("data_files")
def test_the_commands_run_one_after_the_other(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those that need the Hub, a cluster or `$MODEL`, which have their own tests; trainings are cut short."""
    monkeypatch.setenv("BERTCLI_MIRROR", str(mirror))
    monkeypatch.setenv("BERTCLI_CACHE", "cache")
    short = ["training.max_steps=4", "data.max_eval_examples=20", "data.max_length=32", "evaluation.every_steps=2"]
    away = ("bertcli fetch", "bertcli submit")
    commands = [one for one in COMMANDS if not one.startswith(away) and "model.name=runs/sentiment-imdb" not in one]
    for command in sorted(commands, key=lambda one: not one.startswith("bertcli pretrain")):
        words = shlex.split(command.partition(" #")[0])[1:]
        more = short if words[0] == "finetune" else ["training.max_steps=4"] if words[0] == "pretrain" else []
        if "data.folds=5" in words:
            more = [key for key in more if "max_eval_examples" not in key]
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, (command, result.output)
    for run in ("runs/grid", "runs/glue", "runs/student", "runs/lora"):
        assert Path(run, "report.html").is_file()
    for path in ("page.html", "plots/loss.png", "exported/model.onnx", "features.parquet"):
        assert Path(path).is_file()


def test_the_tour_begins_as_it_is_shown() -> None:
    """What training says is the machine's; what is planned is not."""
    shown, _, rest = TOUR.partition("\nstep ")
    command, *plan = shown.splitlines()
    result = CliRunner().invoke(app, [*shlex.split(command)[2:], "--dry-run"])
    assert result.stderr.splitlines()[: len(plan)] == plan
    assert 'next      bertcli predict runs/sample-sentiment --text "…"' in rest


def test_every_metric_is_listed() -> None:
    section = RECIPES.partition("### Metrics")[2].partition("\n## ")[0]
    for name in METRICS:
        families = [name.removesuffix(f"_{average}") for average in AVERAGES]
        assert any(f"`{listed}`" in section for listed in (name, *families)), name


def test_strategy_keys_exist() -> None:
    table = STRATEGIES.partition("| --- | --- |")[2].partition("```")[0]
    listed = {code.partition(":")[0] for code in re.findall(r"`([^`]+)`", table)}
    assert listed & set(TrainingSection.model_fields)
    assert listed - {"multitask"} <= set(TrainingSection.model_fields)


def test_results_match_the_recipes_table() -> None:
    rows = re.findall(r"^\| (`[^`]+`) \| (\w[\w ]* 0[^|]*?) \| ([\d.]*) ?\|$", README, re.MULTILINE)
    assert len(rows) >= 5
    measured = RESULTS.splitlines()
    for recipe, score, published in rows:
        assert any(line.startswith(f"| {recipe}") and score in line and published in line for line in measured), recipe


def test_exit_codes_match_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BertcliError)]
    codes = {kind.exit_code for kind in kinds} | {0}
    codes |= {errors.signal_exit_code(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == codes == {0, 1, 2, 85, 130, 143}
    assert app.info.epilog
    for text in (app.info.epilog, errors.__doc__ or ""):
        assert codes <= {int(code) for code in re.findall(r"\b\d+\b", text)}


def test_every_command_is_in_the_table() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    table = {words.split()[1] for words in re.findall(r"^\| `(bertcli [^`]*)`", README, re.MULTILINE)}
    assert table == verbs


def test_error_messages_are_as_shown() -> None:
    text = "task: glue/rte\nmodel:\n  dropout: 0.1\n  learning_rate: 1\ntraining:\n  epochs: 1\n  schedule: linera\n"
    Path("my.yaml").write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("my.yaml")
    for shown in [text.splitlines() for kind, text in BLOCKS if kind == "text" and text.startswith("my.yaml")]:
        assert shown[:2] == caught.value.problems
        for line in shown[2:]:
            with pytest.raises(RecipeError) as caught_override:
                load_recipe("glue/sst2", [f"training.{line.split(chr(39))[1]}=8"])
            assert caught_override.value.problems == [line]


def test_metrics_can_be_computed_in_python() -> None:
    snippet = next(text for kind, text in BLOCKS if kind == "python" and "load_metric" in text)
    *statements, expression = snippet.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(statements), names)
    assert eval(expression, names) == {"f1_macro": pytest.approx((1 + 2 / 3 + 0) / 3)}
