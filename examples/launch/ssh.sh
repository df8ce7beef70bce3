#!/bin/bash
# DeepSpeed's launcher over ssh: started on one host, which reaches the others by pdsh.
#
#   examples/launch/ssh.sh recipes/NAME.yaml [key=value ...]
#
# Needs pdsh here, keys for ssh without a password, and the same path on every host. Put no keys or
# passwords into ./.deepspeed_env: its lines are shown on the command line of ssh.
set -euo pipefail

hosts=${HOSTFILE:-examples/launch/hostfile}
test -f "$hosts" || { echo "$hosts is missing: DeepSpeed would train on this host alone" >&2; exit 2; }
export PDSH_RCMD_TYPE=ssh
# Without these, ssh waits for ever for a host that has lost its power.
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
exec deepspeed --hostfile "$hosts" --launcher pdsh --master_port "${MASTER_PORT:-29500}" \
    run_pretrain.py "$@"
