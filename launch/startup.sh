#!/bin/bash
# What a machine of --backend mig or tpuvm runs of a job: its image, or without one Python of this
# machine. The metadata downscale-spec and downscale-image say which; exit codes are those of
# downscale/runtime/exits.py.
set -uo pipefail

metadata() {
  curl --silent --fail --retry 10 --retry-connrefused --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

spec=$(metadata downscale-spec) || { echo 'no downscale-spec in the metadata' >&2; exit 64; }
image=$(metadata downscale-image) || image=
worker=$(metadata agent-worker-number) || worker=0
# The number that JAX gives a process: machines are counted slice by slice.
slice=$(metadata tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p")
if [[ $slice ]]; then
  workers=$(metadata worker-network-endpoints | tr ',' '\n' | grep -c .)
  worker=$((slice * workers + worker))
fi
log=$(mktemp "${TMPDIR:-/tmp}/downscale.XXXXXX")
python=(python3)
# Machines of Compute Engine come without docker, and may come without gcloud.
command -v gcloud >/dev/null || snap install google-cloud-cli --classic
if [[ -n $image ]]; then
  if ! command -v docker >/dev/null; then
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -o DPkg::Lock::Timeout=300 install -y docker.io >/dev/null
  fi
  gcloud auth configure-docker --quiet "${image%%/*}"  # pulled as the account of this machine
  # Python is the first process of the container, and docker passes signals on to it.
  python=(docker run --rm --privileged --network=host --name=downscale
          --stop-timeout=60 --entrypoint=python3 "$image")
fi

"${python[@]}" -m downscale.launch.entry "$spec" >"$log" 2>&1 &
program=$!
# bash would act on the signal only once the program has ended.
trap 'kill -TERM "$program"' TERM INT

# The signal also ends `wait`, with a code that is not the program's.
wait "$program"
code=$?
while kill -0 "$program" 2>/dev/null; do
  wait "$program"
  code=$?
done
wait "$program"
last=$?
if [[ $last != 127 ]]; then code=$last; fi

target="${spec%/*}/logs/host-$worker-$(date +%s).log"
if [[ $target == gs://* ]]; then
  gcloud storage cp --quiet "$log" "$target" || echo "$log could not be copied to $target" >&2
else
  mkdir -p "${target%/*}" && cp "$log" "$target"
fi
exit "$code"
