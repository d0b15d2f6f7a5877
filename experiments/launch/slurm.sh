#!/bin/bash
# One run on several nodes, a process a GPU. Submit with: sbatch experiments/launch/slurm.sh
# Submit it once: it comes back by itself until the run is done.
#SBATCH --job-name=carve
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue                  # also when a node is lost
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300          # five minutes before the time is over: save and exit with 143

WORKDIR=${WORKDIR:-$HOME/runs/carve_1b3}   # on storage that all nodes share
DATA=${DATA:?the directory that experiments.prepare_data wrote, on all nodes}

# SLURM tells each process which it is. fsdp=-1: parameters are cut over all GPUs there are.
srun --kill-on-bad-exit=0 python -m experiments.train \
  --config=configs/carve_1b3.py --workdir="$WORKDIR" \
  --config.data.source=token_files --config.data.path="$DATA" \
  --config.mesh.fsdp=-1 --distributed
code=$?

# 143: stopped and saved. 75: a peer was lost. 134: the same, found by JAX's heartbeat.
# All else is done (0) or would come back: 2 is a mistake to mend, 3 a run that diverged.
case $code in 75 | 134 | 143) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit $code
