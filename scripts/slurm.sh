#!/usr/bin/env bash
# QCS on SLURM: a run on several nodes, or an array of runs. Preempted or out of time, a run saves,
# is queued again, and goes on where it was.
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 scripts/slurm.sh \
#       experiment=qcs_affectnet8 dataset.path=... backbone.weights=...
#   sbatch --array=0-9 --gpus-per-node=1 scripts/slurm.sh @sweep.txt     # task i runs line i + 1,
#       experiment=qcs_rafdb seed=0 optimizer.lr=3e-6                    # such as this one
#
# To label photos on many machines: scripts/slurm_predict.sh.
#
#SBATCH --job-name=qcs
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

run=runs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
overrides=("$@")
if [[ ${1:-} == @* ]]; then
    line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "${1#@}")
    if [[ -z $line ]]; then
        echo "error: ${1#@} has no line $((SLURM_ARRAY_TASK_ID + 1)); shorten --array" >&2
        exit 2
    fi
    read -ra overrides <<<"$line"
    overrides+=("${@:2}")
    run+=/$SLURM_ARRAY_TASK_ID
fi

srun python -m qcs.train "${overrides[@]}" trainer=ddp trainer.num_nodes="$SLURM_JOB_NUM_NODES" \
    trainer.devices="$SLURM_NTASKS_PER_NODE" hydra.run.dir="$run" ckpt=auto
status=$?
if [[ $status == 143 ]]; then # stopped by SIGTERM, saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
