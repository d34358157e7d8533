#!/usr/bin/env bash
#SBATCH --job-name=robust-nas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# A job on many machines, in one of two ways; options of sbatch go before the script, those of robust-nas behind it.
#
# Data-parallel: a torchrun per node, a process per accelerator, one group of all.
#     sbatch --nodes=4 scripts/slurm.sh parallel run cifar10 --out /shared/runs
#     sbatch --nodes=4 scripts/slurm.sh parallel run --resume /shared/runs/RUN
#
# Trials: the search in the first task, and in every other one a worker that takes trials from the storage.
#     sbatch --ntasks=16 --nodes=4 --ntasks-per-node=4 --gpus-per-task=1 scripts/slurm.sh trials \
#         journal:///shared/trials.log robust-resnet-small --data cifar10 --out /shared/runs search.num_parallel=16
# The storage is a file in a folder that all nodes share, or a database: postgresql://user@host/base with its password
# in ROBUST_NAS_STORAGE_PASSWORD, which sbatch hands on. Workers end with the search.
#     sbatch ... scripts/slurm.sh trials STORAGE --resume /shared/runs/RUN
#
# Slurm sends SIGTERM 120 s before the time is over: what has been done is saved, and the log has the command that goes on.
set -euo pipefail

usage="usage: sbatch [OPTIONS] scripts/slurm.sh parallel VERB ... | trials STORAGE SPACE --data NAME ..."

# Slurm runs a copy of this script; the checkout is where sbatch was called, unless ROBUST_NAS_ROOT says otherwise.
root=${ROBUST_NAS_ROOT:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}}
python=${ROBUST_NAS_PYTHON:-$root/.venv/bin/python}

fail() {
  echo "$1" >&2
  exit 2
}

# In each task of the job: `slurm.sh --task WAY ...`.
if [ "${1:-}" = --task ]; then
  way=$2
  shift 2
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  case $way in
    parallel)
      per_node=${SLURM_GPUS_ON_NODE:-${NPROC:-1}}
      exec "$python" -P -m torch.distributed.run --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" \
        --nproc-per-node="$per_node" --master-addr="$ROBUST_NAS_HOST" --master-port="$ROBUST_NAS_PORT" \
        --max-restarts="${MAX_RESTARTS:-0}" -m robust_nas "$@"
      ;;
    trials)
      storage=$1
      shift
      if [ "$SLURM_PROCID" != 0 ]; then
        exec "$python" -P -m robust_nas work "$storage" ${STUDY:+--study "$STUDY"}
      elif [ "$1" = --resume ]; then
        exec "$python" -P -m robust_nas search "$2"
      fi
      exec "$python" -P -m robust_nas search "$@" --storage "$storage" ${STUDY:+--study "$STUDY"}
      ;;
  esac
fi

[ $# -ge 2 ] || fail "$usage"
[ -n "${SLURM_JOB_ID:-}" ] || fail "This script is for sbatch: sbatch scripts/slurm.sh ...; on one machine: bash scripts/torchrun.sh ..."
[ -x "$python" ] || fail "$python is not there; run 'bash scripts/run.sh' once in $root, or name an interpreter in ROBUST_NAS_PYTHON."

task=${ROBUST_NAS_SCRIPT:-$root/scripts/slurm.sh}
case $1 in
  parallel)
    # Not by `head`: what it leaves unread would end this script, by SIGPIPE.
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    ROBUST_NAS_HOST=${hosts%%$'\n'*}
    # A port of the job's own: two jobs may have the same first node.
    ROBUST_NAS_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export ROBUST_NAS_HOST ROBUST_NAS_PORT
    exec srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash "$task" --task "$@"
    ;;
  trials)
    [ $# -ge 3 ] || fail "$usage"
    # A study of the job's own name, so that its workers find it among others; the same after a requeue.
    export STUDY=${STUDY:-slurm-$SLURM_JOB_ID}
    # One worker that is lost costs its trial some time; the others go on.
    exec srun --kill-on-bad-exit=0 bash "$task" --task "$@"
    ;;
  *) fail "$usage" ;;
esac
