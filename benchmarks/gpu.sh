#!/bin/sh
# All that benchmarks/gpu.py measures, on this machine's GPU: at most 8 minutes, no network.
#   benchmarks/gpu.sh [--quick] [--json FILE]      (--dry: the same path on a CPU)
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
