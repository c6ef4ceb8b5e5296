"""Suites: failures, resuming, the table and the average; and leaderboard files of GLUE and SQuAD runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import RunFolderError, TrainingError, UsageError
from bertcli.experiments import suite as suite_module
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.suite import finetune_suite
from bertcli.finetuning.run import finetune
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import load_recipe, recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, load_finetuning, load_suite
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import chosen_run
from bertcli.runs.results import RunResults, SeedScore
from bertcli.tasks import TASKS

from ..conftest import QUIET

SHORT = ["training.max_steps=2", "data.max_train_examples=40", "data.max_eval_examples=20"]


def load(text: str, *overrides: str) -> Suite:
    Path("suite.yaml").write_text(text)
    suite = load_suite("suite.yaml", [*SHORT, *overrides])
    assert suite is not None
    return suite


def test_suite_failed_recipe_does_not_stop_the_others_and_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("extends: sample/sentiment\ntask: {files: {train: mine.csv}, text_columns: [text]}\n")
    text = "suite: [sample/topics, mine.yaml, sample/similarity]\ntraining: {seed: [1, 2]}\n"
    with pytest.raises(TrainingError, match=r"1 of 3 tasks failed: mine\.yaml"):
        finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    first = json.loads(Path("all/results.json").read_text())
    assert "found no file" in first["failed"]["mine.yaml"]
    assert "found no file" in Path("all/report.html").read_text()
    Path("mine.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 20)
    finished_at = Path("all/sample-topics/seed-1/results.json").stat().st_mtime_ns
    second = finetune_suite(load(text), Path("all"), RunOptions(console=Console()))
    *_, average, run, next_command = capsys.readouterr().err.splitlines()
    assert second.average is not None
    assert (average, run) == (f"average   {second.average:.4f}, over 3 tasks", "run       all")
    assert next_command == 'next      bertcli predict all/sample-topics --text "…"'
    assert not second.failed
    assert Path("all/sample-topics/seed-1/results.json").stat().st_mtime_ns == finished_at
    rows_by_task = {"sample/topics": 3, "mine.yaml": 2, "sample/similarity": 2}
    assert [row["task"] for row in second.table] == [
        name for name, number in rows_by_task.items() for _ in range(number)
    ]
    assert " ± " in second.table[0]["mean ± sd"]
    assert 0 <= second.average <= 1
    assert "| sample/topics " in Path("all/README.md").read_text()
    page = Path("all/report.html").read_text()
    assert page.count('<a href="./sample-topics/report.html">') == 3
    assert page.count('<a href="./mine/report.html">') == 2
    assert "Failed runs" not in page
    Path("all/report.html").unlink()
    result = CliRunner().invoke(app, ["report", "all"])
    assert result.exit_code == 0, result.output
    assert "| mine.yaml " in result.stdout
    assert Path("all/report.html").read_text() == page
    assert CliRunner().invoke(app, ["report", "all", "--plots", "plots"]).exit_code == 2
    Path("mine.csv").write_text("text,label\n" + "good,b\nbad,a\n" * 20)
    with pytest.raises(RunFolderError, match="data have changed since all/mine was trained"):
        finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))


def test_suite_average_weights_tasks_equally_as_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    def seed_score(first: float, second: float) -> SeedScore:
        return SeedScore(mean=(first + second) / 2, sd=abs(first - second) / 2**0.5, values=[first, second])

    matched, mismatched = {"accuracy": 0.8, "loss": 9.0}, {"accuracy": 0.6, "loss": 9.0}
    metrics = {
        "squad/v2": {"validation": {"exact": 10.0, "f1": 40.0, "best_exact": 70.0, "best_f1": 90.0, "loss": 9.0}},
        "ner/conll2003": {"validation": {"precision": 0.1, "recall": 0.9, "f1": 0.2, "accuracy": 1.0}},
        "glue/mrpc": {"validation": {"f1": seed_score(0.8, 1.0), "accuracy": seed_score(0.7, 0.7)}},
        "glue/mnli": {"validation": matched, "validation_mismatched": mismatched},
        "glue/sst2": {"validation": {"accuracy": 0.3}, "validation_tuned": {"accuracy": 0.9}},
    }

    def finetune_result(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        return RunResults(run=str(run), metrics=metrics[recipe_task(recipe).name], train_seconds=1.0)

    monkeypatch.setattr(suite_module, "finetune", finetune_result)
    results = finetune_suite(load(f"suite: [{', '.join(metrics)}]\n"), Path("all"), RunOptions(console=QUIET))
    assert results.average == pytest.approx((0.4 + 0.2 + (0.9 + 0.7) / 2 + 0.7 + 0.3) / 5)


def test_suite_without_a_score_where_higher_is_better_has_no_average(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("errors.yaml").write_text(
        "extends: sample/similarity\ntask: {name: errors, dataset: sample, config: similarity, problem: regression, "
        "text_columns: [sentence1, sentence2], metrics: [mae]}\n"
    )
    score = SeedScore(mean=0.3, sd=0.1, values=[0.4, 0.2])

    def finetune_result(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        name = "mae" if recipe_task(recipe).name == "errors" else "accuracy"
        return RunResults(run=str(run), metrics={"validation": {name: score}}, train_seconds=1.0)

    monkeypatch.setattr(suite_module, "finetune", finetune_result)
    suite = load("suite: [errors.yaml, sample/sentiment]\n")
    results = finetune_suite(suite, Path("all"), RunOptions(console=Console()))
    assert results.average is None
    assert "no average, since lower is better for the scores of some tasks" in capsys.readouterr().err
    assert [row["best"] for row in results.table] == ["0.2000", "0.4000"]


def test_start_from_uses_the_encoder_of_another_recipe() -> None:
    from safetensors.torch import load_file

    text = "suite: [sample/inference, sample/sentiment]\nstart_from: {sentiment: inference}\n"
    finetune_suite(load(text, "training.learning_rate=1e-12"), Path("all"), RunOptions(console=QUIET))
    before = load_file(Path("all/sample-inference/model/model.safetensors"))
    after = load_file(Path("all/sample-sentiment/model/model.safetensors"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert before[name].sub(after[name]).abs().max() < 1e-6
    assert before["classifier.weight"].shape != after["classifier.weight"].shape


def test_start_from_a_failed_recipe_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_finetune(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        if "inference" not in run.name:
            return finetune(recipe, run, options)
        (run / "model").mkdir(parents=True)
        raise TrainingError("the disk is full")

    monkeypatch.setattr(suite_module, "finetune", failing_finetune)
    text = "suite: [sample/inference, sample/sentiment]\nstart_from: {sentiment: inference}\n"
    with pytest.raises(TrainingError):
        finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    failed = json.loads(Path("all/results.json").read_text())["failed"]
    assert failed["sample/inference"] == "the disk is full"
    assert failed["sample/sentiment"] == "starts from all/sample-inference, which has not finished"
    assert not Path("all/sample-sentiment/results.json").exists()


def test_suite_dry_run_writes_nothing() -> None:
    results = finetune_suite(
        load("suite: [sample/topics, sample/choices]\n"), Path("all"), RunOptions(dry_run=True, console=QUIET)
    )
    assert results.dry_run
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


def finetune_glue_task(name: str, *overrides: str, **fields: str) -> None:
    Path("task.yaml").write_text(GLUE_TASK.format(**fields))
    recipe = load_finetuning("task.yaml", [*SHORT, "data.max_length=32", *overrides])
    if isinstance(recipe, Grid):
        finetune_grid(recipe, Path(name), RunOptions(console=QUIET))
    else:
        finetune(recipe, Path(name), RunOptions(console=QUIET))


def test_glue_files_have_label_indices_or_names_in_the_order_of_glue(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"model.name={encoder}"
    fields = {"config": "sentiment", "columns": "text", "problem": "single_label", "file": "CoLA", "answers": "numbers"}
    finetune_glue_task("first", model, labels="[negative, positive]", **fields)
    # The classifier that is fine-tuned further keeps its label order, which is not that of the task.
    finetune_glue_task("runs/one", "model.name=first", labels="[positive, negative]", **fields)
    finetune_glue_task(
        "runs/two",
        model,
        config="inference",
        columns="premise, hypothesis",
        problem="single_label",
        labels="[entailment, neutral, contradiction]",
        file="MNLI-m",
        answers="names",
    )
    finetune_glue_task(
        "runs/three",
        model,
        "training.learning_rate=[1e-12, 1e-3]",
        config="similarity",
        columns="sentence1, sentence2",
        problem="regression",
        labels="[]",
        file="STS-B",
        answers="numbers",
    )
    monkeypatch.setattr("bertcli.console.LOG_INTERVAL_SECONDS", 0.0)
    predict("runs", output="out", format_name="glue", as_zip=True, console=Console())
    log = capsys.readouterr().err
    assert "CoLA.tsv 400/400  " in log
    log = " ".join(log.split())
    assert (
        "leaderboard also requires: SST-2.tsv, MRPC.tsv, QQP.tsv, MNLI-mm.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv, AX" in log
    )
    predict("runs/three", output="grid", format_name="glue", console=QUIET)
    predict(chosen_run("runs/three"), output="chosen", format_name="glue", console=QUIET)
    assert len({Path(folder, "STS-B.tsv").read_text() for folder in ("out", "grid", "chosen")}) == 1
    Path("runs/three/results.json").unlink()
    with pytest.raises(UsageError, match="found several runs of glue/mine in runs/three; specify one of them"):
        predict("runs/three", output="again", format_name="glue", console=QUIET)
    files = {path.name: path.read_text().splitlines() for path in Path("out").glob("*.tsv")}
    assert sorted(files) == ["CoLA.tsv", "MNLI-m.tsv", "STS-B.tsv"]
    for lines in files.values():
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(row) for row in range(400)]
    predictions = {name: {line.split("\t")[1] for line in lines[1:]} for name, lines in files.items()}
    assert predictions["CoLA.tsv"] <= {"0", "1"}
    assert predictions["MNLI-m.tsv"] <= {"entailment", "neutral", "contradiction"}
    assert all(0 <= float(prediction) <= 5 for prediction in predictions["STS-B.tsv"])
    with zipfile.ZipFile("out/submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(files)
    Path("one.jsonl").unlink(missing_ok=True)
    predict("runs/one", PredictionInput(split="test"), "one.jsonl", console=QUIET)
    labels = [json.loads(line)["label"] for line in Path("one.jsonl").read_text().splitlines()]
    indices = [["positive", "negative"].index(label) for label in labels]
    assert [line.split("\t")[1] for line in files["CoLA.tsv"][1:]] == [str(index) for index in indices]
    with pytest.raises(UsageError, match="already exists"):
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
            labels = [-1 if "test" in split else row % 3 for row in range(size)]
            columns = {"premise": ["a fine film"] * size, "hypothesis": ["bad train"] * size, "label": labels}
            Dataset.from_dict(columns, features=features).to_parquet(folder / name / f"{split}.parquet")
        files = [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", "utf-8")
    return tmp_path / "mirror"


def test_mnli_has_two_validation_splits_and_three_leaderboard_files(encoder: Path, mnli: Path) -> None:
    overrides = [f"model.name={encoder}", "data.max_length=32", "training.max_steps=2", "training.seed=[1, 2]"]
    results = finetune(load_recipe("glue/mnli", overrides), Path("run"), RunOptions(mirror=mnli, console=QUIET))
    assert set(results.metrics) == {"validation", "validation_mismatched"}
    split = "validation_mismatched"
    evaluated = evaluate("run", split=split, mirror=mnli, console=QUIET)
    for name in evaluated.metrics[split]:
        assert evaluated.values(name, split) == pytest.approx(results.values(name, split))
    predict("run", output="out", format_name="glue", mirror=mnli, console=QUIET)
    lines = {path.name: path.read_text().splitlines() for path in Path("out").iterdir()}
    assert {name: len(rows) - 1 for name, rows in lines.items()} == {"MNLI-m.tsv": 3, "MNLI-mm.tsv": 4, "AX.tsv": 5}
    predictions = {row.split("\t")[1] for rows in lines.values() for row in rows[1:]}
    assert predictions <= set(TASKS["glue/mnli"].labels)


def test_squad_files_have_the_official_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bertcli.console.LOG_INTERVAL_SECONDS", 0.0)
    for name in ("questions", "open-questions"):
        finetune(load_recipe(f"sample/{name}", SHORT), Path("runs") / name, RunOptions(console=QUIET))
        predict(f"runs/{name}", PredictionInput(split="test"), name, "squad", console=Console())
        assert "predictions 400" in capsys.readouterr().err.splitlines()
    question_ids = [f"open-questions-{row}" for row in range(2400, 2800)]
    files = {path.name: json.loads(path.read_text()) for path in Path("open-questions").iterdir()}
    assert sorted(files) == ["nbest_predictions.json", "null_odds.json", "predictions.json"]
    assert all(list(content) == question_ids for content in files.values())
    for question_id in question_ids:
        n_best = files["nbest_predictions.json"][question_id]
        assert set(n_best[0]) == {"text", "probability", "start_logit", "end_logit"}
        texts = {answer["text"] for answer in n_best}
        assert len(texts) == len(n_best) <= 21  # 20 and no answer, at any rank
        assert "" in texts
        assert (files["predictions.json"][question_id] == "") == (files["null_odds.json"][question_id] > 0)
    assert sorted(path.name for path in Path("questions").iterdir()) == ["nbest_predictions.json", "predictions.json"]
    with pytest.raises(UsageError, match="set --output to a folder"):
        predict("runs/questions", PredictionInput(split="test"), format_name="squad", console=QUIET)


def folder_content(folder: str) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(folder).rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["training.seed=7"], []),
        pytest.param(["training.seed=7"], ["--jobs", "2"], marks=pytest.mark.slow),
        (["training.learning_rate=[1e-4, 1e-3]"], []),  # a grid where there is a single run
    ],
)
def test_suite_with_a_run_of_another_recipe_is_refused_as_a_whole(overrides: list[str], options: list[str]) -> None:
    text = "suite: [sample/topics, sample/choices]\nstart_from: {choices: topics}\n"
    finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    before = folder_content("all")
    command = ["finetune", "suite.yaml", *SHORT, *overrides, "--run", "all", "--quiet"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2, result.output
    assert "all/sample-topics holds a" in result.stderr
    assert folder_content("all") == before


def test_suite_is_refused_if_only_the_recipe_that_starts_from_another_differs() -> None:
    text = "suite: [sample/topics, sample/choices]\nstart_from: {choices: topics}\n"
    finetune_suite(load(text), Path("all"), RunOptions(console=QUIET))
    before = folder_content("all")
    suite = load(text)
    choices = suite.recipes["sample/choices"]
    assert isinstance(choices, Recipe)
    suite.recipes["sample/choices"] = choices.with_seed(7)
    with pytest.raises(RunFolderError, match="all/sample-choices holds a run created with a different recipe"):
        finetune_suite(suite, Path("all"), RunOptions(console=QUIET))
    assert folder_content("all") == before
