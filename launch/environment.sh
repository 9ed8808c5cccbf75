# Sourced by quickstart.sh and test.sh, which call make_environment: it leaves
# `python` of a virtual environment with everything installed, in $python.
#
#   PYTHON    the interpreter to build it from (3.11 or 3.12; found if unset)
#   GAZE_VENV where it is kept (default: .venv in the repository)

repository="$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)"

# Prints an interpreter of one of the versions given: $PYTHON, or one on PATH,
# or one in pyenv's folder, where none need be on PATH. Passed over is what does
# not start, as pyenv's shims of versions that are not chosen, and what can't
# make an environment, as Debian's python3 without python3-venv.
find_python() {
  local version candidate candidates=()
  for version in "$@"; do candidates+=("python$version"); done
  candidates+=(python3)
  for version in "$@"; do
    candidates+=("${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python)
  done
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' "$@" &> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  local wanted="$*" remedy="install one, or name it with PYTHON=..."
  if [[ -n "${PYTHON:-}" ]]; then remedy="PYTHON=$PYTHON is none"; fi
  echo "error: needs Python ${wanted// / or } with its venv module; $remedy" >&2
  return 1
}

install() {
  local pip=("$python" -m pip install -q --disable-pip-version-check)
  case "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" in
    3.11) "${pip[@]}" --no-deps -r <(grep -v '^libtpu==' requirements-lock.txt) ;;
    *)
      "${pip[@]}" -r requirements.txt -r requirements-test.txt
      "${pip[@]}" --no-deps -r requirements-data.txt
      ;;
  esac
  "${pip[@]}" --no-deps -e .
}

# Adds torch and transformers to the environment: what the tests compare with.
install_reference() {
  local mark="$venv/.gaze_reference" wanted
  wanted="$(cksum < "$repository/requirements-reference.txt")"
  if [[ -f "$mark" && "$(cat "$mark")" == "$wanted" ]]; then return; fi
  echo "== installing torch and transformers into $venv"
  # Packages whose files alone are read lack their dependencies, as meant.
  "$python" -m pip install -q --disable-pip-version-check --no-warn-conflicts \
    -r "$repository/requirements-reference.txt"
  echo "$wanted" > "$mark"
}

# Sees to it that there is a Chromium, for the tests of the viewer.
install_browser() {
  local name
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then return; fi
  done
  if [[ "$(id -u)" -eq 0 ]] && command -v apt-get > /dev/null; then
    echo "== installing Chromium"
    if apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install \
      --yes --no-install-recommends chromium > /dev/null; then return; fi
  fi
  echo "error: the viewer's tests need Chromium on PATH, and it could not be installed from here; on Debian: sudo apt-get install chromium" >&2
  return 1
}

# Leaves libtpu, the TPU compiler that fits the installed JAX, in $venv/aot,
# where benchmarks/tpu.py finds it. In the environment itself every command
# would look for a TPU at its start, and print that there is none.
install_tpu_compiler() {
  local target="$venv/aot" compiler
  if [[ -f "$target/.gaze_installed" ]]; then return; fi
  # The lock's, if that fits; it is made for Python 3.11.
  compiler="$("$python" -c '
import importlib.metadata
import re
import sys
wanted = [r for r in importlib.metadata.requires("jax") if "libtpu" in r][0]
wanted = re.match("[^; ]+", wanted)[0]
locked = re.search("^libtpu==\\S+", open(sys.argv[1]).read(), re.M)[0]
print(locked if locked.startswith(wanted.rstrip("*")) else wanted)
' "$repository/requirements-lock.txt")"
  echo "== installing $compiler into $target"
  rm -rf "$target"
  "$python" -m pip install -q --disable-pip-version-check --no-deps \
    --target "$target" "$compiler"
  touch "$target/.gaze_installed"
}

make_environment() {
  local base stamp wanted
  base="$(find_python 3.11 3.12)" || exit 1
  venv="$(realpath -ms "${GAZE_VENV:-$repository/.venv}")"
  python="$venv/bin/python"
  stamp="$venv/.gaze_installed"
  wanted="$(cd "$repository" && cat requirements{,-test,-data,-lock}.txt | cksum) $base"
  if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]]; then
    echo "== installing into $venv ($base)"
    rm -rf "$venv"
    "$base" -m venv "$venv"
    (cd "$repository" && install)
    echo "$wanted" > "$stamp"
  fi
}
