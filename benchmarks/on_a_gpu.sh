#!/usr/bin/env bash
# What a quarter of an hour on one GPU is used for: `check` (is it right, how fast is it, where does the time go), then `train` (CIFAR-10, killed once,
# resumed, probed, attacked). Each stage has its own limit and log; a stage that fails does not stop the next. Exit status 1 if one failed.
#
#   bash benchmarks/on_a_gpu.sh check            4 minutes
#   bash benchmarks/on_a_gpu.sh train SECONDS    all of it in SECONDS (450); what stands in $RUN is resumed
#
# Reads CIFAR-10's parquet files in $DATA (.gpu/cifar10). $OUT (runs/gpu) gets summary, logs and numbers, $RUN (runs/gpu-work) the run folders.
# To try it without a GPU: ANYWHERE=1, limits times $PATIENCE, and $MODEL, $SIZE, $IMAGES, $PRETRAIN_WORDS, $PROBE_WORDS, $EVALUATE_WORDS make it small.
set -u
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${OUT:-runs/gpu}") RUN=$(realpath -m "${RUN:-runs/gpu-work}") DATA=${DATA:-$(realpath -m .gpu/cifar10)}
COMPILE=--compile REPEATS=3
[ -z "${ANYWHERE:-}" ] || { COMPILE=; REPEATS=1; }
MODEL=${MODEL:-resnet18_cifar} SIZE=${SIZE:-32} IMAGES=${IMAGES:-512} PYTHON=${PYTHON:-python} PATIENCE=${PATIENCE:-1}
mkdir -p "$OUT/log" "$RUN"
export OUT RUN PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=$RUN/inductor
began=$SECONDS failed=0
say() { echo "[$((SECONDS - began)) s] $*" | tee -a "$OUT/summary.txt"; }

stage() { # NAME LIMIT COMMAND...: its output in a log, a line in the summary
    local name=$1 limit=$(($2 * PATIENCE)) from=$SECONDS; shift 2
    timeout -s TERM -k 20 "$limit" "$@" >"$OUT/log/$name.log" 2>&1
    local status=$?
    say "$name: status $status, $((SECONDS - from)) s of $limit"
    [ $status -eq 0 ] || tail -25 "$OUT/log/$name.log"
    return $status
}

check() {
    stage versions 60 "$PYTHON" -c '
import importlib.metadata, os, torch
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "accelerate")), "cudnn", torch.backends.cudnn.version())
there = torch.cuda.is_available()
print(torch.cuda.get_device_name(0) if there else "no GPU")
raise SystemExit(not (there or os.environ.get("ANYWHERE")))' || { failed=1; return; }
    cat "$OUT/log/versions.log"
    stage tests 100 "$PYTHON" -m pytest -p no:cacheprovider --gpu --maxfail=6 tests/test_device.py || failed=1
    tail -3 "$OUT/log/tests.log"
    rm -f "$OUT/probe.jsonl"
    stage probe 130 "$PYTHON" benchmarks/gpu_probe.py --model "$MODEL" --size "$SIZE" --images "$IMAGES" --seconds 95 --output "$OUT/probe.jsonl" || failed=1
    tail -50 "$OUT/log/probe.log"
    stage rocl_step 120 "$PYTHON" benchmarks/rocl_step.py --model "$MODEL" --image_size "$SIZE" --batch_size "$IMAGES" --repeats "$REPEATS" $COMPILE || failed=1
    tail -24 "$OUT/log/rocl_step.log"
    # What training for so many seconds can do.
    "$PYTHON" - <<'P' >"$RUN/rate" || failed=1
import json, os, pathlib
rows = [json.loads(line) for line in pathlib.Path(os.environ["OUT"], "probe.jsonl").read_text().splitlines()]
print(int(max((row["images_per_second"] for row in rows if row["what"] == "step"), default=6000)) or 1)
P
}

train() {
    local total=$1 rate epochs training
    rate=$(cat "$RUN/rate" 2>/dev/null || echo 6000)
    training=$((total - 125))                                  # the rest is for LE and AutoAttack
    epochs=$(((training - 85) * rate * 8 / 10 / 45000))        # two starts, each with decoding and kernels to make
    [ "$epochs" -ge 5 ] || epochs=5
    say "training for $epochs epochs at $rate images/s"
    # shellcheck disable=SC2206
    local pre=("$PYTHON" recipes/pretrain.py --config recipes/configs/cifar10_rocl_resnet18.yaml --model.name "$MODEL" --data.name "$DATA"
        --data.validation_fraction 0.1 --objective.shared_regularizer true --batch_size 500 --objective.group_size 250 --epochs "$epochs"
        --optimizer.warmup_epochs $((epochs / 10 + 1)) --monitor_every 5 --checkpoint_every 450 --output_dir "$RUN/pre" ${PRETRAIN_WORDS:-})
    [ -n "${ANYWHERE:-}" ] || { pre+=(--objective.compile true); export ACCELERATE_MIXED_PRECISION=bf16; }
    stage pretrain-1 "${KILL_AFTER:-75}" "${pre[@]}"           # ended by SIGTERM, after a checkpoint
    stage pretrain-2 $((training - (SECONDS - began))) "${pre[@]}" || failed=1
    unset ACCELERATE_MIXED_PRECISION
    tail -2 "$RUN/pre/metrics.jsonl" | tee -a "$OUT/summary.txt"
    # shellcheck disable=SC2086
    stage le 90 "$PYTHON" recipes/linear_probe.py --model.name "$RUN/pre" --data.name "$DATA" --epochs 40 --monitor_every 20 \
        --evaluation.epsilons "[8/255]" --output_dir "$RUN/le" ${PROBE_WORDS:-} || failed=1
    tail -4 "$OUT/log/le.log" | tee -a "$OUT/summary.txt"
    local left=$((total - (SECONDS - began) - 12))
    [ $left -gt 20 ] || left=20
    # shellcheck disable=SC2086
    stage autoattack $left "$PYTHON" recipes/evaluate.py --model.name "$RUN/le" --data.name "$DATA" --samples 500 --attacks standard \
        --update_card false --output_dir "$RUN/aa" ${EVALUATE_WORDS:-} || failed=1
    tail -8 "$OUT/log/autoattack.log" | tee -a "$OUT/summary.txt"
}

case ${1:-} in
    check) check ;;
    train) train "${2:-450}" ;;
    *) echo "usage: on_a_gpu.sh check | train SECONDS"; exit 2 ;;
esac
exit $failed
