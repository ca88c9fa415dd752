#!/usr/bin/env bash
# Start-up script of a virtual machine with TPUs (mig.sh): runs what its metadata asks for in the image, again after each preemption.
set -uo pipefail
about() { curl -sf -H Metadata-Flavor:Google "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
command -v docker >/dev/null || { apt-get update && apt-get install -y docker.io; }
image=$(about lgrpo-image)
gcloud auth configure-docker "${image%%/*}" --quiet
read -ra arguments <<<"$(about lgrpo-arguments)"
while docker run --rm --privileged --network host -e LGRPO_DISTRIBUTED=1 "$image" "${arguments[@]}"; [ $? -eq 75 ]; do :; done
