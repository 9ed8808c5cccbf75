#!/usr/bin/env bash
# Trains, evaluates and looks through a Gaze MLLM on this machine.
#
#   bash launch/quickstart.sh [OUT]      (default: out/quickstart)
#
# Leaves OUT/report.json, OUT/report.md, OUT/gaze.png and OUT/gaze.html. Needs Python 3.11 or
# 3.12 and a package registry, nothing else. Run again, it takes up where it was.
set -euo pipefail

started="$(date +%s)"
out="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../out/quickstart}")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
cd "$repository"
mkdir -p "$out"

echo "== training into $out/run"
"$python" launch/train.py --config=configs/emoji_tiny.py --workdir="$out/run"

echo "== evaluating"
"$python" launch/eval.py --workdir="$out/run" --started="$started" \
  --json="$out/report.json" --markdown="$out/report.md"

echo "== the same pictures as a benchmark: answers are generated, then scored"
"$python" launch/scene.py --config=configs/emoji_tiny.py --all="$out/data/emoji_scenes"
"$python" launch/benchmark.py --workdir="$out/run" --data="$out/data" \
  --tasks=emoji_scenes --limit=300 --out="$out/benchmark"
cat "$out/benchmark/results.md" >> "$out/report.md"

echo "== one question about a scene that was never trained on"
question="$("$python" launch/scene.py --config=configs/emoji_tiny.py \
  --split=new --index=3 --kind=what --out="$out/scene.png")"
echo "$question"
"$python" launch/generate.py --workdir="$out/run" --image="$out/scene.png" \
  --question="$question" --out="$out/gaze.png" --html="$out/gaze.html"

echo "== done in $(($(date +%s) - started)) s: $out/report.md, $out/gaze.png and $out/gaze.html"
echo "== serve it to any client of the OpenAI API: $python -m pip install -r requirements-serve.txt, then $python launch/serve.py --workdir=$out/run"
