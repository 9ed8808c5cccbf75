#!/usr/bin/env bash
# Runs lmms-eval in an environment that has our models in it.
#
#   bash launch/lmms.sh eval --model gaze_jax --model_args pretrained=DIR \
#     --tasks mme --output_path out/lmms
#
# lmms-eval asks for older packages than ours and torchvision, which breaks
# beside our torch: it is installed without what it asks for, into GAZE_VENV
# (default: .venv-lmms in the repository).
set -euo pipefail

GAZE_VENV="${GAZE_VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv-lmms}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_reference
mark="$venv/.gaze_lmms"
wanted="$(cksum < "$repository/requirements-lmms.txt")"
if [[ ! -f "$mark" || "$(cat "$mark")" != "$wanted" ]]; then
  echo "== installing lmms-eval into $venv"
  "$python" -m pip install -q --disable-pip-version-check --no-deps \
    -r "$repository/requirements-lmms.txt"
  echo "$wanted" > "$mark"
fi
exec "$venv/bin/lmms-eval" "$@"
