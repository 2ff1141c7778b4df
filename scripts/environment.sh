# Sourced by the other scripts: finds a Python and keeps one environment for each of its versions in the clone.
# A lock file is copied into the environment after everything in it was installed, so the copy tells what is there,
# and an install that was interrupted is recognised by its absence and started again from nothing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

# quietly WHAT COMMAND...: a line when it starts and now and then where it is; the end of its output when it fails
quietly() {
  local what=$1 log line told=$SECONDS
  log=$(mktemp)
  trap 'rm -f "$log"; fail "interrupted while $what; run the same command again to go on"' INT TERM
  say "$what"
  if ! "${@:2}" 2>&1 </dev/null | while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    if ((SECONDS - told >= 15)); then
      line=${line%% (from *}
      say "  ${line:0:100}"
      told=$SECONDS
    fi
  done; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    fail "failed while $what, with the output above; run the same command again when the cause is gone"
  fi
  rm -f "$log"
  trap - INT TERM
}

version_of() { # fails for what is no Python, such as a version manager's shim with nothing behind it
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() { # prints the Python to use: $PYTHON if that is set, else the first on PATH that will do
  local candidate version seen=() candidates=(python3 python3.13 python3.12 python3.11)
  if [[ ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    version=$(version_of "$candidate") || continue
    if [[ ! $version =~ ^3\.1[123]$ ]]; then
      seen+=("$candidate is $version")
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      seen+=("$candidate is $version without venv")
    else
      command -v "$candidate"
      return
    fi
  done
  local IFS=,
  fail "MMS needs Python 3.11, 3.12 or 3.13 with venv and pip; found: ${seen[*]:-no Python as ${candidates[*]}}." \
    "On Debian 12 or later: apt-get install python3 python3-venv. To use another Python: PYTHON=path/to/python3 $0"
}

holds() { # holds FILE: whether the environment was made here, with this Python, and has all of it installed
  [[ -f $environment/origin && $(<"$environment/origin") == "$origin" ]] &&
    cmp -s "$root/requirements/$1" "$environment/$1"
}

install() {
  "$environment/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off "$@"
}

# make_environment LOCK PYTHON: sets $environment to a folder with what requirements/LOCK.lock says, and MMS itself
make_environment() {
  local lock=$1 python=$2 origin turn fresh=""
  environment=$root/.environments/$(version_of "$python")
  origin="$root $("$python" -c 'import sys; print(sys.base_prefix, *sys.version_info)')"
  mkdir -p "$environment"
  exec {turn}>"$environment.turn" # two scripts started together: the second waits here, then finds all done
  flock "$turn"

  if ! holds "$lock.lock"; then
    holds demo.lock || fresh=yes # demo.lock is a part of test.lock, so an environment for the demo can grow
    rm -f "$environment"/*.lock "$environment/references.txt"
    if [[ $fresh ]]; then
      quietly "making an environment for $("$python" --version)" "$python" -m venv --clear "$environment"
      printf '%s\n' "$origin" >"$environment/origin"
    fi
    quietly "installing requirements/$lock.lock" install --require-hashes -r "$root/requirements/$lock.lock"
    cp "$root/requirements/demo.lock" "$environment/"
    cp "$root/requirements/$lock.lock" "$environment/"
  fi
  if [[ $lock == test && $("$python" -c 'import sys; print(sys.version_info[1])') == 11 ]] && ! holds references.txt; then
    quietly "installing requirements/references.txt" install --no-deps -r "$root/requirements/references.txt"
    cp "$root/requirements/references.txt" "$environment/"
  fi
  if ! cmp -s "$root/pyproject.toml" "$environment/pyproject.toml"; then
    quietly "installing MMS" install --no-deps --no-build-isolation --editable "$root"
    cp "$root/pyproject.toml" "$environment/"
  fi

  exec {turn}>&-
}
