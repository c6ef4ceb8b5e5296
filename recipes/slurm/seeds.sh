#!/bin/bash
# bertcli submit glue/sst2 'training.seed=[1,2,3,4]' --array --run runs/seeds --time 2:00:00 --partition gpu --print
# Each run is a task of this array; a job that gathers comes after them.
#SBATCH --job-name=seeds
#SBATCH --chdir=/home/me/project
#SBATCH --output=/home/me/project/runs/seeds/slurm/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=2:00:00
#SBATCH --partition=gpu
#SBATCH --array=0-3
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

export HF_HUB_OFFLINE=1  # compute nodes have no network

case $SLURM_ARRAY_TASK_ID in
  0) words=(finetune runs/seeds/recipe.yaml training.seed=1 --run runs/seeds/seed-1) ;;  # seed-1
  1) words=(finetune runs/seeds/recipe.yaml training.seed=2 --run runs/seeds/seed-2) ;;  # seed-2
  2) words=(finetune runs/seeds/recipe.yaml training.seed=3 --run runs/seeds/seed-3) ;;  # seed-3
  3) words=(finetune runs/seeds/recipe.yaml training.seed=4 --run runs/seeds/seed-4) ;;  # seed-4
esac

# The run is told to save and stop: ahead of the end of the job's time, and when another job is to have its place.
trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
srun --export=ALL --kill-on-bad-exit=0 --wait=60 /home/me/project/.venv/bin/python -m bertcli.cli "${words[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 85, 143: saved and stopped; 138: stopped before it could hear. It goes on from the queue, unless it was cancelled.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if [[ $code =~ ^(85|138|143)$ && $(squeue --noheader --jobs=$job --format=%T) == RUNNING ]]; then
    scontrol requeue $job
fi
exit $code

#!/bin/bash
# bertcli submit glue/sst2 'training.seed=[1,2,3,4]' --array --run runs/seeds --time 2:00:00 --partition gpu --print
# Finds the runs of the array finished (else goes on with them) and sums them up.
#SBATCH --job-name=seeds
#SBATCH --chdir=/home/me/project
#SBATCH --output=/home/me/project/runs/seeds/slurm/%j.log
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
srun --export=ALL --kill-on-bad-exit=0 --wait=60 /home/me/project/.venv/bin/python -m bertcli.cli finetune runs/seeds/recipe.yaml --run runs/seeds &
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
