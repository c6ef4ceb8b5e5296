"""Ways to fine-tune, end to end: what changes, what stays bit for bit, what is saved, and that runs go on exactly."""

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
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.errors import Interrupted, ModelError, RecipeError
from bertcli.finetuning import frozen_outputs as vectors_module
from bertcli.finetuning.frozen_outputs import with_vectors
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import prepare
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.training import trainer as train_module
from bertcli.training.optimizer import build_optimizer

from ..conftest import HARMS

QUIET = Console(quiet=True)


def changed_layers(encoder: Path, run: Path) -> set[str]:
    """Which parts of the encoder are not, bit for bit, what they were."""
    before, after = load_file(encoder / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    parts = set()
    for name, tensor in before.items():
        if not torch.equal(tensor, after[f"bert.{name}"]):
            parts.add(name.partition(".")[0] if "layer." not in name else name.split(".")[2])
    return parts


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
def test_exactly_what_may_learn_changes(
    encoder: Path, recipe_of: Callable[..., Recipe], overrides: tuple[str, ...], changed: set[str]
) -> None:
    results = finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert changed_layers(encoder, Path("run")) == changed
    assert results["num_learning_parameters"] <= results["num_parameters"] + 10_000
    assert evaluate("run", console=QUIET)["metrics"]["validation"] == pytest.approx(results["metrics"]["validation"])


def test_additions_are_saved_small_and_answer_as_in_training(
    encoder: Path, recipe_of: Callable[..., Recipe], recwarn: pytest.WarningsRecorder
) -> None:
    shutil.copytree(encoder, "base/model")  # as in a run folder
    recipe = recipe_of("training.strategy=lora", "training.lora_rank=1", "model.name=base")
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    names = {path.name for path in Path("run/model").iterdir()}
    assert "model.safetensors" not in names
    assert not [str(one.message) for one in recwarn if "peft" in one.filename]  # of a hub it has no need of
    assert Path("run/model/adapter_model.safetensors").stat().st_size < 4 * results["num_parameters"]
    assert evaluate("run", console=QUIET)["metrics"]["validation"] == pytest.approx(results["metrics"]["validation"])


@pytest.mark.parametrize(("strategy", "new_head"), [("full", False), ("lora", False), ("lora", True)])
def test_the_program_on_the_card_answers_as_predict_does(
    encoder: Path, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, strategy: str, new_head: bool
) -> None:
    shutil.copytree(encoder, "base/model")  # as in a run folder
    if new_head:
        config = AutoConfig.from_pretrained(encoder, num_labels=3)
        AutoModelForSequenceClassification.from_pretrained(encoder, config=config).save_pretrained("base/model")
    words = [f"training.strategy={strategy}", "model.name=base", "training.max_steps=3", f"model.new_head={new_head}"]
    finetune(recipe_of(*[word.lower() for word in words]), Path("run"), RunOptions(console=QUIET))
    predict("run", [["the soup was vile"]], "answers.jsonl", console=QUIET)
    wanted = json.loads(Path("answers.jsonl").read_text())
    (program,) = re.findall(r"```python\n(.*?)\n```", Path("run/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir("run")
    named: dict[str, Any] = {}
    exec(compile(program, "card", "exec"), named)
    (found,) = named["answer"]("the soup was vile")
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["probabilities"][wanted["label"]], abs=1e-4)


def test_additions_to_additions_are_refused_with_the_cure(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("training.strategy=lora", "training.max_steps=2")
    finetune(recipe, Path("first"), RunOptions(console=QUIET))
    words = ["training.strategy=lora", "training.max_steps=2", "model.name=first"]
    with pytest.raises(ModelError, match=r"training\.lora_merge=true, which saves the whole model"):
        finetune(recipe_of(*words), Path("second"), RunOptions(console=QUIET))
    finetune(recipe_of(*words, "training.lora_merge=true"), Path("third"), RunOptions(console=QUIET))
    assert Path("third/model/model.safetensors").is_file()


def test_a_fixed_encoder_reads_each_row_once(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    whole = vectors_module.compute_logits
    monkeypatch.setattr(
        vectors_module, "compute_logits", lambda *given, **named: computed.append(1) or whole(*given, **named)
    )
    recipe = recipe_of("training.strategy=features")
    first = finetune(recipe, Path("first"), RunOptions(console=QUIET))
    assert len(computed) == 2  # training and validation rows
    second = finetune(recipe, Path("second"), RunOptions(console=QUIET))
    assert len(computed) == 2
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_vectors_in_the_cache_are_computed_anew(recipe_of: Callable[..., Recipe], harm: str) -> None:
    prepared, told = prepare(recipe_of("training.strategy=features"), None), list[str]()
    accelerator, model, encoded = Accelerator(cpu=True), prepared.build_model(), prepared.encode("train")
    before = with_vectors(accelerator, model, encoded, 999, lambda number: None, pytest.fail).vectors
    (file,) = Path("cache/vectors").glob("*/vectors.npy")
    assert before is not None
    expected = before.copy()
    HARMS[harm](file)
    after = with_vectors(accelerator, model, encoded, 999, lambda number: None, told.append).vectors
    assert after is not None
    assert after.tolist() == expected.tolist()
    assert [f"{file.parent.name} in the cache is damaged (vectors.npy" in words for words in told] == [True]


def test_each_layer_learns_at_its_own_rate(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    def build(model: torch.nn.Module, **options: Any) -> torch.optim.AdamW:
        made.update(model=model, optimizer=build_optimizer(model, **options))
        return made["optimizer"]

    monkeypatch.setattr("bertcli.training.train_state.build_optimizer", build)
    words = ["training.max_steps=1", "training.warmup_ratio=0", "training.learning_rate=0.01"]
    finetune(
        recipe_of(*words, "training.layer_decay=0.5", "training.head_learning_rate=0.03"),
        Path("run"),
        RunOptions(console=QUIET),
    )
    rates = {id(part): group["lr"] for group in made["optimizer"].param_groups for part in group["params"]}
    expected = {"embeddings": 0.01 / 8, "layer.0": 0.01 / 4, "layer.1": 0.01 / 2, "pooler": 0.03, "classifier": 0.03}
    for name, part in made["model"].named_parameters():
        (rate,) = {rate for place, rate in expected.items() if place in name}
        assert rates[id(part)] == pytest.approx(rate), name


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.strategy=features"],
        ["training.strategy=gradual", "training.unfreeze_every_steps=2"],
        ["training.strategy=lora"],
        ["training.layer_decay=0.8", "training.head_learning_rate=3e-2", "training.reinitialise_layers=1"],
    ],
)
def test_a_run_stopped_between_stages_ends_where_an_undisturbed_one_ends(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    recipe = recipe_of(*overrides)
    whole = finetune(recipe, Path("whole"), RunOptions(console=QUIET))
    asked = iter([None, None, 15])
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Run, "_agreed", lambda run, request, step: next(asked, 15))
        with pytest.raises(Interrupted):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    resumed = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert resumed["metrics"] == whole["metrics"]
    last = sorted(Path("whole/checkpoints").iterdir())[-1].name
    for name, tensor in load_file(f"whole/checkpoints/{last}/model.safetensors").items():
        assert torch.equal(tensor, load_file(f"run/checkpoints/{last}/model.safetensors")[name]), name
    assert Path("run/train.jsonl").read_text().count("\n") == Path("whole/train.jsonl").read_text().count("\n")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.lora_rank=4"], "training.lora_rank is for training.strategy=lora"),
        (["training.unfreeze_every_steps=4"], "training.strategy=gradual"),
        (["training.strategy=features", "training.token_cutoff=0.1"], "training.token_cutoff changes"),
        (["training.strategy=lora", "training.reinitialise_layers=1"], "does not save"),
        (["training.teacher_hidden_weight=1"], "needs a training.teacher"),
        (
            ["training.strategy=features", "training.teacher=t", "training.teacher_hidden_weight=1"],
            "hidden_weight changes",
        ),
        (["training.strategy=lora", "model.name=null", "model.size=tiny"], "needs a trained encoder"),
    ],
)
def test_keys_without_use_are_refused(recipe_of: Callable[..., Recipe], overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
