#!/usr/bin/env bash
# An archive of photos, films and tars labelled on SLURM: task i of the array takes the i-th of equal
# shares and writes parts of its own into one folder. Preempted, failed or out of time, a task goes on
# where it was: SLURM queues it again, or the same command is submitted again.
#
#   sbatch --array=1-16 scripts/slurm_predict.sh input=photos/ out=faces.parquet
#   sbatch --array=1-16 --gpus-per-task=1 scripts/slurm_predict.sh input=shards/ out=faces.parquet
#
#SBATCH --job-name=qcs-predict
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

srun python -m qcs.predict "$@" shard=auto
