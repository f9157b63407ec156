#!/usr/bin/env bash
# Run one experiment on every host of a Cloud TPU slice: TPU=name ZONE=zone launch/tpu_slice.sh --config=... --workdir=...
# Expects this repository in ~/bdh_jax on every host, installed with: pip install -e ".[tpu]"
set -euo pipefail
: "${TPU:?name of the TPU slice, as in TPU=my-slice}" "${ZONE:?its zone, as in ZONE=us-central2-b}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command \
  "cd ~/bdh_jax && python3 -m bdh_jax.main $(printf '%q ' "$@") --config.mesh.distributed=True --config.mesh.data=-1"
