# What every script here reads; each may be set in the environment instead.
EXPERIMENT=${EXPERIMENT:-experiments/gsm8k_llama1b.py}
BUCKET=${BUCKET:-my-bucket}
RUN=${RUN:-gsm8k}
WORKDIR=${WORKDIR:-gs://$BUCKET/$RUN}
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-central1-a}
REGION=${ZONE%-*}
IMAGE=${IMAGE:-$REGION-docker.pkg.dev/$PROJECT/lgrpo/lgrpo:0.1.0}
