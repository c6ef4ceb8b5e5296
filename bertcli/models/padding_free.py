"""Encoders that skip padding, and positions the head does not use.

Forward hooks remove padding before an encoder's layers and restore it afterwards, so heads and saved weights remain
those of transformers. This works for each family whose attention goes through the attention interface of transformers
and whose layers do nothing else across positions; `FAMILIES` lists them. In some, the last layer is computed only for
the tokens that the head uses: the first one for a classifier, the target positions for a masked language model and, in
training, the labeled tokens for a tagger.
Padding removal: ByteTransformer (Zhai et al. 2022, https://arxiv.org/abs/2210.03052), MosaicBERT (Portes et al. 2023,
https://arxiv.org/abs/2312.17482).
Shapes as in `bertcli.data.token_index`, and H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.models.big_bird_attention import reset_attention_type
from bertcli.models.cpu_dropout import use_cpu_dropout
from bertcli.models.deberta_attention import attend_in_one_precision, skip_unused_relative_positions
from bertcli.models.freezing import encoder_layers
from bertcli.models.regression_output import use_fp32_output
from bertcli.models.shared_encoder import SharedEncoder, find_encoders
from bertcli.models.tokenizer_matching import first_position_id
from bertcli.models.varlen_attention import ATTENTION, pad_input, varlen_attention_forward

FIRST_TOKEN_MODELS = ("ForSequenceClassification", "ForMultipleChoice")
TAGGERS = "ForTokenClassification"


def optimize_forward(model: nn.Module, device: torch.device) -> None:
    """Make a model skip unnecessary computation without changing its results; a regression model's are in fp32.

    The model then accepts batches from `bertcli.data.token_index.add_token_index`. Families that are not in `FAMILIES`
    do not skip any computation, but get fp32 regression results and, on a CPU, faster dropout; DeBERTa can then be
    trained in mixed precision, its later versions faster, and BigBird's attention no longer depends on earlier batches.
    """
    for task_model in model.models if isinstance(model, SharedEncoder) else [model]:
        encoders = find_encoders(task_model)
        if encoders and all(_is_supported(encoder) for encoder in encoders):
            PaddingFree(task_model, encoders)
        use_fp32_output(task_model)
    attend_in_one_precision(model)
    skip_unused_relative_positions(model)
    reset_attention_type(model)
    if device.type == "cpu":
        use_cpu_dropout(model)


def _is_supported(encoder: PreTrainedModel) -> bool:
    return encoder.config.model_type in FAMILIES and not getattr(encoder.config, "is_decoder", False)


def _layer_kinds(encoder: PreTrainedModel) -> set[str]:
    """Return the kinds of attention in an encoder's layers, if it names them: full_attention, sliding_attention."""
    return set(getattr(encoder.config, "layer_types", None) or ())


def _bind(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of a module by name."""
    kind: Any = type(module)
    return dict(zip(_parameter_names(kind), args, strict=False)) | inputs


@cache  # inspecting a signature takes longer than the rest of a hook
def _parameter_names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


class PaddingFree:
    """The hooks of a padding-free model (`model.padding_free`), with the token indices of the current batch."""

    def __init__(self, model: nn.Module, encoders: list[PreTrainedModel]):
        families = [FAMILIES[encoder.config.model_type] for encoder in encoders]
        self.output_tokens = "all"  # `bertcli.data.token_index.OutputTokens`
        if all(family.last_layer for family in families):
            self.output_tokens = _output_tokens(model)
        self.has_local_attention = any(_layer_kinds(encoder) & {"sliding_attention"} for encoder in encoders)
        self.unpadded: Any = None  # `bertcli.data.token_index.TokenIndex`; None: the batch stays padded
        self.output_positions: Any = None  # `TokenIndex`; None: the last layer processes all tokens
        self._is_full = False  # whether the batch has no padding
        self._shape = (0, 0)  # B, S
        self._mask: torch.Tensor | None = None
        model.padding_free = self  # type: ignore[assignment]
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)
        for encoder, family in zip(encoders, families, strict=True):
            encoder.set_attn_implementation(ATTENTION)
            encoder.register_forward_pre_hook(self._replace_mask, with_kwargs=True)
            stack: Any = getattr(encoder, family.stack) if family.stack else encoder
            stack.register_forward_pre_hook(partial(self._unpad, encoder), with_kwargs=True)
            stack.register_forward_hook(self._pad)
            pooler: Any = getattr(encoder, "pooler", None)
            if stack is encoder and pooler is not None:
                pooler.register_forward_pre_hook(self._select_first_tokens)
            if family.last_layer is not None:
                last = encoder_layers(encoder)[-1]
                last.forward = partial(self._last_layer, last, family.last_layer, last.forward)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        inputs = dict(inputs)
        self.unpadded, self.output_positions = inputs.pop("unpadded", None), inputs.pop("output_positions", None)
        self._is_full = inputs.pop("is_full", False)
        self._mask = inputs.get("attention_mask")
        return args, inputs

    def _end(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Mask the span logits of padding, which were not computed and must not compete with those of real tokens."""
        mask, self.unpadded, self.output_positions, self._mask = self._mask, None, None, None
        self._is_full = False  # models of several tasks share the encoder, and so its hooks
        if mask is not None and "start_logits" in (outputs or ()):
            for name in ("start_logits", "end_logits"):
                outputs[name] = outputs[name].masked_fill(mask == 0, torch.finfo(outputs[name].dtype).min)
        return outputs

    def _replace_mask(self, encoder: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Drop a redundant mask, since building the attention mask from it would synchronize with the device.

        A family with local attention gets a mask per kind of layer, without the window: `varlen_attention_forward`
        applies it itself, so that transformers need not build a mask of all pairs of positions.
        """
        inputs = _bind(encoder, args, inputs)
        mask = None if self._is_full or self.unpadded is not None else inputs.get("attention_mask")
        kinds = _layer_kinds(encoder)
        # The hook of another task's model on the same encoder may have made one mask per kind already.
        if "sliding_attention" in kinds and not isinstance(mask, dict):
            if mask is not None and mask.dim() == 2:
                mask = mask.bool()[:, None, None]
            mask = dict.fromkeys(kinds, mask)
        return (), inputs | {"attention_mask": mask}

    def _unpad(
        self, encoder: Any, stack: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        """Unpad the inputs of an encoder, or of its stack of layers: [B, S] to [1, T] and [B, S, H] to [1, T, H]."""
        if self.unpadded is None:
            return None
        inputs = _bind(stack, args, inputs)
        indices = self.unpadded.indices
        self._shape = inputs["input_ids" if stack is encoder else "hidden_states"].shape[:2]
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and name != "attention_mask" and value.shape[:2] == self._shape:
                inputs[name] = value.flatten(0, 1)[indices][None]
        if stack is encoder:
            config: Any = encoder.config
            if inputs.get("position_ids") is None:
                inputs["position_ids"] = indices[None] % self._shape[1] + first_position_id(config)
        else:
            inputs["attention_mask"] = None
        return (), inputs | {"unpadded": self.unpadded}

    def _pad(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Pad the stack's output: [1, T, H] to [B, S, H], with zeros.

        If only some positions were computed, return [B, 1, H] (first tokens) or [1, M, H] (target positions) instead.
        """
        hidden = outputs["last_hidden_state"]
        if self.output_positions is not None:
            outputs["last_hidden_state"] = hidden.transpose(0, 1) if self.output_tokens == "first" else hidden
        elif self.unpadded is not None:
            outputs["last_hidden_state"] = pad_input(hidden[0], self.unpadded.indices, *self._shape)
        return outputs

    def _select_first_tokens(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Select the hidden states [B, 1, H] that a pooler within an unpadded encoder uses."""
        if self.unpadded is None:
            return None
        return args[0][0, self.unpadded.cu_seqlens[:-1]][:, None], *args[1:]

    def _last_layer(
        self, layer: Any, partial_forward: LayerForward, full_forward: Any, *args: Any, **inputs: Any
    ) -> torch.Tensor:
        """Compute the last layer: [1, M, H] for the output positions, or [B, S, H] or [1, T, H] without any."""
        if self.output_positions is None:
            return full_forward(*args, **inputs)
        inputs = _bind(layer, args, inputs)
        attention = partial(
            varlen_attention_forward,
            attention_mask=inputs.get("attention_mask"),
            unpadded=self.unpadded,
            output_positions=self.output_positions,
        )
        return partial_forward(layer, self.output_positions.indices, attention, inputs)


def _output_tokens(model: Any) -> str:
    """Return the tokens whose last hidden states the model's head uses, as `bertcli.data.token_index.OutputTokens`."""
    pooling = getattr(getattr(model, "config", None), "classifier_pooling", "cls")
    if type(model).__name__.endswith(FIRST_TOKEN_MODELS) and pooling in ("cls", "bos"):
        return "first"
    if type(model).__name__.endswith(TAGGERS):
        return "labeled"
    return getattr(model, "output_tokens", "all")


def _bert_layer(
    layer: Any, indices: torch.Tensor, attention: Callable[..., Any], inputs: dict[str, Any]
) -> torch.Tensor:
    """Compute a layer of BERT (RoBERTa, ELECTRA …) for some tokens. [1, M, H]"""
    hidden = inputs["hidden_states"]
    tokens = hidden.flatten(0, 1)[indices][None]
    self_attention = layer.attention.self
    query, key, value = self_attention.query(tokens), self_attention.key(hidden), self_attention.value(hidden)
    context = _context(self_attention, query, key, value, attention)
    attended = layer.attention.output(context, tokens)
    return layer.output(layer.intermediate(attended), attended)


def _distilbert_layer(
    layer: Any, indices: torch.Tensor, attention: Callable[..., Any], inputs: dict[str, Any]
) -> torch.Tensor:
    """Compute a layer of DistilBERT in the same way."""
    hidden = inputs["hidden_states"]
    tokens = hidden.flatten(0, 1)[indices][None]
    self_attention = layer.attention
    query, key, value = self_attention.q_lin(tokens), self_attention.k_lin(hidden), self_attention.v_lin(hidden)
    context = _context(self_attention, query, key, value, attention)
    attended = layer.sa_layer_norm(self_attention.out_lin(context) + tokens)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _modernbert_layer(
    layer: Any, indices: torch.Tensor, attention: Callable[..., Any], inputs: dict[str, Any]
) -> torch.Tensor:
    """Compute a layer of ModernBERT in the same way, but project the queries of all tokens, with keys and values."""
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    hidden, part = inputs["hidden_states"], layer.attn
    query, key, value = part.Wqkv(layer.attn_norm(hidden)).unflatten(-1, (3, -1, part.head_dim)).unbind(-3)
    query, key = apply_rotary_pos_emb(query, key, *inputs["position_embeddings"], unsqueeze_dim=2)
    query = query.flatten(0, 1)[indices][None]
    rate = part.attention_dropout if part.training else 0.0
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    scaling, window = part.head_dim**-0.5, part.sliding_window
    context = attention(part, query, key, value, dropout=rate, scaling=scaling, sliding_window=window)[0]
    attended = hidden.flatten(0, 1)[indices][None] + part.out_drop(part.Wo(context.flatten(-2)))
    return attended + layer.mlp(layer.mlp_norm(attended))


def _context(
    self_attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Any
) -> torch.Tensor:
    """Return the attention output [1, M, H] of the projected `query` over `key` and `value` [B, S, H] or [1, T, H]."""
    head_size = self_attention.attention_head_size
    heads = (part.unflatten(-1, (-1, head_size)).transpose(-3, -2) for part in (query, key, value))
    rate = self_attention.dropout.p if self_attention.training else 0.0
    return attention(self_attention, *heads, dropout=rate, scaling=self_attention.scaling)[0].flatten(-2)


LayerForward = Callable[[Any, torch.Tensor, Callable[..., Any], dict[str, Any]], torch.Tensor]
"""Computes a layer for some of its tokens, which attend to all of them.

Its arguments are the layer, the indices of these tokens in the flattened hidden states [M], the attention function and
the layer's inputs; it returns their hidden states. [1, M, H]
"""


@dataclass(frozen=True)
class Family:
    """What padding removal needs to know about a model family."""

    stack: str  # the encoder's attribute with the stack of its layers; "": the encoder calls its layers itself
    last_layer: LayerForward | None = None  # computes the last layer for some tokens; None: it is computed for all


FAMILIES = {  # by model type
    **dict.fromkeys(
        ("bert", "roberta", "camembert", "xlm-roberta", "electra", "data2vec-text", "ernie"),
        Family("encoder", _bert_layer),
    ),
    "distilbert": Family("transformer", _distilbert_layer),
    **dict.fromkeys(("albert", "roberta-prelayernorm", "xlm-roberta-xl"), Family("encoder")),
    "modernbert": Family("", _modernbert_layer),
    **dict.fromkeys(("eurobert", "nomic_bert", "gte", "jina_embeddings_v3"), Family("")),
}
