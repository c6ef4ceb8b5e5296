"""Fine-tuning strategies, end to end: which weights change, what is saved, and that runs resume exactly."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import Interrupted, ModelError, RecipeError
from bertcli.finetuning import best_model as best_model_module
from bertcli.finetuning import frozen_outputs as frozen_outputs_module
from bertcli.finetuning import job as job_module
from bertcli.finetuning.frozen_outputs import with_frozen_outputs
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.inference import forward
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.training.optimizer import build_optimizer

from ..conftest import CORRUPTIONS, QUIET


def changed_layers(encoder: Path, run: Path) -> set[str]:
    """Return the parts of the encoder that are not bit-identical after training."""
    before, after = load_file(encoder / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    changed = set()
    for name, tensor in before.items():
        if not torch.equal(tensor, after[f"bert.{name}"]):
            changed.add(name.partition(".")[0] if "layer." not in name else name.split(".")[2])
    return changed


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ((), {"embeddings", "0", "1", "pooler"}),
        (("training.freeze_embeddings=true",), {"0", "1", "pooler"}),
        (("training.freeze_layers=1",), {"1", "pooler"}),
        (("training.strategy=features",), {"pooler"}),
        (("training.strategy=features", "hardware.precision=bf16"), {"pooler"}),
        (("training.strategy=gradual", "training.unfreeze_every_steps=4", "training.max_steps=6"), {"1", "pooler"}),
        (("training.strategy=lora", "training.lora_merge=true"), {"0", "1", "pooler"}),
    ],
)
def test_only_trainable_parameters_change(
    encoder: Path, recipe_of: Callable[..., Recipe], overrides: tuple[str, ...], changed: set[str]
) -> None:
    results = finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert changed_layers(encoder, Path("run")) == changed
    assert results.num_trainable_parameters <= results.num_parameters + 10_000
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])


@pytest.mark.parametrize(("every", "is_noted"), [(6, True), (5, False)])
def test_gradual_unfreezing_that_never_unfreezes_is_reported(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str], every: int, is_noted: bool
) -> None:
    overrides = ("training.strategy=gradual", f"training.unfreeze_every_steps={every}", "training.max_steps=6")
    finetune(recipe_of(*overrides), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert ("unfreezes no layer in 6 steps" in " ".join(capsys.readouterr().err.split())) == is_noted


def test_lora_adapter_is_saved_alone_and_scores_as_in_training(
    encoder: Path, recipe_of: Callable[..., Recipe], recwarn: pytest.WarningsRecorder
) -> None:
    shutil.copytree(encoder, "base/model")  # as in a run folder
    recipe = recipe_of("training.strategy=lora", "training.lora_rank=1", "model.name=base")
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    names = {path.name for path in Path("run/model").iterdir()}
    assert "model.safetensors" not in names
    assert not [str(warning.message) for warning in recwarn if "peft" in warning.filename]  # peft must not use the Hub
    assert Path("run/model/adapter_model.safetensors").stat().st_size < 4 * results.num_parameters
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(results.metrics["validation"])


@pytest.mark.parametrize(("strategy", "new_head"), [("full", False), ("lora", False), ("lora", True)])
def test_model_card_program_predicts_as_bertcli_predict(
    encoder: Path, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, strategy: str, new_head: bool
) -> None:
    shutil.copytree(encoder, "base/model")  # as in a run folder
    if new_head:
        config = AutoConfig.from_pretrained(encoder, num_labels=3)
        AutoModelForSequenceClassification.from_pretrained(encoder, config=config).save_pretrained("base/model")
    overrides = [f"training.strategy={strategy}", "model.name=base", "training.max_steps=3"]
    recipe = recipe_of(*overrides, f"model.new_head={str(new_head).lower()}")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    predict("run", PredictionInput([["the soup was vile"]]), "predictions.jsonl", console=QUIET)
    expected = json.loads(Path("predictions.jsonl").read_text())
    (program,) = re.findall(r"```python\n(.*?)\n```", Path("run/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir("run")
    namespace: dict[str, Any] = {}
    exec(compile(program, "card", "exec"), namespace)
    (prediction,) = namespace["pipe"]("the soup was vile")
    assert prediction["label"] == expected["label"]
    assert prediction["score"] == pytest.approx(expected["probabilities"][expected["label"]], abs=1e-4)


def test_lora_on_an_adapter_is_rejected_unless_merged(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.strategy=lora", "training.max_steps=2")
    finetune(recipe, Path("first"), RunOptions(console=QUIET))
    overrides = ["training.strategy=lora", "training.max_steps=2", "model.name=first"]
    with pytest.raises(ModelError, match=r"training\.lora_merge=true, which saves a full model"):
        finetune(recipe_of(*overrides), Path("second"), RunOptions(console=QUIET))
    finetune(recipe_of(*overrides, "training.lora_merge=true"), Path("third"), RunOptions(console=QUIET))
    assert Path("third/model/model.safetensors").is_file()


def test_frozen_encoder_computes_each_row_once(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls = 0
    compute_logits = frozen_outputs_module.compute_logits

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return compute_logits(*args, **options)

    monkeypatch.setattr(frozen_outputs_module, "compute_logits", counted)
    recipe = recipe_of("training.strategy=features")
    first = finetune(recipe, Path("first"), RunOptions(console=QUIET))
    assert num_calls == 2  # training and validation rows
    second = finetune(recipe, Path("second"), RunOptions(console=QUIET))
    assert num_calls == 2
    assert first.metrics == second.metrics


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_damaged_hidden_states_in_the_cache_are_rebuilt(recipe_of: Callable[..., Recipe], corruption: str) -> None:
    setup, warnings = set_up(recipe_of("training.strategy=features"), None), list[str]()
    accelerator, model, encoded = Accelerator(cpu=True), setup.build_model(QUIET), setup.encode("train")
    before = with_frozen_outputs(accelerator, model, encoded, 999, lambda num_items: None, pytest.fail)
    (file,) = Path("cache/frozen_hidden_states").glob("*/hidden_states.npy")
    assert before.frozen_hidden_states is not None
    expected = before.frozen_hidden_states.tolist()
    CORRUPTIONS[corruption](file)
    after = with_frozen_outputs(accelerator, model, encoded, 999, lambda num_items: None, warnings.append)
    assert after.frozen_hidden_states is not None
    assert after.frozen_hidden_states.tolist() == expected
    (warning,) = warnings
    assert f"{file.parent.name} in the cache is damaged" in warning
    assert file.name in warning


def test_layer_decay_and_head_learning_rate_reach_the_optimizer(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, Any] = {}

    def build(model: torch.nn.Module, **options: Any) -> torch.optim.AdamW:
        built.update(model=model, optimizer=build_optimizer(model, **options))
        return built["optimizer"]

    monkeypatch.setattr("bertcli.training.train_state.build_optimizer", build)
    overrides = ["training.max_steps=1", "training.warmup_ratio=0", "training.learning_rate=0.01"]
    recipe = recipe_of(*overrides, "training.layer_decay=0.5", "training.head_learning_rate=0.03")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    rates = {id(param): group["lr"] for group in built["optimizer"].param_groups for param in group["params"]}
    expected = {"embeddings": 0.01 / 8, "layer.0": 0.01 / 4, "layer.1": 0.01 / 2, "pooler": 0.03, "classifier": 0.03}
    for name, param in built["model"].named_parameters():
        (rate,) = {rate for part, rate in expected.items() if part in name}
        assert rates[id(param)] == pytest.approx(rate), name


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.strategy=features"],
        ["training.strategy=gradual", "training.unfreeze_every_steps=2"],
        ["training.strategy=lora"],
        ["training.layer_decay=0.8", "training.head_learning_rate=3e-2", "training.reinit_layers=1"],
    ],
)
def test_resumed_run_ends_where_an_uninterrupted_one_ends(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None], overrides: list[str]
) -> None:
    recipe = recipe_of(*overrides)
    uninterrupted = finetune(recipe, Path("uninterrupted"), RunOptions(console=QUIET))
    stop_after(3)
    with pytest.raises(Interrupted, match="saved after step 3"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    resumed = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert resumed.metrics == uninterrupted.metrics
    last = sorted(Path("uninterrupted/checkpoints").iterdir())[-1].name
    weights = load_file(f"run/checkpoints/{last}/model.safetensors")
    for name, tensor in load_file(f"uninterrupted/checkpoints/{last}/model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    num_lines = [Path(run, "train.jsonl").read_text().count("\n") for run in ("run", "uninterrupted")]
    assert num_lines[0] == num_lines[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.lora_rank=4"], "training.lora_rank requires training.strategy=lora"),
        (["training.unfreeze_every_steps=4"], "training.strategy=gradual"),
        (["training.strategy=features", "training.token_cutoff=0.1"], "training.token_cutoff is not supported with"),
        (["training.strategy=lora", "training.reinit_layers=1"], "training.strategy=lora does not train"),
        (["training.teacher_hidden_weight=1"], "requires training.teacher"),
        (
            ["training.strategy=features", "training.teacher=t", "training.teacher_hidden_weight=1"],
            "hidden_weight is not supported with",
        ),
        (["training.strategy=lora", "model.name=null", "model.size=tiny"], "requires a pretrained encoder"),
    ],
)
def test_keys_that_the_strategy_does_not_support_are_rejected(
    recipe_of: Callable[..., Recipe], overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))


TUNED = ("answers.thresholds=tuned", "task.problem=multi_label")
FINAL_OUTPUTS = ("predictions/validation.jsonl", "model/config.json")


@pytest.fixture
def count_evaluations(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns the number of times a split has been predicted since its last call."""
    calls: list[object] = []
    predict_logits = forward.predict_logits

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return predict_logits(*args, **options)

    for module in (job_module, best_model_module):
        monkeypatch.setattr(module, "predict_logits", counted)

    def count() -> int:
        number = len(calls)
        calls.clear()
        return number

    return count


@pytest.mark.parametrize("overrides", [(), TUNED])
def test_validation_split_is_not_predicted_again_when_a_run_ends(
    recipe_of: Callable[..., Recipe],
    count_evaluations: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
) -> None:
    recipe = recipe_of("training.epochs=3", *overrides)
    finetune(recipe, Path("kept"), RunOptions(console=QUIET))
    assert count_evaluations() == 3
    monkeypatch.setattr(forward, "MAX_KEPT_BYTES", 0)
    finetune(recipe, Path("computed"), RunOptions(console=QUIET))
    assert count_evaluations() == 3 + (2 if overrides == TUNED else 1)  # to tune thresholds, and for the predictions
    for name in FINAL_OUTPUTS:
        assert Path("kept", name).read_text() == Path("computed", name).read_text()
    assert not list(Path("kept").glob(".logits*"))


KEPT_LOGITS: dict[str, tuple[Callable[[Path], object], int]] = {  # changes, and whether the logits are recomputed
    "unchanged": (lambda path: None, 0),
    "missing": (lambda path: path.unlink(), 1),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:100]), 1),
    "of another step": (lambda path: save_file(load_file(path), path, {"step": "4"}), 1),
    "of other rows": (lambda path: save_file({"other rows": torch.zeros(2, 2)}, path, {"step": "2"}), 1),
}


def test_resumed_run_uses_only_the_kept_logits_of_its_best_evaluation(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None], count_evaluations: Callable[[], int]
) -> None:
    recipe = recipe_of("evaluation.every_steps=2", "training.max_steps=4", "training.learning_rate=1e-12")
    stop_after(3)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("stopped"), RunOptions(console=QUIET))
    predictions = set()
    for run, (change, num_recomputed) in KEPT_LOGITS.items():
        shutil.copytree("stopped", run)
        (kept,) = Path(run).glob(".logits*")
        change(kept)
        count_evaluations()
        assert finetune(recipe, Path(run), RunOptions(console=QUIET)).best_step == 2
        assert count_evaluations() == 1 + num_recomputed, run
        predictions.add(Path(run, FINAL_OUTPUTS[0]).read_text())
    assert len(predictions) == 1
