"""Recipes: layers, precedence, and every error with its location."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe import load
from bertcli.recipe.catalogue import complete_key
from bertcli.recipe.hf_arguments import KEY_ALIASES
from bertcli.recipe.load import FORMER_RECIPES, dump_recipe, load_pretrain_recipe, load_recipe, shipped_recipes
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import load_suite

Write = Callable[..., Path]


def problems_of(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_precedence_is_defaults_then_extended_file_then_file_then_command_line(write_recipe: Write) -> None:
    write_recipe("task: glue/rte\ntraining: {epochs: 7, global_batch_size: 7, learning_rate: 7e-5}\n", "base.yaml")
    child = write_recipe("extends: base.yaml\ntraining: {global_batch_size: 8, learning_rate: 8e-5}\n")
    training = load_recipe(str(child), ["training.learning_rate=9e-5"]).training
    assert (training.weight_decay, training.epochs, training.global_batch_size) == (0.01, 7, 8)
    assert training.learning_rate == 9e-5


def test_all_errors_are_reported_at_once_with_their_lines(write_recipe: Write) -> None:
    path = write_recipe(
        "task: glue/sst3\n"
        "model:\n"
        "  nmae: x\n"
        "  learning_rate: 2e-5\n"
        "training:\n"
        "  epochs: three\n"
        "  schedule: linera\n"
        "epochs: 3\n"
    )
    found = problems_of(path, "training.global_batch_size=0")
    expected = {
        f"{path}:1": ("'glue/sst3'", "Did you mean glue/sst2"),
        f"{path}:3": ("'nmae'", "Did you mean name?"),
        f"{path}:4": ("'learning_rate'", "section 'training'", "training.learning_rate?"),
        f"{path}:6": ("'three'", "expected a number"),
        f"{path}:7": ("'linera'", "Did you mean linear?"),
        f"{path}:8": ("'epochs'", "section 'training'"),
        "command line": ("found 0 for training.global_batch_size", "at least 1"),
    }
    assert len(found) == len(expected)
    for place, words in expected.items():
        line = next(line for line in found if line.startswith(f"{place}: "))
        for word in words:
            assert word in line


@pytest.mark.parametrize(("alias", "key"), KEY_ALIASES.items())
def test_key_aliases_lead_to_the_key(alias: str, key: str) -> None:
    (problem,) = problems_of("glue/sst2", f"training.{alias}=1")
    assert problem.endswith(f"Did you mean {key}?")
    assert complete_key(key.partition("=")[0])


@pytest.mark.parametrize(("former", "name"), FORMER_RECIPES.items())
def test_former_name_of_a_recipe_leads_to_its_new_name(former: str, name: str, write_recipe: Write) -> None:
    assert problems_of(former) == [f"found no recipe '{former}', which is now called {name}"]
    path = write_recipe(f"extends: {former}\ntask: glue/rte\n")
    assert f"which is now called {name}" in problems_of(path)[0]
    assert name in shipped_recipes()


RENAMED_KEYS = [
    ("answers.consistent_tags=false", "answers.constrained_decoding"),
    ("data.mark_capitals=true", "data.casing_feature"),
    ("training.reinitialise_layers=1", "training.reinit_layers"),
    ("model.vocabulary_size=400", "model.vocab_size"),
    ("task.held_out_by=title", "task.group_by"),
    ("task.held_out_share=0.1", "task.held_out_fraction"),
    ("task.splits.more_validation=[a]", "task.splits.extra_validation"),
    ("together={kind: equal}", "multitask"),
    ("corpus.held_out_share=0.1", "corpus.held_out_fraction"),
    ("tokenizer.vocabulary_size=400", "tokenizer.vocab_size"),
    ("model.fields.hidden_size=64", "model.config_overrides"),
    ("objective.unit=words", "objective.masking"),
    ("objective.mask_share=1", "objective.mask_replace_prob"),
    ("objective.random_share=0", "objective.random_replace_prob"),
    ("objective.short_sequence_probability=0.2", "objective.short_seq_prob"),
    ("phases=[{max_length: 32, share: 1}]", "phases.0.fraction"),
    ("objective.masking=words", "whole_word"),
    ("objective.masking=tokens", "token"),
    ("objective.masking=spans", "span"),
    ("objective.kind=replaced_tokens", "replaced_token_detection"),
]


@pytest.mark.parametrize(("override", "key"), RENAMED_KEYS)
def test_renamed_keys_and_values_get_a_did_you_mean(write_recipe: Write, override: str, key: str) -> None:
    section = override.split(".")[0]
    pretrain = section in ("corpus", "tokenizer", "objective") or "fields" in override or "phases" in override
    text = "corpus: {sources: [{dataset: sample}]}\n" if pretrain else "extends: sentiment/custom-csv\n"
    load = load_pretrain_recipe if pretrain else load_recipe
    with pytest.raises(RecipeError) as caught:
        load(str(write_recipe(text)), [override])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].endswith(f"Did you mean {key}?")


def test_renamed_suite_keys_get_a_did_you_mean(write_recipe: Write) -> None:
    path = write_recipe("suite: [sample/sentiment]\nmultitask: {kind: equal, cap: 1}\n")
    with pytest.raises(RecipeError) as caught:
        load_suite(str(path))
    assert [line.rpartition(". ")[2] for line in caught.value.problems] == [
        "Did you mean multitask.sampling?",
        "Did you mean multitask.max_examples?",
    ]


def test_quoted_values_are_truncated() -> None:
    (problem,) = problems_of("glue/sst2", f"training.schedule={'x' * 500}")
    quoted = re.search(r"'(x+)", problem)
    assert quoted is not None
    assert len(quoted[1]) < 80


def test_unknown_key_lists_all_keys_only_if_none_is_similar() -> None:
    (near,) = problems_of("glue/sst2", "training.learning_rat=1")
    (far,) = problems_of("glue/sst2", "training.xyz=1")
    assert near.endswith("in section 'training'. Did you mean learning_rate or head_learning_rate?")
    assert "expected one of strategy" in far


def test_misspelled_file_gets_a_did_you_mean(write_recipe: Write) -> None:
    path = write_recipe("task: glue/sst2\n", "mine.yaml")
    assert problems_of("mnie.yaml")[0].endswith("Did you mean mine.yaml?")
    assert problems_of(path.with_name("mnie.yaml"))[0].endswith(f"Did you mean {path}?")
    assert "bertcli recipes list" in problems_of("qqqq")[0]


def test_errors_in_an_inline_task_row(write_recipe: Write) -> None:
    path = write_recipe("task:\n  dataset: sample\n  text_columns: [a, b, c]\n  problem: multi\n  labes: [x]\n")
    found = problems_of(path)
    assert len(found) == 3
    assert f"{path}:3: found 3 values for task.text_columns, expected at most 2" in found
    assert any(line.startswith(f"{path}:4: found 'multi' for task.problem, expected one of") for line in found)
    assert any(line.startswith(f"{path}:5: found unknown key 'labes' in section 'task'") for line in found)


def test_task_row_without_a_source(write_recipe: Write) -> None:
    (line,) = problems_of(write_recipe("task: {text_columns: [text]}\n"))
    assert "needs either `dataset` or `files`" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "found a list"),
        ("task: [1\nmodel: x\n", "invalid YAML"),
        ("training: {epochs: 1}\n", "found no task"),
        ("task: 3\n", "found task '3'"),
        ("task: glue/rte\ntask: glue/sst2\n", "found key task twice"),
        ("task: glue/rte\ntraining: 3\n", "expected a section"),
        ("task: glue/rte\ntraining: {seed: [true]}\n", "found True for training.seed.0"),
        ("task: glue/rte\ntraining: {seed: []}\n", "expected at least 1"),
        ("task: glue/rte\nhardware: {micro_batch_size: many}\n", "expected `auto` or an integer"),
        ("task: glue/rte\nhardware: {micro_batch_size: 64}\n", "larger than training.global_batch_size"),
        ("task: glue/rte\ntraining: {seed: -1}\n", "found -1 for training.seed.0, expected a number of at least 0"),
        ("task: glue/rte\nhardware: {compile: maybe}\n", "for hardware.compile, expected `auto`, true or false"),
        ("task: glue/rte\ntraining: {class_weights: foo}\n", "expected `auto`, or a mapping from label to number"),
        ("extends: nowhere\n", "found no recipe 'nowhere'"),
        ("task: !!python/object:os.system x\n", "found the tag"),
    ],
)
def test_one_error_gives_one_line(write_recipe: Write, text: str, words: str) -> None:
    found = [line for line in problems_of(write_recipe(text)) if words in line]
    assert len(found) == 1
    assert found[0].startswith(str(Path.cwd() / "recipe.yaml:"))


def test_equal_seeds_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"training\.seed.*found \[1, 2, 1\], expected distinct seeds"):
        load_recipe("sample/sentiment", ["training.seed=[1,2,1]"])
    assert load_recipe("sample/sentiment", ["training.seed=[2,1]"]).training.seed == (2, 1)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_recipe_in_utf_16_is_refused_with_its_encoding(tmp_path: Path, encoding: str) -> None:
    path, mark = tmp_path / "mine.yaml", "\ufeff" if encoding.endswith("be") else ""
    path.write_text(f"{mark}extends: glue/rte\n", encoding)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    name = encoding.upper().removesuffix("-BE")
    assert str(caught.value) == f"{path}:1: found {name}, expected a YAML file in UTF-8; save it as UTF-8"


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("task: caf\xe9\n".encode("latin1"))
    assert "UTF-8" in problems_of(path)[0]


def test_folder_and_overlong_name_are_not_recipes(tmp_path: Path) -> None:
    assert "found the folder" in problems_of(tmp_path)[0]
    assert "found no recipe" in problems_of("x" * 5000)[0]


def test_invalid_list_items_are_not_counted_as_missing(write_recipe: Write) -> None:
    (line,) = problems_of(write_recipe("task: glue/rte\ntraining: {seed: [one]}\n"))
    assert "found 'one' for training.seed.0" in line


def test_dump_keeps_odd_line_breaks_in_a_name(write_recipe: Write) -> None:
    recipe = load_recipe("glue/sst2", ['model.name="a\\x85b"'])
    assert recipe.model.name == "a\x85b"
    assert load_recipe(str(write_recipe(dump_recipe(recipe)))) == recipe


def test_missing_recipe_gets_a_did_you_mean() -> None:
    assert "Did you mean glue/sst2" in problems_of("glue/sst22")[0]


def test_extends_cycle_is_an_error(write_recipe: Write) -> None:
    write_recipe("extends: b.yaml\ntask: glue/rte\n", "a.yaml")
    write_recipe("extends: a.yaml\n", "b.yaml")
    assert "in turn extends this recipe" in problems_of("a.yaml")[0]


def test_scalars_follow_yaml_1_2(write_recipe: Write) -> None:
    path = write_recipe(
        "task: {dataset: sample, text_columns: [text], labels: [no, yes, 007, 1e3, true]}\n"
        "training: {learning_rate: 2e-5, epochs: 3, weight_decay: 1E-2}\n"
    )
    recipe = load_recipe(str(path))
    assert not isinstance(recipe.task, str)
    assert recipe.task.labels == ("no", "yes", "007", "1e3", "true")
    assert recipe.training.learning_rate == 2e-5
    assert recipe.training.weight_decay == 0.01


def test_override_values_with_equals_sign_list_and_null() -> None:
    recipe = load_recipe("glue/sst2", ["model.name=./a=b", "training.seed=[5, 6]", "training.max_grad_norm=null"])
    assert recipe.model.name == "./a=b"
    assert recipe.training.seed == (5, 6)
    assert recipe.training.max_grad_norm is None


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("learning_rate=1e-5", "Did you mean training.learning_rate?"),
        ("training.learning_rates=1e-5", "Did you mean learning_rate"),
        ("training.epochs=[", "not YAML"),
        ("task.labels=[a]", "expected task to be a section, but it is 'glue/sst2'"),
        ("training.epochs.first=1", "expected training.epochs to be a section"),
    ],
)
def test_invalid_override_shows_the_correct_form(word: str, words: str) -> None:
    (line, *_) = problems_of("glue/sst2", word)
    assert line.startswith("command line: ")
    assert words in line


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("model=google-bert/bert-base-cased", "Did you mean model.name=google-bert/bert-base-cased?"),
        ("training.seed=1,2,3", "Did you mean training.seed=[1,2,3]?"),
        ("training.learning_rate=1e-5,2e-5", "Did you mean training.learning_rate=[1e-5,2e-5]?"),
        ("hardware.trackers=wandb", "Did you mean hardware.trackers=[wandb]?"),
        ("training.gradient_checkpointing=true", "Did you mean hardware.gradient_checkpointing?"),
        ("gradient_checkpointing=true", "Did you mean hardware.gradient_checkpointing?"),
        ("hardware.gradient_checkpointing=yes", "expected `auto`, true or false"),
        (
            "model.add_tokens=[a, b c]",
            "found 'b c', expected a single word or marker without spaces",
        ),
        ("model.add_tokens=['']", "in model.add_tokens: found '', expected a single word or marker without spaces"),
        ("model.add_tokens={a: b}", "expected a list of words and markers, or the path of a file with one per line"),
        ("training.optim=adafactor", "the optimizer is always AdamW; leave it out"),
    ],
)
def test_value_in_another_form_leads_to_the_correct_one(override: str, cure: str) -> None:
    (problem,) = problems_of("glue/sst2", override)
    assert problem.endswith(cure)


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("corpus.files=mine.txt", "Did you mean corpus.sources=[{files: …}]?"),
        ("tokenizer=bert-base", "Did you mean tokenizer.name=bert-base?"),
        ("objective=causal_lm", "Did you mean objective.kind=causal_lm?"),
    ],
)
def test_pretraining_value_in_another_form_leads_to_the_correct_one(override: str, cure: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_pretrain_recipe("pretrain/tiny", [override])
    (problem,) = caught.value.problems
    assert problem.endswith(cure)


def test_relative_files_are_resolved_against_the_recipe(write_recipe: Write) -> None:
    path = write_recipe("task: {files: {train: a.csv, test: [b.csv]}, text_columns: [text]}\n", "deep/recipe.yaml")
    recipe = load_recipe(str(path))
    assert not isinstance(recipe.task, str)
    assert recipe.task.files is not None
    assert recipe.task.files.train == (str(path.parent / "a.csv"),)
    assert recipe.task.files.test == (str(path.parent / "b.csv"),)


def test_task_row_replaces_the_task_name_it_extends(write_recipe: Write) -> None:
    path = write_recipe("extends: glue/sst2\ntask: {dataset: sample, config: topics, text_columns: [text]}\n")
    recipe = load_recipe(str(path))
    assert not isinstance(recipe.task, str)
    assert recipe.training.epochs == load_recipe("glue/sst2").training.epochs


@pytest.mark.parametrize("name", ["glue/sst2", "sentiment/custom-csv"])
def test_dump_loads_to_an_equal_recipe(write_recipe: Write, name: str) -> None:
    recipe = load_recipe(name, ["training.seed=[1, 2]", "hardware.micro_batch_size=4"])
    assert load_recipe(str(write_recipe(dump_recipe(recipe)))) == recipe


def test_recipe_is_frozen() -> None:
    recipe = load_recipe("glue/sst2")
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.epochs = 9  # type: ignore[misc]


def test_shipped_recipes_are_found_by_name() -> None:
    assert "glue/sst2" in shipped_recipes()
    assert isinstance(load_recipe("glue/sst2"), Recipe)


def test_equal_recipes_are_dumped_once_but_numbers_of_another_type_are_not_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load._dump_pickled.cache_clear()
    dumped: list[object] = []
    to_yaml = load.to_yaml
    monkeypatch.setattr(load, "to_yaml", lambda value: dumped.append(value) or to_yaml(value))
    texts = [
        dump_recipe(load_pretrain_recipe("pretrain/tiny", [f"model.config_overrides={{odd: {value}}}"]))
        for value in ("1", "1.0", "true", "1")
    ]
    assert len(dumped) == len(set(texts)) == 3
    assert texts[0] == texts[3]
