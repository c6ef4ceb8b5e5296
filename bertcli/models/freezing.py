"""Ways to fine-tune an encoder other than all of it at one rate: which weights learn, when, and how fast.

Depth counts from the bottom: 0 the embeddings, 1 … L the layers, L + 1 what follows them (pooling layer, head).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.models.shared_encoder import encoders_of
from bertcli.recipe.plan import Plan
from bertcli.recipe.schema import StrategySection, TrainingSection

if TYPE_CHECKING:
    pass


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, lowest first.

    Raises:
        ModelError: the family shares one layer, or names them otherwise.
    """
    wanted = getattr(model.config, "num_hidden_layers", None)
    stacks = [part for part in model.base_model.modules() if isinstance(part, nn.ModuleList) and len(part) == wanted]
    if not stacks:
        raise ModelError(
            f"the layers of a {model.config.model_type} model cannot be told apart; use training.strategy=full "
            "without training.teacher_hidden_weight"
        )
    return max(stacks, key=lambda stack: sum(part.numel() for part in stack.parameters()))


def all_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of every encoder in what is trained, each once."""
    return list(dict.fromkeys(layer for encoder in encoders_of(module) for layer in layers_of(encoder)))


def depths_of(model: PreTrainedModel) -> dict[str, int]:
    """The depth of each parameter, by name."""
    layers = layers_of(model)
    of_layer = {id(part): at for at, layer in enumerate(layers, start=1) for part in layer.parameters()}
    tables = [module for module in model.base_model.modules() if isinstance(module, nn.Embedding)]
    below = {id(table.weight) for table in tables}  # GPT-2 has no word for them in their names
    below |= {id(part) for name, part in model.base_model.named_parameters() if "embed" in name}
    return {
        name: of_layer.get(id(part), 0 if id(part) in below else len(layers) + 1)
        for name, part in model.named_parameters()
    }


def rate_factors(model: PreTrainedModel, section: TrainingSection) -> dict[str, float]:
    """The share of the learning rate that each parameter learns with.

    Layer-wise decay: Howard & Ruder 2018 (https://arxiv.org/abs/1801.06146), ELECTRA (https://arxiv.org/abs/2003.10555).
    """
    if section.layer_decay == 1 and section.head_learning_rate is None:
        return {}
    top = len(layers_of(model)) + 1
    of_head = (section.head_learning_rate or section.learning_rate) / section.learning_rate
    return {
        name: of_head if depth == top else section.layer_decay ** (top - depth)
        for name, depth in depths_of(model).items()
    }


def lowest_learning(section: StrategySection, num_layers: int, plan: Plan, step: int) -> int:
    """The depth from which on weights learn in the optimiser step number `step` (from 0).

    Gradual unfreezing: Howard & Ruder 2018, https://arxiv.org/abs/1801.06146.
    """
    if section.strategy == "features":
        return num_layers + 1
    lowest = section.freeze_layers + 1 if section.freeze_layers else int(section.freeze_embeddings)
    if section.strategy != "gradual":
        return lowest
    if section.unfreeze_every_steps is not None:
        every = section.unfreeze_every_steps
    elif section.unfreeze_every_epochs is not None:
        every = max(1, round(section.unfreeze_every_epochs * plan.steps_per_epoch))
    else:
        every = max(1, plan.total_steps // (2 * max(1, num_layers + 1 - lowest)))
    return max(lowest, num_layers + 1 - step // every)


class Unfreezing:
    """Lets the weights of a model learn when their time has come; those whose time never comes are frozen at once.

    Raises:
        ModelError: there are fewer layers than are to be frozen.
    """

    def __init__(self, model: PreTrainedModel, section: StrategySection, plan: Plan):
        self._section, self._plan = section, plan
        self._num_layers = len(layers_of(model))
        if section.freeze_layers > self._num_layers:
            raise ModelError(
                f"found training.freeze_layers {section.freeze_layers}, but the model has {self._num_layers} layers"
            )
        depths, ever = depths_of(model), lowest_learning(section, self._num_layers, plan, plan.total_steps - 1)
        for name, part in model.named_parameters():
            part.requires_grad_(part.requires_grad and depths[name] >= ever)
        self._learnable = [(part, depths[name]) for name, part in model.named_parameters() if part.requires_grad]
        self._lowest: int | None = None

    def set_for(self, step: int) -> None:
        """Make ready for the optimiser step number `step` (from 0)."""
        lowest = lowest_learning(self._section, self._num_layers, self._plan, step)
        if lowest != self._lowest:
            for part, depth in self._learnable:
                part.requires_grad_(depth >= lowest)
            self._lowest = lowest


def unfreezing_of(model: PreTrainedModel, section: StrategySection, plan: Plan) -> Unfreezing | None:
    """What freezes and unfreezes as the recipe says; None if all weights learn from the first step on."""
    freezes = section.strategy != "full" or section.freeze_layers or section.freeze_embeddings
    return Unfreezing(model, section, plan) if freezes else None


def reinitialise(model: PreTrainedModel, num_layers: int) -> None:
    """Give the highest `num_layers` layers and the pooling layer fresh weights, from torch's generator.

    Zhang et al. 2021, https://arxiv.org/abs/2006.05987.

    Raises:
        ModelError: there are fewer layers.
    """
    layers = layers_of(model)
    if num_layers > len(layers):
        raise ModelError(f"found training.reinitialise_layers {num_layers}, but the model has {len(layers)} layers")
    pooler = getattr(model.base_model, "pooler", None)
    for part in [*layers[len(layers) - num_layers :], *([] if pooler is None else [pooler])]:
        for module in part.modules():
            for tensor in (module, *module.parameters(recurse=False)):
                tensor._is_hf_initialized = False  # or transformers would leave loaded weights alone
            model._init_weights(module)


class Remembered:
    """Lets a model take its encoder's last hidden states from the batch (`vectors`) instead of computing them.

    They are [B, S, N], or [B, 1, N] of first tokens alone; with K choices an item, [B, K, 1, N].
    """

    def __init__(self, model: PreTrainedModel):
        self._vectors: torch.Tensor | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        base = model.base_model
        base.forward = partial(self._encode, base, base.forward)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        inputs = dict(inputs)
        self._vectors = inputs.pop("vectors", None)
        return args, inputs

    def _encode(self, base: Any, forward: Any, *args: Any, **inputs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if self._vectors is None:
            return forward(*args, **inputs)
        hidden = self._vectors.flatten(0, -3)
        pooler = getattr(base, "pooler", None)
        pooled = None if pooler is None else pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
