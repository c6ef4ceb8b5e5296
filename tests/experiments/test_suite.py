"""A suite runs its recipes, survives a failure, goes on, and tells all in one table; GLUE's files come from it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.errors import TrainingError, UsageError
from bertcli.experiments import suite as suite_module
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.suite import finetune_suite
from bertcli.finetuning.run import finetune
from bertcli.recipe.expansion import Grid, load_recipe_or_grid
from bertcli.recipe.load import load_recipe, recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, load_suite
from bertcli.runs.folder import RunOptions, chosen_run
from bertcli.tasks import TASKS

QUIET = Console(quiet=True)
SHORT = ["training.max_steps=2", "data.max_train_examples=40", "data.max_eval_examples=20"]


def load(text: str, *overrides: str) -> Suite:
    Path("suite.yaml").write_text(text)
    suite = load_suite("suite.yaml", [*SHORT, *overrides])
    assert suite is not None
    return suite


def test_one_failure_leaves_the_others_and_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("extends: sample/sentiment\ntask: {files: {train: mine.csv}, text_columns: [text]}\n")
    text = "suite: [sample/topics, mine.yaml, sample/similarity]\ntraining: {seed: [1, 2]}\n"
    with pytest.raises(TrainingError, match=r"1 of 3 tasks failed: mine\.yaml"):
        finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    first = json.loads(Path("all/results.json").read_text())
    assert "found no file" in first["failed"]["mine.yaml"]
    assert "found no file" in Path("all/report.html").read_text()
    Path("mine.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 20)
    changed = Path("all/sample-topics/seed-1/results.json").stat().st_mtime_ns
    second = finetune_suite(load(text), Path("all"), RunOptions(console=Console()))
    *_, average, run, following = capsys.readouterr().err.splitlines()
    assert (average, run) == (f"average   {second['average']:.4f}, of 3 tasks", "run       all")
    assert following == 'next      bertcli predict all/sample-topics --text "…"'
    assert not second["failed"]
    assert Path("all/sample-topics/seed-1/results.json").stat().st_mtime_ns == changed
    assert [row["task"] for row in second["table"]] == [
        *["sample/topics"] * 3,
        *["mine.yaml"] * 2,
        *["sample/similarity"] * 2,
    ]
    assert " ± " in second["table"][0]["mean ± sd"]
    assert 0 <= second["average"] <= 1
    assert "| sample/topics " in Path("all/README.md").read_text()
    page = Path("all/report.html").read_text()
    assert page.count('<a href="./sample-topics/report.html">') == 3
    assert page.count('<a href="./mine/report.html">') == 2
    assert "What failed" not in page
    Path("all/report.html").unlink()
    told = CliRunner().invoke(app, ["report", "all"])
    assert told.exit_code == 0, told.output
    assert "| mine.yaml " in told.stdout
    assert Path("all/report.html").read_text() == page
    assert CliRunner().invoke(app, ["report", "all", "--plots", "plots"]).exit_code == 2


def test_each_task_counts_once_in_the_average_as_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    matched, mismatched = {"accuracy": 0.8, "loss": 9.0}, {"accuracy": 0.6, "loss": 9.0}
    metrics = {
        "squad/v2": {"validation": {"exact": 10.0, "f1": 40.0, "best_exact": 70.0, "best_f1": 90.0, "loss": 9.0}},
        "ner/conll2003": {"validation": {"precision": 0.1, "recall": 0.9, "f1": 0.2, "accuracy": 1.0}},
        "glue/mrpc": {"validation": {"f1": {"values": [0.8, 1.0]}, "accuracy": {"values": [0.7, 0.7]}}},
        "glue/mnli": {"validation": matched, "validation_mismatched": mismatched},
        "glue/sst2": {"validation": {"accuracy": 0.3}, "validation_tuned": {"accuracy": 0.9}},
    }
    monkeypatch.setattr(
        "bertcli.experiments.suite.finetune",
        lambda recipe, *_, **__: {"metrics": metrics[recipe_task(recipe).name], "train_seconds": 1.0},
    )
    results = finetune_suite(load(f"suite: [{', '.join(metrics)}]\n"), Path("all"), RunOptions(console=QUIET))
    assert results["average"] == pytest.approx((0.4 + 0.2 + (0.9 + 0.7) / 2 + 0.7 + 0.3) / 5)


def test_a_task_starts_from_the_encoder_of_another(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    text = "suite: [sample/inference, sample/sentiment]\nstart_from: {sentiment: inference}\n"
    finetune_suite(load(text, "training.learning_rate=1e-12"), Path("all"), RunOptions(console=QUIET))
    before = load_file(Path("all/sample-inference/model/model.safetensors"))
    after = load_file(Path("all/sample-sentiment/model/model.safetensors"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert before[name].sub(after[name]).abs().max() < 1e-6
    assert before["classifier.weight"].shape != after["classifier.weight"].shape


def test_a_task_does_not_start_from_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = suite_module.finetune

    def failing(recipe: Recipe, run: Path, **options: Any) -> dict[str, Any]:
        if "inference" not in run.name:
            return whole(recipe, run, **options)
        (run / "model").mkdir(parents=True)
        raise TrainingError("the disk is full")

    monkeypatch.setattr(suite_module, "finetune", failing)
    text = "suite: [sample/inference, sample/sentiment]\nstart_from: {sentiment: inference}\n"
    with pytest.raises(TrainingError):
        finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    failed = json.loads(Path("all/results.json").read_text())["failed"]
    assert failed["sample/sentiment"] == "it starts from all/sample-inference, which is not finished"
    assert not Path("all/sample-sentiment/results.json").exists()


def test_dry_run_checks_all_and_writes_nothing() -> None:
    results = finetune_suite(
        load("suite: [sample/topics, sample/choices]\n"), Path("all"), RunOptions(dry_run=True, console=QUIET)
    )
    assert results["dry_run"]
    assert not Path("all").exists()


GLUE_TASK = """
task:
  name: glue/mine
  dataset: sample
  config: {config}
  text_columns: [{columns}]
  problem: {problem}
  labels: {labels}
  submission: {{files: {{test: {file}}}, answers: {answers}}}
extends: sample/sentiment
"""


def run_of(name: str, *overrides: str, **rest: Any) -> None:
    Path("task.yaml").write_text(GLUE_TASK.format(**rest))
    recipe = load_recipe_or_grid("task.yaml", [*SHORT, "data.max_length=32", *overrides])
    if isinstance(recipe, Grid):
        finetune_grid(recipe, Path(name), RunOptions(console=QUIET))
    else:
        finetune(recipe, Path(name), RunOptions(console=QUIET))


def test_glue_files_hold_numbers_or_names_in_glues_own_order(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = f"model.name={encoder}"
    rest = {"config": "sentiment", "columns": "text", "problem": "single_label", "file": "CoLA", "answers": "numbers"}
    run_of("first", small, labels="[negative, positive]", **rest)
    # The classifier that goes on keeps the order of its labels, which is not the task's.
    run_of("runs/one", "model.name=first", labels="[positive, negative]", **rest)
    run_of(
        "runs/two",
        small,
        config="inference",
        columns="premise, hypothesis",
        problem="single_label",
        labels="[entailment, neutral, contradiction]",
        file="MNLI-m",
        answers="names",
    )
    run_of(
        "runs/three",
        small,
        "training.learning_rate=[1e-12, 1e-3]",
        config="similarity",
        columns="sentence1, sentence2",
        problem="regression",
        labels="[]",
        file="STS-B",
        answers="numbers",
    )
    monkeypatch.setattr("bertcli.console.SECONDS_BETWEEN_LINES", 0.0)
    predict("runs", output="out", format_name="glue", as_zip=True, console=Console())
    told = capsys.readouterr().err
    assert "CoLA.tsv 400/400  " in told
    told = " ".join(told.split())
    assert "wants these files, too: SST-2.tsv, MRPC.tsv, QQP.tsv, MNLI-mm.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv, AX" in told
    predict("runs/three", output="grid", format_name="glue", console=QUIET)
    predict(chosen_run("runs/three"), output="chosen", format_name="glue", console=QUIET)
    assert len({Path(folder, "STS-B.tsv").read_text() for folder in ("out", "grid", "chosen")}) == 1
    Path("runs/three/results.json").unlink()
    with pytest.raises(UsageError, match="several runs of glue/mine in runs/three; name one"):
        predict("runs/three", output="again", format_name="glue", console=QUIET)
    files = {path.name: path.read_text().splitlines() for path in Path("out").glob("*.tsv")}
    assert sorted(files) == ["CoLA.tsv", "MNLI-m.tsv", "STS-B.tsv"]
    for lines in files.values():
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(row) for row in range(400)]
    answers = {name: {line.split("\t")[1] for line in lines[1:]} for name, lines in files.items()}
    assert answers["CoLA.tsv"] <= {"0", "1"}
    assert answers["MNLI-m.tsv"] <= {"entailment", "neutral", "contradiction"}
    assert all(0 <= float(answer) <= 5 for answer in answers["STS-B.tsv"])
    with zipfile.ZipFile("out/submission.zip") as bundle:
        assert sorted(bundle.namelist()) == sorted(files)
    Path("one.jsonl").unlink(missing_ok=True)
    predict("runs/one", output="one.jsonl", split="test", console=QUIET)
    labels = [json.loads(line)["label"] for line in Path("one.jsonl").read_text().splitlines()]
    numbers = [["positive", "negative"].index(label) for label in labels]
    assert [line.split("\t")[1] for line in files["CoLA.tsv"][1:]] == [str(number) for number in numbers]
    with pytest.raises(UsageError, match="exists already"):
        predict("runs/one", output="out", format_name="glue", console=QUIET)


@pytest.fixture
def mnli(encoder: Path, tmp_path: Path) -> Path:
    """A mirror with a few rows of MNLI and of the diagnostic set, their test labels hidden."""
    folder = tmp_path / "mirror" / "datasets" / "nyu-mll" / "glue"
    configs = []
    sizes = {"train": 12, "validation_matched": 6, "validation_mismatched": 7, "test_matched": 3, "test_mismatched": 4}
    for name, splits in (("mnli", sizes), ("ax", {"test": 5})):
        (folder / name).mkdir(parents=True)
        label = ClassLabel(names=list(TASKS["glue/mnli"].labels))
        features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label})
        for split, size in splits.items():
            labels = [-1 if "test" in split else at % 3 for at in range(size)]
            columns = {"premise": ["a fine film"] * size, "hypothesis": ["bad train"] * size, "label": labels}
            Dataset.from_dict(columns, features=features).to_parquet(folder / name / f"{split}.parquet")
        files = [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", "utf-8")
    return tmp_path / "mirror"


def test_mnli_is_scored_twice_and_answers_three_files(encoder: Path, mnli: Path) -> None:
    words = [f"model.name={encoder}", "data.max_length=32", "training.max_steps=2", "training.seed=[1, 2]"]
    results = finetune(load_recipe("glue/mnli", words), Path("run"), RunOptions(mirror=mnli, console=QUIET))
    assert set(results["metrics"]) == {"validation", "validation_mismatched"}
    found = evaluate("run", split="validation_mismatched", mirror=mnli, console=QUIET)["metrics"]
    for name, score in found["validation_mismatched"].items():
        assert score["values"] == pytest.approx(results["metrics"]["validation_mismatched"][name]["values"])
    predict("run", output="out", format_name="glue", mirror=mnli, console=QUIET)
    lines = {path.name: path.read_text().splitlines() for path in Path("out").iterdir()}
    assert {name: len(rows) - 1 for name, rows in lines.items()} == {"MNLI-m.tsv": 3, "MNLI-mm.tsv": 4, "AX.tsv": 5}
    answers = {row.split("\t")[1] for rows in lines.values() for row in rows[1:]}
    assert answers <= set(TASKS["glue/mnli"].labels)


def test_squad_files_have_the_official_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bertcli.console.SECONDS_BETWEEN_LINES", 0.0)
    for name in ("questions", "open-questions"):
        finetune(load_recipe(f"sample/{name}", SHORT), Path("runs") / name, RunOptions(console=QUIET))
        predict(f"runs/{name}", output=name, format_name="squad", split="test", console=Console())
        assert "answers 400" in capsys.readouterr().err.splitlines()
    asked = [f"open-questions-{row}" for row in range(2400, 2800)]
    files = {path.name: json.loads(path.read_text()) for path in Path("open-questions").iterdir()}
    assert sorted(files) == ["nbest_predictions.json", "null_odds.json", "predictions.json"]
    assert all(list(content) == asked for content in files.values())
    for key in asked:
        best = files["nbest_predictions.json"][key]
        assert set(best[0]) == {"text", "probability", "start_logit", "end_logit"}
        assert len({one["text"] for one in best}) == len(best) <= 21  # 20, and `no answer` wherever it stands
        assert "" in {one["text"] for one in best}
        assert (files["predictions.json"][key] == "") == (files["null_odds.json"][key] > 0)
    assert sorted(path.name for path in Path("questions").iterdir()) == ["nbest_predictions.json", "predictions.json"]
    with pytest.raises(UsageError, match="name a folder"):
        predict("runs/questions", format_name="squad", split="test", console=QUIET)
