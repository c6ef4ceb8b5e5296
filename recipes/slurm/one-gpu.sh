#!/bin/bash
# bertcli submit glue/sst2 training.seed=1 --time 2:00:00 --partition gpu --print
#SBATCH --job-name=glue-sst2
#SBATCH --chdir=/home/me/project
#SBATCH --output=/home/me/project/runs/glue-sst2/slurm/%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=2:00:00
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

export HF_HUB_OFFLINE=1  # compute nodes have no network

# The run is told to save and stop: ahead of the end of the job's time, and when another job is to have its place.
trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
srun --export=ALL --kill-on-bad-exit=0 --wait=60 /home/me/project/.venv/bin/python -m bertcli.cli finetune runs/glue-sst2/recipe.yaml --run runs/glue-sst2 &
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
