#!/usr/bin/env bash
# Train on several processes of this machine, or of several with NNODES, NODE_RANK and MASTER_ADDR:
#   bash tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: bash tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]" >&2
  exit 2
fi
config=$1
processes=$2
shift 2
port=${PORT:-29500}
if [ "${NODE_RANK:-0}" = 0 ] && (: > "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "dist_train.sh: the processes meet at port $port, which another program of this machine has." \
    "Give another one: PORT=$((port + 1)) bash tools/dist_train.sh ..." >&2
  exit 1
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port" \
  --nproc_per_node="$processes" \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
