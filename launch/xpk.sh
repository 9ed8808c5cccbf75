#!/usr/bin/env bash
# Submits a command to a GKE cluster of TPUs with xpk.
#
#   bash launch/xpk.sh --name=RUN --cluster=NAME --zone=ZONE --tpu=TYPE \
#     --image=IMAGE [settings] [--dry-run] -- CMD
#
#   --project=ID       default: gcloud's own
#   --slices=N         default: 1
#   --directory=PATH   of this repository in the image (default: /gaze_jax)
#   --restarts=N       how often all hosts start again when one is lost or
#                      preempted (default: 20)
#   --grace=SECONDS    to save in, after the notice of preemption (default: 120)
#
# CMD's workdir belongs on a storage that xpk mounts on all hosts.
# The hosts start again on exit codes of 127 and more, not on a mistake (1, 2).
# A preempted host saves and exits with 143: 0 would count as finished.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needed=([name]="first-run" [cluster]="my-cluster" [zone]="us-central1-a"
  [tpu]="v5litepod-256" [image]="registry.example/gaze_jax:1")
setting=([project]="" [slices]="1" [directory]="/gaze_jax" [restarts]="20"
  [grace]="120")
pattern=([name]="[a-z]([-a-z0-9]{0,38}[a-z0-9])?" [cluster]="$word"
  [zone]="$word" [tpu]="$word" [image]="[A-Za-z0-9][-A-Za-z0-9._/:@]*"
  [project]="[-.:a-z0-9]*" [slices]="$whole" [restarts]="$whole"
  [grace]="$whole")
read_settings "$@"

# exec: xpk passes SIGTERM to the shell that it starts this in.
host="cd $(quoted "${setting[directory]}") && exec $(quoted python \
  launch/local.py --restarts=0 --stopped_code=143 -- "${command[@]}")"
run xpk workload create "--workload=${setting[name]}" \
  "--cluster=${setting[cluster]}" "--zone=${setting[zone]}" \
  ${setting[project]:+"--project=${setting[project]}"} \
  "--tpu-type=${setting[tpu]}" "--num-slices=${setting[slices]}" \
  "--docker-image=${setting[image]}" "--max-restarts=${setting[restarts]}" \
  "--termination-grace-period-seconds=${setting[grace]}" \
  "--command=$host"
