#!/usr/bin/env bash
# Runs every target for so many seconds (60), or those that are named: ./all.sh [seconds] [target…]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
declare -A seeds=(
    [path]=wasm-filters/routing/corpus/path [grpc]=wasm-filters/routing/corpus/grpc
    [header]=wasm-filters/routing/corpus/header [config]=wasm-filters/routing/corpus/config
    [frames]=agent/proxy/corpus [uri]=agent/corpus/uri [model_config]=agent/corpus/pbtxt [yaml]=crates/resources/corpus
    [pipeline]=xds-server/core/corpus/pipelines
    [request_json]=crates/inference/corpus/json [request_binary]=crates/inference/corpus/binary
    [record_headers]=dataflow/records/corpus/headers [record_contents]=dataflow/records/corpus/contents
    [openai]=crates/openai/corpus
    [broker]=dataflow/broker/corpus
)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(printf '%s\n' "${!seeds[@]}" | sort)
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "corpus/$target"
    # Inputs that are new are written to the first folder, ours are only read.
    cargo +nightly fuzz run "$target" "corpus/$target" "../${seeds[$target]:?no such target}" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
done
