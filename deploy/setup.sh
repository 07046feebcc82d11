# Sourced by deploy/demo and deploy/test: makes .venv with everything the node needs. Safe to run twice.
# Set DICOM_NODE_VENV to keep the environment elsewhere, PYTHON to name the interpreter (3.11 or newer).

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${DICOM_NODE_VENV:-$root/.venv}

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

# pip and apt are quiet for long: show that something moves, and the whole log when it fails
with_progress() {
  local text=$1 log started; shift
  log=$(mktemp); started=$SECONDS
  "$@" >"$log" 2>&1 &
  local pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 1 ]; then printf '\r    %s ... %d s ' "$text" $((SECONDS - started)); fi
    sleep 1
    if [ ! -t 1 ] && [ $(((SECONDS - started) % 15)) -eq 0 ]; then printf '    %s ... %d s\n' "$text" $((SECONDS - started)); fi
  done
  if ! wait "$pid"; then printf '\n'; cat "$log" >&2; rm -f "$log"; return 1; fi
  rm -f "$log"
  printf '\r    %s: %d s      \n' "$text" $((SECONDS - started))
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  echo "Python 3.11 or newer is needed; install it or set PYTHON=/path/to/python3.11" >&2
  return 1
}

# setup_venv EXTRAS ("" or "[test]"): nothing happens when the same requirements are installed already
setup_venv() {
  local stamp="$venv/.installed$1" wanted
  wanted=$(cat "$root/pyproject.toml" "$root/deploy/constraints.txt" | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  say "Setting up the environment in $venv"
  local python; python=$(find_python)
  [ -x "$venv/bin/python" ] || with_progress "virtual environment" "$python" -m venv "$venv"
  # torch first and by itself: a plain range could take a build with gigabytes of CUDA
  with_progress "torch (CPU)" "$venv/bin/pip" install -c "$root/deploy/constraints.txt" "$(grep '^torch==' "$root/deploy/constraints.txt")"
  with_progress "dicom_node and its packages" "$venv/bin/pip" install -c "$root/deploy/constraints.txt" -e "$root$1"
  echo "$wanted" >"$stamp"
}

# debian_packages NAME...: installs what is missing; says what to do where it cannot
debian_packages() {
  local missing=() name
  for name in "$@"; do dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name"); done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are needed: ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2
    return 1
  fi
  say "Installing Debian packages: ${missing[*]}"
  with_progress "package lists" apt-get update
  DEBIAN_FRONTEND=noninteractive with_progress "packages" apt-get install -y --no-install-recommends "${missing[@]}"
  # Debian starts its own Orthanc on the ports of a real one: ours is started by whoever needs it
  if command -v systemctl >/dev/null; then systemctl disable --now orthanc >/dev/null 2>&1 || true; fi
}
