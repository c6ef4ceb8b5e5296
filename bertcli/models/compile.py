"""Layers whose many small operations PyTorch makes into few (`torch.compile`)."""

from __future__ import annotations

import os
import shutil
from operator import attrgetter

import torch
from torch import nn

from bertcli.errors import ModelError, UsageError
from bertcli.models.cpu_dropout import CpuDropout, use_cpu_dropout
from bertcli.models.freezing import all_layers

TOKENWISE = ("attention.output", "intermediate", "output", "ffn", "mlp")


def compile_layers(model: nn.Module, *, may_fail: bool = False) -> int:
    """Compile, at their first call, the parts of a model's layers that compute each token by itself; their number.

    Between their matrix products such a part adds, drops, normalises and bends, an operation and a pass over memory
    each: those are what becomes one. The number of tokens is left open, so no length of batch compiles anew, and
    layers of one kind share what is compiled. Attention stays as it is: it has kernels of its own, and its shapes
    change in two places. Parameters keep their names, and dropout the numbers it draws.

    Args:
        may_fail: what the compiler fails at stays as it is.

    Raises:
        UsageError: this machine has no compiler.
    """
    if not has_compiler():
        raise UsageError("hardware.compile needs g++, clang++ or what CXX names; install one, or leave it out")
    torch._inductor.config.fallback_random = True  # PyTorch's own draws, or the compiler's would decide what is learned
    if may_fail:
        torch._dynamo.config.suppress_errors = True
    parts = _all_parts(model)
    for part in parts:
        for name, child in part.named_children():
            if type(child) is CpuDropout:  # which a compiler cannot read
                setattr(part, name, nn.Dropout(child.p).train(child.training))
        part.compile(dynamic=True)
    return len(parts)


def undo_compiling(model: nn.Module) -> None:
    """Leave the layers as they were before `compile_layers`."""
    for part in _all_parts(model):
        part._compiled_call_impl = None  # which `nn.Module.compile` has set
    if next(model.parameters()).device.type == "cpu":
        use_cpu_dropout(model)


def has_compiler() -> bool:
    """Whether this machine has a C++ compiler."""
    return any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))


def _all_parts(model: nn.Module) -> list[nn.Module]:
    """None of a model whose layers cannot be told apart."""
    try:
        layers = all_layers(model)
    except ModelError:
        return []
    return [part for layer in layers for part in _tokenwise_parts(layer)]


def _tokenwise_parts(layer: nn.Module) -> list[nn.Module]:
    """As BERT, RoBERTa and ELECTRA call them (the first three), DistilBERT and ModernBERT."""
    parts = []
    for name in TOKENWISE:
        try:
            part = attrgetter(name)(layer)
        except AttributeError:
            continue
        parts.append(part)
    return parts
