"""What is read of a text that is longer than a model reads: a part, or overlapping windows that cover it."""

from __future__ import annotations

from collections.abc import Iterator

from bertcli.errors import DataError
from bertcli.recipe.schema import LongInputs


def cut_text(ids: list[int], room: int, long_inputs: LongInputs, doc_stride: int | None) -> Iterator[list[int]]:
    """What is read of a text of any length: a part of it, or overlapping windows that cover it."""
    if len(ids) <= room or long_inputs == "keep_head":
        yield ids[:room]
    elif long_inputs == "keep_tail":
        yield ids[len(ids) - room :]
    elif long_inputs == "keep_head_and_tail":
        num_head = room // 4  # as Sun et al. 2019 (128 of 510), https://arxiv.org/abs/1905.05583
        yield ids[:num_head] + ids[len(ids) - (room - num_head) :]
    else:
        yield from (ids[start:end] for start, end in windows(len(ids), room, doc_stride))


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, the longer one cut first (as `longest_first` in tokenizers)."""
    shorter, longer = sorted((first, second))
    if shorter + longer > room:
        longer = max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if first <= second else (longer, shorter)


def windows(length: int, room: int, doc_stride: int | None) -> list[tuple[int, int]]:
    """Start and end of each window of `room` tokens over `length`, neighbours sharing `doc_stride` (None: a third).

    Raises:
        DataError: the windows would not move on.
    """
    if length <= room:
        return [(0, length)]
    if doc_stride is None:
        doc_stride = room // 3
    if doc_stride >= room:
        raise DataError(
            f"found data.doc_stride {doc_stride}, but a window has room for {room} tokens; set a smaller doc_stride or "
            "a larger data.max_length"
        )
    starts = range(0, length - doc_stride, room - doc_stride)
    return [(start, min(start + room, length)) for start in starts]
