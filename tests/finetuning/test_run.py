"""From a recipe to a run folder: the exact files, the same again, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
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
from bertcli.finetuning.loss import loss_of
from bertcli.finetuning.run import finetune
from bertcli.heads.base import Head
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.runs import checkpoint as checkpoint_module
from bertcli.runs.folder import RunOptions, alone_in
from bertcli.runs.history import read_records
from bertcli.training import trainer as train_module
from bertcli.training.loop import Loss
from bertcli.training.signals import StopRequest

QUIET = Console(quiet=True)


@pytest.fixture
def recipe_of(encoder: Path, reviews: Path) -> Callable[..., Recipe]:
    """The recipe of a run of a few small steps over the reviews, with overrides."""

    def build(*overrides: str, task: str = "") -> Recipe:
        path = Path("small.yaml")
        own = f"{{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}"
        path.write_text(
            f"task: {task or own}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
            "training: {epochs: 2, global_batch_size: 13, learning_rate: 1e-3, seed: 1}\n"
            "hardware: {log_every_steps: 1}\n",
            "utf-8",
        )
        return load_recipe(str(path), overrides)

    return build


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_exactly_these_files_and_true_numbers(recipe_of: Callable[..., Recipe]) -> None:
    results = finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    checkpoint = ("manifest.json", "model.safetensors", "optimizer.pt", "progress.json", "random.pt")
    assert files_of(Path("run")) == {
        "README.md",
        *(f"checkpoints/step-0000000{step}/{name}" for step in (3, 6) for name in checkpoint),
        "environment.json",
        "eval.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "predictions/validation.jsonl",
        "recipe.yaml",
        "report.html",
        "results.json",
        "train.jsonl",
    }
    assert results == json.loads(Path("run/results.json").read_text())
    assert [record["step"] for record in read_records(Path("run/train.jsonl"))] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in read_records(Path("run/eval.jsonl"))] == [3, 6]
    best = max(record["eval/validation/accuracy"] for record in read_records(Path("run/eval.jsonl")))
    assert results["metrics"]["validation"]["accuracy"] == best
    assert f"| accuracy | {best:.4f} |" in Path("run/README.md").read_text()
    assert load_recipe("run/recipe.yaml") == recipe_of()


def test_the_same_seed_gives_the_same_weights_and_another_others(recipe_of: Callable[..., Recipe]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(recipe_of(f"training.seed={seed}"), Path(name), RunOptions(console=QUIET))
    a, b, c = (weights(Path(name)) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("hardware", [[], ["hardware.precision=bf16", "hardware.device=cpu"]])
def test_a_stopped_run_goes_on_and_ends_where_an_undisturbed_one_ends(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, hardware: list[str]
) -> None:
    recipe = recipe_of("model.dropout=0.1", "hardware.log_every_steps=5", *hardware)
    finetune(recipe, Path("whole"), RunOptions(console=QUIET))
    steps_of = train_module.train_steps

    def stopping(*args: Any, **options: Any) -> Any:
        for record in steps_of(*args, **options):
            if record.step in (2, 4):
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    monkeypatch.setattr(train_module, "train_steps", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted) as stopped:
            finetune(recipe, Path("parts"), RunOptions(console=QUIET))
        assert stopped.value.exit_code == 143
    finetune(recipe, Path("parts"), RunOptions(console=QUIET))
    whole, parts = weights(Path("whole")), weights(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert read_records(Path("whole/eval.jsonl")) == read_records(Path("parts/eval.jsonl"))
    keys = ("step", "train/loss", "train/grad_norm")
    lines = [
        [[line[key] for key in keys] for line in read_records(Path(run, "train.jsonl"))] for run in ("whole", "parts")
    ]
    assert lines[0] == lines[1]


def test_a_run_keeps_moments_of_the_rows_its_texts_meet_and_goes_on_with_no_others(
    recipe_of: Callable[..., Recipe], reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, steps_of = recipe_of(), train_module.train_steps

    def stopping(*args: Any, **options: Any) -> Any:
        for record in steps_of(*args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            yield record

    monkeypatch.setattr(train_module, "train_steps", stopping)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    (checkpoint,) = Path("run/checkpoints").iterdir()
    name = "bert.embeddings.word_embeddings"
    state = load_file(checkpoint / "model.safetensors")
    moments = torch.load(checkpoint / "optimizer.pt")["optimizer"]["state"]
    num_met, num_others = len(state[f"{name}.weight"]) - 1, len(state[f"{name}.rest"])
    assert 2 * num_met < num_others
    assert max(len(values["exp_avg"]) for values in moments.values()) < num_met + num_others
    assert [len(values["exp_avg"]) for values in moments.values()].count(num_met + 1) == 1
    reviews.write_text(reviews.read_text("utf-8").replace("fine", "awful"), "utf-8")
    with pytest.raises(RunFolderError, match="training rows have changed"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))


def test_a_second_ctrl_c_in_the_middle_of_saving_leaves_at_once_and_harms_nothing(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    finetune(recipe, Path("whole"), RunOptions(console=QUIET))
    save = checkpoint_module.torch.save

    for second in (signal.SIGINT, signal.SIGTERM):  # the latter of torch's launcher

        def struck(content: Any, path: Path, second: int = second) -> None:
            save(content, path)
            if "step-00000006" in str(path):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), second)

        monkeypatch.setattr(checkpoint_module.torch, "save", struck)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("parts"), RunOptions(console=QUIET))
        assert [path.name for path in Path("parts/checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    finetune(recipe, Path("parts"), RunOptions(console=QUIET))
    whole, parts = weights(Path("whole")), weights(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_signal_in_the_last_step_of_a_seed_keeps_the_next_from_starting(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("training.seed=[1, 2]", "training.max_steps=2")
    steps_of = train_module.train_steps

    def stopping(*args: Any, **options: Any) -> Any:
        for record in steps_of(*args, **options):
            if record.step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield record

    monkeypatch.setattr(train_module, "train_steps", stopping)
    with pytest.raises(Interrupted, match="finished") as stopped:
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert stopped.value.exit_code == 85
    assert Path("run/seed-1/results.json").is_file()
    assert not Path("run/seed-2").exists()
    monkeypatch.setattr(train_module, "train_steps", steps_of)
    assert (
        len(finetune(recipe, Path("run"), RunOptions(console=QUIET))["metrics"]["validation"]["accuracy"]["values"])
        == 2
    )


def test_a_request_for_the_queue_outside_of_the_steps_has_its_exit_code(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("training.max_steps=2")
    monkeypatch.setattr("bertcli.training.job.save_model", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    monkeypatch.setattr(train_module, "stop_on_signals", lambda: nullcontext(StopRequest()))
    with pytest.raises(SystemExit) as stopped:
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert stopped.value.code == 85


def test_a_finished_run_is_only_read_and_another_recipe_refused(recipe_of: Callable[..., Recipe]) -> None:
    first = finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    before = Path("run/train.jsonl").stat().st_mtime_ns
    assert finetune(recipe_of(), Path("run"), RunOptions(console=QUIET)) == first
    assert Path("run/train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match="learning_rate"):
        finetune(recipe_of("training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_do_not_work_in_one_run_folder(recipe_of: Callable[..., Recipe], overwrite: bool) -> None:
    recipe = recipe_of()
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(dump_recipe(recipe), "utf-8")
    with alone_in(Path("run")):
        message = rf"run is being worked in by process {os.getpid()} on "
        with pytest.raises(RunFolderError, match=message):
            finetune(recipe, Path("run"), RunOptions(console=QUIET, overwrite=overwrite))
        assert files_of(Path("run")) == {"recipe.yaml", ".lock"}
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert not Path("run/.lock").exists()


def test_several_seeds_are_several_runs_with_mean_and_spread(recipe_of: Callable[..., Recipe]) -> None:
    results = finetune(recipe_of("training.seed=[1, 2, 3]"), Path("run"), RunOptions(console=QUIET))
    scores = results["metrics"]["validation"]["accuracy"]
    assert scores["mean"] == pytest.approx(np.mean(scores["values"]))
    assert scores["sd"] == pytest.approx(np.std(scores["values"], ddof=1))
    assert [Path(run).name for run in results["runs"]] == ["seed-1", "seed-2", "seed-3"]
    again = evaluate("run", console=QUIET)
    assert again["metrics"]["validation"]["accuracy"]["values"] == scores["values"]


def test_runs_of_single_seeds_are_summed_up_by_the_command_for_all(recipe_of: Callable[..., Recipe]) -> None:
    each = [
        finetune(recipe_of(f"training.seed={seed}"), Path(f"runs/seed-{seed}"), RunOptions(console=QUIET))
        for seed in (1, 2)
    ]
    results = finetune(recipe_of("training.seed=[1, 2]"), Path("runs"), RunOptions(console=QUIET))
    losses = [one["metrics"]["validation"]["loss"] for one in each]
    assert results["metrics"]["validation"]["loss"]["values"] == losses
    assert results["train_seconds"] == sum(one["train_seconds"] for one in each)


def test_a_dry_run_checks_and_writes_nothing(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of(), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [("training.freeze_layers=99", "layers"), ("training.teacher=nowhere/at-all", "nowhere/at-all")],
)
def test_what_a_start_would_find_a_dry_run_finds_and_a_failed_start_is_no_run(
    recipe_of: Callable[..., Recipe], override: str, words: str
) -> None:
    with pytest.raises((ModelError, RecipeError), match=words):
        finetune(recipe_of(override), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert not Path("run").exists()
    with pytest.raises((ModelError, RecipeError), match=words):
        finetune(recipe_of(override), Path("run"), RunOptions(console=QUIET))
    finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    with pytest.raises(RunFolderError, match="another recipe"):
        finetune(recipe_of("training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))


def test_a_run_of_an_earlier_version_goes_on_where_its_recipe_lacks_a_key(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.max_steps=2")
    first = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    written = Path("run/recipe.yaml")
    written.write_text("".join(line for line in written.open() if "token_cutoff" not in line))
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET))["metrics"] == first["metrics"]
    with pytest.raises(RunFolderError, match=r"token_cutoff: 0\.1"):
        finetune(recipe_of("training.max_steps=2", "training.token_cutoff=0.1"), Path("run"), RunOptions(console=QUIET))


def test_early_stopping_stops(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.epochs=50", "training.learning_rate=1e-12", "evaluation.early_stopping_patience=2")
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET))["total_steps"] == 9


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_of = train_module.train_steps

    def spoiling(accelerator: Any, model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        for record in steps_of(accelerator, model, *args, **options):
            yield record
            if record.step == 4:
                next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(train_module, "train_steps", spoiling)
    with pytest.raises(TrainingError, match=r"no number in 1 .* by step 5.*step-00000003"):
        finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    assert all(tensor.isfinite().all() for tensor in weights(Path("run")).values())


def test_steps_without_a_number_are_left_out_and_counted_if_the_recipe_says_so(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(head: Head, training: TrainingSection) -> Loss:
        true, calls = loss_of(head, training), count()
        return lambda *given: true(*given) * (float("nan") if next(calls) == 4 else 1.0)

    monkeypatch.setattr("bertcli.finetuning.job.loss_of", spoilt)
    results = finetune(recipe_of("training.non_finite=skip"), Path("run"), RunOptions(console=Console()))
    assert results["num_skipped_steps"] == 1
    assert sum(record["skipped_steps"] for record in read_records(Path("run/train.jsonl"))) == 1
    assert "they were skipped" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in weights(Path("run")).values())


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(recipe_of(), Path("whole"), RunOptions(console=QUIET))
    save = checkpoint_module.torch.save

    def full(content: Any, path: Path) -> None:
        if "step-00000006" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        save(content, path)

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.raises(DiskError, match=r"disk under parts is full.* GB are free"):
        finetune(recipe_of(), Path("parts"), RunOptions(console=QUIET))
    assert [path.name for path in Path("parts/checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    finetune(recipe_of(), Path("parts"), RunOptions(console=QUIET))
    whole, parts = weights(Path("whole")), weights(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken_up(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))
    whole = weights(Path("run"))
    Path("run/results.json").unlink()
    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    finetune(recipe_of(), Path("run"), RunOptions(console=Console()))
    told = " ".join(capsys.readouterr().err.split())
    assert f"{newest} is damaged (model.safetensors has 1000 bytes where" in told
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(Path("run")).items())


@pytest.mark.parametrize("name", ["sentiment", "inference", "similarity", "topics"])
def test_every_kind_of_answer_trains_and_scores_alike_in_eval(recipe_of: Callable[..., Recipe], name: str) -> None:
    overrides = ("training.max_steps=3", "data.max_train_examples=60", "data.max_eval_examples=400")
    results = finetune(recipe_of(*overrides, task=f"sample/{name}"), Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET)["metrics"] == results["metrics"]
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert np.mean([line["loss"] for line in lines]) == pytest.approx(
        results["metrics"]["validation"]["loss"], rel=1e-4
    )
    if name in ("sentiment", "inference"):
        shares = [line["probabilities"] for line in lines]
        assert all(sum(row.values()) == pytest.approx(1, abs=1e-4) for row in shares)
        assert all(line["confidence"] == max(row.values()) for line, row in zip(lines, shares, strict=True))
        assert np.mean([line["right"] for line in lines]) == results["metrics"]["validation"]["accuracy"]


def test_the_best_models_answers_are_kept_though_a_later_one_is_there(recipe_of: Callable[..., Recipe]) -> None:
    words = ("training.epochs=4", "training.learning_rate=1e-2", "evaluation.best_by=f1_macro")
    results = finetune(recipe_of(*words), Path("run"), RunOptions(console=QUIET))
    assert results["best_step"] < results["total_steps"]
    losses = [line["loss"] for line in read_records(Path("run/predictions/validation.jsonl"))]
    assert np.mean(losses) == pytest.approx(results["metrics"]["validation"]["loss"], rel=1e-4)


def test_of_many_rows_some_are_kept_evenly_and_long_texts_cut(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, write_csv: Callable[..., Path]
) -> None:
    monkeypatch.setattr("bertcli.inference.predictions.MOST_ROWS", 4)
    monkeypatch.setattr("bertcli.inference.forward.ITEMS_AT_ONCE", 2)
    path = write_csv("many.csv", ["text", "label"], [["word " * 5000, "ab"[row % 2]] for row in range(7)])
    task = f"{{files: {{train: {path}, validation: {path}}}, text_columns: [text]}}"
    finetune(recipe_of("training.max_steps=1", task=task), Path("run"), RunOptions(console=QUIET))
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert [(line["row"], line["gold"]) for line in lines] == [(1, "a"), (3, "a"), (5, "a"), (7, "a")]
    assert {len(line["texts"]["text"]) for line in lines} == {4000}


def test_a_report_that_is_missing_is_written_when_a_finished_run_is_read(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    page = Path("run/report.html").read_text("utf-8")
    Path("run/report.html").unlink()
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    assert Path("run/report.html").read_text("utf-8") == page


def test_fresh_weights_make_their_own_tokenizer(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("model.name=null", "model.size=tiny", "model.vocabulary_size=100", "training.max_steps=1")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET)["num_examples"] == 4


def test_a_model_with_other_labels_is_refused_unless_the_head_is_new(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    path = write_csv("mood.csv", ["text", "label"], [[f"t{row}", ("glad", "sad")[row % 2]] for row in range(20)])
    other = f"{{files: {{train: {path}}}, text_columns: [text]}}"
    with pytest.raises(ModelError, match=r"\['negative', 'positive'\].*\['glad', 'sad'\].*new_head"):
        finetune(recipe_of("model.name=run", task=other), Path("other"), RunOptions(console=QUIET))
    finetune(recipe_of("model.name=run", "model.new_head=true", task=other), Path("other"), RunOptions(console=QUIET))
    assert evaluate("other", console=QUIET)["task"] == "custom"


def test_a_kept_head_keeps_its_meaning_when_the_task_lists_labels_in_another_order(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    finetune(recipe_of("training.epochs=20", "training.learning_rate=1e-2"), Path("run"), RunOptions(console=QUIET))
    turned = f"{{files: {{train: {reviews}}}, text_columns: [text], labels: [positive, negative]}}"
    recipe = recipe_of("model.name=run", "training.learning_rate=1e-12", task=turned)
    finetune(recipe, Path("again"), RunOptions(console=QUIET))
    scores = [evaluate(run, split="train", console=QUIET)["metrics"]["train"]["accuracy"] for run in ("run", "again")]
    assert scores[0] == scores[1] > 0.8


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("task.metrics=[acuracy]",), RecipeError, "Did you mean accuracy"),
        (("evaluation.best_by=f1",), RecipeError, "expected one of"),
        (("data.max_length=99",), ModelError, "at most 64 tokens"),
        (("task.label_column=lable",), DataError, "Did you mean label"),
        (("task.text_columns=[txt]",), DataError, "Did you mean text"),
        (("task.labels=[good, bad]",), DataError, "expected one of"),
        (("model.name=nowhere/none",), ModelError, "--mirror"),
        (("training.warmup_steps=99",), RecipeError, "at most"),
        (("task.problem=regression", "task.labels=[]"), DataError, "cannot read"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    recipe_of: Callable[..., Recipe], overrides: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert not Path("run").exists()


def test_a_model_folder_without_weights_is_named(recipe_of: Callable[..., Recipe], encoder: Path) -> None:
    Path("bare").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("bare", name).write_bytes((encoder / name).read_bytes())
    with pytest.raises(ModelError, match="without weights"):
        finetune(recipe_of("model.name=bare"), Path("run"), RunOptions(console=QUIET))


def test_too_little_disk_is_said_before_training(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000, total=2000))
    with pytest.raises(DiskError, match="free, the run needs up to"):
        finetune(recipe_of(), Path("run"), RunOptions(console=QUIET))


def test_a_run_is_scored_without_the_rows_it_learned_from(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    rows = [[f"t{row}", ("glad", "sad")[row % 2]] for row in range(20)]
    train, test = (write_csv(f"{name}.csv", ["text", "label"], rows) for name in ("train", "test"))
    task = f"{{files: {{train: {train}, validation: {test}, test: {test}}}, text_columns: [text]}}"
    finetune(recipe_of("training.max_steps=1", task=task), Path("run"), RunOptions(console=QUIET))
    train.unlink()
    assert evaluate("run", split="test", console=QUIET)["num_examples"] == 20
    Path("other.yaml").write_text(f"task: {{files: {{test: {test}}}, text_columns: [text]}}", "utf-8")
    assert evaluate("run", task_name="other.yaml", split="test", console=QUIET)["num_examples"] == 20
