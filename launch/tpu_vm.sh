#!/usr/bin/env bash
# Runs a command on every host of a TPU VM slice; JAX finds out who is who.
#
#   bash launch/tpu_vm.sh --name=TPU --zone=ZONE [settings] [--dry-run] -- CMD
#
#   --project=ID       default: gcloud's own
#   --directory=PATH   of this repository on each host (default: gaze_jax)
#   --restarts=N       how often a host starts CMD again when another one is
#                      gone (default: 10)
#
# CMD runs in that directory, with `python` as the hosts' PATH has it, and its
# workdir on a disk that all hosts share. Keep the terminal open (tmux): the hosts
# speak to it. A slice that was preempted has saved; run the same command on
# the next one.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needed=([name]="my-tpu" [zone]="us-central1-a")
setting=([project]="" [directory]="gaze_jax" [restarts]="10")
pattern=([name]="$word" [zone]="$word" [project]="[-.:a-z0-9]*" [restarts]="$whole")
read_settings "$@"

host="cd $(quoted "${setting[directory]}") && exec $(quoted python \
  launch/local.py "--restarts=${setting[restarts]}" -- "${command[@]}")"
run gcloud compute tpus tpu-vm ssh "${setting[name]}" "--zone=${setting[zone]}" \
  ${setting[project]:+"--project=${setting[project]}"} --worker=all \
  "--command=$host"
