"""What must hold for any input: recipes, overrides, masking, packing, windows, spans."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertcli.data.encoding import IGNORED_LABEL, cut_pair, windows
from bertcli.data.masking import Replacement, choose, replace
from bertcli.data.packing import pack
from bertcli.errors import RecipeError
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.models.from_pretrained import load_tokenizer
from bertcli.recipe.load import dump_recipe, load_pretrain_recipe, load_recipe
from bertcli.recipe.schema import DataSection
from bertcli.tasks import task_named

# The same examples each time: a test that fails does so for everyone.
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
def test_a_written_recipe_reads_back_equal(rate: float, epochs: float, seeds: list[int], name: str) -> None:
    overrides = [f"training.learning_rate={rate!r}", f"training.epochs={epochs!r}", f"training.seed={seeds}"]
    recipe = load_recipe("glue/sst2", overrides)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
    Path("resolved.yaml").write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe("resolved.yaml") == recipe


@given(st.lists(LINES, max_size=3))
def test_any_override_gives_a_recipe_or_its_mistakes(words: list[str]) -> None:
    for load, name in ((load_recipe, "glue/sst2"), (load_pretrain_recipe, "pretrain/tiny")):
        with suppress(RecipeError):
            load(name, words)


@IN_ONE_FOLDER
@given(st.binary(max_size=200) | LINES.map(lambda line: f"task: glue/sst2\n{line}\n".encode()))
def test_any_file_gives_a_recipe_or_its_mistakes(content: bytes) -> None:
    Path("any.yaml").write_bytes(content)
    with suppress(RecipeError):
        load_recipe("any.yaml")


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    probability=st.floats(0.01, 0.99),
    unit=st.sampled_from(["tokens", "words", "spans"]),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: sum(pair) <= 1),
    seed=st.integers(0, 2**32),
)
def test_masking_keeps_what_it_does_not_ask_for(
    lengths: list[int], probability: float, unit: str, shares: tuple[float, float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    sequences = [np.concatenate(([SPECIAL[0]], random.choice(VOCABULARY, n), [SPECIAL[1]])) for n in lengths]
    ids, offsets = np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])
    maskable = ~np.isin(ids, SPECIAL)
    starts = random.random(len(ids)) < 0.6
    groups = choose(maskable, starts, offsets, probability, unit, random)  # type: ignore[arg-type]
    new, labels = replace(ids, groups, Replacement(MASK, VOCABULARY, *shares), random)
    asked = groups >= 0
    assert not (asked & ~maskable).any()
    assert (labels[asked] == ids[asked]).all()
    assert (labels[~asked] == IGNORED_LABEL).all()
    assert (new[~asked] == ids[~asked]).all()
    assert np.isin(new[asked], [MASK, *VOCABULARY]).all()
    if unit == "spans":
        assert asked.sum() <= probability * maskable.sum() + 1
        for number in range(groups.max(initial=-1) + 1):
            own = np.flatnonzero(groups == number)
            assert (np.diff(own) == 1).all()
            assert np.searchsorted(offsets, own[0], "right") == np.searchsorted(offsets, own[-1], "right")


@given(st.lists(st.integers(1, 64), max_size=60))
def test_packing_has_each_sequence_once_in_rows_that_hold_them(lengths: list[int]) -> None:
    rows = pack(np.asarray(lengths, dtype=np.int64), 64)
    assert sorted(np.concatenate(rows).tolist() if rows else []) == list(range(len(lengths)))
    fills = [sum(lengths[number] for number in row) for row in rows]
    assert all(fill <= 64 for fill in fills)
    assert sum(fill <= 32 for fill in fills) <= 1  # two rows so empty would have been one


@given(length=st.integers(0, 300), room=st.integers(2, 60), data=st.data())
def test_windows_cover_everything_and_move_on(length: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.none() | st.integers(0, room - 1))
    cuts = windows(length, room, stride)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == length
    assert all(end - start <= room for start, end in cuts)
    shared = room // 3 if stride is None else stride
    assert all(later[0] > earlier[0] and earlier[1] - later[0] == shared for earlier, later in pairwise(cuts))


@given(first=st.integers(0, 200), second=st.integers(0, 200), room=st.integers(2, 120))
def test_a_cut_pair_fits_and_wastes_nothing(first: int, second: int, room: int) -> None:
    kept = cut_pair(first, second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    assert sum(kept) == min(first + second, room)


@pytest.fixture(scope="module")
def tokenizer_folder(encoder: Path) -> str:
    return str(encoder)


@given(
    before=st.text(max_size=40),
    answer=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=10),
    after=st.text(max_size=40),
    max_length=st.integers(16, 40),
)
def test_the_tokens_of_an_answer_cover_its_characters(
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
    head = QuestionAnswering.saved_with(task_named("squad/v1"), None, None)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(tokenizer_folder, None)
    data = DataSection(max_length=max_length)
    encoded = head.encode(task_named("squad/v1"), Dataset.from_list([row]), tokenizer, data)
    assert encoded.labels is not None
    assert encoded.places is not None
    for item, (first, last) in enumerate(encoded.labels):
        if last == 0:
            continue
        places = encoded.places[encoded.offsets[item] : encoded.offsets[item + 1]]
        assert places[first][0] <= start
        assert places[last][1] >= start + len(answer)
        assert first <= last
