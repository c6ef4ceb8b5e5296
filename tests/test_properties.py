"""Property-based tests of recipes, overrides, masking, packing, windows and answer spans."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertcli.data.encoding import IGNORED_LABEL, truncate_pair, window_bounds
from bertcli.data.masking import MaskReplacement, apply_mask, sample_mask
from bertcli.data.packing import pack_sequences
from bertcli.errors import RecipeError
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.catalogue import dump_annotated
from bertcli.recipe.load import dump_recipe, load_pretrain_recipe, load_recipe
from bertcli.recipe.schema import DataSection
from bertcli.tasks import get_task

# The same examples each time, so that a failure is reproducible.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=40, print_blob=False)
settings.load_profile("steady")
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30)
MASK, SPECIAL, VOCABULARY = 4, (2, 3), np.arange(10, 50)


@IN_ONE_FOLDER
@given(
    rate=st.floats(1e-9, 1.0),
    epochs=st.floats(1e-3, 1e3),
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True),
    name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
)
def test_dumped_recipe_loads_to_an_equal_recipe(rate: float, epochs: float, seeds: list[int], name: str) -> None:
    overrides = [f"training.learning_rate={rate!r}", f"training.epochs={epochs!r}", f"training.seed={seeds}"]
    recipe = load_recipe("glue/sst2", overrides)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
    for dump in (dump_recipe, dump_annotated):
        Path("resolved.yaml").write_text(dump(recipe), "utf-8")
        assert load_recipe("resolved.yaml") == recipe


@given(st.lists(LINES, max_size=3))
def test_any_override_gives_a_recipe_or_its_errors(words: list[str]) -> None:
    for load, name in ((load_recipe, "glue/sst2"), (load_pretrain_recipe, "pretrain/tiny")):
        with suppress(RecipeError):
            load(name, words)


@IN_ONE_FOLDER
@given(st.binary(max_size=200) | LINES.map(lambda line: f"task: glue/sst2\n{line}\n".encode()))
def test_any_file_gives_a_recipe_or_its_errors(content: bytes) -> None:
    Path("any.yaml").write_bytes(content)
    with suppress(RecipeError):
        load_recipe("any.yaml")


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    probability=st.floats(0.01, 0.99),
    masking=st.sampled_from(["token", "whole_word", "span"]),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: sum(pair) <= 1),
    seed=st.integers(0, 2**32),
)
def test_masking_changes_only_the_selected_tokens(
    lengths: list[int], probability: float, masking: str, fractions: tuple[float, float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    sequences = [np.concatenate(([SPECIAL[0]], random.choice(VOCABULARY, n), [SPECIAL[1]])) for n in lengths]
    ids, offsets = np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])
    maskable = ~np.isin(ids, SPECIAL)
    starts = random.random(len(ids)) < 0.6
    groups = sample_mask(maskable, starts, offsets, probability, masking, random)  # type: ignore[arg-type]
    new, labels = apply_mask(ids, groups, MaskReplacement(MASK, VOCABULARY, *fractions), random)
    selected = groups >= 0
    assert not (selected & ~maskable).any()
    assert (labels[selected] == ids[selected]).all()
    assert (labels[~selected] == IGNORED_LABEL).all()
    assert (new[~selected] == ids[~selected]).all()
    assert np.isin(new[selected], [MASK, *VOCABULARY]).all()
    if masking == "span":
        assert selected.sum() <= probability * maskable.sum() + 1
        for number in range(groups.max(initial=-1) + 1):
            span = np.flatnonzero(groups == number)
            assert (np.diff(span) == 1).all()
            assert np.searchsorted(offsets, span[0], "right") == np.searchsorted(offsets, span[-1], "right")


@given(st.lists(st.integers(1, 64), max_size=60))
def test_packing_puts_each_sequence_once_in_a_row_with_space(lengths: list[int]) -> None:
    rows = pack_sequences(np.asarray(lengths, dtype=np.int64), 64)
    assert sorted(np.concatenate(rows).tolist() if rows else []) == list(range(len(lengths)))
    fills = [sum(lengths[number] for number in row) for row in rows]
    assert all(fill <= 64 for fill in fills)
    assert sum(fill <= 32 for fill in fills) <= 1  # two half-empty rows would have been packed into one


@given(length=st.integers(0, 300), max_tokens=st.integers(2, 60), data=st.data())
def test_windows_cover_the_text_and_advance(length: int, max_tokens: int, data: st.DataObject) -> None:
    stride = data.draw(st.none() | st.integers(0, max_tokens - 1))
    bounds = window_bounds(length, max_tokens, stride)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(end - start <= max_tokens for start, end in bounds)
    shared = max_tokens // 3 if stride is None else stride
    assert all(later[0] > earlier[0] and earlier[1] - later[0] == shared for earlier, later in pairwise(bounds))


@given(first=st.integers(0, 200), second=st.integers(0, 200), max_tokens=st.integers(2, 120))
def test_truncated_pair_fills_the_maximum_length(first: int, second: int, max_tokens: int) -> None:
    kept = truncate_pair(first, second, max_tokens)
    assert kept[0] <= first
    assert kept[1] <= second
    assert sum(kept) == min(first + second, max_tokens)


@pytest.fixture(scope="module")
def tokenizer_folder(encoder: Path) -> str:
    return str(encoder)


@given(
    before=st.text(max_size=40),
    answer=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=10),
    after=st.text(max_size=40),
    max_length=st.integers(16, 40),
)
def test_answer_tokens_cover_the_characters_of_the_answer(
    tokenizer_folder: str, before: str, answer: str, after: str, max_length: int
) -> None:
    """Where a window holds the answer, its labelled tokens begin no later and end no earlier."""
    passage = f"{before} {answer} {after}"
    start = len(before) + 1
    row = {
        "id": "1",
        "question": "film",
        "context": passage,
        "answers": {"text": [answer], "answer_start": [start]},
    }
    head = QuestionAnswering.from_config(get_task("squad/v1"), None, None)  # type: ignore[arg-type]
    tokenizer = ModelSource(tokenizer_folder).load_tokenizer()
    data = DataSection(max_length=max_length)
    encoded = head.encode(get_task("squad/v1"), Dataset.from_list([row]), tokenizer, data)
    assert encoded.labels is not None
    assert encoded.alignment is not None
    for item, (first, last) in enumerate(encoded.labels):
        if last == 0:
            continue
        places = encoded.alignment[encoded.offsets[item] : encoded.offsets[item + 1]]
        assert places[first][0] <= start
        assert places[last][1] >= start + len(answer)
        assert first <= last
