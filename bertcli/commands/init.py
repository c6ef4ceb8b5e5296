"""`bertcli init`: write a commented recipe for a person's own data files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bertcli.console import format_count
from bertcli.data.file_columns import check_splits, common_columns, read_columns
from bertcli.data.file_detection import FileDialect, detect_dialect
from bertcli.data.file_discovery import data_name, files_by_split
from bertcli.data.formats import Row, parse_cell
from bertcli.data.inferred_task import KINDS, Choices, InferredTask
from bertcli.data.prediction_inputs import read_rows
from bertcli.data.schema_inference import infer_task
from bertcli.data.spans import word_spans
from bertcli.data.table_files import FORMAT_OF_SUFFIX, declared_names
from bertcli.data.text_files import without_compression_suffix
from bertcli.errors import DataError, UsageError, did_you_mean, quoted, shortened
from bertcli.heads.labels import labels_from_config
from bertcli.models.from_pretrained import ModelSource, has_head
from bertcli.models.tokenizer_matching import match_tokenizer, max_input_length
from bertcli.recipe.commented_yaml import to_commented_yaml
from bertcli.recipe.load import load_recipe
from bertcli.runs.members import best_seed
from bertcli.tasks.task import DELIMITERS, HEADS, check_encoding, load_class

MAX_SAMPLED_ROWS = 100_000  # read to infer the columns
MODELS = {"uncased": "google-bert/bert-base-uncased", "cased": "google-bert/bert-base-cased"}
MULTILINGUAL_MODEL = "google-bert/bert-base-multilingual-cased"
MIN_FOREIGN_SHARE = 0.005  # of the letters that are not ASCII, in texts that are not English
LENGTHS = (64, 128, 256, 384, 512)  # choices for data.max_length
QUESTION_LENGTH = 384  # with windows over long passages, as in BERT's SQuAD experiments
TOKENS_PER_WORD = 1.5
QUANTILE = 0.95  # of the rows that are not truncated
BATCH_SIZE = 32
MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 300, 3, 20
MAX_WARNED_FILES = 3


@dataclass(frozen=True)
class InitResult:
    """What `init` found: lines for people, and the same as data."""

    recipe: Path
    findings: dict[str, str]
    doubts: list[str]

    @property
    def lines(self) -> Iterator[str]:
        """The findings and doubts, and the next command."""
        for topic, finding in self.findings.items():
            yield f"{topic:<10}{finding}"
        for doubt in self.doubts:
            yield f"{'unsure':<10}{doubt}"
        yield f"{'wrote':<10}{self.recipe}"
        yield f"{'next':<10}bertcli check {self.recipe}, then bertcli finetune {self.recipe}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {"recipe": str(self.recipe), "findings": self.findings, "doubts": self.doubts}


def init(
    paths: Sequence[Path],
    choices: Choices,
    *,
    model: str | None = None,
    output: Path | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    column_names: str | None = None,
    mirror: Path | None = None,
) -> InitResult:
    """Write a recipe for data files, and return what was found in them.

    Args:
        paths: data files, or folders of them; names such as `dev.csv` decide the split.
        choices: decisions of the user, which are not inferred.
        model: model to fine-tune; None: BERT base, cased or uncased, or multilingual.
        output: the new recipe; None: named after the data, which also names the run folder.
        encoding: encoding of the files; None: detected, as is `delimiter`.
        column_names: names of the columns of CSV or TSV files without a header, separated by commas.

    Raises:
        UsageError: if the recipe exists, an option is invalid, or the data leave something open that the recipe needs.
        DataError: if a file cannot be read.
        ModelError: if the model cannot be loaded.
    """
    _check_options(choices, encoding, delimiter)
    files, left_out = files_by_split(paths)
    output = output or Path(f"{data_name(paths)}.yaml")
    _check_recipe_path(output)
    header = tuple(name.strip() for name in column_names.split(",")) if column_names is not None else ()
    dialects = {path: detect_dialect(path, encoding, delimiter, header) for split in files.values() for path in split}
    _check_columns_option(header, dialects)
    columns = {
        split: {path: read_columns(path, dialects[path]) for path in members} for split, members in files.items()
    }
    sample = _sample_rows({path: dialects[path] for path in files["train"]})
    training = common_columns(columns.pop("train"), choices)
    if len(files["train"]) > 1:
        sample = [{name: row[name] for name in training if name in row} for row in sample]
    inferred = infer_task(sample, choices, has_validation=bool(files["validation"]))
    check_splits(inferred, columns, training)
    data = {"max_length": choose_max_length(inferred, sample)}
    section = _model_section(inferred, sample, model, mirror, data)
    if inferred.skips_unlabelled:
        data["skip_unlabelled"] = True
    section_of_files = _files_section(files, dialects, inferred, output)
    recipe = _recipe(inferred, data_name(paths), section_of_files, section, data, len(sample))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("x", encoding="utf-8") as file:
        file.write(to_commented_yaml(recipe, _comments(inferred, output)))
    load_recipe(str(output))
    findings = {"data": _describe_files(files, dialects, len(sample))} | inferred.findings
    findings["model"] = f"{section['name']}, texts of up to {data['max_length']} tokens"
    if left_out:
        names = ", ".join(str(path) for path in left_out[:MAX_WARNED_FILES])
        inferred.doubts.append(f"left out {shortened(names)}, whose names contain no split; name the files to use")
    return InitResult(output, findings, inferred.doubts)


def _check_recipe_path(output: Path) -> None:
    if output.is_dir():
        raise UsageError(
            f"--output {output} is a folder, expected the name of a file, such as {output / 'recipe.yaml'}"
        )
    if output.exists():
        raise UsageError(f"{output} already exists; choose another --output")


def _check_options(choices: Choices, encoding: str | None, delimiter: str | None) -> None:
    if choices.kind is not None and choices.kind not in KINDS:
        expected = f"expected one of {', '.join(KINDS)}.{did_you_mean(choices.kind, KINDS)}"
        raise UsageError(f"found --problem {quoted(choices.kind)}, {expected}")
    if delimiter is not None and delimiter not in DELIMITERS:
        raise UsageError(f"found --delimiter {quoted(delimiter)}, expected one of {', '.join(DELIMITERS)}")
    if encoding is not None:
        try:
            check_encoding(encoding)
        except ValueError as error:
            raise UsageError(f"--encoding: {error}") from None


def _check_columns_option(names: Sequence[str], dialects: Mapping[Path, FileDialect]) -> None:
    if len({*names}) < len(names) or "" in names:
        raise UsageError(f"found --columns {quoted(','.join(names))}, expected a different name for each column")
    other = next((path for path, dialect in dialects.items() if names and not dialect.column_names), None)
    if other is not None:
        raise UsageError(f"--columns names the columns of CSV and TSV files without a header, but found {other}")


def _sample_rows(dialects: Mapping[Path, FileDialect]) -> list[Row]:
    """Return the first rows of the files, with their values as in the files."""

    def rows() -> Iterator[Row]:
        for path, dialect in dialects.items():
            names = declared_names(path) if dialect.format == "parquet" else {}
            for _, row in read_rows(str(path), dialect.format, (), None, dialect.options):
                yield row | {name: _named(row[name], labels) for name, labels in names.items() if name in row}

    sample = list(islice(rows(), MAX_SAMPLED_ROWS))
    if not sample:
        has_header = any(dialect.format in ("csv", "tsv") for dialect in dialects.values())
        raise DataError(f"{', '.join(map(str, dialects))}: found no rows{' after the header' if has_header else ''}")
    ((path, dialect), *_), first = dialects.items(), sample[0]
    if (
        len(sample) == 1
        and dialect.format == "json"
        and any(isinstance(value, list | dict) for value in first.values())
    ):
        raise DataError(
            f"{path}: found only one row, an object with the keys {quoted([*first])}, expected a list with an object "
            "for each row, or one object per line"
        )
    return sample


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a label id, or the names of a list of them."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _describe_files(files: Mapping[str, Sequence[Path]], dialects: Mapping[Path, FileDialect], num_rows: int) -> str:
    rows = f"{format_count(num_rows)} rows" if num_rows < MAX_SAMPLED_ROWS else f"more than {num_rows:,} rows"
    first = files["train"][0]
    others = [f"{split} {', '.join(path.name for path in paths)}" for split, paths in files.items() if paths]
    more = f"; {shortened('; '.join(others))}" if len(dialects) > 1 else ""
    return f"{first}: {dialects[first].description}, {rows}{more}"


def choose_max_length(inferred: InferredTask, rows: Sequence[Row]) -> int:
    """Return a maximum length in tokens that truncates few rows, estimated from their words."""
    if inferred.kind == "questions":
        return QUESTION_LENGTH
    names = (*inferred.keys["text_columns"], *inferred.keys.get("choice_columns", ())[:1])
    if "sentence_column" in inferred.keys:
        return LENGTHS[1]
    lengths = sorted(sum(_count_words(row.get(name)) for name in names) for row in rows)
    num_tokens = TOKENS_PER_WORD * lengths[int(QUANTILE * (len(lengths) - 1))]
    return next((length for length in LENGTHS if length > num_tokens), LENGTHS[-1])


def _count_words(cell: Any) -> int:
    cell = parse_cell(cell)
    return len(cell) if isinstance(cell, list) else len(word_spans(str(cell or "")))


def _model_section(
    inferred: InferredTask, rows: Sequence[Row], name: str | None, mirror: Path | None, data: dict[str, Any]
) -> dict[str, Any]:
    """Return the recipe's section `model`; lower `data.max_length` to what the model supports."""
    if name is None:
        return {"name": _default_model(inferred, rows)}
    source = ModelSource(best_seed(name), mirror)
    head_class = load_class(HEADS, inferred.keys["head"])
    tokenizer = source.load_tokenizer(is_split_into_words=head_class.reads_words)
    match_tokenizer(tokenizer, source.config, name)
    data["max_length"] = min(data["max_length"], max_input_length(tokenizer, source.config))
    if inferred.kind == "questions" and data["max_length"] < QUESTION_LENGTH:
        data["max_question_length"] = max(1, min(64, data["max_length"] // 3))
    section: dict[str, Any] = {"name": os.path.abspath(name) if os.path.isdir(name) else name}
    if has_head(source.config, head_class.model_class) and inferred.kind not in ("questions", "choices"):
        labels = inferred.keys.get("labels", ())
        if not labels or sorted(labels) != sorted(labels_from_config(source.config)):
            section["new_head"] = True  # its classifier is for other labels
    return section


def _default_model(inferred: InferredTask, rows: Sequence[Row]) -> str:
    text = inferred.keys["text_columns"][0]
    letters = [letter for row in rows[:1000] for letter in str(row.get(text)) if letter.isalpha()]
    if sum(not letter.isascii() for letter in letters) > MIN_FOREIGN_SHARE * len(letters):
        inferred.doubts.append("the texts are not all English, so the model is multilingual; --model names another")
        return MULTILINGUAL_MODEL
    return MODELS["cased" if inferred.kind in ("tags", "spans") else "uncased"]


def _files_section(
    files: Mapping[str, Sequence[Path]], dialects: Mapping[Path, FileDialect], inferred: InferredTask, output: Path
) -> dict[str, Any]:
    """Return the recipe's section `task.files`.

    Raises:
        UsageError: if the files have different formats or encodings.
    """
    folder = output.parent.resolve()
    section: dict[str, Any] = {}
    for split, paths in files.items():
        names = [_path_from(folder, path.resolve()) for path in paths]
        if names:
            section[split] = names[0] if len(names) == 1 else tuple(names)
    formats = {dialect.format for dialect in dialects.values()}
    if len(formats) > 1 and any(_suffix_format(path) != dialect.format for path, dialect in dialects.items()):
        raise UsageError(f"found files of different formats ({', '.join(sorted(formats))}); convert them to one")
    if any(_suffix_format(path) != dialect.format for path, dialect in dialects.items()):
        section["format"] = formats.pop()
    encodings = {dialect.encoding for path, dialect in dialects.items() if dialect.encoding or not _is_ascii(path)}
    if len(encodings) > 1:
        raise UsageError(
            f"found files in different encodings ({', '.join(sorted(map(str, encodings))).replace('None', 'utf-8')}); "
            "convert them to UTF-8"
        )
    if encodings - {None}:
        section["encoding"] = encodings.pop()
    delimiters = {dialect.delimiter for dialect in dialects.values()}
    if len(delimiters) == 1 and not delimiters & {None, "comma"}:
        section["delimiter"] = delimiters.pop()
    if header := next(iter(dialects.values())).column_names:
        section["column_names"] = header
    if inferred.skips_empty:
        section["skip_empty"] = True
    if inferred.decimal is not None:
        section["decimal"] = inferred.decimal
    return section


def _path_from(folder: Path, path: Path) -> str:
    """Return a path relative to `folder`, or the absolute path if it is far away."""
    relative = os.path.relpath(path, folder)
    return str(path) if relative.startswith(os.path.join("..", "..", "")) else relative


def _suffix_format(path: Path) -> str | None:
    return FORMAT_OF_SUFFIX.get(without_compression_suffix(path).suffix.lower())


def _is_ascii(path: Path) -> bool:
    with path.open("rb") as file:
        return all(block.isascii() for block in iter(lambda: file.read(1 << 20), b""))


def _recipe(
    inferred: InferredTask,
    name: str,
    files: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    num_rows: int,
) -> dict[str, Any]:
    """Return the keys of the recipe, by section."""
    keys = dict(inferred.keys)
    if "validation" not in files and ("splits" not in keys or keys["splits"]["validation"] is None):
        keys["held_out_fraction"] = 0.1
    if keys.get("problem") == "single_label":
        del keys["problem"]
    learning_rate = 5e-5 if inferred.kind in ("tags", "spans") else 3e-5
    training = {"epochs": choose_epochs(num_rows), "global_batch_size": BATCH_SIZE, "learning_rate": learning_rate}
    task = {"name": name, "files": files} | keys
    return {"task": task, "model": model, "data": data, "training": training | {"seed": 1}}


def _comments(inferred: InferredTask, output: Path) -> list[str]:
    """Return the comments at the beginning of the recipe."""
    what = f"{inferred.kind} of {', '.join(map(str, inferred.keys['text_columns']))}".replace("\n", " ")
    return [
        f"{shortened(what)}; written by `bertcli init`. `bertcli recipes show {output.name}` lists all keys.",
        f"  bertcli finetune {output.name}",
        *(f"unsure: {doubt}" for doubt in inferred.doubts),
    ]


def choose_epochs(num_rows: int) -> int:
    """Return a number of epochs with at least `MIN_STEPS` steps, as few rows need more epochs (Mosbach et al. 2021)."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS * BATCH_SIZE / num_rows)))
