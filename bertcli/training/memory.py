"""Estimate the memory of training before it starts, and decide whether to use gradient checkpointing.

Shapes: B sequences of a micro-batch, S their length in tokens, L layers, H hidden, I intermediate, N attention heads,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console, format_size
from bertcli.models.from_scratch import GATED_FAMILIES
from bertcli.models.gradient_checkpointing import unsupported
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import choose_precision, uses_cpu

if TYPE_CHECKING:
    from transformers import PretrainedConfig

USABLE_SHARE = 0.9  # of the available memory; the rest is for fragmentation and buffers of the libraries
EFFICIENT_TOKENS = 8192  # per micro-batch on a GPU; halving larger micro-batches costs almost no speed
UNFUSED_FAMILIES = ("deberta", "deberta-v2", "convbert", "funnel", "mpnet", "xlnet")  # attention without SDPA
INTERMEDIATE_FIELDS = ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "n_inner")
GROUP_FILES = {  # by version of control groups: a group's limit and use of memory, and its unused file cache
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class Workload:
    """What one process computes at a time in training, as far as memory depends on it.

    Attributes:
        num_sequences: sequences per micro-batch (B).
        length: tokens per sequence (S), of the longest micro-batch.
        num_layers: layers that keep activations for the backward pass; None: all.
        logits_per_token: share of the tokens with logits over the vocabulary.
    """

    config: PretrainedConfig
    num_parameters: int
    num_trainable: int
    num_sequences: int
    length: int
    num_layers: int | None = None
    logits_per_token: float = 0.0


@dataclass(frozen=True)
class MemoryPlan:
    """The estimated peak memory of training in one process, in bytes, and whether activations are recomputed."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    available: float | None  # None: unknown
    gradient_checkpointing: bool
    is_short: bool = False  # whether even the smallest micro-batch that training resorts to is too large

    @property
    def total(self) -> float:
        """The estimated peak."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the available memory."""
        return self.available is None or self.total <= USABLE_SHARE * self.available

    def report(self, console: Console) -> None:
        """Print the line of the plan; warn if the memory does not suffice."""
        names = ("weights", "gradients", "optimizer", "activations")
        unit, size, digits = ("GB", 1e9, 1) if self.total >= 1e9 else ("MB", 1e6, 0)
        values = {name: f"{getattr(self, name) / size:.{digits}f}" for name in names}
        if not self.activations:
            values["activations"] = "unknown"
        parts = ", ".join(f"{name} {value}" for name, value in values.items())
        checkpointing = " with gradient checkpointing" if self.gradient_checkpointing else ""
        console.say(f"memory    about {self.total / size:.{digits}f} {unit}: {parts}{checkpointing}")
        if self.is_short and self.available is not None:
            console.warn(
                f"training needs about {format_size(self.total)} of memory, but only "
                f"{format_size(self.available)} are available; lower hardware.micro_batch_size (the global batch "
                "stays the same) or data.max_length (in pretraining, max_length in phases), or use a smaller model"
            )


def plan_memory(hardware: HardwareSection, model_class: str, workload: Workload, num_processes: int = 1) -> MemoryPlan:
    """Estimate the memory of training, and decide whether to use gradient checkpointing.

    Args:
        model_class: the `AutoModelFor…` name of the model.

    Raises:
        ModelError: if `hardware.gradient_checkpointing` is true, and the model's family does not support it.
        UsageError: if the device does not support the precision.
    """
    on_cpu, precision = uses_cpu(hardware), choose_precision(hardware)
    available = available_memory(hardware, num_processes)
    # Training halves micro-batches that do not fit on a GPU, at almost no cost as long as they keep it busy.
    can_halve = hardware.micro_batch_size == "auto" and not on_cpu and num_processes == 1
    smallest = max(1, EFFICIENT_TOKENS // workload.length) if can_halve else workload.num_sequences
    small_workload = replace(workload, num_sequences=min(workload.num_sequences, smallest))

    def estimate(work: Workload, *, checkpointing: bool) -> MemoryPlan:
        shards = num_processes if hardware.shard else 1
        copies = 1.0 if precision == "fp32" else 1.5  # autocast keeps copies of the weights in half precision
        return MemoryPlan(
            weights=4 * copies * work.num_parameters / shards,
            gradients=4 * work.num_trainable / shards,
            optimizer=8 * work.num_trainable / shards,
            activations=activation_bytes(work, precision, on_cpu=on_cpu, checkpointing=checkpointing),
            available=available,
            gradient_checkpointing=checkpointing,
        )

    setting, is_supported = hardware.gradient_checkpointing, _supports_checkpointing(workload.config, model_class)
    if setting is True and not is_supported:
        raise unsupported(workload.config.model_type)
    is_needed = setting == "auto" and is_supported and not estimate(small_workload, checkpointing=False).fits
    checkpointing = setting is True or is_needed
    plan = estimate(workload, checkpointing=checkpointing)
    return replace(plan, is_short=not estimate(small_workload, checkpointing=checkpointing).fits)


def _supports_checkpointing(config: PretrainedConfig, model_class: str) -> bool:
    import transformers

    kinds: Any = getattr(transformers, model_class)._model_mapping[type(config)]
    kind = kinds[0] if isinstance(kinds, tuple | list) else kinds
    return bool(kind.supports_gradient_checkpointing)


def activation_bytes(workload: Workload, precision: str, *, on_cpu: bool, checkpointing: bool = False) -> float:
    """Estimate the peak memory of the activations of a training step, in bytes; 0 if the sizes of layers are unknown.

    A layer keeps, for each token, the inputs of its matrix products, normalizations and activation function, that is
    8 H + 2 I numbers (with a gated activation, 8 H + 4 I), and the dropout masks of two residual branches, 2 H;
    attention without a fused kernel also keeps its weights, N S, or with dropout weights, mask and product, 3 N S. This
    is the formula of Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, equation 1, with the sizes of numbers
    and masks as they are here: 4 bytes, 2 in half precision; a mask takes 1 byte on a GPU, and a number on a CPU. The
    backward pass also needs the gradients of one layer.

    With gradient checkpointing, a layer keeps only its input, H, except for the layer in progress.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
    """
    config: Any = workload.config.get_text_config()
    hidden, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 0)
    num_layers = getattr(config, "num_hidden_layers", 0) * (2 if workload.config.is_encoder_decoder else 1)
    if not hidden or not num_layers:  # such as Perceiver
        return 0.0
    sizes = [size for name in INTERMEDIATE_FIELDS if (size := getattr(config, name, None))]
    intermediate = sizes[0] if sizes else 4 * hidden
    num_kept = num_layers if workload.num_layers is None else workload.num_layers
    number = 4 if precision == "fp32" else 2
    mask = number if on_cpu else 1
    matrices = 4 if config.model_type in GATED_FAMILIES else 2
    layer = (8 * hidden + matrices * intermediate) * number + (2 * hidden * mask if _has_dropout(config) else 0)
    attention_dropout = getattr(config, "attention_probs_dropout_prob", getattr(config, "attention_dropout", 0)) or 0
    if config.model_type in UNFUSED_FAMILIES or (on_cpu and attention_dropout > 0):
        layer += (3 if attention_dropout else 1) * heads * workload.length * number
    layer_input = hidden * number
    kept = num_kept * layer_input + layer if checkpointing and num_kept else num_kept * layer
    embeddings = 4 * hidden * number
    logits = workload.logits_per_token * config.vocab_size * (number + 4) if workload.logits_per_token else 0
    gradients = layer if num_kept else 0
    return workload.num_sequences * workload.length * (kept + embeddings + logits + gradients)


def _has_dropout(config: PretrainedConfig) -> bool:
    from bertcli.models.from_pretrained import DROPOUT_FIELDS

    return any(getattr(config, name, 0) for name in DROPOUT_FIELDS)


def available_memory(hardware: HardwareSection, num_processes: int = 1) -> float | None:
    """Return the memory, in bytes, that a process may still allocate on its device; None if it is unknown.

    On a CPU, that is its share of the free memory of the machine, or of its container if that has less.
    """
    import torch

    if uses_cpu(hardware):
        limits = [size for size in (_machine_memory(), container_memory()) if size is not None]
        return min(limits) / num_processes if limits else None
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    if torch.backends.mps.is_available():
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def _machine_memory(file: Path = Path("/proc/meminfo")) -> float | None:
    """Return the memory of the machine, in bytes, that can be allocated without swapping; None if it is unknown."""
    if not file.is_file():
        return None
    values = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return float(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def container_memory(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the memory, in bytes, that control groups leave to this process; None if there are no limits."""
    left = []
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" else 1
        if version == 2 or "memory" in controllers.split(","):
            top = root if version == 2 else root / "memory"
            group = top / path.lstrip("/")
            groups = [group, *(parent for parent in group.parents if parent == top or top in parent.parents)]
            left += [size for folder in groups if (size := _group_memory(folder, *GROUP_FILES[version])) is not None]
    return min(left, default=None)


def _group_memory(group: Path, limit_name: str, usage_name: str, cached_name: str) -> float | None:
    """Return the memory that a control group has left, in bytes; None if it has no limit."""
    try:
        limit, usage = (int((group / name).read_text()) for name in (limit_name, usage_name))
        statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        return limit - usage + int(statistics.get(cached_name, 0))  # cached files are dropped if memory runs short
    except (OSError, ValueError):  # no such group, or the limit is `max`
        return None
