#!/bin/bash
# DeepSpeed's launcher without ssh: the same command on every host, each with its own number.
#
#   NODE_RANK=0 MASTER_ADDR=node1 examples/launch/no_ssh.sh recipes/NAME.yaml [key=value ...]
#   NODE_RANK=1 MASTER_ADDR=node1 examples/launch/no_ssh.sh recipes/NAME.yaml [key=value ...]
#
# The hostfile says how many processes each host starts; its order is that of the numbers.
set -euo pipefail

hosts=${HOSTFILE:-examples/launch/hostfile}
test -f "$hosts" || { echo "$hosts is missing: DeepSpeed would train on this host alone" >&2; exit 2; }
exec deepspeed --hostfile "$hosts" --no_ssh --node_rank "${NODE_RANK:?}" \
    --master_addr "${MASTER_ADDR:?}" --master_port "${MASTER_PORT:-29500}" run_pretrain.py "$@"
