"""Batch scripts for Slurm, as text: one job, or an array of them that do the same with other words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertcli.errors import UsageError

Task = tuple[str, Sequence[str]]  # its name, and the words behind `bertcli`
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
MOST_SECONDS_AHEAD = 600
SECONDS_AHEAD = 300  # where nobody said how long the job may take

WAIT = """\
# The run is told to save and stop: ahead of the end of the job's time, and when another job is to have its place.
trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
{command} &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 85, 143: saved and stopped; 138: stopped before it could hear. It goes on from the queue, unless it was cancelled.
job={job}
if [[ $code =~ ^(85|138|143)$ && $(squeue --noheader --jobs=$job --format=%T) == RUNNING ]]; then
    scontrol requeue $job
fi
exit $code
"""


@dataclass(frozen=True)
class Request:
    """What each job asks the cluster for.

    There is one process a GPU, or one a node without. `time` is as Slurm writes it; `further` holds directives without
    their dashes, such as `account=ours`. None leaves it to the cluster.
    """

    nodes: int = 1
    gpus: int = 1  # on each node
    cpus: int | None = None  # cores of each process
    time: str | None = None
    partition: str | None = None
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where jobs run; no path is relative."""

    folder: Path  # the current folder
    logs: Path
    program: tuple[str, ...]  # the words that start `bertcli`
    mirror: Path | None = None


def batch_script(about: str, tasks: Sequence[Task], request: Request, place: Place) -> str:
    """The script of one task, or of an array with several.

    A run that is stopped ahead of the end of its time, or for another job, goes back into the queue and on from there.

    Args:
        about: what the script is for, as its first words.

    Raises:
        UsageError: something of the request is not as Slurm writes it.
    """
    is_array = len(tasks) > 1
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if is_array else "$SLURM_JOB_ID"
    start = ["srun", "--export=ALL", "--kill-on-bad-exit=0", "--wait=60"]
    start += [f"--cpus-per-task={request.cpus}"] if request.cpus else []
    command = shlex.join([*start, *place.program])
    words = '"${words[@]}"' if is_array else shlex.join(tasks[0][1])
    parts = [
        "#!/bin/bash",
        *(f"# {line}" for line in about.splitlines()),
        *_directives(tasks, request, place),
        "",
        "export HF_HUB_OFFLINE=1  # compute nodes have no network",
        *([f"export BERTCLI_MIRROR={shlex.quote(str(place.mirror))}"] if place.mirror else []),
        "",
        *(_choice(tasks) if is_array else []),
        WAIT.format(command=f"{command} {words}", job=job),
    ]
    return "\n".join(parts)


def _directives(tasks: Sequence[Task], request: Request, place: Place) -> list[str]:
    """The lines that `sbatch` reads; it expands no variable in them."""
    processes = max(1, request.gpus)
    logs = str(place.logs).replace("%", "%%")
    wanted: dict[str, object] = {
        "job-name": place.logs.parent.name,
        "chdir": place.folder,
        "output": f"{logs}/%A_%a.log" if len(tasks) > 1 else f"{logs}/%j.log",
        "open-mode": "append",
        "nodes": request.nodes,
        "ntasks-per-node": processes,
        "gpus-per-node": request.gpus or None,
        "cpus-per-task": request.cpus,
        "time": request.time,
        "partition": request.partition,
        "array": f"0-{len(tasks) - 1}" if len(tasks) > 1 else None,
        "requeue": "",
        "signal": f"B:USR1@{seconds_ahead(request.time)}",
    }
    for word in request.further:
        name, _, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UsageError(f"found --sbatch {word!r}, expected a directive of sbatch, such as account=ours")
        if name in wanted:
            raise UsageError(f"found --sbatch {word!r}, but `bertcli submit` sets {name} itself")
        wanted[name] = value
    lines = []
    for name, setting in wanted.items():
        if setting is not None:
            lines.append(f"#SBATCH --{name}" + (f"={shlex.quote(str(setting))}" if setting != "" else ""))
    broken = [line for line in lines if "\n" in line]
    if broken:
        raise UsageError(f"found {broken[0]!r}, expected no line break in what sbatch is to read")
    return lines


def _choice(tasks: Sequence[Task]) -> list[str]:
    """The lines that give each task of an array its words."""
    cases = [f"  {number}) words=({shlex.join(words)}) ;;  # {name}" for number, (name, words) in enumerate(tasks)]
    return ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac", ""]


def seconds_ahead(time: str | None) -> int:
    """How long before the end of a job of so much time it is told to stop: a tenth of it, at most ten minutes.

    Raises:
        UsageError: the time is not as Slurm writes it.
    """
    if time is None:
        return SECONDS_AHEAD
    found = TIME.fullmatch(time)
    if found is None:
        raise UsageError(
            f"found --time {time}, expected minutes (90), hours:minutes:seconds (1:30:00) "
            "or days-hours:minutes:seconds (2-00:00:00)"
        )
    fields = [int(field) for field in found["fields"].split(":")]
    units = (3600, 60, 1) if found["days"] or len(fields) == 3 else (60, 1)
    seconds = int(found["days"] or 0) * 86400 + sum(a * b for a, b in zip(fields, units, strict=False))
    if seconds < 60:
        raise UsageError(f"found --time {time}, expected a minute or more")
    return min(MOST_SECONDS_AHEAD, seconds // 10)
