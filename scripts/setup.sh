# shellcheck shell=bash
# Sourced by run.sh, test.sh and .ci/run: `set_up` leaves in $python an interpreter that has robust-nas installed.
#
# The environment is .venv in the checkout, made with the newest Python on PATH from 3.11 on. An environment of one's
# own (a container, a cluster's modules) is used instead, as it is, if ROBUST_NAS_PYTHON names its interpreter.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "$1" >&2
  exit 2
}

# set_up [EXTRA]: installs the package with an optional extra of setup.cfg, unless that is done already.
set_up() {
  local extra=${1:-}
  if [ -n "${ROBUST_NAS_PYTHON:-}" ]; then
    python=$ROBUST_NAS_PYTHON
    "$python" -P -c "import robust_nas" 2>/dev/null ||
      fail "ROBUST_NAS_PYTHON is $python, which cannot import robust_nas; install it there with '$python -m pip install -e \"${root}[dev]\"', or unset ROBUST_NAS_PYTHON."
    return
  fi
  python=$root/.venv/bin/python
  is_installed "$extra" && return
  # A second call that comes meanwhile waits here. Closing the file, or dying, unlocks it.
  exec 9>>"$root/.venv.lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    echo "Waiting for another set-up of $root/.venv to end." >&2
    flock 9
  fi
  is_installed "$extra" || install "$extra"
  exec 9>&-
}

# The stamp is what was installed: this checkout, with these dependencies. It is written last, so that an installation
# that failed or was interrupted is done again. [dev] includes everything that the plain package needs.
stamp() {
  echo "$root $(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
}

is_installed() {
  local now kind
  now=$(stamp)
  [ -x "$python" ] || return 1
  for kind in ${1:-base dev}; do
    [ "$(cat "$root/.venv/.installed-$kind" 2>/dev/null)" != "$now" ] || return 0
  done
  return 1
}

install() {
  local extra=$1 now
  now=$(stamp)
  make_environment
  echo "Installing robust-nas${extra:+ with [$extra]} into $root/.venv. torch alone is several GB; this is done once." >&2
  (cd "$root" && "$python" -m pip install --disable-pip-version-check --no-input --editable ".${extra:+[$extra]}") >&2 ||
    fail "The installation failed; pip's reason is above. Mend it and call again: what is there already is kept."
  echo "$now" >"$root/.venv/.installed-${extra:-base}"
}

# Leaves .venv with a working Python and pip, also where an earlier call was interrupted.
make_environment() {
  local found
  if "$python" -c "" 2>/dev/null; then
    is_new_enough "$python" ||
      fail "$root/.venv has $("$python" -V 2>&1), but robust-nas needs Python 3.11 or newer; delete that folder and call again."
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >&2 ||
      fail "$root/.venv has no pip; delete that folder and call again."
    return
  fi
  found=$(find_python)
  echo "Making $root/.venv with $("$found" -V 2>&1)." >&2
  "$found" -m venv --clear "$root/.venv" >&2 ||
    fail "$found could not make the environment $root/.venv; its reason is above."
}

find_python() {
  local name found=""
  for name in python3.13 python3.12 python3.11 python3; do
    # A name on PATH need not run: pyenv's stand-ins only say so when they are called.
    if is_new_enough "$name"; then
      found=$name
      "$name" -c "import ensurepip, venv" 2>/dev/null && echo "$name" && return
    fi
  done
  [ -z "$found" ] ||
    fail "$found has no venv module with pip; install it (on Debian and Ubuntu: apt-get install $found-venv) and call again."
  fail "robust-nas needs Python 3.11 or newer, but there is none on PATH; install one and call again."
}

is_new_enough() {
  "$1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null
}
