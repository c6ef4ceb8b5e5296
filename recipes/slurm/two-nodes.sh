#!/bin/bash
# bertcli submit pretrain/bert-base --nodes 2 --gpus 4 --cpus 8 --time 2-00:00:00 --sbatch account=ours --sbatch mem=64G --print
#SBATCH --job-name=pretrain-bert-base
#SBATCH --chdir=/home/me/project
#SBATCH --output=/home/me/project/runs/pretrain-bert-base/slurm/%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --account=ours
#SBATCH --mem=64G

export HF_HUB_OFFLINE=1  # compute nodes have no network

# The run is told to save and stop: ahead of the end of the job's time, and when another job is to have its place.
trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
srun --export=ALL --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 /home/me/project/.venv/bin/python -m bertcli.cli pretrain runs/pretrain-bert-base/recipe.yaml --run runs/pretrain-bert-base &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 85, 143: saved and stopped; 138: stopped before it could hear. It goes on from the queue, unless it was cancelled.
job=$SLURM_JOB_ID
if [[ $code =~ ^(85|138|143)$ && $(squeue --noheader --jobs=$job --format=%T) == RUNNING ]]; then
    scontrol requeue $job
fi
exit $code
