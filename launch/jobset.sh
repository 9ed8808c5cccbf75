#!/usr/bin/env bash
# Submits a command to TPU slices of a GKE cluster as a Kubernetes JobSet.
#
#   bash launch/jobset.sh --name=RUN --image=IMAGE --accelerator=LABEL \
#     --topology=AxB[xC] --claim=NAME [settings] [--dry-run] -- CMD
#
#   --accelerator      the node label, such as tpu-v5-lite-podslice,
#                      tpu-v5p-slice or tpu-v6e-slice
#   --claim=NAME       a PersistentVolumeClaim that all hosts may write: the
#                      workdir belongs there
#   --mount=PATH       where it is mounted (default: /runs)
#   --chips=N          of a host (default: 4)
#   --slices=N         default: 1
#   --directory=PATH   of this repository in the image (default: /gaze_jax)
#   --restarts=N       how often all hosts start again (default: 20)
#   --grace=SECONDS    to save in, after the notice of preemption (default: 120)
#   --namespace=NAME   default: default
#
# --dry-run prints launch/jobset.yaml as it would be submitted.
set -euo pipefail

here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/settings.sh"
label='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
path='/[-A-Za-z0-9._/]*'
needed=([name]="first-run" [image]="registry.example/gaze_jax:1"
  [accelerator]="tpu-v5-lite-podslice" [topology]="16x16" [claim]="runs")
setting=([mount]="/runs" [chips]="4" [slices]="1" [directory]="/gaze_jax"
  [restarts]="20" [grace]="120" [namespace]="default")
pattern=([name]="$label" [image]="[A-Za-z0-9][-A-Za-z0-9._/:@]*"
  [accelerator]="[a-z0-9][-a-z0-9]*" [topology]="[1-9][0-9]?(x[1-9][0-9]?){1,2}"
  [claim]="[a-z0-9]([-.a-z0-9]*[a-z0-9])?" [mount]="$path"
  [chips]="[1-9]" [slices]="[1-9][0-9]{0,3}" [directory]="$path"
  [restarts]="$whole" [grace]="$whole" [namespace]="$label")
read_settings "$@"

chips=$((${setting[topology]//x/ * }))
((chips % setting[chips] == 0)) || fail "--topology=${setting[topology]} is" \
  "$chips chips: not a multiple of the ${setting[chips]} of a host (--chips)"
setting[hosts]=$((chips / setting[chips]))

# The words as a YAML list of quoted strings.
listed() {
  local word words=()
  for word in "$@"; do
    [[ "$word" != *[[:cntrl:]]* ]] || fail "a line break or tab in the command"
    words+=("'${word//\'/\'\'}'")
  done
  echo "[$(joined "${words[@]}")]"
}
# Kubernetes would replace $(NAME) in a command; $$ is a dollar sign to it.
setting[command]="$(listed python launch/local.py --restarts=0 \
  --stopped_code=143 -- "${command[@]//\$/\$\$}")"

manifest="$(grep -v '^#' "$here/jobset.yaml")"
for name in "${!setting[@]}"; do
  [[ "$name" == command ]] || manifest="${manifest//"\${$name}"/"${setting[$name]}"}"
done
manifest="${manifest//"\${command}"/"${setting[command]}"}" # last: it is the user's
if ((dry_run)); then
  echo "$manifest"
else
  kubectl create -f - <<< "$manifest"
fi
