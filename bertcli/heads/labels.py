"""Label names: where data sets and models keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bertcli.errors import DataError, ModelError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def label_fields(labels: tuple[str, ...]) -> dict[str, Any]:
    """How a model's configuration holds label names."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def saved_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """The label names a configuration holds, in order of their numbers."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def check_labels(saved: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Refuse a model with a trained head whose labels are not the task's (their order may differ).

    Raises:
        ModelError: with both lists and the cure.
    """
    if wanted and sorted(saved) != sorted(wanted):
        raise ModelError(
            f"the labels disagree: model {name} has {list(saved)}, the task has {list(wanted)}. "
            "Make task.labels agree, or set model.new_head=true to learn a new classifier."
        )


def declared_names(feature: Any) -> list[str]:
    """Names a `ClassLabel` feature (or a list of them) declares; none for other features."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def place_of(task: Task, place: dict[str, int], row: int, name: str) -> int:
    """The number of the label `name`.

    Raises:
        DataError: it is none of the labels.
    """
    if name not in place:
        raise DataError(
            f"{task.name}: row {row + 1} has the label {name!r}, expected one of {list(place)}."
            f"{did_you_mean(name, place)}"
        )
    return place[name]
