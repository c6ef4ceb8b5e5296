"""Token classification: predicts a tag for each word, such as named entities or parts of speech.

The logits of a word are those of its first token, and the tags of a row are decoded together (`heads.tag_decoding`).
Long rows are split into overlapping windows; a word in several windows is predicted in the one where it is farthest
from the edge, so every word has a prediction. Short rows can be encoded with neighboring rows as context, as in the
original BERT experiments (Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805).
Shapes: R rows, N windows, T tokens of all windows, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, EncodedBuilder, special_tokens_template, window_bounds
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    MAX_AUTO_WEIGHT,
    declared_labels,
    is_missing_label,
    label_config_fields,
    label_name,
    labels_from_config,
    lookup_label_id,
    predefined_labels,
    weights_from_recipe,
)
from bertcli.heads.tag_decoding import TAG_SCHEMES, allowed_transitions, detect_tag_scheme, viterbi_decode
from bertcli.heads.word_alignment import UNALIGNED, casing_token_type_ids, row_words, tokenize_words, word_offsets
from bertcli.recipe.schema import DataSection, Recipe
from bertcli.tasks.tags import split_tag, to_iobes
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class TokenClassification(Head):
    """A tag per word; in named entity recognition the tags mark entities."""

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

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition has several text columns, or keys of other heads."""
        if len(task.text_columns) != 1:
            return "token_classification needs one column in `text_columns`: the words"
        return super().find_problem(task)

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return precision, recall and F1 of entities."""
        return ("seqeval",)

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys that have an effect."""
        keys = ("training.class_weights", "training.label_smoothing", "data.context_tokens", "data.casing_feature")
        return frozenset(keys)

    @classmethod
    def task_labels(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Return the tags."""
        return resolve_tags(task, train)

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model, with the tags of the task or of the training rows.

        Raises:
            DataError: the tags are missing or invalid, or there are fewer than two.
        """
        labels = cls.task_labels(task, train)
        tags = cls(labels).references(task, train)
        if tags is None:
            raise DataError(f"{task.name}: the training rows have no tags")
        scheme = detect_tag_scheme(labels, tags) if recipe.answers.constrained_decoding else None
        weights = compute_tag_weights(recipe.training.class_weights, task, labels, tags)
        return cls(labels, weights, scheme, casing_feature=recipe.data.casing_feature)

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model from its configuration; unknown tag schemes are ignored."""
        scheme, casing_feature = getattr(config, "tag_scheme", None), getattr(config, "casing_feature", False)
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

    @property
    def answer_kind(self) -> str:
        """The kind of predictions, which metrics and tasks must match."""
        return "token_classification"

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields of the model's `config.json`: label names, tag scheme and casing feature."""
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
        """Encode rows as windows; `alignment` [T] has the word of its row that a token predicts, or `UNALIGNED`."""
        all_words = row_words(task, rows)
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
                input_ids, token_type_ids = template.build_inputs(ids[start:end])
                if token_types is not None:
                    token_type_ids = [*[0] * len(template.prefix), *token_types[start:end], *[0] * len(template.suffix)]
                builder.add(row, input_ids, token_type_ids)
                alignment += [UNALIGNED] * len(template.prefix)
                alignment += (
                    word if first <= position < last else UNALIGNED
                    for position, word in enumerate(word_alignment[start:end], start)
                )
                alignment += [UNALIGNED] * len(template.suffix)
        alignment_array = np.asarray(alignment, dtype=np.int32)
        labels = None if tags is None else self._token_labels(alignment_array, tags)
        return builder.build(tokenizer, labels, labels_per_token=labels is not None, alignment=alignment_array)

    def _token_labels(self, alignment: np.ndarray, tags: list[list[str]]) -> np.ndarray:
        """Return the tag id of each aligned token, `IGNORED_LABEL` for the others. [T]"""
        label2id = {label: index for index, label in enumerate(self.labels)}
        labels = np.full(len(alignment), IGNORED_LABEL, dtype=np.int64)
        # Aligned tokens are in the order of the rows and their words: exactly one per word.
        labels[alignment != UNALIGNED] = [label2id[tag] for row in tags for tag in row]
        return labels

    def references(self, task: Task, rows: Dataset) -> list[list[str]] | None:
        """Return the gold tags of each row's words; None if the rows are unlabeled.

        Raises:
            DataError: the number of tags differs from the number of words, or a tag is unknown.
        """
        if task.label_column not in rows.column_names:
            return None
        column = rows[task.label_column][:]
        cells = (value for values in column for value in ([None] if values is None else values))
        if any(values != [] for values in column) and all(map(is_missing_label, cells)):
            return None
        declared = declared_labels(rows.features[task.label_column])
        label2id = {label: index for index, label in enumerate(self.labels)}
        tags: list[list[str]] = []
        for row, (words, values) in enumerate(zip(row_words(task, rows), column, strict=True)):
            if values is None or len(values) != len(words):
                num_tags = "no" if values is None else len(values)
                raise DataError(f"{task.name}: row {row + 1} has {len(words)} words and {num_tags} tags")
            names = [label_name(declared, value) for value in values]
            for name in names:
                lookup_label_id(task, label2id, rows, row, name)
            tags.append(names)
        return tags

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Return the cross-entropy summed over the words."""
        from torch.nn import functional

        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            weights,
            ignore_index=IGNORED_LABEL,
            reduction="sum",
            label_smoothing=label_smoothing,
        )

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[list[str]]:
        """Decode logits [T, C] to the tags of each row's words."""
        assert encoded.alignment is not None
        scores = logits[np.flatnonzero(encoded.alignment != UNALIGNED)]  # in the order of the rows and their words
        bounds = np.concatenate(([0], np.cumsum([len(words) for words in row_words(task, rows)], dtype=np.int64)))
        allowed = allowed_transitions(self.labels, self.tag_scheme) if self.tag_scheme else None
        tag_ids = [viterbi_decode(scores[start:end], allowed) for start, end in pairwise(bounds)]
        return [[self.labels[tag_id] for tag_id in row] for row in tag_ids]

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the text of each row, its words, their tags, and entities with character offsets in the text."""
        from seqeval.metrics.sequence_labeling import get_entities

        entries = []
        has_entity_tags = any(split_tag(label)[0] for label in self.labels)  # false for parts of speech
        predictions = self.to_predictions(task, rows, encoded, logits)
        values = rows[task.text_columns[0]][:]
        for value, words, tags in zip(values, row_words(task, rows), predictions, strict=True):
            text = value if isinstance(value, str) else " ".join(words)
            offsets = word_offsets(text, words)
            entities = []
            for entity_type, first, last in get_entities(to_iobes(tags)) if has_entity_tags else ():
                start, end = offsets[first][0], offsets[last][1]
                entities.append({"label": entity_type, "start": start, "end": end, "text": text[start:end]})
            entries.append({"text": text, "words": words, "tags": tags, "entities": entities})
        return entries

    def with_gold(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return R rows of predicted tags next to the gold ones; `loss` is the fraction of words with a wrong tag."""
        gold, predictions = self.references(task, rows), self.to_predictions(task, rows, encoded, logits)
        assert gold is not None
        entries: list[dict[str, Any]] = []
        for gold_tags, tags in zip(gold, predictions, strict=True):
            num_errors = sum(gold_tag != tag for gold_tag, tag in zip(gold_tags, tags, strict=True))
            loss = num_errors / max(1, len(gold_tags))
            entries.append({"gold": gold_tags, "predicted": tags, "right": not num_errors, "loss": loss})
        return entries


def resolve_tags(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the tags in order: from the task definition, else the dataset, else the training rows, `O` first.

    Raises:
        DataError: the task definition and the dataset disagree, or there are fewer than two tags.
    """
    labels = predefined_labels(task, train)
    if not labels:
        distinct = {str(tag) for tags in train[task.label_column][:] for tag in tags or ()}
        labels = tuple(sorted(distinct, key=lambda tag: (tag != "O", tag)))
    if len(labels) < 2:
        raise DataError(f"{task.name}: found the tags {list(labels)}, expected at least two")
    return labels


def compute_tag_weights(
    weights: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], tags: list[list[str]]
) -> list[float] | None:
    """Return the weight of each tag in the loss; `auto` is words / (C × words with the tag), at most 100.

    Args:
        weights: `training.class_weights` of the recipe.

    Raises:
        DataError: the weights are not for these tags.
    """
    if weights is None:
        return None
    if isinstance(weights, dict):
        return weights_from_recipe(weights, labels)
    label2id = {label: index for index, label in enumerate(labels)}
    counts = np.bincount([label2id[tag] for row in tags for tag in row], minlength=len(labels))
    return [float(min(MAX_AUTO_WEIGHT, counts.sum() / (len(labels) * max(1, count)))) for count in counts]


def _add_context(start: int, end: int, num_tokens: int, context_tokens: int) -> tuple[int, int]:
    """Return the bounds of a row with `context_tokens` tokens of its neighbors, half on each side if possible.

    Args:
        num_tokens: tokens of all rows.
    """
    num_before = min(start, max(context_tokens // 2, context_tokens - (num_tokens - end)))
    return start - num_before, min(num_tokens, end + context_tokens - num_before)


def _predicted_parts(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the part of each window whose words it predicts: overlaps are divided in the middle."""
    midpoints = [(later[0] + earlier[1]) // 2 for earlier, later in pairwise(windows)]
    return list(zip([windows[0][0], *midpoints], [*midpoints, windows[-1][1]], strict=True))
