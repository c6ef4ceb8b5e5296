"""`torch.compile` for the token-wise parts of encoder layers."""

from __future__ import annotations

import os
import shutil
from operator import attrgetter

import torch
from torch import nn

from bertcli.errors import ModelError, UsageError
from bertcli.models.cpu_dropout import CpuDropout, use_cpu_dropout
from bertcli.models.freezing import all_encoder_layers

TOKENWISE_MODULES = ("attention.output", "intermediate", "output", "ffn", "mlp")


def compile_layers(model: nn.Module, *, suppress_errors: bool = False) -> int:
    """Compile the token-wise parts of a model's layers on their first call, and return how many there are.

    Between its matrix products, such a part runs bias, dropout, normalization and activation as separate operations,
    each with a pass over memory; compilation fuses them. The number of tokens is a dynamic dimension, so no batch shape
    triggers a recompilation, and layers of the same kind share the compiled code. Attention is not compiled: it has
    specialized kernels, and two of its dimensions vary. Parameter names and dropout's random numbers do not change.

    Args:
        suppress_errors: run a part in eager mode if it fails to compile.

    Raises:
        UsageError: if this machine has no C++ compiler.
    """
    if not has_compiler():
        raise UsageError(
            "hardware.compile needs a C++ compiler, and none was found (tried g++, clang++ and $CXX); "
            "install one, or remove hardware.compile"
        )
    torch._inductor.config.fallback_random = True  # eager random numbers: compiling must not change the results
    if suppress_errors:
        torch._dynamo.config.suppress_errors = True
    parts = _model_parts(model)
    for part in parts:
        for name, child in part.named_children():
            if type(child) is CpuDropout:  # its autograd function uses NumPy and cannot be traced
                setattr(part, name, nn.Dropout(child.p).train(child.training))
        part.compile(dynamic=True)
    return len(parts)


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`."""
    for part in _model_parts(model):
        part._compiled_call_impl = None  # set by `nn.Module.compile`
    if next(model.parameters()).device.type == "cpu":
        use_cpu_dropout(model)


def has_compiler() -> bool:
    """Return whether this machine has a C++ compiler."""
    return any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))


def _model_parts(model: nn.Module) -> list[nn.Module]:
    """Return the token-wise parts of all layers; an empty list if the layers cannot be identified."""
    try:
        layers = all_encoder_layers(model)
    except ModelError:
        return []
    return [part for layer in layers for part in _layer_parts(layer)]


def _layer_parts(layer: nn.Module) -> list[nn.Module]:
    """Return the parts named as in BERT, RoBERTa and ELECTRA (the first three names), DistilBERT or ModernBERT."""
    parts = []
    for name in TOKENWISE_MODULES:
        try:
            part = attrgetter(name)(layer)
        except AttributeError:
            continue
        parts.append(part)
    return parts
