"""Names of keys in other programs lead to the key here, as `key=value` and as an option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.errors import RecipeError
from bertcli.recipe.error_messages import FORMER_KEYS, find_key
from bertcli.recipe.hf_arguments import KEY_ALIASES, PRETRAIN_KEY_ALIASES, UNSUPPORTED_KEYS
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe

TRAINER_ARGUMENTS = {  # of transformers' Trainer and example scripts → what the hint names
    "per_device_train_batch_size": "training.global_batch_size",
    "per_device_eval_batch_size": "hardware.eval_batch_tokens",
    "gradient_accumulation_steps": "hardware.micro_batch_size",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "adam_beta1": "training.adam_beta1",
    "max_grad_norm": "training.max_grad_norm",
    "warmup_steps": "training.warmup_steps",
    "warmup_ratio": "training.warmup_ratio",
    "lr_scheduler_type": "training.schedule",
    "label_smoothing_factor": "training.label_smoothing",
    "seed": "training.seed",
    "data_seed": "training.seed",
    "fp16": "hardware.precision=fp16",
    "bf16": "hardware.precision=bf16",
    "use_cpu": "hardware.device=cpu",
    "no_cuda": "hardware.device=cpu",
    "fsdp": "hardware.shard=true",
    "torch_compile": "hardware.compile=true",
    "logging_steps": "hardware.log_every_steps",
    "report_to": "hardware.trackers",
    "eval_strategy": "evaluation.every_steps",
    "eval_steps": "evaluation.every_steps",
    "save_steps": "evaluation.every_steps",
    "save_strategy": "evaluation.every_steps",
    "save_total_limit": "evaluation.keep_checkpoints",
    "metric_for_best_model": "evaluation.best_by",
    "load_best_model_at_end": "always kept",
    "greater_is_better": "evaluation.best_by",
    "gradient_checkpointing": "hardware.gradient_checkpointing",
    "optim": "AdamW",
    "deepspeed": "hardware.shard=true",
    "output_dir": "--run",
    "run_name": "--run",
    "overwrite_output_dir": "--overwrite",
    "resume_from_checkpoint": "re-run the same command",
    "do_train": "always train",
    "do_eval": "bertcli eval",
    "do_predict": "bertcli predict",
    "push_to_hub": "bertcli push",
    "hub_token": "hf auth login",
    "model_name_or_path": "model.name",
    "tokenizer_name": "model.tokenizer",
    "task_name": "task",
    "dataset_name": "task.dataset",
    "train_file": "task.files.train",
    "validation_file": "task.files.validation",
    "test_file": "task.files.test",
    "text_column_name": "task.text_columns",
    "label_column_name": "task.label_column",
    "max_seq_length": "data.max_length",
    "max_train_samples": "data.max_train_examples",
    "doc_stride": "data.doc_stride",
    "n_best_size": "answers.n_best_size",
    "version_2_with_negative": "task.unanswerable",
    "early_stopping_patience": "evaluation.early_stopping_patience",
}
PRETRAINING_ARGUMENTS = {  # where the hint differs for `bertcli pretrain`
    "train_file": "corpus.sources=[{files: …}]",
    "dataset_name": "corpus.sources=[{dataset: …}]",
    "tokenizer_name": "tokenizer.name",
    "max_seq_length": "phases=[{max_length: …}]",
    "mlm_probability": "objective.mlm_probability",
    "model_type": "model.family",
    "line_by_line": "documents: lines",
}


@pytest.mark.parametrize(("argument", "key"), TRAINER_ARGUMENTS.items())
def test_arguments_of_the_transformers_trainer_lead_to_the_key(argument: str, key: str) -> None:
    for spelling in (argument, argument.replace("_", "-")):
        with pytest.raises(RecipeError) as caught:
            load_recipe("glue/sst2", [f"{spelling}=3"])
        (problem,) = caught.value.problems
        assert problem.startswith(
            f"command line: found {'unknown ' * ('unknown' in problem)}key {spelling!r} at the top"
        )
        assert key in problem
        if "Did you mean" in problem:
            assert problem.endswith(f"Did you mean {key}?") or f"{key}=" in problem


@pytest.mark.parametrize("spelling", ["--per_device_train_batch_size", "--per-device-train-batch-size"])
def test_options_of_the_transformers_trainer_lead_to_the_key(spelling: str) -> None:
    for arguments in ([spelling, "8"], [f"{spelling}=8"]):
        result = CliRunner().invoke(app, ["finetune", "glue/sst2", *arguments])
        assert result.exit_code == 2
        assert "training.global_batch_size=8" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(("argument", "key"), PRETRAINING_ARGUMENTS.items())
def test_arguments_of_pretraining_scripts_lead_to_the_key(argument: str, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_pretrain_recipe("pretrain/tiny", [f"{argument}=3"])
    assert key in caught.value.problems[0]
    assert key in (find_key(argument, pretraining=True) or "")


@pytest.mark.parametrize(
    ("load", "override", "command"),
    [
        (load_recipe, "corpus.held_out_fraction=0.1", "pretrain"),
        (load_recipe, "mlm_probability=0.2", "pretrain"),
        (load_pretrain_recipe, "answers.n_best_size=3", "finetune"),
    ],
)
def test_key_of_the_other_kind_of_recipe_names_its_command(load, override: str, command: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError) as caught:
        load("glue/sst2" if command == "pretrain" else "pretrain/tiny", [override])
    assert caught.value.problems[0].endswith(f"which only recipes for `bertcli {command}` have")


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("tokenizer.add_tokens=[a]", ". Did you mean model.add_tokens?"),
        ("tokenizer.name=a", ". Did you mean model.tokenizer?"),
        ("tokenizer.lowercase=true", ""),
    ],
)
def test_section_of_the_other_kind_of_recipe_leads_to_the_key_of_this_kind(override: str, cure: str) -> None:
    assert _problems(load_recipe, "glue/sst2", [override]) == [
        "command line: found section 'tokenizer' at the top level, which only recipes for `bertcli pretrain` have"
        + cure
    ]


def test_key_with_hyphens_leads_to_the_key_with_underscores(tmp_path: Path) -> None:
    for override in ("training.max-steps=3", "hardware.micro-batch-size=3"):
        (problem,) = _problems(load_recipe, "glue/sst2", [override])
        assert problem.endswith(f"Did you mean {override.partition('=')[0].replace('-', '_')}?")
    for override in ("training.max-steps=3", "tokenizer.vocab-size=300"):
        (problem,) = _problems(load_pretrain_recipe, "pretrain/tiny", [override])
        assert problem.endswith(f"Did you mean {override.partition('=')[0].replace('-', '_')}?")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: {sources: [{files: a.txt}]}\nphases: [{max-length: 128}]\n")
    problems = _problems(load_pretrain_recipe, str(recipe), [])
    assert any(
        problem.endswith("'max-length' in section 'phases.0'. Did you mean phases.0.max_length?")
        for problem in problems
    )


def _problems(load: Callable[..., object], name: str, overrides: list[str]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(name, overrides)
    return caught.value.problems


def test_every_alias_leads_to_a_key_that_exists() -> None:
    """No alias is left over from a key that was renamed."""
    for name in {**KEY_ALIASES, **FORMER_KEYS}:
        assert find_key(name) is not None, name
    for name in PRETRAIN_KEY_ALIASES:
        assert find_key(name, pretraining=True) == PRETRAIN_KEY_ALIASES[name]
    for name in UNSUPPORTED_KEYS:
        assert name not in {**Recipe.model_fields, **PretrainRecipe.model_fields, **KEY_ALIASES}
