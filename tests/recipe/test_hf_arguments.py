"""Every argument of transformers has a recipe key, or a reason why it has none; values are translated, too."""

from __future__ import annotations

import dataclasses

import pytest

from bertcli.recipe.error_messages import find_key
from bertcli.recipe.hf_arguments import (
    KEY_ALIASES,
    OPTION_HINTS,
    OVERRIDES,
    PRETRAIN_KEY_ALIASES,
    UNSUPPORTED_KEYS,
    option_hint,
    override_for,
)
from bertcli.recipe.load import load_recipe

SCRIPT_ARGUMENTS = {  # of transformers' example scripts, besides TrainingArguments
    "run_glue": "task_name dataset_name dataset_config_name max_seq_length overwrite_cache pad_to_max_length "
    "max_train_samples max_eval_samples max_predict_samples train_file validation_file test_file model_name_or_path "
    "config_name tokenizer_name cache_dir use_fast_tokenizer model_revision token trust_remote_code "
    "ignore_mismatched_sizes",
    "run_classification": "do_regression text_column_names text_column_delimiter train_split_name "
    "validation_split_name test_split_name remove_splits remove_columns label_column_name shuffle_train_dataset "
    "shuffle_seed metric_name",
    "run_qa": "preprocessing_num_workers version_2_with_negative null_score_diff_threshold doc_stride n_best_size "
    "max_answer_length",
    "run_ner": "text_column_name label_column_name label_all_tokens return_entity_level_metrics",
    "run_mlm": "model_type config_overrides config_name dtype torch_dtype low_cpu_mem_usage mlm_probability "
    "line_by_line streaming validation_split_percentage",
    "no_trainer": "max_length use_slow_tokenizer num_warmup_steps max_train_steps checkpointing_steps with_tracking",
}


def names_of_trainer() -> list[str]:
    from transformers import TrainingArguments

    return [field.name for field in dataclasses.fields(TrainingArguments) if field.init]


def is_answered(name: str) -> bool:
    found = find_key(name) or find_key(name, pretraining=True)
    assert not (name in UNSUPPORTED_KEYS and name in {**KEY_ALIASES, **PRETRAIN_KEY_ALIASES}), name
    return found is not None or name in UNSUPPORTED_KEYS


def test_every_field_of_training_arguments_has_a_key_or_a_reason() -> None:
    names = names_of_trainer()
    assert len(names) > 80
    assert [name for name in names if not is_answered(name)] == []


@pytest.mark.parametrize("script", SCRIPT_ARGUMENTS)
def test_every_argument_of_the_example_scripts_has_a_key_or_a_reason(script: str) -> None:
    for name in SCRIPT_ARGUMENTS[script].split():
        assert is_answered(name), name


def test_reasons_say_what_to_do() -> None:
    for reason in [*UNSUPPORTED_KEYS.values(), *OPTION_HINTS.values()]:
        assert not reason.endswith(".")


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("learning_rate", "3e-5", "training.learning_rate=3e-5"),
        ("num_train_epochs", "3.0", "training.epochs=3.0"),
        ("max_steps", "-1", "training.max_steps=null"),
        ("warmup_steps", "100", "training.warmup_steps=100"),
        ("warmup_steps", "0.06", "training.warmup_ratio=0.06"),
        ("max_grad_norm", "0", "training.max_grad_norm=null"),
        ("lr_scheduler_type", "constant_with_warmup", "training.schedule=constant"),
        ("lr_scheduler_type", "cosine", "training.schedule=cosine"),
        ("fp16", "", "hardware.precision=fp16"),
        ("fp16", "True", "hardware.precision=fp16"),
        ("bf16", "False", "hardware.precision=auto"),
        ("eval_strategy", "epoch", "evaluation.every_epochs=1"),
        ("eval_strategy", "steps", "evaluation.every_steps=500"),
        ("save_strategy", "no", "evaluation.every_epochs=null"),
        ("eval_steps", "500", "evaluation.every_steps=500"),
        ("metric_for_best_model", "eval_loss", "evaluation.best_by=loss"),
        ("metric_for_best_model", "f1", "evaluation.best_by=f1"),
        ("report_to", "none", "hardware.trackers=[]"),
        ("report_to", "wandb", "hardware.trackers=[wandb]"),
        ("task_name", "SST2", "task=glue/sst2"),
        ("text_column_names", "sentence", "task.text_columns=[sentence]"),
        ("per_device_train_batch_size", "8", "training.global_batch_size=8"),
    ],
)
def test_value_is_translated_to_one_that_the_recipe_accepts(argument: str, value: str, expected: str) -> None:
    key = find_key(argument)
    assert key is not None
    assert override_for(argument, key, value, {}) == expected
    load_recipe("sentiment/custom-csv" if expected.startswith("task.") else "glue/sst2", [expected])


def test_percentage_of_validation_rows_is_a_fraction() -> None:
    key = find_key("validation_split_percentage", pretraining=True)
    assert override_for("validation_split_percentage", key or "", "5", {}) == "corpus.held_out_fraction=0.05"


def test_global_batch_counts_accumulation_and_processes() -> None:
    given = {"per_device_train_batch_size": "8", "gradient_accumulation_steps": "4", "processes": "2"}
    key = "training.global_batch_size"
    assert override_for("per_device_train_batch_size", key, "8", given) == f"{key}=64"


@pytest.mark.parametrize("argument", OVERRIDES)
def test_special_values_belong_to_arguments_with_a_key(argument: str) -> None:
    assert find_key(argument) is not None


def test_options_without_a_key_are_answered() -> None:
    assert option_hint("config", "mine.yaml") == "the recipe is the first argument, without an option: mine.yaml"
    assert option_hint("config", "sst2") is None  # the key task.config
    assert option_hint("output_dir", "out") == "the run folder is an option, not a key; use --run out"
    assert option_hint("resume", "") == "re-run the same command to resume; leave it out"
    assert option_hint("nonsense", "3") is None
    for name in OPTION_HINTS:
        assert find_key(name) is None
        assert name not in UNSUPPORTED_KEYS
