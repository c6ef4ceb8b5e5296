"""A validation problem in plain words: what was found, what was expected, where a key belongs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from bertcli.errors import did_you_mean
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import Keys
from bertcli.tasks.task import Task

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "tuple_type": "a list",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_pattern_mismatch": "letters, digits, `.`, `_` and `-` (in a task's name also one `/`)",
}

OF_SEVERAL_KINDS = {  # keys whose values pydantic would speak of once for each kind
    "hardware.micro_batch_size": "`auto` or a whole number of at least 1",
    "hardware.compile": "`auto`, true or false",
    "training.class_weights": "`auto`, or a number by label",
    "answers.thresholds": "`tuned`, or a number by label",
}
OTHER_NAMES = {  # what the example scripts of transformers and others call a key
    "batch_size": "training.global_batch_size",
    "bf16": "hardware.precision",
    "eval_steps": "evaluation.every_steps",
    "fp16": "hardware.precision",
    "gradient_accumulation_steps": "hardware.micro_batch_size",
    "label_smoothing_factor": "training.label_smoothing",
    "logging_steps": "hardware.log_every_steps",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.schedule",
    "max_eval_samples": "data.max_eval_examples",
    "max_seq_length": "data.max_length",
    "max_train_samples": "data.max_train_examples",
    "metric_for_best_model": "evaluation.best_by",
    "model_name_or_path": "model.name",
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.global_batch_size",
    "report_to": "hardware.trackers",
    "save_total_limit": "evaluation.keep_checkpoints",
}


def describe_problem(keys: Keys, found: dict[str, Any]) -> str:
    """One line for a pydantic error at `keys`: found …, expected …."""
    if (expected := OF_SEVERAL_KINDS.get(".".join(map(str, keys[:2])))) is not None:
        return f"found {found['input']!r} for {keys[0]}.{keys[1]}, expected {expected}"
    if keys[-1:] == ("budget",):
        return f"found {found['input']!r} for training.budget, expected a time such as 90s, 30m or 2h"
    name, kind, context = ".".join(map(str, keys)), found["type"], found.get("ctx", {})
    if kind == "missing":
        return f"found no {name}, which is needed"
    if kind == "value_error":
        return f"{f'in {name}: ' if name else ''}{found['msg'].removeprefix('Value error, ')}"
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        cure = did_you_mean(str(found["input"]), choices)
        return f"found {found['input']!r} for {name}, expected one of {', '.join(choices)}.{cure}"
    if kind in ("too_short", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        limit = f"at least {least}" if kind == "too_short" else f"at most {most}"
        return f"found {context['actual_length']} values for {name}, expected {limit}"
    expected = EXPECTED.get(kind, found["msg"]).format(**context)
    return f"found {found['input']!r} for {name}, expected {expected}"


def misplaced_words(root: type[BaseModel], keys: Keys) -> str:
    """One line for a key that its section of a `root` recipe does not have: near names, where it belongs."""
    section, key = ".".join(map(str, keys[:-1])), str(keys[-1])
    where = f"in section {section!r}" if section else "at the top level"
    here = list(_fields_at(root, keys[:-1]))
    homes = [home for home in _homes(root, key) if home != section]
    if homes:
        return f"found key {key!r} {where}, expected it in section {homes[0]!r}. Did you mean {homes[0]}.{key}?"
    home, _, field = OTHER_NAMES.get(key, "").partition(".")
    if field in getattr(_sections(root).get(home), "model_fields", ()):
        return f"found unknown key {key!r} {where}. Did you mean {home}.{field}?"
    near = did_you_mean(key, here)
    if not near:
        full_names = [f"{name}.{field}" for name, model in _sections(root).items() for field in model.model_fields]
        leaves = {full.rpartition(".")[2]: full for full in full_names}
        near = did_you_mean(key, leaves)
        for leaf, full in leaves.items():
            near = near.replace(f" {leaf}?", f" {full}?").replace(f" {leaf} or", f" {full} or")
    expected = "" if near else f", expected one of {', '.join(here)}"
    return f"found unknown key {key!r} {where}{expected}.{near}"


def _sections(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections of a kind of recipe by name; a recipe's task may be one."""
    sections: dict[str, type[BaseModel]] = {"task": Task} if root is Recipe else {}
    for name, field in root.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
    return sections


def _homes(root: type[BaseModel], key: str) -> Iterator[str]:
    for name, model in _sections(root).items():
        if key in model.model_fields:
            yield name


def _fields_at(root: type[BaseModel], keys: Keys) -> Iterator[str]:
    model = root
    for key in keys:
        if isinstance(key, str):
            wanted = model.model_fields[key].annotation
            kinds = [kind for kind in (wanted, *get_args(wanted)) if isinstance(kind, type)]
            model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    yield from model.model_fields
