#!/usr/bin/env bash
# Data-parallel on one machine: every accelerator has a process, or as many processes as NPROC says.
#
#     bash scripts/torchrun.sh run cifar10 --out runs
#     NPROC=2 bash scripts/torchrun.sh run --resume runs/RUN
#
# Arguments are those of `robust-nas`. The interpreter is the checkout's .venv, or ROBUST_NAS_PYTHON's.
# MAX_RESTARTS is how often torchrun begins anew after a process is lost (0); give it a command that goes on, --resume.
set -euo pipefail
# shellcheck source=setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
[ $# -gt 0 ] || fail "Say what to run, such as: bash scripts/torchrun.sh run digits"
if [ -z "${NPROC:-}" ]; then
  NPROC=$("$python" -P -c "import torch; print(max(torch.cuda.device_count(), 1))")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -P -m torch.distributed.run --standalone --nproc-per-node="$NPROC" \
  --max-restarts="${MAX_RESTARTS:-0}" -m robust_nas "$@"
