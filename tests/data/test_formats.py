"""CoNLL files: words and tags as an editor shows them, or one message that names the line; malformed SQuAD files."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertcli.data.formats import read_conll, read_squad
from bertcli.data.prediction_inputs import read_inputs
from bertcli.data.table_files import read_files
from bertcli.errors import DataError

Sentences = list[list[tuple[str, str]]]


def read(text: str) -> Sentences:
    rows = read_conll(io.StringIO(text), "x.conll")
    return [list(zip(row["tokens"], row["tags"], strict=True)) for row in rows]


@pytest.mark.parametrize(
    "comment",
    [
        "# sent_id = 1",
        "# sent1",
        "# newdoc",
        "#\thttp://example.org\t[2009-10-17]",
        "# id 1a2b\tdomain=en",
        "#Text=Paris is",
        "#begin document (a/b); part 000",
        "#",
        "# text = Paris O",
        "# a\n# b = O\n#",
    ],
)
@pytest.mark.parametrize("num_columns", [2, 4])
def test_conll_comments_before_sentences_are_skipped(comment: str, num_columns: int) -> None:
    middle = " _" * (num_columns - 2)
    text = f"{comment}\nParis{middle} B-LOC\nis{middle} O\n\n{comment}\nBob{middle} B-PER\n"
    assert read(text) == [[("Paris", "B-LOC"), ("is", "O")], [("Bob", "B-PER")]]
    assert read(f"Ann{middle} B-PER\n\n{text}")[1:] == read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# O\nParis B-LOC\n", [[("#", "O"), ("Paris", "B-LOC")]]),
        ("# SYM\n1 NUM\n\nno DET\n% SYM\n", [[("#", "SYM"), ("1", "NUM")], [("no", "DET"), ("%", "SYM")]]),
        ("% SYM\n\n# SYM\n1 NUM\n", [[("%", "SYM")], [("#", "SYM"), ("1", "NUM")]]),
        ("# SYM\n1 NUM\n\nno DET\n# SYM\n", [[("#", "SYM"), ("1", "NUM")], [("no", "DET"), ("#", "SYM")]]),
        ("a O\n# B-X\n", [[("a", "O"), ("#", "B-X")]]),  # not at the start of a sentence
        ("#tag B-X\n## O\n", [[("#tag", "B-X"), ("##", "O")]]),
    ],
)
def test_conll_hash_with_the_columns_of_a_word_is_a_word(text: str, expected: Sentences) -> None:
    assert read(text) == expected


@pytest.mark.parametrize("text", ["a O\n# sent 2 x\nb O\n", "a O\n#MAGA\n", "#MAGA\na O\n"])
def test_conll_hash_that_is_neither_comment_nor_word_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"x\.conll:\d: found \d columns, expected \d"):
        read(text)


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2028", "\x85", "\x0c", "\u200b"])
@pytest.mark.parametrize("separator", [" ", "\t", "  \t "])
def test_conll_columns_are_separated_by_spaces_and_tabs_only(space: str, separator: str) -> None:
    text = f"10{space}000{separator}B-NUM\n{space}{separator}O\r\nParis{separator}B-LOC\n\nx{separator}O"
    expected = [[(f"10{space}000", "B-NUM"), (space, "O"), ("Paris", "B-LOC")], [("x", "O")]]
    assert read(text) == expected
    Path("a.conll").write_bytes(text.encode())
    rows = read_files(["a.conll"])
    assert [list(zip(*row, strict=True)) for row in zip(rows["tokens"], rows["tags"], strict=True)] == expected
    inputs = read_inputs("a.conll", "conll", ["tokens"], list_columns=["tokens"])
    assert [row["tokens"] for row in inputs] == [[word for word, _ in sentence] for sentence in expected]


def test_conll_line_numbers_are_those_of_an_editor() -> None:
    text = "a\u2028b O\r\nc\rc\x85 O\n\nd O x\n"
    with pytest.raises(DataError, match=r"x\.conll:4: found 3 columns, expected 2 \(word … tag\), in 'd O x'"):
        read(text)
    Path("a.conll").write_bytes(text.encode())
    with pytest.raises(DataError, match=r"a\.conll:4: found 3 columns"):
        read_files(["a.conll"])
    with pytest.raises(DataError, match=r"a\.conll:4: found 3 columns"):
        list(read_inputs("a.conll", "conll", ["tokens"], list_columns=["tokens"]))


WORDS_ALONE = "-DOCSTART-\n\n# sent_id = 1\n#\nBob\n#x\n\n# newdoc\n1\n2\n\n1\n\n#end document\n"


def test_conll_of_words_alone_is_read_for_prediction_but_not_for_training() -> None:
    Path("a.conll").write_text(WORDS_ALONE)
    rows = read_inputs("a.conll", "conll", ["tokens"], list_columns=["tokens"], extra_columns=None)
    assert list(rows) == [{"tokens": ["#", "Bob", "#x"]}, {"tokens": ["1", "2"]}, {"tokens": ["1"]}]
    with pytest.raises(DataError, match=r"a\.conll:4: found 1 columns, expected 2 \(word … tag\), in '#'$"):
        read_files(["a.conll"])
    Path("a.conll").write_text("Bob\nNew York\n")
    with pytest.raises(DataError, match=r"a\.conll:2: found 2 columns, expected 1 \(word\), in 'New York'"):
        list(read_inputs("a.conll", "conll", ["tokens"], list_columns=["tokens"]))


@pytest.mark.parametrize("num_columns", [2, 3])
def test_conll_document_boundary_without_a_blank_line_ends_the_sentence(num_columns: int) -> None:
    middle = " _" * (num_columns - 2)
    text = f"#begin document (a); part 000\nBob{middle} O\n#end document\n#begin document (b)\nAnn{middle} O\n"
    assert read(text + "#end document") == [[("Bob", "O")], [("Ann", "O")]]
    assert read("Bob O\n#end document\nAnn document\n") == [[("Bob", "O"), ("#end", "document"), ("Ann", "document")]]


def test_conll_word_with_spaces_in_a_tab_separated_file_is_one_word() -> None:
    assert read("is\tO\nNew York\tB-LOC\n") == [[("is", "O"), ("New York", "B-LOC")]]
    with pytest.raises(DataError, match="found 2 columns, expected 3"):
        read("New York\tB-LOC\nis\tO\n")


@pytest.mark.parametrize(
    "text",
    [
        "1\tthe\tO\tO\n2\tparis\tB-LOC\tO\n\n1\tanna\tB-PER\tO\n",  # GermEval
        "1 a\n2 b\n",
        "#FORMAT=WebAnno TSV 3.3\n\n#Text=Das ist\n1-1\t0-3\tDas\tO\n1-2\t4-7\tist\tO\n\n2-1\t8-9\tx\tO\n",
        "".join(f"bc/cctv/00 0 {index} {word} NN * - - - * -\n" for index, word in enumerate("abc")),  # CoNLL-2012
    ],
)
def test_conll_with_unclear_columns_is_refused_with_a_command(text: str) -> None:
    with pytest.raises(DataError, match=r"expected the word in the first column.*print \$[234], \$[345]"):
        read(text)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("0 the O\n1 paris B-LOC\n", [[("the", "O"), ("paris", "B-LOC")]]),
        ("1 a O\n\n1 b O\n2 c O\n", [[("a", "O")], [("b", "O"), ("c", "O")]]),
        ("1 the DT O\n2 paris NN B-LOC\n", [[("the", "O"), ("paris", "B-LOC")]]),
        (
            "# sent_id = 1\n1-2\tzum\t_\t_\n1\tzu\t_\tADP\n2\tdem\t_\tDET\n2.1\t_\t_\t_\n",
            [[("zu", "ADP"), ("dem", "DET")]],
        ),
        (
            "1\tzu\tzu\tADP\tAPPR\t_\t0\troot\t_\t_\n2\tdem\tder\tDET\tART\t_\t1\tdet\t_\t_\n",  # CoNLL-U
            [[("zu", "ADP"), ("dem", "DET")]],
        ),
    ],
)
def test_conll_first_column_that_numbers_the_words_is_skipped(text: str, sentences: Sentences) -> None:
    assert read(text) == sentences


def test_conll_sentence_that_is_not_numbered_as_the_first_ones_is_refused() -> None:
    with pytest.raises(DataError, match=r"sentence 3 begins 'the O O', expected a first column that numbers the words"):
        read("1 a O\n2 b O\n\n1 a O\n2 b O\n\nthe O O\n")


def test_conll_2012_is_readable_after_the_command_in_the_message(tmp_path: Path) -> None:
    sentence = "".join(f"bc/cctv/00 0  {index}   {word} NN * - - - *\n" for index, word in enumerate("ab"))
    (tmp_path / "FILE").write_text(f"#begin document (bc); part 000\n{sentence}\n{sentence}\n#end document\n")
    with pytest.raises(DataError, match="for example columns 4 and 5") as error:
        read((tmp_path / "FILE").read_text())
    subprocess.run(str(error.value).partition("columns 4 and 5: ")[2], shell=True, cwd=tmp_path, check=True)
    assert read((tmp_path / "NEW").read_text()) == [[("a", "NN"), ("b", "NN")]] * 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": ...}, "question 1: found no 'id', expected text or an integer"),
        ({"id": None}, "question 1: found null under 'id', expected text or an integer"),
        ({"question": ["a"]}, "question 'q7': found [\"a\"] under 'question', expected text"),
        ({"answers": None}, "question 'q7': found null under 'answers', expected a list"),
        ({"answers": {"text": []}}, "question 'q7': found {\"text\": []} under 'answers', expected a list"),
        ({"answers": ["a"]}, "question 'q7', answer 1: found \"a\", expected an object with the key 'text'"),
        ({"answers": [{"text": "a"}]}, "question 'q7', answer 1: found no 'answer_start', expected an integer"),
        (
            {"answers": [{"text": "a", "answer_start": 0}, {"text": "a", "answer_start": "4"}]},
            "question 'q7', answer 2: found \"4\" under 'answer_start', expected an integer",
        ),
        (3, "question 1: found 3, expected an object with the key 'id'"),
    ],
)
def test_squad_with_another_structure_is_refused_with_the_question(change: object, problem: str) -> None:
    good = {"id": "q7", "question": "who ?", "answers": []}
    changed = good | change if isinstance(change, dict) else change
    question = {key: value for key, value in changed.items() if value is not ...} if isinstance(changed, dict) else 3
    content = {"data": [{"paragraphs": []}, {"paragraphs": [{"context": "anna", "qas": [question]}]}]}
    with pytest.raises(DataError) as error:
        list(read_squad(content, "x.json"))
    assert str(error.value) == f"x.json: article 2, paragraph 1, {problem}"


@pytest.mark.parametrize("paragraph", [{"qas": []}, {"context": None, "qas": []}, {"context": "a"}, "a"])
def test_squad_paragraph_without_context_or_questions_is_refused_with_its_number(paragraph: object) -> None:
    with pytest.raises(DataError, match=r"^x\.json: article 1, paragraph 2: found .*, expected "):
        list(read_squad({"data": [{"paragraphs": [{"context": "a", "qas": []}, paragraph]}]}, "x.json"))


@pytest.mark.parametrize(
    "text", ["1 2 O\n2 3 O\n\na b O\n", "1 CD O\n\n1 CD O\n", "3 CD O\n4 CD O\n", "1 CD O\n. . O\n"]
)
def test_conll_sentences_of_numbers_are_not_a_word_index(text: str) -> None:
    assert read(text)[0][0][0] == text[0]


def read_or_message(text: str) -> Sentences | str:
    try:
        return read(text)
    except DataError as error:
        return str(error)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\r\n"), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-X", "I-X"])), min_size=1, max_size=4), max_size=4),
    st.sampled_from([" ", "\t", " \t "]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_conll_written_is_conll_read(sentences: Sentences, separator: str, line_end: str) -> None:
    """Any words come back, unless they number the words (or, at the start of a sentence, look like a comment)."""
    lines = [line for sentence in sentences for line in [*(separator.join(word) for word in sentence), ""]]
    rows = read_or_message(line_end.join(lines))
    if isinstance(rows, str):
        assert "the first column" in rows
        assert all(word[0].isdecimal() for word, _ in sentences[0])
    else:
        assert rows == sentences


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.sampled_from(list("#ab1O \t\n\r=-\u00a0\u2028")), max_size=40))
def test_any_conll_text_is_read_or_refused_with_its_file(text: str) -> None:
    rows = read_or_message(text)
    assert (rows.startswith("x.conll:") and len(rows) < 300) if isinstance(rows, str) else all(rows)
