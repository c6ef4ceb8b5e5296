"""Numbers of a recipe are finite and within reason."""

from __future__ import annotations

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.vocab_size=999999999999", "expected a number of at most 2000000"),
        ("training.learning_rate=.inf", "found inf for training.learning_rate, expected a finite number"),
        ("training.learning_rate=.nan", "expected a finite number"),
        ("training.learning_rate=30", "expected a number of at most 10"),
        ("training.head_learning_rate=1e9", "expected a number of at most 10"),
        ("training.epochs=1e300", "expected a number of at most 100000"),
        ("training.max_steps=1000000000000000000000000", "expected a number of at most 1000000000000"),
        ("training.global_batch_size=100000000000", "expected a number of at most 1000000"),
        ("training.lora_rank=100000000", "expected a number of at most 10000"),
        ("training.max_grad_norm=.inf", "expected a finite number"),
        ("training.class_weights={a: .inf}", "mapping from label to number"),
        ("answers.thresholds={a: .nan}", "mapping from label to number"),
        ("data.max_length=999999999", "expected a number of at most 1000000"),
        ("hardware.micro_batch_size=1000000000000", "larger than training.global_batch_size"),
    ],
)
def test_numbers_beyond_reason_are_refused(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("sample/sentiment", [override])
    assert expected in caught.value.problems[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.folds=1"], "found 1 for data.folds, expected a number of at least 2"),
        (["data.folds=3", "data.fold=4"], "found fold 4, expected at most 3, the number of `folds`"),
        (["data.folds=3", "data.fold=0"], "found 0 for data.fold, expected a number of at least 1"),
        (["data.fold=1"], "`fold` requires `folds`, the number of folds"),
        (["data.folds=3", "training.seed=[1,2]"], "data.folds takes one training.seed, found [1, 2]; set one"),
        (["data.folds=3", "data.max_eval_examples=9"], "predicts every training row; remove data.max_eval_examples"),
        (["data.folds=3", "answers.thresholds=tuned"], "on the fold that they are scored on; with data.folds, set"),
        (["data.folds=3", "answers.calibrated=true"], "to the fold that it is scored on; with data.folds, remove it"),
    ],
)
def test_folds_that_cannot_be_are_refused_with_the_cure(overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("sample/sentiment", overrides)
    (problem,) = caught.value.problems
    assert expected in problem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tokenizer.vocab_size=999999999999", "expected a number of at most 2000000"),
        ("training.learning_rate=.inf", "expected a finite number"),
        ("training.max_tokens=1000000000000000000000", "expected a number of at most 1000000000000"),
        ("phases=[{max_length: 99999999999}]", "for phases.0.max_length, expected a number of at most 1000000"),
        ("corpus.sources=[{dataset: sample, weight: 1e9}]", "expected a number of at most 100000"),
        ("model.config_overrides={hidden_size: 10000000000}", "1e+10 for config_overrides.hidden_size"),
        ("model.config_overrides={num_hidden_layers: 99999}", "expected at most 1000"),
        ("model.config_overrides={rope_theta: .inf}", "a finite number"),
    ],
)
def test_pretraining_numbers_beyond_reason_are_refused(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_pretrain_recipe("pretrain/tiny", [override])
    (problem,) = caught.value.problems
    assert expected in problem


@pytest.mark.parametrize("schema", [Recipe, PretrainRecipe])
def test_every_integer_has_an_upper_bound(schema: type[Recipe | PretrainRecipe]) -> None:
    """A new key needs one, too: `Count`, `Length` or `BatchSize`."""
    content = schema.model_json_schema()
    for name, section in content["$defs"].items():
        for key, field in section.get("properties", {}).items():
            for kind in field.get("anyOf", [field]):
                if kind.get("type") == "integer" and key not in ("micro_batch_size", "seed"):
                    assert "maximum" in kind, f"{name}.{key}"
