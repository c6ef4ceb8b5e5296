"""Encoders that compute nothing in vain: neither padding nor what no head reads.

Hooks take padding away where a batch enters the stack of layers and put it back where it leaves, so embeddings, heads
and saved weights stay those of transformers. The last layer answers for the tokens alone that are read behind it: a
classifier reads the first one, a masked-language model those it is asked for. Padding removed: ByteTransformer (Zhai
et al. 2022, https://arxiv.org/abs/2210.03052), MosaicBERT (Portes et al. 2023, https://arxiv.org/abs/2312.17482).
Shapes as in `bertcli.data.token_index`, and H heads, N width, E width of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.models.cpu_dropout import use_cpu_dropout
from bertcli.models.shared_encoder import SharedEncoder, encoders_of
from bertcli.models.varlen_attention import ATTENTION, attend, spread

STACKS = {
    "bert": "encoder",
    "roberta": "encoder",
    "camembert": "encoder",
    "xlm-roberta": "encoder",
    "electra": "encoder",
    "distilbert": "transformer",
}
FIRST_TOKEN_MODELS = ("ForSequenceClassification", "ForMultipleChoice")


def speed_up(model: nn.Module, device: torch.device) -> None:
    """Make a model compute the same with less work, for batches as `bertcli.data.token_index.with_layout` makes them.

    A model of a family that is not known here only gets cheaper dropout on a CPU.
    """
    for whole in model.models if isinstance(model, SharedEncoder) else [model]:
        encoders = encoders_of(whole)
        if encoders and all(_has_stack(encoder) for encoder in encoders):
            PaddingFree(whole, encoders)
    if device.type == "cpu":
        use_cpu_dropout(model)


def _has_stack(encoder: PreTrainedModel) -> bool:
    return encoder.config.model_type in STACKS and not getattr(encoder.config, "is_decoder", False)


class PaddingFree:
    """What is known of the batch while the model computes it. Found as `model.padding_free`."""

    def __init__(self, model: nn.Module, encoders: list[PreTrainedModel]):
        first_only = type(model).__name__.endswith(FIRST_TOKEN_MODELS)
        self.reading = "first" if first_only else getattr(model, "reading", "all")
        self.computed: Any = None  # `bertcli.data.token_index.Gathered`, None: everything
        self.read: Any = None  # `Gathered`, None: everything
        self._is_full = False  # whether there is no padding
        self._shape = (0, 0)
        self._mask: torch.Tensor | None = None
        model.padding_free = self  # type: ignore[assignment]
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)
        for encoder in encoders:
            encoder.set_attn_implementation(ATTENTION)
            encoder.register_forward_pre_hook(self._hide_mask, with_kwargs=True)
            stack: Any = getattr(encoder, STACKS[encoder.config.model_type])
            stack.register_forward_pre_hook(self._take_away, with_kwargs=True)
            stack.register_forward_hook(self._put_back)
            last = stack.layer[-1]
            last.forward = partial(self._last_layer, last, last.forward)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        inputs = dict(inputs)
        self.computed, self.read = inputs.pop("computed", None), inputs.pop("read", None)
        self._is_full = inputs.pop("is_full", False)
        self._mask = inputs.get("attention_mask")
        return args, inputs

    def _end(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Starts and ends of answers compete over a row: padding, of which nothing is known, has no part in it."""
        mask, self.computed, self.read, self._mask = self._mask, None, None, None
        if mask is not None and "start_logits" in (outputs or ()):
            for name in ("start_logits", "end_logits"):
                outputs[name] = outputs[name].masked_fill(mask == 0, torch.finfo(outputs[name].dtype).min)
        return outputs

    def _hide_mask(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Where it is known what the mask says, making another of it would only wait for the device."""
        known = self._is_full or self.computed is not None
        return (args, {**inputs, "attention_mask": None}) if known else None

    def _take_away(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        """[B, S, N] to [1, T, N]."""
        hidden = args[0] if args else inputs["hidden_states"]
        self._shape = hidden.shape[:2]
        if self.computed is None:
            return None
        lying = hidden.flatten(0, 1)[self.computed.places][None]
        return args[1:], {**inputs, "hidden_states": lying, "attention_mask": None, "computed": self.computed}

    def _put_back(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """[1, T, N] to [B, S, N], zero where no token is; if some are read, [B, 1, N] (first) or [1, M, N] (asked)."""
        hidden = outputs["last_hidden_state"]
        if self.read is not None:
            outputs["last_hidden_state"] = hidden.transpose(0, 1) if self.reading == "first" else hidden
        elif self.computed is not None:
            outputs["last_hidden_state"] = spread(hidden[0], self.computed.places, *self._shape)
        return outputs

    def _last_layer(self, layer: Any, whole: Any, *args: Any, **inputs: Any) -> torch.Tensor:
        """The layer's output: [B, S, N], or [1, M, N] of the tokens that are read, as far as they are known."""
        if self.read is None:
            return whole(*args, **inputs)
        hidden = args[0] if args else inputs["hidden_states"]
        mask = args[1] if len(args) > 1 else inputs.get("attention_mask")
        read = hidden.flatten(0, 1)[self.read.places][None]
        answer = _answer_of_distilbert if hasattr(layer, "ffn") else _answer_of_bert
        return answer(layer, read, hidden, partial(attend, attention_mask=mask, computed=self.computed, read=self.read))


def _answer_of_bert(layer: Any, read: torch.Tensor, hidden: torch.Tensor, attend_to: Any) -> torch.Tensor:
    """A layer of BERT (RoBERTa, ELECTRA …) for the `read` tokens [1, M, N] among all that are `hidden`."""
    own = layer.attention.self
    context = _context(own, own.query(read), own.key(hidden), own.value(hidden), attend_to)
    attended = layer.attention.output(context, read)
    return layer.output(layer.intermediate(attended), attended)


def _answer_of_distilbert(layer: Any, read: torch.Tensor, hidden: torch.Tensor, attend_to: Any) -> torch.Tensor:
    """The same for a layer of DistilBERT."""
    own = layer.attention
    context = _context(own, own.q_lin(read), own.k_lin(hidden), own.v_lin(hidden), attend_to)
    attended = layer.sa_layer_norm(own.out_lin(context) + read)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _context(own: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attend_to: Any) -> torch.Tensor:
    """What the self-attention `own` makes of its projections [1, M, N] and twice [B, S, N] or [1, T, N]: [1, M, N]."""
    heads = (part.unflatten(-1, (-1, own.attention_head_size)).transpose(-3, -2) for part in (query, key, value))
    rate = own.dropout.p if own.training else 0.0
    return attend_to(own, *heads, dropout=rate, scaling=own.scaling)[0].flatten(-2)
