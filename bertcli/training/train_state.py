"""What learns in a run: the job's model and its optimiser on the devices of all processes, and how they are kept."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from bertcli.console import Console
from bertcli.errors import UsageError
from bertcli.files import flush, replace_folder
from bertcli.models.compile import compile_layers
from bertcli.models.freezing import all_layers
from bertcli.models.padding_free import speed_up
from bertcli.models.seen_embeddings import learn_met_rows
from bertcli.runs.checkpoint import Progress, load_checkpoint, newest_checkpoint, random_states, save_checkpoint
from bertcli.runs.folder import RunFolder
from bertcli.training.fsdp import copy_whole, load_whole_state, shard, whole_state
from bertcli.training.job import Job
from bertcli.training.optimizer import build_optimizer


class Learner:
    """A model and its optimiser, as new or as the newest checkpoint left them."""

    def __init__(self, job: Job, folder: RunFolder, accelerator: Accelerator, precision: str, console: Console):
        self._job, self._folder, self._accelerator = job, folder, accelerator
        training, hardware = job.recipe.training, job.recipe.hardware
        set_seed(job.seed)
        self.module = job.build_model()
        self.num_parameters = job.model_to_save(self.module).num_parameters()
        self.num_learning = sum(part.numel() for part in self.module.parameters() if part.requires_grad)
        met = job.met_ids()
        if met is not None:
            learn_met_rows(self.module, met)
        checkpoint = newest_checkpoint(folder.checkpoints, console.warn)
        saved = load_checkpoint(checkpoint, self.module) if checkpoint else None
        is_divided = hardware.shard and accelerator.num_processes > 1
        if hardware.shard and not is_divided:
            console.warn("hardware.shard divides a model among processes, and there is one: nothing is divided")
        if is_divided and precision == "fp16":
            raise UsageError("found hardware.shard with fp16, expected hardware.precision=bf16 or fp32")
        self._twin = copy.deepcopy(self.module) if is_divided else None  # undivided, for saving
        speed_up(self.module, accelerator.device)
        if hardware.compile is True and not compile_layers(self.module):
            console.warn("hardware.compile knows no layers of this model: nothing is compiled")
        if is_divided:
            shard(self.module, all_layers(self.module), accelerator.device, precision)
        optimizer = build_optimizer(
            self.module,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            betas=(training.adam_beta1, training.adam_beta2),
            epsilon=training.adam_epsilon,
            rate_factors=job.rate_factors(self.module),
        )
        self.model = self.module if is_divided else accelerator.prepare_model(self.module)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.progress = saved.progress if saved else Progress()
        if saved:
            load_whole_state(optimizer, saved.optimizer)
            if accelerator.scaler is not None and saved.scaler:
                accelerator.scaler.load_state_dict(saved.scaler)
            if accelerator.process_index < len(saved.states):
                saved.set_random_states(accelerator.process_index)
            else:  # it was not there before; no other's numbers, or both would drop the same units
                set_seed(job.seed + self.progress.step, device_specific=True)
            console.say(f"resuming {folder.path} after step {self.progress.step}")
        else:
            # Dropout does not depend on how the weights were made, and differs between processes.
            set_seed(job.seed, device_specific=True)

    def save_model(self) -> None:
        """Put the model in the place of the best one; all processes have to ask together."""
        module = self._whole()
        if not self._accelerator.is_main_process:
            return
        aside = self._folder.path / ".model.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        self._job.save_model(module, aside)
        flush(*aside.rglob("*"), aside)
        replace_folder(aside, self._folder.model)
        flush(self._folder.path)

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the progress made; all processes have to ask together."""
        states: list[dict[str, Any]] = gather_object([random_states()])
        module, optimizer, scaler = self._whole(), whole_state(self.optimizer.optimizer), self._accelerator.scaler
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
        self._accelerator.wait_for_everyone()

    def _whole(self) -> torch.nn.Module:
        """What is trained, undivided."""
        if self._twin is None:
            return self.module
        copy_whole(self.module, self._twin)
        return self._twin
