"""Set up a fine-tuning run: labels come from all rows, and all invalid keys are reported at once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from bertcli.commands.finetune import finetune as finetune_command
from bertcli.console import Console
from bertcli.data.sources import locate_rows
from bertcli.errors import DataError, ModelError, RecipeError
from bertcli.finetuning.run import finetune, note_duplicates
from bertcli.finetuning.setup import check_recipe, set_up
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.load import dump_recipe, load_recipe, recipe_task, shipped_recipes
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.suite import load_finetuning, recipes_by_name
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET
from ..model_families import save


@pytest.fixture
def recipe_of(encoder: Path, write_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    def build(task: str, *overrides: str) -> Recipe:
        return load_recipe(
            str(write_recipe(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 32}}\n")), overrides
        )

    return build


@pytest.mark.parametrize("head", ["text_classification", "token_classification"])
def test_labels_come_from_all_training_rows_even_if_a_subset_is_trained_on(
    recipe_of: Callable[..., Recipe], head: str
) -> None:
    words = ["a", "b"] * 20 + ["rare"]
    tags = words if head == "text_classification" else [[word] for word in words]
    rows = "".join(json.dumps({"text": "t", "label": tag}) + "\n" for tag in tags)
    Path("rows.jsonl").write_text(rows)
    task = f"head: {head}, files: {{train: rows.jsonl, validation: rows.jsonl}}, text_columns: [text]"
    setup = set_up(recipe_of(task, "data.max_train_examples=8"), None)
    assert set(setup.head.labels) == {"a", "b", "rare"}
    assert "rare" not in str(setup.rows["train"]["label"][:])
    assert len(setup.references["validation"]) == 41


def write_labels(path: str, labels: list[str | None]) -> None:
    rows = ({"text": f"t {row}", "label": label} for row, label in enumerate(labels, start=1))
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


FILES = "files: {train: train.jsonl, validation: validation.jsonl}, text_columns: [text]"


def test_max_eval_examples_takes_a_fixed_random_subset_in_the_order_of_the_file(
    recipe_of: Callable[..., Recipe],
) -> None:
    write_labels("train.jsonl", ["x", "y"] * 10)
    write_labels("validation.jsonl", ["x"] * 500 + ["y"] * 500)  # sorted by label, as files often are
    subsets = [set_up(recipe_of(FILES, "data.max_eval_examples=100", f"training.seed={seed}"), None) for seed in (1, 2)]
    rows = subsets[0].rows["validation"]
    assert len(rows) == 100
    assert 30 < rows["label"][:].count("x") < 70
    numbers = [int(text.split()[1]) for text in rows["text"][:]]
    assert numbers == sorted(numbers)
    assert rows["text"][:] == subsets[1].rows["validation"]["text"][:]
    task = subsets[0].task
    assert [locate_rows(task, rows, [row]).split(": ")[1] for row in range(100)] == [f"row {row}" for row in numbers]


def test_max_eval_examples_takes_the_first_rows_if_they_are_context_of_their_neighbors(
    recipe_of: Callable[..., Recipe],
) -> None:
    rows = "".join(json.dumps({"text": [f"t{row}"], "label": [("O", "B-X")[row % 2]]}) + "\n" for row in range(40))
    for path in ("train.jsonl", "validation.jsonl"):
        Path(path).write_text(rows)
    task = f"head: token_classification, {FILES}"
    with_context = set_up(recipe_of(task, "data.max_eval_examples=3", "data.context_tokens=4"), None)
    assert with_context.rows["validation"]["text"][:] == [["t0"], ["t1"], ["t2"]]


def test_labels_include_those_of_held_out_rows(recipe_of: Callable[..., Recipe]) -> None:
    write_labels("train.jsonl", ["a,b", "b,rare", "a", "b"] + ["a", "b"] * 8)
    task = "files: {train: train.jsonl}, text_columns: [text], problem: multi_label, held_out_fraction: 0.9"
    setup = set_up(recipe_of(task), None)
    assert setup.head.labels == ("a", "b", "rare")
    assert len(setup.rows["validation"]) == 18
    assert "b,rare" not in setup.rows["train"]["label"][:]


def test_row_numbers_in_messages_are_those_of_the_file_after_a_subset(recipe_of: Callable[..., Recipe]) -> None:
    labels: list[str | None] = ["x", "y"] * 30
    labels[37] = None
    write_labels("train.jsonl", labels)
    for overrides in ([], ["data.max_train_examples=53"]):
        with pytest.raises(DataError, match=r"train\.jsonl: row 38 has no label.* It begins 't 38'"):
            set_up(recipe_of("files: {train: train.jsonl}, text_columns: [text]", *overrides), None)


def test_row_warnings_have_the_rows_of_the_file_after_a_subset(recipe_of: Callable[..., Recipe]) -> None:
    write_labels("train.jsonl", ["x", "y"] * 30)
    setup = set_up(recipe_of("files: {train: train.jsonl}, text_columns: [text]", "data.max_train_examples=9"), None)
    warned = replace(setup.encode("train"), row_warnings=((0, "long"), (8, "long")))
    setup = replace(setup, _encoded={"train": warned})
    numbers = [int(text.split()[1]) for text in setup.rows["train"]["text"][:]]
    assert setup.row_warnings("train") == [(numbers[0] - 1, "long"), (numbers[8] - 1, "long")]


def test_skip_unlabelled_trains_on_the_other_rows_and_counts_the_skipped(recipe_of: Callable[..., Recipe]) -> None:
    labels: list[str | None] = ["x", "y", None] * 20
    write_labels("train.jsonl", labels)
    task = "files: {train: train.jsonl}, text_columns: [text]"
    setup = set_up(recipe_of(task, "data.skip_unlabelled=true"), None)
    assert (len(setup.rows["train"]) + len(setup.rows["validation"]), setup.num_skipped) == (40, 20)
    assert None not in setup.rows["train"]["label"][:] + setup.rows["validation"]["label"][:]
    with pytest.raises(DataError, match=r"train\.jsonl: rows .*have no label.*data\.skip_unlabelled=true"):
        set_up(recipe_of(task), None)


def test_model_and_tokenizer_may_be_a_run_with_several_seeds_or_a_grid(
    recipe_of: Callable[..., Recipe], encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best seed, or the seed of the chosen point, is used, as in `predict`."""
    write_labels("train.jsonl", ["x", "y"] * 30)
    recipe = recipe_of("files: {train: train.jsonl}, text_columns: [text]", "model.name=grid", "model.tokenizer=grid")
    for seed, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        folder = Path(f"grid/point/seed-{seed}")
        shutil.copytree(encoder, folder / "model")
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        results = {"run": str(folder), "best_by": "f1", "metrics": {"validation": {"f1": score}}}
        (folder / "results.json").write_text(json.dumps(results))
    Path("grid/point/recipe.yaml").write_text(dump_recipe(recipe))
    Path("grid/point/results.json").write_text("{}")
    Path("grid/results.json").write_text('{"chosen": "point"}')
    setup = set_up(recipe, None)
    assert setup.source is not None
    assert setup.source.name == "grid/point/seed-2"
    finetune_command(recipe, Path("run"), RunOptions(dry_run=True, console=Console()))
    assert "model     grid/point/seed-2\n" in capsys.readouterr().err


TEXT = "dataset: sample, config: sentiment, text_columns: [text]"
PAIR = "dataset: sample, config: inference, text_columns: [premise, hypothesis]"
NUMBER = "dataset: sample, config: similarity, text_columns: [sentence1, sentence2], problem: regression"
WORDS = "head: token_classification, dataset: sample, config: entities, text_columns: [tokens]"
QUESTION = "head: question_answering, dataset: sample, config: questions, text_columns: [question, context]"
CHOICE = "head: multiple_choice, dataset: sample, config: choices, text_columns: [text], choice_columns: [choices]"


@pytest.mark.parametrize(
    ("key", "supporting_tasks"),
    [
        ("training.class_weights=auto", {TEXT, PAIR, WORDS}),
        ("training.loss=focal", {TEXT, PAIR, WORDS}),
        ("training.balance=labels", {TEXT, PAIR}),
        ("training.label_smoothing=0.1", {TEXT, PAIR, WORDS, CHOICE}),
        ("training.token_cutoff=0.1", {TEXT, PAIR, NUMBER, CHOICE}),
        ("data.long_inputs=windows", {TEXT}),
        ("data.context_tokens=8", {WORDS}),
        ("data.casing_feature=true", {WORDS}),
    ],
)
def test_keys_that_the_head_does_not_support_are_rejected(
    recipe_of: Callable[..., Recipe], key: str, supporting_tasks: set[str]
) -> None:
    for task in (TEXT, PAIR, NUMBER, WORDS, QUESTION, CHOICE):
        recipe = recipe_of(f"name: mine, {task}", key)
        if task in supporting_tasks:
            check_recipe(recipe, recipe_task(recipe))
            continue
        with pytest.raises(RecipeError, match=f"^{key.partition('=')[0]}.* mine ") as error:
            check_recipe(recipe, recipe_task(recipe))
        assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.focal_gamma=1",), "training.focal_gamma requires training.loss=focal"),
        (("training.loss=focal", "training.label_smoothing=0.1"), "training.label_smoothing is not supported with"),
        (("training.balance=labels", "training.class_weights=auto"), "both make rare labels count as much"),
    ],
)
def test_keys_that_do_not_combine_are_rejected(
    recipe_of: Callable[..., Recipe], overrides: tuple[str, ...], message: str
) -> None:
    recipe = recipe_of(f"name: mine, {TEXT}", *overrides)
    with pytest.raises(RecipeError, match=message) as error:
        check_recipe(recipe, recipe_task(recipe))
    assert len(error.value.problems) == 1


def test_multi_label_rows_are_not_over_sampled(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(f"name: mine, {TEXT}, problem: multi_label", "training.balance=labels")
    with pytest.raises(
        RecipeError, match=r"^training\.balance is only for .* one label per row, but mine is multi_label"
    ):
        check_recipe(recipe, recipe_task(recipe))


@pytest.mark.parametrize(
    ("best_by", "message"),
    [
        ("mae", r"expected one of \['accuracy', 'f1_macro', 'loss'\]\.$"),
        ("roc_auc", r"Add roc_auc to task\.metrics\.$"),
        ("los", r"Did you mean loss\?$"),
    ],
)
def test_score_that_is_not_computed_cannot_select_the_best_model(
    recipe_of: Callable[..., Recipe], best_by: str, message: str
) -> None:
    recipe = recipe_of(f"name: mine, {TEXT}", f"evaluation.best_by={best_by}")
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, recipe_task(recipe))


def test_all_invalid_keys_are_reported_at_once(recipe_of: Callable[..., Recipe]) -> None:
    overrides = [
        "training.lora_rank=4",
        "training.class_weights=auto",
        "data.context_tokens=8",
        "evaluation.best_by=f2",
    ]
    recipe = recipe_of(QUESTION, *overrides)
    with pytest.raises(RecipeError) as error:
        set_up(recipe, None)
    expected = ["evaluation.best_by 'f2'", "class_weights", "context_tokens", "training.lora_rank requires"]
    for words, problem in zip(expected, error.value.problems, strict=True):
        assert words in problem


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith("pretrain/")])
def test_shipped_recipes_set_only_supported_keys(name: str) -> None:
    loaded = load_finetuning(name)
    single = loaded.base if isinstance(loaded, Search) else loaded
    for recipe in [single] if isinstance(single, Recipe) else recipes_by_name(single).values():
        check_recipe(recipe, recipe_task(recipe))


def notes_on(recipe: Recipe) -> list[str]:
    """Return the notes on duplicates, with the names of files instead of their paths."""
    return [re.sub(r"/\S+/", "", note) for note in set_up(recipe, None).duplicate_notes()]


def write_rows(path: str, rows: list[dict[str, object]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_leaked_validation_texts_are_counted_and_located(recipe_of: Callable[..., Recipe]) -> None:
    train = [{"text": text, "label": "ab"[index % 2]} for index, text in enumerate(["one", "two ", "three", "four"])]
    write_rows("train.jsonl", [*train])
    new = [{"text": f"new {index}", "label": "a"} for index in range(6)]
    write_rows("validation.jsonl", [*new, {"text": "four", "label": "a"}, {"text": " Two!", "label": "a"}])
    (note,) = notes_on(recipe_of(FILES))
    assert note == (
        "2 of 8 validation rows (25.0%) have the same text as a training row, so their scores say little about unseen "
        "texts; "
        "for example validation.jsonl: row 7 (validation) and train.jsonl: row 4 (train)"
    )
    write_rows("validation.jsonl", [*new])
    assert notes_on(recipe_of(FILES)) == []


def test_leaked_pairs_and_questions_are_compared_with_both_their_texts(recipe_of: Callable[..., Recipe]) -> None:
    files = "files: {train: train.jsonl, validation: validation.jsonl}"
    pairs = [{"text": f"t{index}", "text_pair": f"u{index}", "label": "ab"[index % 2]} for index in range(4)]
    write_rows("train.jsonl", [*pairs])
    crossed = [{"text": "t0", "text_pair": "u1", "label": "a"}, {"text": "u2", "text_pair": "t2", "label": "a"}]
    write_rows("validation.jsonl", crossed)
    assert notes_on(recipe_of(f"{files}, text_columns: [text, text_pair]")) == []
    write_rows("validation.jsonl", [*crossed, pairs[3]])
    assert "1 of 3 validation rows" in notes_on(recipe_of(f"{files}, text_columns: [text, text_pair]"))[0]
    tags = [{"text": ["a", "b"], "label": ["O", "B-X"]}]
    write_rows("train.jsonl", [*tags])
    write_rows("validation.jsonl", [{"text": ["a", " b"], "label": ["O", "O"]}])
    assert "1 of 1 validation rows" in notes_on(recipe_of(f"head: token_classification, {FILES}"))[0]


def test_leaked_rows_of_a_held_out_split_are_those_of_the_file_and_group_by_keeps_them_together(
    recipe_of: Callable[..., Recipe],
) -> None:
    write_rows("rows.jsonl", [{"text": f"text {index // 2}", "label": "ab"[index // 2 % 2]} for index in range(40)])
    task = "files: {train: rows.jsonl}, text_columns: [text]"
    (note,) = notes_on(recipe_of(task))
    numbers = [int(number) for number in re.findall(r"row (\d+) \(", note)]
    assert len(numbers) == 2
    assert (numbers[0] - 1) // 2 == (numbers[1] - 1) // 2  # rows of the file with the same text
    assert note.endswith("task.group_by=text keeps equal texts in one split")
    assert notes_on(recipe_of(f"{task}, group_by: text")) == []


def test_training_texts_with_two_labels_are_counted_and_located(recipe_of: Callable[..., Recipe]) -> None:
    write_rows(
        "train.jsonl", [{"text": text, "label": label} for text, label in zip("xyzxyxx", "abaabba", strict=True)]
    )
    write_rows("validation.jsonl", [{"text": "new", "label": "a"}])
    assert notes_on(recipe_of(FILES)) == ["1 training text has two labels, for example train.jsonl: rows 4, 6"]


def test_duplicates_are_a_warning_for_files_and_a_line_of_the_plan_for_datasets(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows("train.jsonl", [{"text": text, "label": text} for text in "ab"])
    write_rows("validation.jsonl", [{"text": "a", "label": "a"}])
    finetune(recipe_of(FILES), Path("run"), RunOptions(dry_run=True, console=Console(quiet=True)))
    assert capsys.readouterr().err.startswith(
        "warning: 1 of 1 validation rows (100.0%) have the same text as a training row"
    )
    note_duplicates(Console(quiet=True), set_up(recipe_of(NUMBER), None))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        ("regression", [1.0], "custom: the metric pearson needs at least two rows, found 1 in split 'validation'"),
        ("single_label", ["a"], None),
        ("single_label", ["a", "a"], None),
        ("multi_label", [["b"]], None),
    ],
)
def test_small_validation_split_is_scored_or_rejected_before_training(
    recipe_of: Callable[..., Recipe], problem: str, labels: list[object], message: str | None
) -> None:
    targets = {"regression": [1.0, 2.0, 3.0], "single_label": ["a", "b", "a"], "multi_label": [["a"], ["b"], []]}
    write_rows("train.jsonl", [{"text": f"t{row}", "label": target} for row, target in enumerate(targets[problem])])
    write_rows("validation.jsonl", [{"text": f"v{row}", "label": label} for row, label in enumerate(labels)])
    recipe = recipe_of(f"{FILES}, problem: {problem}", "training.epochs=1", "training.global_batch_size=8")
    options = RunOptions(console=Console(mute=True))
    if message is not None:
        with pytest.raises(DataError, match=message):
            set_up(recipe, None)
        return
    results = finetune(recipe, Path("run"), options)  # the training rows fill only part of a batch
    assert results.total_steps == 1
    assert all(0 <= score <= 1 for name, score in results.metrics["validation"].items() if name != "loss")


def test_model_must_have_a_head_for_the_task_and_positions_for_its_texts(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    config = transformers.DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    save_model(transformers.DebertaModel(config), tokenizer, Path("deberta"))
    choices = load_recipe("sample/choices", ["model.name=deberta"])
    with pytest.raises(ModelError, match=r"deberta has no model for multiple choice \(AutoModelForMultipleChoice\)"):
        set_up(choices, None)
    with pytest.raises(ModelError, match=r"data\.max_length is 600, but a new BERT supports at most 512 tokens"):
        set_up(load_recipe("sample/sentiment", ["model.name=null", "data.max_length=600"]), None)


def test_training_a_model_that_mixes_padding_into_the_text_is_warned_about(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    config = transformers.FNetConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    save_model(transformers.FNetModel(config), tokenizer, Path("fnet"))
    recipe = load_recipe("sample/sentiment", ["model.name=fnet", "data.max_length=32"])
    set_up(recipe, None).build_model(Console(quiet=True))
    assert "fnet models mix padding into the text" in " ".join(capsys.readouterr().err.split())


def test_words_that_have_other_tokens_than_in_running_text_are_warned_about(
    encoder: Path, recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"words": ["a", "fine", "film"], "tags": ["O", "O", "A"]}, {"words": ["film"], "tags": ["A"]}]
    for split in ("train", "validation"):
        write_rows(f"{split}.jsonl", rows)
    tags = f"{FILES.replace('text]', 'words]')}, head: token_classification, label_column: tags"
    assert list(set_up(recipe_of(tags), None).word_notes()) == []
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))  # not divided into words: a token may cover several
    special = ["[UNK]", "[PAD]"]
    backend.train_from_iterator(["a fine film"] * 9, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    shutil.copytree(encoder, "encoder")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained("encoder")
    recipe = recipe_of(tags, "model.name=encoder")
    finetune(recipe, Path("run"), RunOptions(dry_run=True, console=Console(quiet=True)))
    assert (
        "the tokenizer of encoder reads the words of 1 of the first 2 training rows otherwise than in running text, "
        "for example as ['a'"
    ) in " ".join(capsys.readouterr().err.split())


def test_saved_tagging_model_reads_words_as_running_text_in_plain_transformers(
    recipe_of: Callable[..., Recipe],
) -> None:
    rows = [{"words": ["a", "fine", "film"], "tags": ["O", "O", "A"]}, {"words": ["film"], "tags": ["A"]}]
    for split in ("train", "validation"):
        write_rows(f"{split}.jsonl", rows)
    tokenizer = train_tokenizer(lambda: ["it was a fine film"] * 9, 300, "bpe")  # bertcli's own
    save("roberta", tokenizer, "AutoModel", "encoder")
    tags = f"{FILES.replace('text]', 'words]')}, head: token_classification, label_column: tags"
    finetune(recipe_of(tags, "model.name=encoder", "training.epochs=1"), Path("run"), RunOptions(console=QUIET))
    saved = transformers.AutoTokenizer.from_pretrained("run/model")
    as_words = saved(["a", "fine", "film"], is_split_into_words=True)["input_ids"]
    assert saved.convert_ids_to_tokens(as_words) == ["<s>", "Ġa", "Ġfine", "Ġfilm", "</s>"]
    assert as_words == saved("a fine film")["input_ids"] == tokenizer(" a fine film")["input_ids"]
