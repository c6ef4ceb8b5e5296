"""Words in, a tag for each out: named entities and other tags.

The first token of a word answers for it, and the tags of a row are chosen together (`heads.tag_scheme`). Long rows are
read in overlapping windows, and each word is answered by the window in which it stands farther from the edge, so no
word goes without a tag. A short row may be read together with its neighbours, as BERT read whole documents for this
(Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805).
Shapes: R rows, N windows, T tokens of all windows, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, Sequences, frame_of, windows
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    declared_names,
    given_weights,
    is_hidden,
    label_fields,
    listed_labels,
    name_of,
    place_of,
    saved_labels,
)
from bertcli.heads.tag_decoding import SCHEMES, likeliest_tags, may_follow, scheme_of
from bertcli.heads.word_alignment import NO_WORD, capitals_of, spans_of, tokens_of_words, words_of
from bertcli.recipe.schema import DataSection, Recipe
from bertcli.tasks.tags import in_iobes, parts_of
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class TokenClassification(Head):
    """How an encoder is asked for tags, and how its answer is read."""

    model_class = "AutoModelForTokenClassification"
    per_token = True
    usual_columns = ("tokens",)

    def __init__(
        self,
        labels: Sequence[str],
        class_weights: Sequence[float] | None = None,
        tag_scheme: str | None = None,
        *,
        marks_capitals: bool = False,
    ):
        self.labels = tuple(labels)
        self.class_weights = class_weights  # [C]; None: all alike
        self.tag_scheme = tag_scheme  # which tags can follow each other; None: all
        self.marks_capitals = marks_capitals  # whether the segment of a token tells of its word's capital letters

    @classmethod
    def labels_of(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """The tags."""
        return resolve_tags(task, train)

    @classmethod
    def learned_from(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """The head for a task, its tags as the row lists them, the data set declares them or the rows hold them.

        Raises:
            DataError: there are no tags, or fewer than two.
        """
        labels = cls.labels_of(task, train)
        head = cls(labels)
        tags = head.references(task, train)
        if tags is None:
            raise DataError(f"{task.name}: the training rows have no tags")
        scheme = scheme_of(labels, tags) if recipe.answers.consistent_tags else None
        weights = tag_weights(recipe.training.class_weights, task, labels, tags)
        return cls(labels, weights, scheme, marks_capitals=recipe.data.mark_capitals)

    @classmethod
    def saved_with(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """The head of a trained model, as its configuration tells."""
        scheme, marks = getattr(config, "tag_scheme", None), getattr(config, "marks_capitals", False)
        return cls(saved_labels(config), tag_scheme=scheme if scheme in SCHEMES else None, marks_capitals=marks is True)

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """The same head, its labels in another order."""
        order = [self.labels.index(label) for label in labels]
        weights = None if self.class_weights is None else [self.class_weights[at] for at in order]
        return type(self)(labels, weights, self.tag_scheme, marks_capitals=self.marks_capitals)

    @property
    def answer_kind(self) -> str:
        """What metrics and tasks have to fit."""
        return "token_classification"

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say, so that plain `transformers` reads the answer alike."""
        return label_fields(self.labels) | self.facts

    @property
    def facts(self) -> dict[str, Any]:
        """The scheme of the tags, if they keep one, and whether capital letters are told by segments."""
        marks = {"marks_capitals": True} if self.marks_capitals else {}
        return marks if self.tag_scheme is None else {"tag_scheme": self.tag_scheme} | marks

    def echoed(self, task: Task) -> tuple[str, ...]:
        """Nothing: the answer holds the text and its words."""
        return ()

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Rows as windows; `places` [T] holds the word (of its row) a token answers for, or `NO_WORD`."""
        all_words = words_of(task, rows)
        tags = self.references(task, rows)
        frame, made = frame_of(tokenizer, pair=False), Sequences()
        room = data.max_length - frame.num_special
        edge = [NO_WORD] * len(frame.before), [NO_WORD] * len(frame.after)
        ids, first_of, bounds = tokens_of_words(tokenizer, all_words)
        capitals = capitals_of(all_words, first_of, bounds) if self.marks_capitals else None
        places: list[int] = []
        for row, (row_start, row_end) in enumerate(pairwise(bounds)):
            num_own = row_end - row_start
            cuts = [(row_start + start, row_start + end) for start, end in windows(num_own, room, data.doc_stride)]
            own_parts = _own_parts(cuts)
            if num_own <= room:
                context = min(data.context_tokens, room - num_own)
                cuts = [_among_neighbours(row_start, row_end, bounds[-1], context)]
            for (start, end), (own_start, own_end) in zip(cuts, own_parts, strict=True):
                joined, segments = frame.join(ids[start:end])
                if capitals is not None:
                    segments = [*[0] * len(frame.before), *capitals[start:end], *[0] * len(frame.after)]
                made.add(row, joined, segments)
                marks = enumerate(first_of[start:end], start)
                own = (word if own_start <= at < own_end else NO_WORD for at, word in marks)
                places += [*edge[0], *own, *edge[1]]
        table = np.asarray(places, dtype=np.int32)
        labels = None if tags is None else self._token_labels(made, table, tags)
        return made.encoded(tokenizer, labels, labels_per_token=labels is not None, places=table)

    def _token_labels(self, made: Sequences, places: np.ndarray, tags: list[list[str]]) -> np.ndarray:
        """The number of each answering token's tag. [T]"""
        place = {label: index for index, label in enumerate(self.labels)}
        labels = np.full(len(places), IGNORED_LABEL, dtype=np.int64)
        # Answering tokens come in the order of the rows and their words: each word has exactly one.
        labels[places != NO_WORD] = [place[tag] for row in tags for tag in row]
        return labels

    def references(self, task: Task, rows: Dataset) -> list[list[str]] | None:
        """The right tags of each row's words; None if they are not given, or hidden.

        Raises:
            DataError: a row has not one tag for each word, or a tag that is none of the labels.
        """
        if task.label_column not in rows.column_names:
            return None
        given = rows[task.label_column][:]
        every = (value for values in given for value in ([None] if values is None else values))
        if any(values != [] for values in given) and all(map(is_hidden, every)):
            return None
        declared = declared_names(rows.features[task.label_column])
        place = {label: index for index, label in enumerate(self.labels)}
        tags: list[list[str]] = []
        for row, (words, values) in enumerate(zip(words_of(task, rows), given, strict=True)):
            if values is None or len(values) != len(words):
                found = "no" if values is None else len(values)
                raise DataError(f"{task.name}: row {row + 1} has {len(words)} words and {found} tags")
            names = [name_of(declared, value) for value in values]
            for name in names:
                place_of(task, place, rows, row, name)
            tags.append(names)
        return tags

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy summed over the words."""
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

    def decide(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[list[str]]:
        """The tags of each row's words, from logits [T, C]."""
        assert encoded.places is not None
        scores = logits[np.flatnonzero(encoded.places != NO_WORD)]  # in the order of the rows and their words
        bounds = np.concatenate(([0], np.cumsum([len(words) for words in words_of(task, rows)], dtype=np.int64)))
        allowed = may_follow(self.labels, self.tag_scheme) if self.tag_scheme else None
        best = [likeliest_tags(scores[start:end], allowed) for start, end in pairwise(bounds)]
        return [[self.labels[at] for at in row] for row in best]

    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """For people: words, their tags, and entities with the places of their characters in the text."""
        from seqeval.metrics.sequence_labeling import get_entities

        answers = []
        names_entities = any(parts_of(label)[0] for label in self.labels)  # not parts of speech
        tags_of = self.decide(task, rows, encoded, logits)
        for value, words, tags in zip(rows[task.text_columns[0]][:], words_of(task, rows), tags_of, strict=True):
            text = value if isinstance(value, str) else " ".join(words)
            spans = spans_of(text, words)
            entities = []
            for kind, first, last in get_entities(in_iobes(tags)) if names_entities else ():
                start, end = spans[first][0], spans[last][1]
                entities.append({"label": kind, "start": start, "end": end, "text": text[start:end]})
            answers.append({"text": text, "words": words, "tags": tags, "entities": entities})
        return answers

    def compare(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R rows of tags beside the right ones; `loss` is the share of the words with a wrong tag."""
        right, found = self.references(task, rows), self.decide(task, rows, encoded, logits)
        assert right is not None
        answers: list[dict[str, Any]] = []
        for gold, tags in zip(right, found, strict=True):
            wrong = sum(one != other for one, other in zip(gold, tags, strict=True))
            answer = {"gold": gold, "predicted": tags, "right": not wrong, "loss": wrong / max(1, len(gold))}
            answers.append(answer)
        return answers


def resolve_tags(task: Task, train: Dataset) -> tuple[str, ...]:
    """The tags: the row's own, else the data set's, else those of the training rows, `O` first.

    Raises:
        DataError: the row and the data set disagree, or there are fewer than two.
    """
    labels = listed_labels(task, train)
    if not labels:
        seen = {str(tag) for tags in train[task.label_column][:] for tag in tags or ()}
        labels = tuple(sorted(seen, key=lambda tag: (tag != "O", tag)))
    if len(labels) < 2:
        raise DataError(f"{task.name}: found the tags {list(labels)}, expected at least two to tell apart")
    return labels


def tag_weights(
    wanted: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], tags: list[list[str]]
) -> list[float] | None:
    """The weight of each tag in the loss; `auto`: words / (C × its words), at most 100.

    Raises:
        DataError: names that are no tags.
    """
    if wanted is None:
        return None
    if isinstance(wanted, dict):
        return given_weights(wanted, labels)
    place = {label: index for index, label in enumerate(labels)}
    counts = np.bincount([place[tag] for row in tags for tag in row], minlength=len(labels))
    return [float(min(100.0, counts.sum() / (len(labels) * max(1, count)))) for count in counts]


def _among_neighbours(start: int, end: int, num_tokens: int, context: int) -> tuple[int, int]:
    """A row's tokens with `context` ones around them, as many before as behind where there are enough."""
    before = min(start, max(context // 2, context - (num_tokens - end)))
    return start - before, min(num_tokens, end + context - before)


def _own_parts(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The part of each window it answers for: what it shares with a neighbour is divided in the middle."""
    middles = [(later[0] + earlier[1]) // 2 for earlier, later in pairwise(cuts)]
    return list(zip([cuts[0][0], *middles], [*middles, cuts[-1][1]], strict=True))
