#!/usr/bin/env bash
# Sets up .venv if need be and runs the tests; arguments are passed on to pytest, paths are relative to the checkout.
set -euo pipefail
# shellcheck source=setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$root"
echo "Tests marked 'slow' are left out; run them with: bash scripts/test.sh -m slow"
# One process per core with one thread each: two threads per process on busy cores are many times slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
