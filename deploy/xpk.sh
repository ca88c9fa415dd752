#!/usr/bin/env bash
# GKE by XPK, which makes the JobSet itself: a v6e slice of 16 chips. `pip install xpk`; the cluster is made once.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
SLICES=${SLICES:-1}
if [ "${1:-}" = cluster ]; then
  exec xpk cluster create --cluster lgrpo --tpu-type=v6e-16 --num-slices="$SLICES" --spot --project="$PROJECT" --zone="$ZONE"
fi
xpk workload create --cluster lgrpo --workload "lgrpo-$RUN" --tpu-type=v6e-16 --num-slices="$SLICES" \
  --project="$PROJECT" --zone="$ZONE" --docker-image="$IMAGE" --max-restarts=100 \
  --command="python -m lgrpo train $EXPERIMENT --workdir $WORKDIR --train.init-from gs://$BUCKET/llama1b"
