#!/bin/bash
# What a machine of --backend mig or tpuvm runs of a job: its image, or without one Python of this
# machine, beside what is mounted. The metadata downscale-spec, -image, -mounts and -cache-gib say
# which; exit codes are those of downscale/runtime/exits.py.
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
mounts=$(metadata downscale-mounts) || mounts=
cache=$(metadata downscale-cache-gib) || cache=0

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt
  curl --silent --fail --location "$from/doc/apt-key.gpg" --output "$key" || return
  echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release --codename --short) main" \
    >/etc/apt/sources.list.d/gcsfuse.list || return
  # Another installation may be under way on a machine that has just started.
  local apt=(apt-get --option DPkg::Lock::Timeout=300)
  "${apt[@]}" update && DEBIAN_FRONTEND=noninteractive "${apt[@]}" install --yes gcsfuse
}

# Mount each NAME=gs://BUCKET/PREFIX of $mounts, and say in $failure what went wrong. The program
# then ends as fatal with that line, which reaches the run folder; this script's exit code does not.
mount_buckets() {
  local root=${TMPDIR:-/mnt}/downscale-mounts mount name place bucket prefix options free device
  [[ -n $image ]] || root=$PWD
  if ! { gcsfuse --version || install_gcsfuse; } >>"$log" 2>&1; then
    failure='gcsfuse cannot be installed'
    return
  fi
  mkdir -p "$root"
  free=$(df --output=avail --block-size=1G "$root" | tail -n 1)
  if ((cache > 0 && free < cache + 10)); then
    echo "no cache of $cache GiB: $root has $free GiB free" >>"$log"
    cache=0
  fi
  for mount in $mounts; do
    name=${mount%%=*} place=${mount#*=gs://}
    bucket=${place%%/*} prefix=${place#"${place%%/*}"}
    options=(-o ro --implicit-dirs --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1
             --type-cache-max-size-mb=-1)
    if [[ -n ${prefix#/} ]]; then options+=(--only-dir="${prefix#/}"); fi
    if [[ $name == data ]] && ((cache > 0)); then
      options+=(--cache-dir="$root-cache" --file-cache-max-size-mb=$((cache * 1024))
                --file-cache-cache-file-for-range-read --file-cache-enable-parallel-downloads)
    fi
    mkdir -p "$root/$name"
    mountpoint --quiet "$root/$name" ||
      gcsfuse "${options[@]}" "$bucket" "$root/$name" >>"$log" 2>&1 ||
      failure="gcsfuse cannot mount $mount ($(tail -n 1 "$log" | cut -c 1-150))"
    # One request brings a record of up to a megabyte, and as many may wait at once as there are
    # readers; the 12 of the kernel would make 64 threads wait for one another.
    if mountpoint --quiet "$root/$name"; then
      device=$(mountpoint --fs-devno "$root/$name")
      echo 1024 >"/sys/class/bdi/$device/read_ahead_kb"
      echo 128 >"/sys/fs/fuse/connections/${device#*:}/max_background"
    fi
    volumes+=("--volume=$root/$name:/downscale/$name:ro")
  done
}

volumes=()
failure=
if [[ -n $mounts ]]; then
  mount_buckets
  export DOWNSCALE_MOUNTS=$mounts DOWNSCALE_MOUNT_FAILURE=$failure
  volumes+=(--env=DOWNSCALE_MOUNTS --env=DOWNSCALE_MOUNT_FAILURE)
fi

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
  python=(docker run --rm --privileged --network=host --name=downscale --stop-timeout=60
          "${volumes[@]}" --entrypoint=python3 "$image")
fi

"${python[@]}" -m downscale.launch.entry "$spec" >>"$log" 2>&1 &
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
