#!/usr/bin/env bash
# Hosts with ssh and a shared folder: deploy/ssh.sh node0 node1 ... One process a host takes all of its devices; again after each preemption.
set -uo pipefail
EXPERIMENT=${EXPERIMENT:-experiments/gsm8k_llama1b.py}
WORKDIR=${WORKDIR:-/shared/runs/gsm8k}
FOLDER=${FOLDER:-lgrpo}
PORT=${PORT:-8476} # free on the first host, open to the others
HOSTS=("$@")
[ ${#HOSTS[@]} -gt 0 ] || { echo "usage: $0 HOST..." >&2; exit 2; }

once() {
  local code=0 pids=() i
  for i in "${!HOSTS[@]}"; do
    ssh "${HOSTS[$i]}" "cd $FOLDER && JAX_NUM_PROCESSES=${#HOSTS[@]} JAX_PROCESS_ID=$i JAX_COORDINATOR_ADDRESS=${HOSTS[0]}:$PORT \
      .venv/bin/python -m lgrpo train $EXPERIMENT --workdir $WORKDIR" &
    pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || code=$?; done
  return "$code"
}

while :; do
  once
  code=$?
  [ $code -eq 75 ] || exit $code
done
