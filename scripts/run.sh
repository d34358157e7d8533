#!/usr/bin/env bash
# Sets up .venv if need be and runs the main job, `robust-nas run digits`; arguments are passed on.
set -euo pipefail
# shellcheck source=setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
# -P: a folder of the caller's that is called like a package is not taken for it.
exec "$python" -P -m robust_nas run digits "$@"
