"""Readable messages for validation errors: what was found, what was expected, and where a misplaced key belongs.

The names that transformers uses are in `recipe.hf_arguments`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from bertcli.errors import MAX_QUOTED_CHARS, did_you_mean, quoted, shortened
from bertcli.recipe.hf_arguments import KEY_ALIASES, PRETRAIN_KEY_ALIASES, UNSUPPORTED_KEYS
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import KeyPath
from bertcli.tasks.task import Task

EXPECTED_BY_ERROR_TYPE = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "tuple_type": "a list",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_pattern_mismatch": "letters, digits, `.`, `_` and `-` (a task's name may also contain one `/`)",
}
LIMITS = ("gt", "ge", "lt", "le")
EXPECTED_BY_KEY = {  # keys with union types, for which pydantic reports one error per branch
    "hardware.micro_batch_size": "`auto` or an integer of at least 1",
    "hardware.compile": "`auto`, true or false",
    "hardware.gradient_checkpointing": "`auto`, true or false",
    "model.config_overrides": "a mapping from field to a finite number, true, false or text",
    "training.class_weights": "`auto`, or a mapping from label to number",
    "answers.thresholds": "`tuned`, or a mapping from label to number",
}
MAIN_KEYS = {"model": "name", "tokenizer": "name", "objective": "kind"}  # the key meant if a section is set to a string
FORMER_KEYS = {  # key in earlier versions → current key
    "consistent_tags": "answers.constrained_decoding",
    "mark_capitals": "data.casing_feature",
    "reinitialise_layers": "training.reinit_layers",
}
ALIASES_BY_SECTION = {  # former names whose new key depends on the section (`*`: an item of a list)
    "task": {"held_out_by": "group_by", "held_out_share": "held_out_fraction"},
    "task.splits": {"more_validation": "extra_validation"},
    "task.submission": {"also": "extra_tasks"},
    "corpus": {
        "held_out_share": "held_out_fraction",
        "files": "sources=[{files: …}]",
        "dataset": "sources=[{dataset: …}]",
    },
    "tokenizer": {"vocabulary_size": "vocab_size"},
    "model": {"vocabulary_size": "vocab_size", "fields": "config_overrides"},
    "objective": {
        "unit": "masking",
        "mask_share": "mask_replace_prob",
        "random_share": "random_replace_prob",
        "short_sequence_probability": "short_seq_prob",
    },
    "phases.*": {"share": "fraction"},
    "multitask": {"kind": "sampling", "cap": "max_examples"},
    "": {"together": "multitask"},
}
VALUE_ALIASES = {  # former names of values
    "objective.masking": {"tokens": "token", "words": "whole_word", "spans": "span"},
    "objective.kind": {"replaced_tokens": "replaced_token_detection"},
}


def describe_problem(keys: KeyPath, error: dict[str, Any]) -> str:
    """Describe a pydantic error at `keys` in one line: found …, expected …."""
    if (expected := EXPECTED_BY_KEY.get(".".join(map(str, keys[:2])))) is not None:
        return f"found {quoted(error['input'])} for {keys[0]}.{keys[1]}, expected {expected}"
    if keys[-1:] == ("budget",):
        return f"found {quoted(error['input'])} for {keys[0]}.budget, expected a time such as 90s, 30m or 2h"
    name, error_type, context = shortened(".".join(map(str, keys))), error["type"], error.get("ctx", {})
    if error_type == "missing":
        return f"found no {name}, which is required"
    if error_type == "value_error":
        return f"{f'in {name}: ' if name else ''}{error['msg'].removeprefix('Value error, ')}"
    if error_type == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        alias = VALUE_ALIASES.get(name, {}).get(str(error["input"]))
        cure = f" Did you mean {alias}?" if alias else did_you_mean(str(error["input"]), choices)
        return f"found {quoted(error['input'])} for {name}, expected one of {', '.join(choices)}.{cure}"
    if error_type in ("too_short", "too_long"):
        minimum, maximum = context.get("min_length"), context.get("max_length")
        limit = f"at least {minimum}" if error_type == "too_short" else f"at most {maximum}"
        return f"found {context['actual_length']} values for {name}, expected {limit}"
    limits = {name: int(limit) if limit == int(limit) else limit for name, limit in context.items() if name in LIMITS}
    expected = EXPECTED_BY_ERROR_TYPE.get(error_type, error["msg"]).format(**limits)
    return (
        f"found {quoted(error['input'])} for {name}, expected {expected}{_value_hint(keys, error_type, error['input'])}"
    )


def _value_hint(keys: KeyPath, error_type: str, value: object) -> str:
    """Suggest a correction for a string given for a section or list, as in `model=X` or `training.seed=1,2,3`."""
    if not isinstance(value, str) or len(value) > MAX_QUOTED_CHARS:
        return ""
    name = ".".join(map(str, keys))
    if error_type.startswith("model_") and name in MAIN_KEYS:
        return f". Did you mean {name}.{MAIN_KEYS[name]}={value}?"
    if error_type == "tuple_type" or (keys[0] == "training" and "," in value):
        return f". Did you mean {name}=[{value}]?"
    return ""


def find_key(name: str, *, pretraining: bool = False) -> str | None:
    """Return the recipe key for an option name of another program, such as `model_name_or_path`; None if there is none.

    Args:
        pretraining: whether to prefer the keys of recipes for `bertcli pretrain`.
    """
    for schema in (PretrainRecipe, Recipe) if pretraining else (Recipe, PretrainRecipe):
        owner = next(_sections_with_key(schema, name), None)
        if (key := _alias(schema, "", (name,)) or (owner and f"{owner}.{name}")) is not None:
            return key
    return None


def describe_unknown_key(schema: type[BaseModel], keys: KeyPath, value: object = None, *, suggest: bool = True) -> str:
    """Describe an unknown key in one line: where it belongs, or which keys have similar names.

    Args:
        schema: the recipe's schema; the key is also searched for in its other sections.
        keys: the path of the unknown key.
        value: its value; the keys of a section that only the other command's recipes have are searched for, too.
        suggest: whether to search for similar keys, which is slow for thousands of unknown keys.
    """
    section, key = ".".join(map(str, keys[:-1])), str(keys[-1])
    name = key.replace("-", "_")
    where = f"in section {section!r}" if section else "at the top level"
    if not suggest:
        return f"found unknown key {quoted(key)} {where}"
    valid_keys = list(_field_names_at(schema, keys[:-1]))
    if name in valid_keys:  # written with hyphens, as options are
        return f"found unknown key {quoted(key)} {where}. Did you mean {'.'.join(filter(None, (section, name)))}?"
    if name in UNSUPPORTED_KEYS:
        return f"found unknown key {quoted(key)} {where}: {UNSUPPORTED_KEYS[name]}"
    if alias := _alias(schema, section, (*keys[:-1], name)):
        return f"found unknown key {quoted(key)} {where}. Did you mean {alias}?"
    owners = [owner for owner in _sections_with_key(schema, name) if owner != section]
    if owners and isinstance(value, dict) and (other := _command_with_key(schema, name)):
        cures = dict.fromkeys(
            f"{owner}.{name if inner == MAIN_KEYS.get(name) else inner}"
            for inner in map(str, value)
            for owner in (owners if inner == MAIN_KEYS.get(name) else _sections_with_key(schema, inner))
        )
        cure = f". Did you mean {', '.join(cures)}?" if cures else ""
        return f"found section {key!r} {where}, which only recipes for `bertcli {other}` have{cure}"
    if owners:
        return f"found key {key!r} {where}, expected it in section {owners[0]!r}. Did you mean {owners[0]}.{name}?"
    if other := _command_with_key(schema, name):
        return f"found key {key!r} {where}, which only recipes for `bertcli {other}` have"
    near = did_you_mean(key, valid_keys)
    if not near:
        full_names = [f"{name}.{field}" for name, model in _sections(schema).items() for field in model.model_fields]
        by_last_part = {full.rpartition(".")[2]: full for full in full_names}
        near = did_you_mean(key, by_last_part)
        for last_part, full in by_last_part.items():
            near = near.replace(f" {last_part}?", f" {full}?").replace(f" {last_part} or", f" {full} or")
    expected = "" if near else f", expected one of {', '.join(valid_keys)}"
    return f"found unknown key {quoted(key)} {where}{expected}.{near}"


def _alias(schema: type[BaseModel], section: str, keys: KeyPath) -> str | None:
    """Return the current key for a name used by other programs or earlier versions, if the schema has that key."""
    key = str(keys[-1])
    pattern = ".".join("*" if isinstance(part, int) else part for part in keys[:-1])
    if key in (aliases := ALIASES_BY_SECTION.get(pattern, {})):
        return ".".join(filter(None, (section, aliases[key])))
    aliases = KEY_ALIASES | FORMER_KEYS | (PRETRAIN_KEY_ALIASES if schema is PretrainRecipe else {})
    alias = aliases.get(key, "")
    home, *inner = alias.partition("=")[0].split(".")
    is_known = (
        inner[0] in getattr(_sections(schema).get(home), "model_fields", ()) if inner else home in schema.model_fields
    )
    return alias if is_known else None


def _command_with_key(schema: type[BaseModel], key: str) -> str | None:
    """Return the other command, `finetune` or `pretrain`, if the key exists in the recipes of that command."""
    if schema not in (Recipe, PretrainRecipe):
        return None
    other, command = (PretrainRecipe, "pretrain") if schema is Recipe else (Recipe, "finetune")
    has_key = key in other.model_fields or next(_sections_with_key(other, key), None) is not None
    return command if has_key else None


def _sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the sections of a recipe schema by name, including an inline `task` definition."""
    sections: dict[str, type[BaseModel]] = {"task": Task} if schema is Recipe else {}
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
    return sections


def _sections_with_key(schema: type[BaseModel], key: str) -> Iterator[str]:
    for name, model in _sections(schema).items():
        if key in model.model_fields:
            yield name


def _field_names_at(schema: type[BaseModel], keys: KeyPath) -> Iterator[str]:
    model = schema
    for key in keys:
        if isinstance(key, str):
            annotation = model.model_fields[key].annotation
            types = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            model = next(kind for kind in types if issubclass(kind, BaseModel))
    yield from model.model_fields
