#!/usr/bin/env bash
# Compute Engine without GKE: a managed instance group whose four hosts of four v6e chips form one 4x4 slice.
# Source: docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice
set -euo pipefail
here=$(dirname "$0")
. "$here/settings.sh"
# `gcloud compute images list --project ubuntu-os-accelerator-images` shows today's families.
OS_FAMILY=${OS_FAMILY:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}
gcloud compute resource-policies create workload-policy lgrpo-4x4 --project="$PROJECT" --region="$REGION" \
  --type=HIGH_THROUGHPUT --accelerator-topology=4x4
gcloud compute instance-templates create lgrpo --project="$PROJECT" --machine-type=ct6e-standard-4t \
  --image-project=ubuntu-os-accelerator-images --image-family="$OS_FAMILY" --boot-disk-size=200GB \
  --provisioning-model=SPOT --instance-termination-action=DELETE --maintenance-policy=TERMINATE \
  --scopes=cloud-platform --metadata-from-file=startup-script="$here/vm.sh" \
  --metadata="lgrpo-image=$IMAGE,lgrpo-arguments=train $EXPERIMENT --workdir $WORKDIR --train.init-from gs://$BUCKET/llama1b"
gcloud compute instance-groups managed create lgrpo --project="$PROJECT" --zone="$ZONE" --size=4 --template=lgrpo \
  --workload-policy="projects/$PROJECT/regions/$REGION/resourcePolicies/lgrpo-4x4"
