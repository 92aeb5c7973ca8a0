#!/usr/bin/env bash
# On a machine with a GPU, in one call of under ten minutes: the fast paths against the plain ones,
# the benchmark against the published formulation, and a profile of a step.
#   scripts/gpu.sh runs/gpu
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
python=${PYTHON:-python}
$python -c 'import torch; assert torch.cuda.is_available(), "no GPU here"'
timeout 180 $python -m pytest -q -m gpu tests/models tests/training/test_cuda_graphs.py tests/data/test_augment.py
timeout 400 $python scripts/bench.py --batches 8 24 --images 1 8 64 --rounds 5 --out "$out"
