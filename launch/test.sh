#!/usr/bin/env bash
# Runs the whole suite in its own virtual environment; arguments go to pytest.
#
#   bash launch/test.sh                                    all but the nightly tests
#   bash launch/test.sh -m nightly                         these
#   bash launch/test.sh -m '' tests/train/faults_test.py   the whole fault suite
#   PYTHON=python3.12 GAZE_VENV=.venv312 bash launch/test.sh   newer JAX
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_reference
install_tpu_compiler
install_browser
cd "$repository"
echo "== ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .
echo "== pytest"
if [[ $# -eq 0 ]]; then set -- -m "not nightly"; fi
exec "$python" -m pytest -q --numprocesses=auto --dist=loadfile "$@"
