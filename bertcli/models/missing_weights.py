"""Weights that a model needs but its saved files lack; `from_pretrained` initializes them at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertcli.console import Console

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_GROUPS_LISTED = 5
POOLER_CLASSES = ("AutoModelForSequenceClassification", "AutoModelForMultipleChoice", "AutoModelForPreTraining")
"""Classes whose heads may use the pooler; others have a pooler only because their encoder builds one."""


@dataclass(frozen=True)
class MissingWeights:
    """Tensors that a saved model lacks or does not use, as text for messages; empty if there are none.

    Attributes:
        encoder: missing tensors of the embeddings and layers.
        head: missing tensors of the head and the pooler.
        unused: saved weights of the encoder that the configuration has no place for, such as additional layers.
    """

    encoder: str = ""
    head: str = ""
    unused: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.encoder, self.head) if part)

    def report(self, console: Console, name: str) -> None:
        """Print which weights of the head are new; warn if the encoder of the model `name` does not match its files."""
        if self.head:
            console.say(f"model     newly initialized: {self.head}")
        if self.encoder:
            console.warn(f"{name} lacks weights of its encoder, which are initialized at random: {self.encoder}")
        if self.unused:
            console.warn(f"{name} has weights that its configuration does not use: {self.unused}")


def describe_missing(
    model: PreTrainedModel, missing: Iterable[str], unexpected: Iterable[str], model_class: str
) -> MissingWeights:
    """Describe the tensors that were missing or unexpected when `model` was loaded.

    Tied weights and buffers, which have a value without being saved, do not count as missing; nor does a pooler that
    the head does not use.

    Args:
        model_class: the `AutoModelFor…` name that the model was loaded as.
    """
    tied, buffers = getattr(model, "all_tied_weights_keys", {}), {name for name, _ in model.named_buffers()}
    expected = [name for name in model.state_dict() if name not in tied]
    encoder, head = [], []
    for name in {*missing} - {*tied} - buffers:
        if "pooler" in name.split("."):
            if model_class in POOLER_CLASSES:
                head.append(name)
        elif is_encoder_tensor(model, name):
            encoder.append(name)
        else:
            head.append(name)
    base_names = [name.removeprefix(f"{model.base_model_prefix}.") for name in unexpected]
    unused = [encoder_prefix(model) + name for name in base_names if _is_layer_tensor(model, name)]
    prefix = _display_prefix(model)
    return MissingWeights(
        describe_tensors(encoder, expected, prefix),
        describe_tensors(head, expected, prefix),
        describe_tensors(unused, expected, prefix),
    )


def encoder_prefix(model: PreTrainedModel) -> str:
    """Return the prefix of the encoder's tensor names; empty if the model is an encoder without a head."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def is_encoder_tensor(model: PreTrainedModel, name: str) -> bool:
    """Return whether a tensor of this name belongs to the encoder, not to the head."""
    return name.startswith(encoder_prefix(model))


def _is_layer_tensor(model: PreTrainedModel, name: str) -> bool:
    """Return whether a tensor of this name could belong to a layer of the model's encoder if it had more layers."""
    parts = name.split(".")
    is_weight = parts[-1] in ("weight", "bias")  # other tensors are buffers, which some models saved in the past
    in_encoder = any(part == parts[0] for part, _ in model.base_model.named_children())
    return is_weight and in_encoder and any(map(str.isdigit, parts))


def _display_prefix(model: PreTrainedModel) -> str:
    """Return the prefix of the encoder's tensors in the files of a model with a head, if it is loaded without one."""
    if encoder_prefix(model) or type(model).__name__ in (model.config.architectures or ()):
        return ""
    return f"{model.base_model_prefix}."


def describe_tensors(names: Iterable[str], expected: Iterable[str], prefix: str = "") -> str:
    """List tensor names; if all tensors of a module are among them, list it once, as `encoder.layer.1.* (16 tensors)`.

    Args:
        expected: names of all tensors of the model.
        prefix: prefix to add to each name.
    """
    wanted = dict.fromkeys(names)
    ordered = [*dict.fromkeys(name for name in expected if name in wanted)]
    ordered += sorted(name for name in wanted if name not in set(ordered))
    num_expected = Counter(module for name in {*expected, *wanted} for module in _modules(name))
    num_missing = Counter(module for name in ordered for module in _modules(name))
    groups = Counter(
        next((module for module in _modules(name) if num_missing[module] == num_expected[module] > 1), name)
        for name in ordered
    )
    listed = [
        f"{prefix}{group}" if group in wanted else f"{prefix}{group}.* ({number} tensors)"
        for group, number in groups.items()
    ]
    more = len(listed) - MAX_GROUPS_LISTED
    return ", ".join(listed[:MAX_GROUPS_LISTED]) + (f" and {more} more" if more > 0 else "")


def _modules(name: str) -> Iterator[str]:
    """Yield the modules that a tensor is in, from the outermost."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])
