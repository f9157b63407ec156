#!/usr/bin/env bash
# A Cloud TPU slice of TPU VMs, got through a queued resource:
#
#     export TPU=my-slice ZONE=us-central2-b
#     ACCELERATOR=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite launch/cloud_tpu.sh create      SPOT=1 for spot capacity
#     launch/cloud_tpu.sh install PACKAGE                  once it is ACTIVE; PACKAGE is what pip installs, such as a wheel's address
#     launch/cloud_tpu.sh train nback:seed25m --workdir=/mnt/runs/nback
#     launch/cloud_tpu.sh status | stop | delete
#
# command  python3 -m bdh_jax train with all arguments, on every host at once
# image    none: `install` puts the package into ~/bdh on every host
# storage  --workdir in a folder that all hosts mount, such as Filestore
# restart  none by itself: give the same `train` again, on the same or a new slice, and it goes on from the last checkpoint. A spot
#          slice that is taken sends SIGTERM, on which the run saves
# watch    train prints what process 0 says; `status` what became of the request
# stop     Ctrl-C, or `stop` from elsewhere: the run saves
set -euo pipefail
: "${TPU:?name of the TPU slice, as in TPU=my-slice}" "${ZONE:?its zone, as in ZONE=us-central2-b}"
what=${1:?what to do: create, install, train, status, stop or delete}
shift
on_every_host() {
  exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command "$1"
}
case $what in
  create)
    : "${ACCELERATOR:?its type, as in ACCELERATOR=v5litepod-16}" "${RUNTIME:?its software, as in RUNTIME=v2-alpha-tpuv5-lite}"
    exec gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" --accelerator-type="$ACCELERATOR" \
      --runtime-version="$RUNTIME" ${SPOT:+--spot} "$@"
    ;;
  install)
    package=$(printf '%q' "${1:?what pip installs, such as the address of a wheel}")
    on_every_host "python3 -m venv ~/bdh && ~/bdh/bin/pip install --upgrade 'bdh_jax[tpu,text] @ '$package"
    ;;
  train)
    on_every_host "PATH=~/bdh/bin:\$PATH python3 -m bdh_jax train $(printf '%q ' "$@") --config.mesh.distributed=True --config.mesh.data=-1"
    ;;
  status) exec gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" ;;
  stop) on_every_host "pkill -TERM -f 'bdh_jax train'" ;;
  delete) exec gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force ;;
  *)
    echo "$what: unknown; create, install, train, status, stop or delete" >&2
    exit 2
    ;;
esac
