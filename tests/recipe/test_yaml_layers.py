"""Files that are not recipes, and hostile YAML: one short message each, soon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import MAX_PROBLEMS, RecipeError
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.yaml_layers import MAX_BYTES, MAX_DEPTH

Write = Callable[..., Path]
SECRET = "the patient said"
PROSE = f"Note: {SECRET} that it rained.\n" + "It was a dark and stormy night. " * 1000 + "\n"


def problems_of(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("reviews.csv", f"text,label\n{SECRET},good\n" * 20000, "bertcli init "),
        ("reviews.TSV", f"text\tlabel\n{SECRET}\tgood\n", "bertcli init "),
        ("rows.jsonl", f'{{"text": "{SECRET}"}}\n' * 9, "bertcli init "),
        ("rows.json", f'[{{"text": "{SECRET}"}}]', "bertcli init "),
        ("row.json", f'{{"text": "{SECRET}"}}', "bertcli init "),
        ("train.conll", f"{SECRET} O\n", "bertcli init "),
        ("novel.txt", PROSE, 'bertcli pretrain pretrain/domain "corpus.sources=[{files: '),
        ("novel", PROSE, "bertcli init "),
        ("large.yaml", f"# {SECRET}\n" * 80000, "bertcli init "),
        ("binary.yaml", f"\0{SECRET}", "bertcli init "),
    ],
)
def test_data_file_is_not_a_recipe(write_recipe: Write, name: str, text: str, command: str) -> None:
    path = write_recipe(text, name)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path} is data, not a recipe. ")
    assert command in problem
    assert SECRET not in problem
    child = write_recipe(f"task: glue/rte\nextends: {name}\n", "child.yaml")
    assert problems_of(child) == [f"{child}:2: {problem}"]


def test_pretrain_on_a_text_file_names_the_command(write_recipe: Write) -> None:
    path = write_recipe(PROSE, "mine.txt")
    with pytest.raises(RecipeError, match=r"mine\.txt is data, not a recipe\. Pretrain on it with `bertcli pretrain "):
        load_pretrain_recipe(str(path))


def test_recipe_may_have_any_name(write_recipe: Write) -> None:
    assert load_recipe(str(write_recipe("task: glue/rte\n", "mine.txt"))).task == "glue/rte"
    assert load_recipe(str(write_recipe('{"task": "glue/rte"}', "mine.json"))).task == "glue/rte"
    assert "invalid YAML" in problems_of(write_recipe("task: glue/rte\nmodel: {name: [\n", "mine"))[0]
    assert "found key task twice" in problems_of(write_recipe("task: glue/rte\ntask: glue/rte\n", "mine"))[0]


LONG = "k" * 900


@pytest.mark.parametrize(
    "text",
    [
        f"task: glue/rte\n{LONG}: 1\n",
        f"task: glue/rte\nmodel: {{{LONG}: 1}}\n",
        f"task: glue/rte\nmodel:\n  {LONG}: 1\n  {LONG}: 1\n",
        f"task: *{LONG}\n",
        f"task: !{LONG} x\n",
        f"task: {LONG}\n",
        f"extends: {LONG}\n",
        f"task: glue/rte\nmodel: {{config_overrides: {{{LONG}: 1}}}}\n",
        f"task: glue/rte\nmodel:\n  ? [{LONG}]\n  : 1\n",
        f"{LONG}\n",
        f'"{LONG}\n',
        f"task: glue/rte\ntraining: {{class_weights: {{{LONG}: x}}}}\n",
        f"task: glue/rte\ntraining: {{class_weights: {{a: {LONG}}}}}\n",
        f"task: {{files: {{{LONG}: x}}, text_columns: [text]}}\n",
        f"task: {{dataset: sample, text_columns: [text], reference: {{model: a, source: b, scores: {{{LONG}: x}}}}}}\n",
    ],
)
def test_messages_quote_at_most_80_characters_of_a_recipe(write_recipe: Write, text: str) -> None:
    for problem in problems_of(write_recipe(text)):
        assert "k" * 81 not in problem


def bomb(levels: int) -> str:
    """A few hundred characters whose aliases make 10^levels values."""
    lines = [f"  k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, levels)]
    return f"task:\n  k0: &a0 [{', '.join('x' * 10)}]\n" + "".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (bomb(9), 6, "aliases or lists that expand to more than 100000 values"),
        (bomb(9) + "model:\n  ? *a8\n  : 1\n", 6, "more than 100000 values"),
        ("task: sample/sentiment\nmodel: &m\n  x: *m\n", 2, "an alias of a value that contains it"),
        ("task: &t [[*t]]\n", 1, "an alias of a value that contains it"),
        ("model:\n  {" + "a: {" * 3000 + "}" * 3001, 2, f"nested deeper than {MAX_DEPTH} levels"),
        ("model:\n  " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 2, f"nested deeper than {MAX_DEPTH} levels"),
        ("model:\n" + "".join(" " * n + "a:\n" for n in range(1, 400)), 20, f"nested deeper than {MAX_DEPTH} levels"),
        ("".join(f"k{n}: &a{n} [{f'*a{n - 1}' * (n > 0)}]\n" for n in range(99)), 19, "nested deeper than"),
        ("? [a, b]\n: 1\n", 1, "found a list or section as a key"),
    ],
)
def test_yaml_bombs_are_refused_with_their_line(write_recipe: Write, text: str, line: int, words: str) -> None:
    path = write_recipe(text)
    problem = problems_of(path)[0]
    assert problem.startswith(f"{path}:{line}: ")
    assert words in problem


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=&m {x: *m}", "an alias of a value that contains it"),
        ("training.seed=" + "[" * 50 + "]" * 50, "nested deeper than"),
        ("training.seed=" + "[" * 1100, "nested deeper than"),
    ],
)
def test_yaml_bombs_on_the_command_line(override: str, words: str) -> None:
    problem = problems_of("glue/rte", override)[0]
    assert problem.startswith("command line: ")
    assert words in problem
    assert len(problem) < 200


def test_ordinary_aliases_are_values(write_recipe: Write) -> None:
    path = write_recipe("task: glue/rte\ntraining: {epochs: &n 2, lora_rank: *n}\ndata: {max_length: 64}\n")
    assert load_recipe(str(path)).training.lora_rank == 2


@pytest.mark.parametrize("base", ["task: glue/rte", "extends: glue/rte"])
def test_thousands_of_unknown_keys_end_after_the_first_ones_with_a_count(write_recipe: Write, base: str) -> None:
    path = write_recipe(f"{base}\n" + "".join(f"key{n}: 1\n" for n in range(1000)))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert caught.value.problems[-1] == f"{path}:1001: found unknown key 'key999' at the top level"  # no slow search
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:2: found unknown key 'key0' at the top level, expected one of task, ")
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == f"… and {1000 - MAX_PROBLEMS} more"


def test_recipe_up_to_the_limit_is_read(write_recipe: Write) -> None:
    text = "task: glue/rte\n"
    assert load_recipe(str(write_recipe(text + "#" * (MAX_BYTES - len(text))))).task == "glue/rte"
