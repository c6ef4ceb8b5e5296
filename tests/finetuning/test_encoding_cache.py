"""Encoded rows are read from the cache if, and only if, nothing that they depend on has changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from safetensors import SafetensorError

from bertcli.data.encoding import Encoded
from bertcli.finetuning import encoding_cache
from bertcli.finetuning.encoding_cache import FILE, encode_rows, encoding_key
from bertcli.finetuning.setup import FinetuneSetup, set_up
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _cache_few_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(encoding_cache, "MIN_ROWS", 1)
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))


def arguments(setup: FinetuneSetup) -> tuple[Any, ...]:
    return setup.head, setup.task, setup.rows["train"], setup.tokenizer, setup.recipe.data


def assert_equal(first: Encoded, second: Encoded) -> None:
    for field in fields(Encoded):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype
            assert np.array_equal(one, two), field.name
        else:
            assert one == two, field.name


@pytest.mark.parametrize("name", ["sample/sentiment", "sample/entities", "sample/questions", "sample/choices"])
def test_cached_rows_equal_encoded_rows_for_every_head(encoder: Path, name: str) -> None:
    setup = set_up(load_recipe(name, [f"model.name={encoder}", "data.max_train_examples=40"]), None)
    expected = setup.head.encode(*arguments(setup)[1:])
    for _ in range(2):
        assert_equal(encode_rows(*arguments(setup)), expected)
    assert len(list(Path("cache/encoded").glob("[!.]*"))) == 1


def test_rows_are_tokenized_once_for_several_commands(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = set_up(recipe_of(), None)
    encoded = first.encode("train")
    second = set_up(recipe_of("training.seed=2", "training.learning_rate=1e-3"), None)
    monkeypatch.setattr(type(second.head), "encode", lambda *args: pytest.fail("tokenized again"))
    assert_equal(second.encode("train"), encoded)


def test_key_changes_with_rows_labels_tokenizer_and_settings(
    recipe_of: Callable[..., Recipe], reviews: Path, encoder: Path
) -> None:
    def key_of(*overrides: str) -> str:
        return encoding_key(*arguments(set_up(recipe_of(*overrides), None)))

    keys = [key_of(), key_of("data.max_length=8"), key_of("data.long_inputs=keep_tail")]
    keys.append(key_of("task.labels=[positive, negative]"))
    text = reviews.read_text("utf-8")
    for old, new in (("was fine", "was brave"), ("fine,positive", "fine,negative")):
        reviews.write_text(text.replace(old, new), "utf-8")
        keys.append(key_of())
    reviews.write_text(text, "utf-8")
    shutil.copytree(encoder, "other")
    setup = set_up(recipe_of("model.name=other"), None)
    assert encoding_key(*arguments(setup)) == keys[0]
    setup.tokenizer.add_tokens(["harbourmaster"])
    keys.append(encoding_key(*arguments(setup)))
    for names in (["positive", "negative"], ["negative", "positive"]):  # of the same label IDs
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"text": ["it was fine", "it was dull"], "label": [0, 1]}, features)
        keys.append(encoding_key(setup.head, setup.task, rows, setup.tokenizer, setup.recipe.data))
    assert len(set(keys)) == len(keys)


def test_damaged_entry_is_rebuilt_and_an_unwritable_cache_is_not_needed(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MIN_SAMPLED_BYTES": 2, "SAMPLE_BYTES": 1}.items():  # by default, few bytes are verified
        monkeypatch.setattr(f"bertcli.files.{name}", value)
    warnings: list[str] = []
    setup = set_up(recipe_of(), None, warnings.append)
    expected = setup.encode("train")
    (entry,) = Path("cache/encoded").glob(f"[!.]*/{FILE}")
    content = entry.read_bytes()
    for damaged in (content[:-4], content[:-8] + b"\1\1\1\1" + content[-4:]):
        entry.write_bytes(damaged)
        assert_equal(encode_rows(*arguments(setup), warn=warnings.append), expected)
        assert "damaged" in warnings.pop()
    Path("file").write_text("not a folder")
    monkeypatch.setenv("BERTCLI_CACHE", "file")
    assert_equal(encode_rows(*arguments(setup), warn=warnings.append), expected)
    assert "encoded rows are not cached" in warnings.pop()
    assert not warnings


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "")]
)
def test_rows_are_encoded_without_a_cache_on_a_full_disk(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    warnings: list[str] = []
    setup = set_up(recipe_of(), None, warnings.append)
    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    assert_equal(setup.encode("train"), setup.head.encode(*arguments(setup)[1:]))
    assert "encoded rows are not cached" in warnings.pop()
    assert not [*Path("cache/encoded").iterdir()]
