#!/usr/bin/env bash
# Prepares easy-VQA, trains on packed rows of it, and scores its own test split.
#
#   bash launch/easy_vqa.sh [OUT]      (default: out/easy_vqa)
#
# Leaves OUT/report.json and OUT/report.md. Run again, it takes up where it was.
set -euo pipefail

out="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../out/easy_vqa}")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
cd "$repository"
mkdir -p "$out"

echo "== preparing $out/train"
pictures="$("$python" -m gaze_jax.demo.easy_vqa train "$out/train.json")"
"$python" launch/prepare.py --from="$out/train.json" --image_folder="$pictures" \
  --to="$out/train" --name=easy_vqa

echo "== training into $out/run"
"$python" launch/train.py --config=configs/easy_vqa.py --workdir="$out/run" \
  --config.data.path="$out/train"

echo "== evaluating"
pictures="$("$python" -m gaze_jax.demo.easy_vqa test "$out/test.json")"
"$python" launch/eval.py --workdir="$out/run" --data="$out/test.json" \
  --image_folder="$pictures" --json="$out/report.json" \
  --markdown="$out/report.md"

echo "== the same questions as a benchmark: answers are generated, then scored"
packages="$(cd "$pictures/../../../.." && pwd)"
"$python" launch/benchmark.py --workdir="$out/run" --data="$packages" \
  --tasks=easy_vqa --limit=1000 --out="$out/benchmark"
cat "$out/benchmark/results.md" >> "$out/report.md"
