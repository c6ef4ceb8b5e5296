"""Fine-tuning runs: files written, reproducibility, resuming, and rejected recipes and folders."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertcli.commands.evaluate import evaluate
from bertcli.console import Console
from bertcli.errors import DataError, DiskError, Interrupted, ModelError, RecipeError, RunFolderError, TrainingError
from bertcli.finetuning.loss import build_loss
from bertcli.finetuning.run import finetune
from bertcli.heads.base import Head
from bertcli.metrics.answers import load_answers
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.runs import checkpoint as checkpoint_module
from bertcli.runs.claim import exclusive_lock
from bertcli.runs.folder import RunOptions
from bertcli.runs.history import read_records
from bertcli.runs.results import SeedScore
from bertcli.training import trainer as trainer_module
from bertcli.training.loop import Loss
from bertcli.training.signals import StopRequest

from ..conftest import QUIET


@pytest.fixture
def recipe_of(encoder: Path, reviews: Path) -> Callable[..., Recipe]:
    """Build the recipe of a run of six steps on the reviews, or on another task, with overrides."""

    def build(*overrides: str, task: str = "") -> Recipe:
        path = Path("small.yaml")
        default = f"{{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}"
        path.write_text(
            f"task: {task or default}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
            "training: {epochs: 2, global_batch_size: 13, learning_rate: 1e-3, seed: 1}\n"
            "hardware: {log_every_steps: 1}\n",
            "utf-8",
        )
        return load_recipe(str(path), overrides)

    return build


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def load_weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model", "model.safetensors"))


def same_weights(first: str, second: str) -> bool:
    """Whether the models of two runs are bit-identical."""
    weights, others = load_weights(first), load_weights(second)
    return all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_run_folder_has_exactly_these_files_and_consistent_scores(recipe_of: Callable[..., Recipe]) -> None:
    results = finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    checkpoint = ("manifest.json", "model.safetensors", "optimizer.pt", "progress.json", "random.pt")
    assert list_files(Path("run")) == {
        "README.md",
        *(f"checkpoints/step-0000000{step}/{name}" for step in (3, 6) for name in checkpoint),
        "environment.json",
        "eval.jsonl",
        "model/config.json",
        "model/manifest.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "predictions/validation.jsonl",
        "predictions/validation.npz",
        "recipe.yaml",
        "report.html",
        "results.json",
        "train.jsonl",
    }
    assert results.to_json() == json.loads(Path("run/results.json").read_text())
    assert [record["step"] for record in read_records(Path("run/train.jsonl"))] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in read_records(Path("run/eval.jsonl"))] == [3, 6]
    best = max(record["eval/validation/accuracy"] for record in read_records(Path("run/eval.jsonl")))
    assert results.metrics["validation"]["accuracy"] == best
    low, high = results.intervals["validation"]["accuracy"]
    assert low < best < high
    assert f"| accuracy | {best:.4f} | {low:.4f} to {high:.4f} |" in Path("run/README.md").read_text()
    assert f"{low:.4f} to {high:.4f}" in Path("run/report.html").read_text()
    answers = load_answers(Path("run/predictions/validation.npz"))
    assert (answers["predicted"] == answers["gold"]).mean() == best
    assert load_recipe("run/recipe.yaml") == recipe_of()


def test_seed_determines_the_weights(recipe_of: Callable[..., Recipe]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(recipe_of(f"training.seed={seed}"), Path(name), RunOptions(console=QUIET))
    assert same_weights("a", "b")
    assert not same_weights("a", "c")


@pytest.mark.parametrize("hardware", [[], ["hardware.precision=bf16", "hardware.device=cpu"]])
def test_resumed_run_ends_where_an_uninterrupted_one_ends(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None], hardware: list[str]
) -> None:
    recipe = recipe_of("model.dropout=0.1", "hardware.log_every_steps=5", *hardware)
    finetune(recipe, Path("uninterrupted"), RunOptions(console=QUIET))
    for step in (2, 4):
        stop_after(step)
        with pytest.raises(Interrupted, match=f"saved after step {step}") as error:
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
        assert error.value.exit_code == 143
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert same_weights("uninterrupted", "run")
    assert read_records(Path("uninterrupted/eval.jsonl")) == read_records(Path("run/eval.jsonl"))
    keys = ("step", "train/loss", "train/grad_norm")
    histories = [read_records(Path(run, "train.jsonl")) for run in ("uninterrupted", "run")]
    lines = [[[record[key] for key in keys] for record in history] for history in histories]
    assert lines[0] == lines[1]


def test_optimizer_keeps_moments_of_seen_token_rows_only_and_changed_rows_are_rejected(
    recipe_of: Callable[..., Recipe], reviews: Path, stop_after: Callable[..., None]
) -> None:
    recipe = recipe_of()
    stop_after(1)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    (checkpoint,) = Path("run/checkpoints").iterdir()
    name = "bert.embeddings.word_embeddings"
    state = load_file(checkpoint / "model.safetensors")
    moments = torch.load(checkpoint / "optimizer.pt")["optimizer"]["state"]
    num_seen, num_others = len(state[f"{name}.weight"]) - 1, len(state[f"{name}.rest"])
    assert 2 * num_seen < num_others
    assert max(len(values["exp_avg"]) for values in moments.values()) < num_seen + num_others
    assert [len(values["exp_avg"]) for values in moments.values()].count(num_seen + 1) == 1
    reviews.write_text(reviews.read_text("utf-8").replace("fine", "awful"), "utf-8")
    with pytest.raises(RunFolderError, match="training or validation data have changed since step 1"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))


def test_second_ctrl_c_while_saving_exits_at_once_and_keeps_the_checkpoint(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    finetune(recipe, Path("uninterrupted"), RunOptions(console=QUIET))
    save = checkpoint_module.torch.save

    for second_signal in (signal.SIGINT, signal.SIGTERM):  # torch's launcher sends the latter

        def interrupted_save(content: Any, path: Path, second_signal: int = second_signal) -> None:
            save(content, path)
            if "step-00000006" in str(path):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), second_signal)

        monkeypatch.setattr(checkpoint_module.torch, "save", interrupted_save)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
        assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert same_weights("uninterrupted", "run")


def test_signal_in_the_last_step_of_a_seed_does_not_start_the_next_seed(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None]
) -> None:
    recipe = recipe_of("training.seed=[1, 2]", "training.max_steps=2")
    stop_after(2, signal.SIGUSR1)
    with pytest.raises(Interrupted, match="finished") as error:
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert error.value.exit_code == 85
    assert Path("run/seed-1/results.json").is_file()
    assert not Path("run/seed-2").exists()
    assert len(finetune(recipe, Path("run"), RunOptions(console=QUIET)).values("accuracy")) == 2


def test_requeue_signal_outside_of_training_steps_exits_with_its_code(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("training.max_steps=2")
    monkeypatch.setattr("bertcli.training.job.save_model", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    monkeypatch.setattr(trainer_module, "stop_on_signals", lambda: nullcontext(StopRequest()))
    with pytest.raises(SystemExit) as error:
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert error.value.code == 85


def test_finished_run_is_only_read_and_another_recipe_is_rejected(recipe_of: Callable[..., Recipe]) -> None:
    first = finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    before = Path("run/train.jsonl").stat().st_mtime_ns
    assert finetune(recipe_of(), Path("run"), RunOptions(console=QUIET)) == first
    assert Path("run/train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match="learning_rate"):
        finetune(recipe_of("training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))


@pytest.mark.parametrize("overwrite", [False, True])
def test_run_folder_in_use_by_another_process_is_rejected(recipe_of: Callable[..., Recipe], overwrite: bool) -> None:
    recipe = recipe_of()
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(dump_recipe(recipe), "utf-8")
    with exclusive_lock(Path("run")):
        with pytest.raises(RunFolderError, match=f"run is in use by process {os.getpid()} on "):
            finetune(recipe, Path("run"), RunOptions(console=QUIET, overwrite=overwrite))
        assert list_files(Path("run")) == {"recipe.yaml", ".lock"}
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert not Path("run/.lock").exists()


def test_several_seeds_are_summarized_by_mean_and_standard_deviation(recipe_of: Callable[..., Recipe]) -> None:
    results = finetune(recipe_of("training.seed=[1, 2, 3]"), Path("run"), RunOptions(console=QUIET))
    score = results.metrics["validation"]["accuracy"]
    assert isinstance(score, SeedScore)
    assert score.mean == pytest.approx(np.mean(score.values))
    assert score.sd == pytest.approx(np.std(score.values, ddof=1))
    assert [Path(run).name for run in results.runs or ()] == ["seed-1", "seed-2", "seed-3"]
    assert evaluate("run", console=QUIET).values("accuracy") == score.values


def test_finished_runs_of_single_seeds_are_summarized(recipe_of: Callable[..., Recipe]) -> None:
    seed_results = [
        finetune(recipe_of(f"training.seed={seed}"), Path(f"runs/seed-{seed}"), RunOptions(console=QUIET))
        for seed in (1, 2)
    ]
    results = finetune(recipe_of("training.seed=[1, 2]"), Path("runs"), RunOptions(console=QUIET))
    score = results.metrics["validation"]["loss"]
    assert isinstance(score, SeedScore)
    assert score.values == [single.metrics["validation"]["loss"] for single in seed_results]
    assert results.train_seconds == sum(single.train_seconds for single in seed_results)


def test_plan_shows_that_it_leaves_labels_out(
    encoder: Path, write_csv: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for num_labels, shown in (
        (12, "l00, l01, l02, l03, l04, l05, l06, l07, l08, l09, … 12 labels)"),
        (2, "(l00, l01)"),
    ):
        rows = [[f"film {row}", f"l{row % num_labels:02d}"] for row in range(3 * num_labels)]
        path = write_csv("many.csv", ["text", "label"], rows)
        Path("many.yaml").write_text(
            f"task: {{files: {{train: {path}}}, text_columns: [text]}}\nmodel: {{name: {encoder}}}"
        )
        finetune(
            load_recipe("many.yaml", ["data.max_length=16"]), Path("run"), RunOptions(dry_run=True, console=Console())
        )
        assert shown in " ".join(capsys.readouterr().err.split())


def test_dry_run_writes_nothing(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of(), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [("training.freeze_layers=99", "layers"), ("training.teacher=nowhere/at-all", "nowhere/at-all")],
)
def test_dry_run_finds_errors_of_the_first_step_and_a_failed_start_can_be_corrected(
    recipe_of: Callable[..., Recipe], override: str, message: str
) -> None:
    with pytest.raises((ModelError, RecipeError), match=message):
        finetune(recipe_of(override), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert not Path("run").exists()
    with pytest.raises((ModelError, RecipeError), match=message):
        finetune(recipe_of(override), Path("run"), RunOptions(console=QUIET))
    finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    with pytest.raises(RunFolderError, match="a different recipe"):
        finetune(recipe_of("training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))


def test_run_of_an_earlier_version_whose_recipe_lacks_a_key_is_resumed(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.max_steps=2")
    first = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    file = Path("run/recipe.yaml")
    file.write_text("".join(line for line in file.open() if "token_cutoff" not in line))
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET)).metrics == first.metrics
    with pytest.raises(RunFolderError, match=r"token_cutoff: 0\.1"):
        finetune(recipe_of("training.max_steps=2", "training.token_cutoff=0.1"), Path("run"), RunOptions(console=QUIET))


def test_best_by_loss_keeps_the_model_with_the_lowest_validation_loss(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.epochs=8", "training.learning_rate=3e-2", "evaluation.best_by=loss")
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    losses = [record["eval/validation/loss"] for record in read_records(Path("run/eval.jsonl"))]
    assert losses.index(min(losses)) not in (0, len(losses) - 1)  # neither the first nor the last is the best
    assert results.best_score == min(losses)
    assert results.best_step == 3 * (losses.index(min(losses)) + 1)
    assert evaluate("run", console=QUIET).mean("loss") == pytest.approx(min(losses), abs=1e-6)


def test_best_of_equal_scores_is_the_one_with_the_lowest_loss(recipe_of: Callable[..., Recipe]) -> None:
    keys = ("training.epochs=8", "training.learning_rate=3e-3", "data.max_eval_examples=4")
    results = finetune(recipe_of(*keys), Path("run"), RunOptions(console=QUIET))
    records = read_records(Path("run/eval.jsonl"))
    scores = [(record["eval/validation/accuracy"], -record["eval/validation/loss"]) for record in records]
    steps = [record["step"] for record in records if record["eval/validation/accuracy"] == max(scores)[0]]
    assert len(steps) > 1  # there is a tie
    assert results.best_step == records[scores.index(max(scores))]["step"] != steps[0]


def test_early_stopping_by_loss_stops_when_it_rises(recipe_of: Callable[..., Recipe]) -> None:
    keys = ("training.epochs=50", "training.learning_rate=3e-2", "evaluation.best_by=loss")
    results = finetune(recipe_of(*keys, "evaluation.early_stopping_patience=2"), Path("run"), RunOptions(console=QUIET))
    losses = [record["eval/validation/loss"] for record in read_records(Path("run/eval.jsonl"))]
    assert losses.index(min(losses)) == len(losses) - 3
    assert results.total_steps == 3 * len(losses) < 150


@pytest.fixture
def skewed(write_csv: Callable[..., Path]) -> Path:
    """A CSV file of 26 negative and 4 positive texts."""
    texts = [[f"the {noun} was {word}", "negative"] for noun in ("film", "soup") for word in TEXTS_BY_LENGTH]
    return write_csv("skewed.csv", ["text", "label"], [*texts, *[["a fine film", "positive"]] * 4])


TEXTS_BY_LENGTH = [" ".join(["dull"] * length) for length in range(1, 14)]


def test_over_sampled_epochs_are_in_the_plan_and_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    recipe_of: Callable[..., Recipe],
    skewed: Path,
    reviews: Path,
    stop_after: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = f"task.files={{train: {skewed}, validation: {reviews}}}"
    recipe = recipe_of(files, "training.balance=labels", "evaluation.every_steps=4")
    results = finetune(recipe, Path("uninterrupted"), RunOptions(console=Console()))
    plan = " ".join(capsys.readouterr().err.split())
    assert "30 training and 40 validation rows; 52 training examples an epoch, equally many of each label" in plan
    assert "8 steps of 13 examples, 4 per epoch" in plan
    assert results.num_train_examples == 30
    finetune(
        recipe_of(files, "training.max_steps=8", "evaluation.every_steps=4"), Path("plain"), RunOptions(console=QUIET)
    )
    assert not same_weights("uninterrupted", "plain")
    stop_after(5)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert same_weights("uninterrupted", "run")


def test_focal_loss_trains_and_is_scored_by_cross_entropy(recipe_of: Callable[..., Recipe]) -> None:
    keys = ("training.loss=focal", "training.epochs=6", "training.learning_rate=1e-2")
    results = finetune(recipe_of(*keys), Path("run"), RunOptions(console=QUIET))
    first, *_, last = (record["train/loss"] for record in read_records(Path("run/train.jsonl")))
    assert last < first < 0.3  # a quarter of ln 2, at the start
    assert results.mean("loss") == pytest.approx(evaluate("run", console=QUIET).mean("loss"), abs=1e-6)
    assert results.mean("loss") > 0.3


def test_label_without_training_rows_cannot_be_over_sampled(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("task.labels=[negative, neutral, positive]", "training.balance=labels")
    with pytest.raises(DataError, match="no training row has the label 'neutral', so it cannot be over-sampled; add"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))


def test_early_stopping_stops_after_its_patience(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.epochs=50", "training.learning_rate=1e-12", "evaluation.early_stopping_patience=2")
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET)).total_steps == 9


def test_non_finite_gradient_stops_the_run_and_keeps_the_last_good_checkpoint(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_steps = trainer_module.train_steps

    def corrupting(accelerator: Any, model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        for record in train_steps(accelerator, model, *args, **options):
            yield record
            if record.step == 4:
                next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(trainer_module, "train_steps", corrupting)
    with pytest.raises(TrainingError, match=r"non-finite gradient in 1 .* step 5.*step-00000003"):
        finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    assert all(tensor.isfinite().all() for tensor in load_weights("run").values())


def test_non_finite_steps_are_skipped_and_counted_if_the_recipe_allows_it(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_loss_with_nan(head: Head, training: TrainingSection) -> Loss:
        loss, calls = build_loss(head, training), count()
        return lambda *args: loss(*args) * (float("nan") if next(calls) == 4 else 1.0)

    monkeypatch.setattr("bertcli.finetuning.job.build_loss", build_loss_with_nan)
    results = finetune(recipe_of("training.non_finite=skip"), Path("run"), RunOptions(console=Console()))
    assert results.num_skipped_steps == 1
    assert sum(record["skipped_steps"] for record in read_records(Path("run/train.jsonl"))) == 1
    assert "they were skipped" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in load_weights("run").values())


def test_full_disk_is_reported_and_the_run_resumes_once_there_is_space(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(recipe_of(), Path("uninterrupted"), RunOptions(console=QUIET))
    save = checkpoint_module.torch.save

    def failing_save(content: Any, path: Path) -> None:
        if "step-00000006" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        save(content, path)

    monkeypatch.setattr(checkpoint_module.torch, "save", failing_save)
    with pytest.raises(DiskError, match=r"the disk of run is full.* GB are free"):
        finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    assert same_weights("uninterrupted", "run")


def test_corrupt_checkpoint_is_reported_and_the_previous_one_is_resumed(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    expected = load_weights("run")
    Path("run/results.json").unlink()
    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    finetune(recipe_of(), Path("run"), RunOptions(console=Console()))
    warning = " ".join(capsys.readouterr().err.split())
    assert f"{newest} is corrupt (model.safetensors has 1000 bytes, expected" in warning
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_weights("run").items())


@pytest.mark.parametrize("name", ["sentiment", "inference", "similarity", "topics"])
def test_each_text_task_scores_the_same_in_training_and_eval(recipe_of: Callable[..., Recipe], name: str) -> None:
    overrides = ("training.max_steps=3", "data.max_train_examples=60", "data.max_eval_examples=400")
    results = finetune(recipe_of(*overrides, task=f"sample/{name}"), Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET).metrics == results.metrics
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert np.mean([line["loss"] for line in lines]) == pytest.approx(results.metrics["validation"]["loss"], rel=1e-4)
    if name in ("sentiment", "inference"):
        assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4) for line in lines)
        assert all(line["confidence"] == max(line["probabilities"].values()) for line in lines)
        assert np.mean([line["right"] for line in lines]) == results.metrics["validation"]["accuracy"]


def test_predictions_are_those_of_the_best_model_not_of_the_last(recipe_of: Callable[..., Recipe]) -> None:
    overrides = ("training.epochs=8", "training.learning_rate=3e-2", "evaluation.best_by=loss")
    results = finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert results.best_step < results.total_steps
    losses = [line["loss"] for line in read_records(Path("run/predictions/validation.jsonl"))]
    assert np.mean(losses) == pytest.approx(results.metrics["validation"]["loss"], rel=1e-4)


def test_predictions_of_many_rows_are_sampled_evenly_and_long_texts_truncated(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, write_csv: Callable[..., Path]
) -> None:
    monkeypatch.setattr("bertcli.inference.predictions.MAX_ROWS", 4)
    monkeypatch.setattr("bertcli.inference.forward.MAX_CHUNK_ITEMS", 2)
    path = write_csv("many.csv", ["text", "label"], [["word " * 5000, "ab"[row % 2]] for row in range(7)])
    task = f"{{files: {{train: {path}, validation: {path}}}, text_columns: [text]}}"
    finetune(recipe_of("training.max_steps=1", task=task), Path("run"), RunOptions(console=QUIET))
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert [(line["row"], line["gold"]) for line in lines] == [(1, "a"), (3, "a"), (5, "a"), (7, "a")]
    assert {len(line["texts"]["text"]) for line in lines} == {4000}


def test_missing_report_of_a_finished_run_is_written_again(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    page = Path("run/report.html").read_text("utf-8")
    Path("run/report.html").unlink()
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    assert Path("run/report.html").read_text("utf-8") == page


def test_tokenizer_is_trained_for_a_randomly_initialized_model(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("model.name=null", "model.size=tiny", "model.vocab_size=100", "training.max_steps=1")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET).num_examples == 4


def test_model_with_other_labels_is_rejected_unless_the_head_is_new(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    path = write_csv("mood.csv", ["text", "label"], [[f"t{row}", ("glad", "sad")[row % 2]] for row in range(20)])
    other = f"{{files: {{train: {path}}}, text_columns: [text]}}"
    with pytest.raises(ModelError, match=r"\['negative', 'positive'\].*\['glad', 'sad'\].*new_head"):
        finetune(recipe_of("model.name=run", task=other), Path("other"), RunOptions(console=QUIET))
    finetune(recipe_of("model.name=run", "model.new_head=true", task=other), Path("other"), RunOptions(console=QUIET))
    assert evaluate("other", console=QUIET).task == "custom"


def test_kept_classifier_keeps_its_label_order_if_the_task_lists_another(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    finetune(recipe_of("training.epochs=20", "training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))
    task = f"{{files: {{train: {reviews}}}, text_columns: [text], labels: [positive, negative]}}"
    recipe = recipe_of("model.name=run", "training.learning_rate=1e-12", task=task)
    finetune(recipe, Path("again"), RunOptions(console=QUIET))
    scores = [evaluate(run, split="train", console=QUIET).metrics["train"]["accuracy"] for run in ("run", "again")]
    assert scores[0] == scores[1] > 0.8


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("task.metrics=[acuracy]",), RecipeError, "Did you mean accuracy"),
        (("evaluation.best_by=f1",), RecipeError, "expected one of"),
        (("data.max_length=99",), ModelError, "at most 64 tokens"),
        (("task.label_column=lable",), DataError, "Did you mean label"),
        (("task.text_columns=[txt]",), DataError, "Did you mean text"),
        (("task.labels=[good, bad]",), DataError, "expected one of"),
        (("model.name=nowhere/none",), ModelError, "--mirror"),
        (("training.warmup_steps=99",), RecipeError, "at most"),
        (("task.problem=regression", "task.labels=[]"), DataError, "no finite number"),
    ],
)
def test_invalid_recipe_is_rejected_before_anything_is_written(
    recipe_of: Callable[..., Recipe], overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert not Path("run").exists()


def test_model_folder_without_weights_is_reported(recipe_of: Callable[..., Recipe], encoder: Path) -> None:
    Path("bare").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("bare", name).write_bytes((encoder / name).read_bytes())
    with pytest.raises(ModelError, match="no weights"):
        finetune(recipe_of("model.name=bare"), Path("run"), RunOptions(console=QUIET))


def test_too_little_disk_space_is_reported_before_training(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000, total=2000))
    with pytest.raises(DiskError, match="free, but the run needs up to"):
        finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))


def test_run_is_scored_without_its_training_rows(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    rows = [[f"t{row}", ("glad", "sad")[row % 2]] for row in range(20)]
    train, test = (write_csv(f"{name}.csv", ["text", "label"], rows) for name in ("train", "test"))
    task = f"{{files: {{train: {train}, validation: {test}, test: {test}}}, text_columns: [text]}}"
    finetune(recipe_of("training.max_steps=1", task=task), Path("run"), RunOptions(console=QUIET))
    train.unlink()
    assert evaluate("run", split="test", console=QUIET).num_examples == 20
    Path("other.yaml").write_text(f"task: {{files: {{test: {test}}}, text_columns: [text]}}", "utf-8")
    assert evaluate("run", task_name="other.yaml", split="test", console=QUIET).num_examples == 20


def test_run_ends_after_the_evaluation_that_gives_a_reason_even_if_it_is_killed_there(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def reason_to_stop(share: float, score: float) -> str | None:
        asked.append((share, score))
        return "enough" if len(asked) > 1 else None

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    recipe, options = recipe_of("training.epochs=4"), RunOptions(console=QUIET, reason_to_stop=reason_to_stop)
    with monkeypatch.context() as patch:
        patch.setattr("bertcli.training.trainer.finalize", kill)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("run"), options)
    results = finetune(recipe, Path("run"), options)
    records = read_records(Path("run/eval.jsonl"))
    scores = [record["eval/validation/accuracy"] for record in records]
    assert asked == [(0.25, scores[0]), (0.5, scores[1]), (0.5, scores[1])]
    assert results.total_steps == records[-1]["step"] == 2 * records[0]["step"]
    last = finetune(
        recipe, Path("other"), replace(options, reason_to_stop=lambda share, _: "end" if share == 1 else None)
    )
    assert last.total_steps == 4 * records[0]["step"]
