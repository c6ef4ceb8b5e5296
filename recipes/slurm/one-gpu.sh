#!/bin/bash
# Fine-tune on one GPU; requeued and resumed when it reaches its time limit or is preempted.
#   sbatch recipes/slurm/one-gpu.sh glue/sst2 training.seed=1 --run runs/one
# Submit from the folder of runs/ (and mirror/), with bertcli on the PATH; `bertcli submit` writes such scripts.
#SBATCH --job-name=one-gpu
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=2:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

export HF_HUB_OFFLINE=1  # compute nodes have no network
if [ -d mirror ]; then export BERTCLI_MIRROR=$PWD/mirror; fi  # filled by `bertcli fetch RECIPE --mirror mirror`

# Ask the run to save and stop shortly before the time limit, and when the job is preempted.
trap 'stop=1; kill -USR1 "$step" 2>/dev/null' USR1 TERM
srun --export=ALL --kill-on-bad-exit=0 --wait=60 bertcli finetune "$@" &
step=$!
[[ -z $stop ]] || kill -USR1 "$step" 2>/dev/null  # a signal came before `step` was set
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 85, 143: saved and stopped; 138: stopped before its signal handler was set. Requeue it, unless the job was cancelled.
job=$SLURM_JOB_ID
if [[ $code =~ ^(85|138|143)$ && $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then
    scontrol requeue "$job"
fi
exit $code
