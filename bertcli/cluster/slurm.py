"""Build Slurm batch scripts as text: a single job, or a job array whose tasks run different `bertcli` commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bertcli.errors import UsageError

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
MAX_SIGNAL_LEAD_SECONDS = 600
DEFAULT_SIGNAL_LEAD_SECONDS = 300  # for a job with the default time limit of its partition

RUN_AND_REQUEUE = """\
# Ask the run to save and stop shortly before the time limit, and when the job is preempted.
trap 'stop=1; kill -USR1 "$step" 2>/dev/null' USR1 TERM
{command} &
step=$!
[[ -z $stop ]] || kill -USR1 "$step" 2>/dev/null  # a signal came before `step` was set
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 85, 143: saved and stopped; 138: stopped before its signal handler was set. Requeue it, unless the job was cancelled.
job={job}
if [[ $code =~ ^(85|138|143)$ && $(squeue --noheader --jobs=$job --format=%T) == RUNNING ]]; then
    scontrol requeue $job
fi
exit $code
"""


class JobCommand(NamedTuple):
    """One `bertcli` command to run in a job."""

    name: str
    arguments: Sequence[str]  # after `bertcli`


@dataclass(frozen=True)
class JobResources:
    """Resources to request for each job; None leaves a setting to the cluster.

    A job runs one process per GPU, or one per node if it has no GPUs.
    """

    nodes: int = 1
    gpus: int = 1  # per node
    cpus: int | None = None  # cores per process
    time: str | None = None  # time limit, in Slurm's format
    partition: str | None = None
    extra_directives: tuple[str, ...] = ()  # sbatch options without dashes, such as `account=ours`


@dataclass(frozen=True)
class JobEnvironment:
    """Where and how jobs run; all paths are absolute."""

    working_dir: Path
    log_dir: Path
    program: tuple[str, ...]  # the command line that starts `bertcli`
    mirror: Path | None = None


def batch_script(
    about: str, commands: Sequence[JobCommand], resources: JobResources, environment: JobEnvironment
) -> str:
    """Build the script of a job that runs one command, or of a job array with one task per command.

    A job that is preempted or reaches its time limit saves a checkpoint, is requeued and resumes.

    Args:
        about: what the script is for, written as a comment at its top.

    Raises:
        UsageError: if a requested resource is not valid for Slurm.
    """
    is_array = len(commands) > 1
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if is_array else "$SLURM_JOB_ID"
    srun = ["srun", "--export=ALL", "--kill-on-bad-exit=0", "--wait=60"]
    srun += [f"--cpus-per-task={resources.cpus}"] if resources.cpus else []
    program = shlex.join([*srun, *environment.program])
    arguments = '"${arguments[@]}"' if is_array else shlex.join(commands[0].arguments)
    lines = [
        "#!/bin/bash",
        *(f"# {line}" for line in about.splitlines()),
        *_directives(len(commands), resources, environment),
        "",
        "export HF_HUB_OFFLINE=1  # compute nodes have no network",
        *([f"export BERTCLI_MIRROR={shlex.quote(str(environment.mirror))}"] if environment.mirror else []),
        "",
        *(_select_arguments(commands) if is_array else []),
        RUN_AND_REQUEUE.format(command=f"{program} {arguments}", job=job),
    ]
    return "\n".join(lines)


def _directives(num_tasks: int, resources: JobResources, environment: JobEnvironment) -> list[str]:
    """Build the `#SBATCH` lines; sbatch does not expand variables in them."""
    is_array = num_tasks > 1
    log_dir = str(environment.log_dir).replace("%", "%%")
    directives: dict[str, object] = {
        "job-name": environment.log_dir.parent.name,
        "chdir": environment.working_dir,
        "output": f"{log_dir}/%A_%a.log" if is_array else f"{log_dir}/%j.log",
        "open-mode": "append",
        "nodes": resources.nodes,
        "ntasks-per-node": max(1, resources.gpus),
        "gpus-per-node": resources.gpus or None,
        "cpus-per-task": resources.cpus,
        "time": resources.time,
        "partition": resources.partition,
        "array": f"0-{num_tasks - 1}" if is_array else None,
        "requeue": "",
        "signal": f"B:USR1@{signal_lead_seconds(resources.time)}",
    }
    for directive in resources.extra_directives:
        name, _, value = directive.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UsageError(f"found --sbatch {directive!r}, expected an sbatch option such as account=ours")
        if name in directives:
            raise UsageError(f"--sbatch {directive!r} is not allowed: `bertcli submit` sets {name}")
        directives[name] = value
    lines = []
    for name, setting in directives.items():
        if setting is not None:
            lines.append(f"#SBATCH --{name}" + (f"={shlex.quote(str(setting))}" if setting != "" else ""))
    multiline = [line for line in lines if "\n" in line]
    if multiline:
        raise UsageError(f"found {multiline[0]!r}, expected an sbatch option without line breaks")
    return lines


def _select_arguments(commands: Sequence[JobCommand]) -> list[str]:
    """Build the shell lines that set `arguments` for each task of an array."""
    cases = [
        f"  {index}) arguments=({shlex.join(command.arguments)}) ;;  # {command.name}"
        for index, command in enumerate(commands)
    ]
    return ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac", ""]


def signal_lead_seconds(time: str | None) -> int:
    """Return how many seconds before its time limit a job is asked to stop: 10% of the limit, at most 600.

    Raises:
        UsageError: if `time` is not in Slurm's format.
    """
    if time is None:
        return DEFAULT_SIGNAL_LEAD_SECONDS
    match = TIME.fullmatch(time)
    if match is None:
        raise UsageError(
            f"found --time {time}, expected minutes (90), hours:minutes:seconds (1:30:00) "
            "or days-hours:minutes:seconds (2-00:00:00)"
        )
    fields = [int(field) for field in match["fields"].split(":")]
    units = (3600, 60, 1) if match["days"] or len(fields) == 3 else (60, 1)
    seconds = int(match["days"] or 0) * 86400 + sum(field * unit for field, unit in zip(fields, units, strict=False))
    if seconds < 60:
        raise UsageError(f"found --time {time}, expected at least one minute")
    return min(MAX_SIGNAL_LEAD_SECONDS, seconds // 10)
