"""Recipes: layers, precedence, and every mistake at its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe.catalogue import complete_key
from bertcli.recipe.error_messages import OTHER_NAMES
from bertcli.recipe.load import dump_recipe, load_recipe, shipped_recipes
from bertcli.recipe.schema import Recipe

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


def test_every_mistake_is_reported_at_once_with_its_line(write_recipe: Write) -> None:
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


@pytest.mark.parametrize(("other", "own"), OTHER_NAMES.items())
def test_the_names_of_the_example_scripts_lead_to_the_recipe_s(other: str, own: str) -> None:
    (problem,) = problems_of("glue/sst2", f"training.{other}=1")
    assert problem.endswith(f"Did you mean {own}?")
    assert f"{own}=" in complete_key(own)


def test_all_keys_are_listed_only_where_none_is_near() -> None:
    (near,) = problems_of("glue/sst2", "training.learning_rat=1")
    (far,) = problems_of("glue/sst2", "training.xyz=1")
    assert near.endswith("in section 'training'. Did you mean learning_rate or head_learning_rate?")
    assert "expected one of strategy" in far


def test_a_misspelt_file_leads_to_the_one_beside(write_recipe: Write) -> None:
    path = write_recipe("task: glue/sst2\n", "mine.yaml")
    assert problems_of("mnie.yaml")[0].endswith("Did you mean mine.yaml?")
    assert problems_of(path.with_name("mnie.yaml"))[0].endswith(f"Did you mean {path}?")
    assert "bertcli recipes list" in problems_of("qqqq")[0]


def test_mistakes_in_an_inline_row_read_plainly(write_recipe: Write) -> None:
    path = write_recipe("task:\n  dataset: sample\n  text_columns: [a, b, c]\n  problem: multi\n  labes: [x]\n")
    found = problems_of(path)
    assert len(found) == 3
    assert f"{path}:3: found 3 values for task.text_columns, expected at most 2" in found
    assert any(line.startswith(f"{path}:4: found 'multi' for task.problem, expected one of") for line in found)
    assert any(line.startswith(f"{path}:5: found unknown key 'labes' in section 'task'") for line in found)


def test_a_row_without_a_source_says_what_it_needs(write_recipe: Write) -> None:
    (line,) = problems_of(write_recipe("task: {text_columns: [text]}\n"))
    assert "needs either `dataset` or `files`" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "found a list"),
        ("task: [1\nmodel: x\n", "not YAML"),
        ("training: {epochs: 1}\n", "found no task"),
        ("task: 3\n", "found task '3'"),
        ("task: glue/rte\ntask: glue/sst2\n", "found key task twice"),
        ("task: glue/rte\ntraining: 3\n", "expected a section"),
        ("task: glue/rte\ntraining: {seed: [true]}\n", "found True for training.seed.0"),
        ("task: glue/rte\ntraining: {seed: []}\n", "expected at least 1"),
        ("task: glue/rte\nhardware: {micro_batch_size: many}\n", "expected `auto` or a whole number"),
        ("task: glue/rte\nhardware: {micro_batch_size: 64}\n", "larger than training.global_batch_size"),
        ("task: glue/rte\ntraining: {seed: -1}\n", "found -1 for training.seed.0, expected a number of at least 0"),
        ("task: glue/rte\nhardware: {compile: maybe}\n", "for hardware.compile, expected `auto`, true or false"),
        ("task: glue/rte\ntraining: {class_weights: foo}\n", "expected `auto`, or a number by label"),
        ("extends: nowhere\n", "found no recipe 'nowhere'"),
        ("task: !!python/object:os.system x\n", "found the tag"),
    ],
)
def test_one_mistake_gives_one_line(write_recipe: Write, text: str, words: str) -> None:
    found = [line for line in problems_of(write_recipe(text)) if words in line]
    assert len(found) == 1
    assert found[0].startswith(str(Path.cwd() / "recipe.yaml:"))


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("task: caf\xe9\n".encode("latin1"))
    assert "UTF-8" in problems_of(path)[0]


def test_a_folder_and_an_endless_name_are_no_recipes(tmp_path: Path) -> None:
    assert "found the folder" in problems_of(tmp_path)[0]
    assert "found no recipe" in problems_of("x" * 5000)[0]


def test_wrong_values_of_a_list_are_not_counted_as_missing_ones(write_recipe: Write) -> None:
    (line,) = problems_of(write_recipe("task: glue/rte\ntraining: {seed: [one]}\n"))
    assert "found 'one' for training.seed.0" in line


def test_odd_line_ends_in_a_name_survive_the_dump(write_recipe: Write) -> None:
    recipe = load_recipe("glue/sst2", ['model.name="a\\x85b"'])
    assert recipe.model.name == "a\x85b"
    assert load_recipe(str(write_recipe(dump_recipe(recipe)))) == recipe


def test_a_missing_recipe_answers_with_near_names() -> None:
    assert "Did you mean glue/sst2" in problems_of("glue/sst22")[0]


def test_a_circle_of_extends_is_refused(write_recipe: Write) -> None:
    write_recipe("extends: b.yaml\ntask: glue/rte\n", "a.yaml")
    write_recipe("extends: a.yaml\n", "b.yaml")
    assert "extends this recipe in turn" in problems_of("a.yaml")[0]


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


def test_an_override_may_hold_an_equals_sign_a_list_or_null() -> None:
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
def test_a_wrong_override_says_how_to_write_it(word: str, words: str) -> None:
    (line, *_) = problems_of("glue/sst2", word)
    assert line.startswith("command line: ")
    assert words in line


def test_own_files_are_found_beside_the_recipe(write_recipe: Write) -> None:
    path = write_recipe("task: {files: {train: a.csv, test: [b.csv]}, text_columns: [text]}\n", "deep/recipe.yaml")
    recipe = load_recipe(str(path))
    assert not isinstance(recipe.task, str)
    assert recipe.task.files is not None
    assert recipe.task.files.train == (str(path.parent / "a.csv"),)
    assert recipe.task.files.test == (str(path.parent / "b.csv"),)


def test_a_task_row_replaces_the_task_name_it_extends(write_recipe: Write) -> None:
    path = write_recipe("extends: glue/sst2\ntask: {dataset: sample, config: topics, text_columns: [text]}\n")
    recipe = load_recipe(str(path))
    assert not isinstance(recipe.task, str)
    assert recipe.training.epochs == load_recipe("glue/sst2").training.epochs


@pytest.mark.parametrize("name", ["glue/sst2", "sentiment/own-csv"])
def test_a_dumped_recipe_reads_back_equal(write_recipe: Write, name: str) -> None:
    recipe = load_recipe(name, ["training.seed=[1, 2]", "hardware.micro_batch_size=4"])
    assert load_recipe(str(write_recipe(dump_recipe(recipe)))) == recipe


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("glue/sst2")
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.epochs = 9  # type: ignore[misc]


def test_shipped_recipes_are_found_by_short_name() -> None:
    assert "glue/sst2" in shipped_recipes()
    assert isinstance(load_recipe("glue/sst2"), Recipe)
