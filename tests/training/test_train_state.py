"""The best model is checked before it is published; a run is not resumed on other data."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from bertcli.commands.evaluate import evaluate
from bertcli.errors import DiskError, Interrupted, RunFolderError
from bertcli.files import write_manifest
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.checkpoint import read_progress
from bertcli.runs.folder import RunFolder, RunOptions
from bertcli.training import trainer

from ..conftest import QUIET

WEIGHTS = Path("model/model.safetensors")
EVERY_STEP = "evaluation.every_steps=1"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read weights into memory: mapped tensors would not survive a file that is cut off."""
    return load(path.read_bytes())


def negate_classifier(weights: Path) -> None:
    """Damage a model that still loads."""
    tensors = read_weights(weights)
    tensors["classifier.weight"] = -tensors["classifier.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda run: negate_classifier(run / WEIGHTS),
    "truncated": lambda run: (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:4096]),
    "weights missing": lambda run: (run / WEIGHTS).unlink(),
    "configuration changed": lambda run: (run / "model/config.json").write_text("{}"),
    "folder missing": lambda run: shutil.rmtree(run / "model"),
    "manifest corrupt": lambda run: (run / "model/manifest.json").write_text("{"),
}


@pytest.fixture
def stopped(recipe_of: Callable[..., Recipe], stop_after: Callable[..., None]) -> Callable[..., Recipe]:
    """Stop a run after its step 4, in the folder `run`; its best model is of step `best_step`.

    Of several steps in `best_steps`, a later one is better.
    """

    def stop(best_step: int, *overrides: str, best_steps: tuple[int, ...] = ()) -> Recipe:
        recipe = recipe_of(EVERY_STEP, *overrides)
        with pytest.MonkeyPatch.context() as patch:
            evaluate_now = trainer.Trainer._evaluate

            def scored(self: trainer.Trainer, on_batch: Callable[[int], None]) -> None:
                step = self.progress.step
                score = step if step in best_steps else -abs(step - best_step)
                patch.setattr(self.job, "selection_score", lambda scores: float(score))
                evaluate_now(self, on_batch)

            patch.setattr(trainer.Trainer, "_evaluate", scored)
            stop_after(4, signal.SIGTERM)
            with pytest.raises(Interrupted):
                finetune(recipe, Path("run"), RunOptions(console=QUIET))
        return recipe

    return stop


def test_damaged_best_model_is_restored_from_its_checkpoint(
    stopped: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = stopped(3, "evaluation.early_stopping_patience=1", "evaluation.keep_checkpoints=3")
    before = read_weights(Path("run") / WEIGHTS)
    for name, damage in DAMAGES.items():
        run = Path(name)
        shutil.copytree("run", run)
        damage(run)
        results = finetune(recipe, run, RunOptions(console=QUIET))
        message = " ".join(capsys.readouterr().err.split())
        assert f"the best model in {run}/model (step 3) is damaged (" in message
        assert "restored it from step-00000003" in message
        assert results.best_step == 3
        after = read_weights(run / WEIGHTS)
        assert all((after[name] == tensor).all() for name, tensor in before.items())
        assert RunFolder(run).model_problem() is None
        assert evaluate(str(run), console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])


def test_damaged_best_model_without_a_checkpoint_is_refused(stopped: Callable[..., Recipe]) -> None:
    recipe = stopped(1, "evaluation.keep_checkpoints=1")
    for damage in ("changed", "folder missing"):
        DAMAGES[damage](Path("run"))
        with pytest.raises(DiskError, match=r"run/model \(step 1\) is damaged \(.*no intact checkpoint.*--overwrite"):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
        assert not Path("run/results.json").exists()
    finetune(recipe, Path("run"), RunOptions(console=QUIET, overwrite=True))


def test_restoring_the_best_model_does_not_change_what_is_learned(stopped: Callable[..., Recipe]) -> None:
    recipe = stopped(3, "evaluation.keep_checkpoints=3")
    shutil.copytree("run", "undamaged")
    DAMAGES["changed"](Path("run"))
    for name in ("run", "undamaged"):
        finetune(recipe, Path(name), RunOptions(console=QUIET))
    final, expected = (
        read_weights(sorted(Path(name).glob("checkpoints/*"))[-1] / WEIGHTS.name) for name in ("run", "undamaged")
    )
    assert all((final[name] == tensor).all() for name, tensor in expected.items())


def test_best_model_damaged_during_the_last_steps_is_not_published(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(EVERY_STEP, "evaluation.keep_checkpoints=99")
    fit = trainer.Trainer.fit

    def fit_and_damage(self: trainer.Trainer) -> None:
        fit(self)
        negate_classifier(Path("run") / WEIGHTS)

    monkeypatch.setattr(trainer.Trainer, "fit", fit_and_damage)
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])


def test_run_without_a_manifest_is_resumed_on_fewer_cores(
    stopped: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "choose_num_threads", lambda hardware, module, tokens, saved: 1 if saved else 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # two wait for each other on a busy machine
    recipe = stopped(1, "evaluation.keep_checkpoints=1")
    Path("run/model/manifest.json").unlink()
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    (checkpoint,) = Path("run/checkpoints").iterdir()
    assert read_progress(checkpoint).num_threads == 2  # for when it is resumed where there are more cores again
    (Path("run") / WEIGHTS).unlink()
    assert RunFolder(Path("run")).model_problem() is not None


def test_tuned_thresholds_keep_the_manifest_valid(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("answers.thresholds=tuned", "task.problem=multi_label"), Path("run"), RunOptions(console=QUIET))
    assert "thresholds" in json.loads(Path("run/model/config.json").read_text())
    assert "config.json" in json.loads(Path("run/model/manifest.json").read_text())
    assert RunFolder(Path("run")).model_problem() is None


CHANGES = {
    "word": ("the film was fine", "the film was good"),
    "order": ("the film was fine", "the was film fine"),
    "label": ("was fine,positive", "was fine,negative"),
    "row": ("the film was fine,positive\n", ""),
}


def test_run_is_not_resumed_on_changed_rows(stopped: Callable[..., Recipe], reviews: Path) -> None:
    recipe = stopped(1)
    original = reviews.read_text("utf-8")
    for old, new in CHANGES.values():
        reviews.write_text(original.replace(old, new), "utf-8")
        for dry_run in (True, False):
            with pytest.raises(RunFolderError, match=r"run cannot be resumed: .* data have changed since step 4.*--ov"):
                finetune(recipe, Path("run"), RunOptions(console=QUIET, dry_run=dry_run))
    reviews.write_text(original, "utf-8")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))


def test_run_is_not_resumed_on_changed_validation_answers(
    encoder: Path, write_recipe: Callable[..., Path], stop_after: Callable[..., None]
) -> None:
    """The labels do not show further answers: only the first one has a span."""
    row = {"question": "what", "context": "it is fine", "answers": {"text": ["it", "it is"], "answer_start": [0, 0]}}
    for name in ("train.jsonl", "dev.jsonl"):
        Path(name).write_text(f"{json.dumps(row)}\n" * 8, "utf-8")
    files = "files: {train: train.jsonl, validation: dev.jsonl}"
    text = f"task: {{head: question_answering, {files}, text_columns: [question, context], label_column: answers}}\n"
    text += f"model: {{name: {encoder}}}\ntraining: {{epochs: 2, global_batch_size: 4}}\n"
    recipe = load_recipe(str(write_recipe(text)), ["data.max_length=16", EVERY_STEP])
    stop_after(2)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    original = Path("dev.jsonl").read_text("utf-8")
    Path("dev.jsonl").write_text(original.replace('"it is"]', '"is fine"]', 1), "utf-8")
    with pytest.raises(RunFolderError, match="validation data have changed since step 2"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    Path("dev.jsonl").write_text(original, "utf-8")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))


def test_run_of_an_earlier_version_whose_fingerprint_lacks_the_gold_values_is_resumed(
    stopped: Callable[..., Recipe], reviews: Path
) -> None:
    recipe = stopped(1, "evaluation.keep_checkpoints=1")
    (checkpoint,) = Path("run/checkpoints").iterdir()
    progress = json.loads((checkpoint / "progress.json").read_text("utf-8"))
    progress["data_fingerprint"] = "-".join(progress["data_fingerprint"].split("-")[:2])
    (checkpoint / "progress.json").write_text(json.dumps(progress), "utf-8")
    write_manifest(checkpoint)
    original = reviews.read_text("utf-8")
    reviews.write_text(original.replace("was fine,positive", "was fine,negative"), "utf-8")
    with pytest.raises(RunFolderError, match="data have changed"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    reviews.write_text(original, "utf-8")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))


@pytest.mark.parametrize(("fault", "best_step"), [("TrainState.save_checkpoint", 3), ("replace_folder", 5)])
def test_saved_model_is_that_of_the_best_step_after_a_kill(
    stopped: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, fault: str, best_step: int
) -> None:
    recipe, selection_score = stopped(3), "bertcli.finetuning.job.FinetuneJob.selection_score"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # step 5 is the best so far; its checkpoint or model is not in place yet
        patch.setattr(selection_score, lambda job, scores: 1.0)
        patch.setattr(f"bertcli.training.train_state.{fault}", die)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    # On a GPU, or with other `hardware` keys, a repeated step may have a lower score.
    monkeypatch.setattr(selection_score, lambda job, scores: -1.0)
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert results.best_step == best_step
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])
    assert not [*Path("run").glob(".model*")]


@pytest.mark.parametrize(
    ("best_steps", "message", "expected"),
    [
        (
            (4,),
            "is replaced (by that of a later step, whose checkpoint is corrupt); restored it from step-00000003",
            {3},
        ),
        ((3,), None, {3}),
        ((1,), None, {1}),
        ((1, 4), "corrupt); the best model will be chosen among those of steps after 3", {4, 5, 6, 7, 8, 9, 10}),
    ],
)
def test_corrupt_newest_checkpoint_and_the_best_model(
    stopped: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    best_steps: tuple[int, ...],
    message: str | None,
    expected: set[int],
) -> None:
    """The run resumes from step 3, but `model/` may hold the model of step 4."""
    recipe = stopped(best_steps[-1], "evaluation.keep_checkpoints=2", best_steps=best_steps)
    os.truncate("run/checkpoints/step-00000004/optimizer.pt", 100)
    # On a GPU, or with other `hardware` keys, a repeated step may have a lower score.
    monkeypatch.setattr("bertcli.finetuning.job.FinetuneJob.selection_score", lambda job, scores: -100.0)
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    warnings = " ".join(capsys.readouterr().err.split())
    assert "step-00000004 is corrupt (optimizer.pt has 100 bytes" in warnings
    assert ("the best model" in warnings) == (message is not None)
    assert message is None or message in warnings
    assert results.best_step in expected
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])


def test_best_model_is_kept_if_all_files_of_the_newest_checkpoint_are_corrupt(
    stopped: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = stopped(1, "evaluation.keep_checkpoints=2")
    for file in Path("run/checkpoints/step-00000004").iterdir():
        os.truncate(file, 10)
    monkeypatch.setattr("bertcli.finetuning.job.FinetuneJob.selection_score", lambda job, scores: -100.0)
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert "the best model" not in capsys.readouterr().err
    assert results.best_step == 1
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])
