#!/usr/bin/env bash
# Runs the suite in its own virtual environment; arguments go to pytest.
#
#   bash launch/test.sh                  all but what is marked nightly
#   bash launch/test.sh -m nightly       what that leaves out
#   bash launch/test.sh -n 0 tests/ops   one folder, in one process
#   PYTHON=python3.12 GAZE_VENV=.venv312 bash launch/test.sh   newer JAX
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_reference
install_tpu_compiler
install_browser
cd "$repository"
echo "== ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .
echo "== pytest"
exec "$python" -m pytest -q --numprocesses=auto --dist=worksteal \
  --durations=25 "$@"
