"""Token classification: predicts a tag for each word, such as named entities or parts of speech.

The logits of a word are those of its first token, and the tags of a row are decoded together (`heads.tag_decoding`).
Long rows are split into overlapping windows; a word in several windows is predicted in the one where it is farthest
from the edge, so every word has a prediction. Short rows can be encoded with neighboring rows as context, as in the
original BERT experiments (Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805).
Shapes: R rows, N windows, T tokens in all windows, C tags.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, EncodedBuilder, special_tokens_template, window_bounds
from bertcli.data.sources import locate_rows, origin
from bertcli.data.spans import iter_cut_warnings
from bertcli.data.table_files import label_text
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    MAX_AUTO_WEIGHT,
    declared_labels,
    is_missing_label,
    label_config_fields,
    label_name,
    labels_from_config,
    list_labels,
    lookup_label_id,
    predefined_labels,
    weights_from_recipe,
)
from bertcli.heads.losses import label_loss
from bertcli.heads.span_decoding import strip_span
from bertcli.heads.tag_decoding import TAG_SCHEMES, allowed_transitions, detect_tag_scheme, viterbi_decode
from bertcli.heads.word_alignment import (
    UNALIGNED,
    WORD_PATTERN,
    casing_token_type_ids,
    row_words,
    tokenize_words,
    word_offsets,
    word_pattern,
)
from bertcli.recipe.schema import DataSection, Recipe, TrainingSection
from bertcli.tasks.tags import TagSet, read_tag_set
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class TokenClassification(Head):
    """A head that predicts a tag for each word; in named entity recognition, tags mark entities."""

    model_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    has_pipeline = True
    per_token = True
    reads_words = True
    prediction_kind = "tags"
    default_columns = ("tokens",)

    def __init__(
        self,
        labels: Sequence[str],
        class_weights: Sequence[float] | None = None,
        tag_scheme: str | None = None,
        *,
        casing_feature: bool = False,
    ):
        self.labels = tuple(labels)
        self.class_weights = class_weights  # [C]; None: all equal
        self.tag_scheme = tag_scheme  # for constrained decoding; None: every tag sequence is valid
        self.casing_feature = casing_feature  # whether token type 1 marks words with capital letters
        self.word_pattern = WORD_PATTERN  # of words in plain texts

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition has several text columns, or keys of other heads."""
        if len(task.text_columns) != 1:
            return "token_classification needs one column in `text_columns`: the words"
        return super().find_problem(task)

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return precision, recall and F1 of entities, or accuracy if the task's tags do not mark entities.

        Until the labels of a task are known, they are assumed to mark entities.
        """
        tag_set = read_tag_set(task.labels)
        return ("seqeval",) if not task.labels or tag_set.marks_entities or tag_set.problem else ("accuracy",)

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys that have an effect."""
        training = ("training.class_weights", "training.label_smoothing", "training.loss")
        return frozenset((*training, "data.context_tokens", "data.casing_feature"))

    @classmethod
    def task_labels(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Return the tags."""
        return resolve_tags(task, train)

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model, with the tags of the task or of the training rows.

        Raises:
            DataError: if the tags are missing or invalid, or there are fewer than two.
        """
        labels = cls.task_labels(task, train)
        tags = cls(labels).references(task, train)
        if tags is None:
            raise DataError(f"{origin(task)}: the training rows have no tags")
        scheme = detect_tag_scheme(labels, tags) if recipe.answers.constrained_decoding else None
        weights = compute_tag_weights(recipe.training.class_weights, task, labels, tags)
        return cls(labels, weights, scheme, casing_feature=recipe.data.casing_feature)

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model from its configuration; unknown tag schemes are ignored."""
        scheme = getattr(config, "tag_scheme", None)
        # Models saved by earlier versions have `marks_capitals` instead; ignoring it would make predictions wrong.
        casing_feature = getattr(config, "casing_feature", getattr(config, "marks_capitals", False))
        return cls(
            labels_from_config(config),
            tag_scheme=scheme if scheme in TAG_SCHEMES else None,
            casing_feature=casing_feature is True,
        )

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return this head with its labels in another order."""
        order = [self.labels.index(label) for label in labels]
        weights = None if self.class_weights is None else [self.class_weights[index] for index in order]
        return type(self)(labels, weights, self.tag_scheme, casing_feature=self.casing_feature)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return this head; tokens that were added to the tokenizer stay whole when it splits texts into words."""
        head = copy.copy(self)
        head.word_pattern = word_pattern(tokenizer)
        return head

    @cached_property
    def tag_set(self) -> TagSet:
        """How the tags mark entities."""
        return read_tag_set(self.labels)

    @property
    def answer_kind(self) -> str:
        """The kind of predictions, which must match `Task.answer_kind` and be supported by the metrics."""
        return "token_classification"

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields for the model's `config.json`: label names, tag scheme and casing feature."""
        return label_config_fields(self.labels) | self.config_extras

    @property
    def config_extras(self) -> dict[str, Any]:
        """The tag scheme, if there is one, and the casing feature, if it is used."""
        extras: dict[str, Any] = {} if self.tag_scheme is None else {"tag_scheme": self.tag_scheme}
        return extras | ({"casing_feature": True} if self.casing_feature else {})

    def echo_columns(self, task: Task) -> tuple[str, ...]:
        """Return no columns: predictions contain the text and its words."""
        return ()

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Encode rows as windows; `alignment` [T] holds the index of the word that a token predicts, or `UNALIGNED`."""
        all_words = row_words(task, rows, self.word_pattern)
        tags = self.references(task, rows)
        template, builder = special_tokens_template(tokenizer, pair=False), EncodedBuilder()
        max_tokens = data.max_length - template.num_special_tokens
        ids, word_alignment, bounds = tokenize_words(tokenizer, all_words)
        token_types = casing_token_type_ids(all_words, word_alignment, bounds) if self.casing_feature else None
        alignment: list[int] = []
        for row, (row_start, row_end) in enumerate(pairwise(bounds)):
            num_tokens = row_end - row_start
            windows = [
                (row_start + start, row_start + end)
                for start, end in window_bounds(num_tokens, max_tokens, data.doc_stride)
            ]
            predicted_parts = _predicted_parts(windows)
            if num_tokens <= max_tokens:
                context_tokens = min(data.context_tokens, max_tokens - num_tokens)
                windows = [_add_context(row_start, row_end, bounds[-1], context_tokens)]
            for (start, end), (first, last) in zip(windows, predicted_parts, strict=True):
                unaligned = [] if end > start else template.empty_text
                input_ids, token_type_ids = template.build_inputs(ids[start:end] or unaligned)
                if token_types is not None:
                    token_type_ids = [*[0] * len(template.prefix), *token_types[start:end], *[0] * len(template.suffix)]
                builder.add(row, input_ids, token_type_ids)
                alignment += [UNALIGNED] * (len(template.prefix) + len(unaligned))
                alignment += (
                    word if first <= position < last else UNALIGNED
                    for position, word in enumerate(word_alignment[start:end], start)
                )
                alignment += [UNALIGNED] * len(template.suffix)
        alignment_array = np.asarray(alignment, dtype=np.int32)
        labels = None if tags is None else self._token_labels(alignment_array, tags)
        return builder.build(
            tokenizer,
            labels,
            labels_per_token=labels is not None,
            alignment=alignment_array,
            row_warnings=tuple(iter_cut_warnings(rows)),
        )

    def _token_labels(self, alignment: np.ndarray, tags: list[list[str | None]]) -> np.ndarray:
        """Return the tag id of each aligned token, `IGNORED_LABEL` for others and for words without a tag. [T]"""
        label2id: dict[str | None, int] = {label: index for index, label in enumerate(self.labels)}
        label2id[None] = IGNORED_LABEL
        labels = np.full(len(alignment), IGNORED_LABEL, dtype=np.int64)
        # Aligned tokens are in the order of the rows and their words: exactly one per word.
        labels[alignment != UNALIGNED] = [label2id[tag] for row in tags for tag in row]
        return labels

    def references(self, task: Task, rows: Dataset) -> list[list[str | None]] | None:
        """Return the gold tags of each row's words, None for words without one; None if all rows are unlabeled.

        Raises:
            DataError: if the number of tags differs from the number of words, or a tag is unknown.
        """
        if task.label_column not in rows.column_names:
            return None
        column = rows[task.label_column][:]
        names = tag_names(task, rows, column)
        if not names and any(values != [] for values in column):
            return None
        self._check_numbers_of_tags(task, rows, column)
        tags = [[names.get(value) for value in values or ()] for values in column]
        label2id = {label: index for index, label in enumerate(self.labels)}
        if unknown := set(names.values()) - label2id.keys():
            row = next(row for row, tags_of_row in enumerate(tags) if not unknown.isdisjoint(tags_of_row))
            lookup_label_id(task, label2id, rows, row, next(tag for tag in tags[row] if tag in unknown) or "")
        return tags

    @staticmethod
    def _check_numbers_of_tags(task: Task, rows: Dataset, column: list[list[Any] | None]) -> None:
        """Check that each row has one tag per word; the error message lists the rows that do not."""
        num_words = [len(words) for words in row_words(task, rows)]
        num_tags = [-1 if values is None else len(values) for values in column]
        if bad := [row for row, counts in enumerate(zip(num_words, num_tags, strict=True)) if counts[0] != counts[1]]:
            words, tags = num_words[bad[0]], num_tags[bad[0]] if column[bad[0]] is not None else "no"
            found = f"has {words} words and {tags} tags"
            if len(bad) > 1:
                found = f"have more or fewer tags than words (the first has {words} words and {tags} tags)"
            raise DataError(f"{locate_rows(task, rows, bad)} {found}; give each word one tag")

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        """Return the cross-entropy or focal loss summed over the words."""
        return label_loss(logits.flatten(0, -2), labels.flatten(), self.class_weights, training)

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[list[str]]:
        """Decode logits [T, C] to the tags of each row's words."""
        assert encoded.alignment is not None
        scores = logits[np.flatnonzero(encoded.alignment != UNALIGNED)]  # in the order of the rows and their words
        num_words = [len(words) for words in row_words(task, rows, self.word_pattern)]
        bounds = np.concatenate(([0], np.cumsum(num_words, dtype=np.int64)))
        allowed = allowed_transitions(self.labels, self.tag_scheme) if self.tag_scheme else None
        tag_ids = [viterbi_decode(scores[start:end], allowed) for start, end in pairwise(bounds)]
        return [[self.labels[tag_id] for tag_id in row] for row in tag_ids]

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the text of each row, its words, their tags, and entities with character offsets in the text.

        Entities are None if it is unclear which words the tags mark as entities.
        """
        entries = []
        predictions = self.to_predictions(task, rows, encoded, logits)
        values = rows[task.text_columns[0]][:]
        for value, words, tags in zip(values, row_words(task, rows, self.word_pattern), predictions, strict=True):
            text = value if isinstance(value, str) else " ".join(words)
            offsets = word_offsets(text, words)
            entities = []
            for entity_type, first, last in self.tag_set.entities(tags):
                start, end = strip_span(text, offsets[first][0], offsets[last][1])
                entities.append({"label": entity_type, "start": start, "end": end, "text": text[start:end]})
            is_clear = self.tag_set.problem is None
            entries.append({"text": text, "words": words, "tags": tags, "entities": entities if is_clear else None})
        return entries

    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return R rows of predicted tags next to the gold ones; `loss` is the fraction of words with a wrong tag."""
        gold = self.references(task, rows)
        assert gold is not None
        entries: list[dict[str, Any]] = []
        for gold_tags, tags in zip(gold, predictions, strict=True):
            is_wrong = [gold_tag != tag for gold_tag, tag in zip(gold_tags, tags, strict=True) if gold_tag is not None]
            loss = sum(is_wrong) / max(1, len(is_wrong))
            entries.append({"gold": gold_tags, "predicted": tags, "right": not any(is_wrong), "loss": loss})
        return entries


def resolve_tags(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the tags in order: from the task definition, else the dataset, else the training rows, `O` first.

    Raises:
        DataError: if the task definition and the dataset disagree, or there are fewer than two tags.
    """
    labels = predefined_labels(task, train)
    if not labels:
        distinct = set(tag_names(task, train, train[task.label_column][:]).values())
        labels = tuple(sorted(distinct, key=lambda tag: (tag != "O", tag)))
    if len(labels) < 2:
        raise DataError(f"{origin(task)}: expected at least two tags, found {len(labels)}: {list_labels(labels)}")
    return labels


def tag_names(task: Task, rows: Dataset, column: list[list[Any] | None]) -> dict[Any, str]:
    """Return the name of each distinct tag in the label column of `rows`.

    Empty cells, -1 (as in hidden test splits) and -100 (ignored in the loss) are not tags, unless the task definition
    lists these numbers as labels.

    Raises:
        DataError: if the column does not hold lists of tags.
    """
    feature = rows.features[task.label_column]
    is_list_of_tags = isinstance(getattr(getattr(feature, "feature", None), "dtype", None), str)
    if not is_list_of_tags and any(values is not None for values in column):
        raise DataError(
            f"{origin(task, str(rows.split))}: column {task.label_column!r} holds {feature!r:.60}, expected a list "
            "of tags for each row, one per word"
        )
    declared = declared_labels(feature)
    listed = () if declared else task.labels
    names = {value: _tag_name(declared, value) for values in column if values is not None for value in {*values}}
    return {value: name for value, name in names.items() if name in listed or not _is_missing(name)}


def _tag_name(declared: Sequence[str], value: Any) -> str:
    return label_name(declared, value) if declared and value is not None else (label_text(value) or "").strip()


def _is_missing(name: str) -> bool:
    return is_missing_label(name) or name == str(IGNORED_LABEL)


def compute_tag_weights(
    weights: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], tags: list[list[str | None]]
) -> list[float] | None:
    """Return the weight of each tag in the loss; `auto` is words / (C × words with the tag), at most 100.

    Args:
        weights: `training.class_weights` of the recipe.

    Raises:
        DataError: if the recipe's weights are not for exactly these tags.
    """
    if weights is None:
        return None
    if isinstance(weights, dict):
        return weights_from_recipe(weights, labels)
    label2id = {label: index for index, label in enumerate(labels)}
    counts = np.bincount([label2id[tag] for row in tags for tag in row if tag is not None], minlength=len(labels))
    return [float(min(MAX_AUTO_WEIGHT, counts.sum() / (len(labels) * max(1, count)))) for count in counts]


def _add_context(start: int, end: int, num_tokens: int, context_tokens: int) -> tuple[int, int]:
    """Return the bounds of a row with `context_tokens` tokens of its neighbors, half on each side if possible.

    Args:
        num_tokens: number of tokens in all rows.
    """
    num_before = min(start, max(context_tokens // 2, context_tokens - (num_tokens - end)))
    return start - num_before, min(num_tokens, end + context_tokens - num_before)


def _predicted_parts(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the part of each window whose words are predicted in it; overlaps are split in the middle."""
    midpoints = [(later[0] + earlier[1]) // 2 for earlier, later in pairwise(windows)]
    return list(zip([windows[0][0], *midpoints], [*midpoints, windows[-1][1]], strict=True))
