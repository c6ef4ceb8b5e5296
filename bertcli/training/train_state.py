"""The model and optimizer of a run on the devices of all processes: built, restored, and saved to checkpoints."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.numpy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from safetensors import SafetensorError, safe_open

from bertcli.console import Console
from bertcli.errors import DiskError, RunFolderError, UsageError
from bertcli.files import (
    MANIFEST,
    fsync,
    hash_files,
    manifest_problem,
    replace_folder,
    restore_folder,
    write_bytes,
    write_manifest,
)
from bertcli.models.compile import compile_layers
from bertcli.models.freezing import all_encoder_layers
from bertcli.models.gradient_checkpointing import checkpoint_layers
from bertcli.models.padding_free import optimize_forward
from bertcli.models.seen_embeddings import train_seen_rows_only
from bertcli.runs.checkpoint import (
    Progress,
    checkpoint_of_step,
    get_rng_states,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from bertcli.runs.claim import check_same_models
from bertcli.runs.folder import RunFolder
from bertcli.training.fsdp import copy_full_parameters, full_optimizer_state, load_full_optimizer_state, shard
from bertcli.training.job import Job, Logits
from bertcli.training.optimizer import build_optimizer


def find_progress(job: Job, folder: RunFolder, warn: Callable[[str], None]) -> tuple[Path | None, Progress]:
    """Return the newest intact checkpoint of a run and its progress, or None and no progress; write nothing.

    The progress has the fingerprint of the job's data, of which earlier versions saved nothing or only the first part.

    Args:
        warn: called with a message for each newer checkpoint that is corrupt.

    Raises:
        RunFolderError: if the data of the job, or a model that it started or learns from, have changed since the
            checkpoint.
        DiskError: if all checkpoints are corrupt.
    """
    checkpoint = newest_checkpoint(folder.checkpoints, warn)
    progress, fingerprint = read_progress(checkpoint) if checkpoint else Progress(), job.data_fingerprint
    saved = fingerprint if progress.data_fingerprint is None else progress.data_fingerprint
    parts = [*zip_longest(saved.split(), fingerprint.split(), fillvalue="")]  # one for each task
    if not all(earlier and now.startswith(earlier) for earlier, now in parts):
        raise RunFolderError(
            f"{folder.path} cannot be resumed: its training or validation data have changed since step "
            f"{progress.step}. Restore them, choose another folder with --run, or start over with --overwrite"
        )
    check_same_models(folder.path, progress.start_models, job.start_models)
    progress.data_fingerprint = fingerprint
    progress.start_models = {**job.start_models} or progress.start_models
    return checkpoint, progress


class TrainState:
    """A model with its optimizer and progress, new or restored from the newest checkpoint."""

    def __init__(self, job: Job, folder: RunFolder, accelerator: Accelerator, precision: str, console: Console):
        self._job, self._folder, self._accelerator, self._console = job, folder, accelerator, console
        training, hardware = job.recipe.training, job.recipe.hardware
        set_seed(job.seed)
        checkpoint, self.progress = find_progress(job, folder, console.warn)
        self.module = job.build_model(console if checkpoint is None else Console(mute=True))
        self.num_parameters = job.model_to_save(self.module).num_parameters()
        self.num_trainable_parameters = sum(part.numel() for part in self.module.parameters() if part.requires_grad)
        seen_ids = job.seen_token_ids()
        if seen_ids is not None:
            train_seen_rows_only(self.module, seen_ids)
        self._full_module: torch.nn.Module | None = None  # for saving, if the module is sharded
        # Before the weights are loaded, because it may load different ones.
        self.ensure_best_model(
            skipped_newer=checkpoint is not None and checkpoint < list_checkpoints(folder.checkpoints)[-1]
        )
        saved = load_checkpoint(checkpoint, self.module) if checkpoint else None
        is_sharded = hardware.shard and accelerator.num_processes > 1
        if hardware.shard and not is_sharded:
            console.warn("hardware.shard has no effect in a single process; nothing is sharded")
        if is_sharded and precision == "fp16":
            raise UsageError("hardware.shard does not support fp16; set hardware.precision=bf16 or fp32")
        if is_sharded:
            self._full_module = copy.deepcopy(self.module)
        optimize_forward(self.module, accelerator.device)
        if job.plan.gradient_checkpointing:
            checkpoint_layers(self.module)
        if hardware.compile is True and not compile_layers(self.module):
            console.warn("hardware.compile does not support the layers of this model; nothing is compiled")
        if is_sharded:
            shard(self.module, all_encoder_layers(self.module), accelerator.device, precision)
        optimizer = build_optimizer(
            self.module,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            betas=(training.adam_beta1, training.adam_beta2),
            epsilon=training.adam_epsilon,
            lr_scales=job.lr_scales(self.module),
        )
        self.model = self.module if is_sharded else accelerator.prepare_model(self.module)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        if saved:
            load_full_optimizer_state(optimizer, saved.optimizer)
            if accelerator.scaler is not None and saved.scaler:
                accelerator.scaler.load_state_dict(saved.scaler)
            if accelerator.process_index < len(saved.rng_states):
                saved.restore_rng_states(accelerator.process_index)
            else:  # a new process: with another one's state, both would draw the same dropout masks
                set_seed(job.seed + self.progress.step, device_specific=True)
            console.say(f"resuming {folder.path} after step {self.progress.step}")
        else:
            # Dropout must not depend on how the weights were initialized, and must differ between processes.
            set_seed(job.seed, device_specific=True)

    def save_model(self, validation_logits: Logits) -> None:
        """Save this model, the best so far, and its logits. All processes must call it together.

        It replaces the earlier best model in `model/` only after the checkpoint of its step: if the run is killed
        before, it resumes from an earlier checkpoint, which names the earlier model as the best.
        """
        module = self._full()
        if not self._accelerator.is_main_process:
            return
        self._write_model(module, self.progress.step)
        if validation_logits:
            content = safetensors.numpy.save(validation_logits, {"step": str(self.progress.step)})
            write_bytes(self._folder.validation_logits, [content])

    def validation_logits(self) -> Logits:
        """Return the logits of the evaluation that selected the best model; none if they were not kept.

        All processes must call it together.
        """
        logits: Logits = {}
        if self._accelerator.is_main_process:
            with suppress(OSError, SafetensorError), safe_open(self._folder.validation_logits, "numpy") as file:
                # After a crash while saving, or if the model was restored, the file may belong to another step.
                if file.metadata() == {"step": str(self.progress.best_step)}:
                    logits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return broadcast_object_list([logits])[0]

    def _write_model(self, module: torch.nn.Module, step: int) -> None:
        folder = self._folder.unpublished_model(step)
        shutil.rmtree(folder, ignore_errors=True)
        self._job.save_model(module, folder)
        write_manifest(folder)
        self.progress.best_model = hash_files({MANIFEST: folder / MANIFEST})

    def publish_model(self) -> None:
        """Replace `model/` with the model of the best step if that is not published yet; for the main process."""
        step = self.progress.best_step
        if step is not None and self._folder.unpublished_model(step).is_dir():
            replace_folder(self._folder.unpublished_model(step), self._folder.model)
            fsync(self._folder.path)

    def ensure_best_model(self, *, skipped_newer: bool = False) -> None:
        """Check the saved best model; if it is damaged or was replaced, restore it from the checkpoint of its step.

        Restoring replaces the weights in memory. If there is no such checkpoint of a model that was replaced, the best
        model is chosen among those of the remaining steps. All processes must call it together.

        Args:
            skipped_newer: whether the run resumes before a corrupt checkpoint, whose model may have replaced the best
                one.

        Raises:
            DiskError: if the model is damaged, and there is no intact checkpoint of its step.
        """
        step = self.progress.best_step
        if step is None:
            return
        checkpoint = checkpoint_of_step(self._folder.checkpoints, step)
        state = "damaged"
        problem, can_restore = None, False
        if self._accelerator.is_main_process:
            restore_folder(self._folder.model)
            self.publish_model()  # if the run was killed after the checkpoint of that step
            problem = self._folder.model_problem()
            if problem is None and skipped_newer and self.progress.best_model != self._published_hash():
                state, problem = "replaced", "by that of a later step, whose checkpoint is corrupt"
            can_restore = problem is not None and manifest_problem(checkpoint) is None
        state, problem, can_restore = broadcast_object_list([state, problem, can_restore])
        if problem is None:
            return
        message = f"the best model in {self._folder.model} (step {step}) is {state} ({problem})"
        if not can_restore and state == "replaced":
            self.progress.best_score = self.progress.best_loss = None
            self.progress.best_step = self.progress.best_model = None
            self.progress.evals_without_improvement = 0
            self._console.warn(
                f"{message}; the best model will be chosen among those of steps after {self.progress.step}"
            )
            return
        if not can_restore:
            raise DiskError(
                f"{message}, and there is no intact checkpoint of that step. To start over, remove the run or use "
                "--overwrite."
            )
        if self._accelerator.is_main_process:
            module = self.module if self._full_module is None else self._full_module
            load_weights(checkpoint, module)
            self._write_model(module, step)
            self.publish_model()
        self._console.warn(f"{message}; restored it from {checkpoint.name}")
        self._accelerator.wait_for_everyone()

    def _published_hash(self) -> str | None:
        manifest = self._folder.model / MANIFEST
        return hash_files({MANIFEST: manifest}) if manifest.is_file() else None

    def save_checkpoint(self) -> None:
        """Write a checkpoint. All processes must call it together."""
        states: list[dict[str, Any]] = gather_object([get_rng_states()])
        module, optimizer = self._full(), full_optimizer_state(self.optimizer.optimizer)
        scaler = self._accelerator.scaler
        if self._accelerator.is_main_process:
            save_checkpoint(
                self._folder.checkpoints,
                self.progress,
                module,
                optimizer,
                scaler and scaler.state_dict(),
                states,
                keep=self._job.recipe.evaluation.keep_checkpoints,
            )
            self.publish_model()
        self._accelerator.wait_for_everyone()

    def _full(self) -> torch.nn.Module:
        """Return the trained module with full, unsharded weights."""
        if self._full_module is None:
            return self.module
        copy_full_parameters(self.module, self._full_module)
        return self._full_module
