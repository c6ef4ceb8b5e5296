#!/bin/bash
# Pretrain on two nodes with four GPUs each, one process per GPU; requeued and resumed when it reaches its time limit.
#   sbatch recipes/slurm/two-nodes.sh pretrain/bert-base --run runs/base
# Submit from the folder that contains runs/ (and mirror/), shared by all nodes, with bertcli on the PATH.
#SBATCH --job-name=two-nodes
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

export HF_HUB_OFFLINE=1  # compute nodes have no network
if [ -d mirror ]; then export BERTCLI_MIRROR=$PWD/mirror; fi  # filled by `bertcli fetch RECIPE --mirror mirror`

# Ask the run to save and stop shortly before the time limit, and when the job is preempted.
trap 'stop=1; kill -USR1 "$step" 2>/dev/null' USR1 TERM
srun --export=ALL --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 bertcli pretrain "$@" &
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
