# From here on the same for every job. Variables in capitals are set above or by Slurm.
set -euo pipefail
export PATH="$BIN:$PATH"
mkdir -p "$OUTPUT_DIR"

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
mapfile -t nodes <<<"$nodes"
if ((${#nodes[@]} != TRAIN_NODES + VLLM_NODES)); then
    echo "The job has ${#nodes[@]} nodes, but needs TRAIN_NODES=$TRAIN_NODES and VLLM_NODES=$VLLM_NODES." >&2
    exit 1
fi
train_nodes=$(IFS=,; echo "${nodes[*]:0:TRAIN_NODES}")
export MAIN_NODE=${nodes[0]} MAIN_PORT
vllm_node=${nodes[-1]}
if ((VLLM_NODES)); then
    TRAIN+=(--use_vllm true --vllm_mode server --vllm_server_host "$vllm_node")
fi

server= training=
stop() { # ends what is still running on the nodes
    for step in $training $server; do
        kill "$step" 2>/dev/null || true
        wait "$step" || true
    done
    server= training=
}
trap stop EXIT
trap 'exit 143' TERM INT

is_healthy() {
    python - "http://$vllm_node:$VLLM_PORT/health" 2>/dev/null <<'EOF'
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=5)
EOF
}

start_server() { # and wait until it answers
    echo "$(date) vLLM starts on $vllm_node; its output: $OUTPUT_DIR/vllm-$SLURM_JOB_ID.log"
    srun --nodes=1 --ntasks=1 --nodelist="$vllm_node" --cpu-bind=none \
        env VLLM_SERVER_DEV_MODE=1 vllm serve "${VLLM[@]}" >>"$OUTPUT_DIR/vllm-$SLURM_JOB_ID.log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + VLLM_SECONDS))
    until is_healthy; do
        if ! kill -0 "$server" 2>/dev/null || ((SECONDS >= deadline)); then
            echo "$(date) vLLM ended, or did not answer within $VLLM_SECONDS seconds. The end of its output:" >&2
            tail -n 20 "$OUTPUT_DIR/vllm-$SLURM_JOB_ID.log" >&2
            exit 1
        fi
        sleep 2
    done
}

checkpoints() { (
    shopt -s nullglob
    echo "$OUTPUT_DIR"/checkpoint-*
); }

# A restart goes on from the last complete checkpoint; a run that ends before it has saved one, as with wrong options or
# too little memory, would only end again. vLLM restarts too: the trainer that is gone may have left it
# waiting for weights.
for ((attempt = 0; ; attempt++)); do
    saved=$(checkpoints)
    if ((VLLM_NODES)); then start_server; fi
    # One launcher a node. SLURM_NODEID is read inside the task: here, in the batch script, it is 0. Where a launcher
    # ends with an error, srun ends the others.
    srun --nodes="$TRAIN_NODES" --ntasks="$TRAIN_NODES" --ntasks-per-node=1 --nodelist="$train_nodes" \
        --cpu-bind=none --kill-on-bad-exit=1 bash -c 'exec srpo-trl train "$@" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_NODE" --main_process_port "$MAIN_PORT"' \
        task "${TRAIN[@]}" &
    training=$!
    status=1 # where vLLM ends first
    while kill -0 ${server:-$$} 2>/dev/null; do
        if ! kill -0 "$training" 2>/dev/null; then
            status=0
            wait "$training" || status=$?
            training=
            break
        fi
        sleep 2
    done
    stop
    echo "$(date) training, or vLLM, ended with status $status after $attempt restarts."
    if ((status == 0 || attempt >= MAX_RESTARTS)) || [[ $saved == "$(checkpoints)" ]]; then
        exit "$status"
    fi
    echo "$(date) restart $((attempt + 1)) of $MAX_RESTARTS"
done
