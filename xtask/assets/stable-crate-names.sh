#!/bin/bash
# RUSTC_WRAPPER of `cargo xtask build-ebpf`: called as `stable-crate-names.sh rustc ARGUMENTS`.
#
# Cargo tells crates of one name apart by a hash (-C metadata) that, for a package outside the
# workspace such as edge-common, covers its absolute path. The hash is part of every symbol, so a
# clone in another directory would give other bytes. Here the repository's own crates get a fixed one.
set -euo pipefail

ours=no
previous=
arguments=()
for argument in "$@"; do
    if [[ $previous == --crate-name && $argument == edge_* ]]; then
        ours=yes
    fi
    if [[ $ours == yes && $argument == metadata=* ]]; then
        argument=metadata=edgeproxy
    fi
    arguments+=("$argument")
    previous=$argument
done
exec "${arguments[@]}"
