#!/usr/bin/env bash
# What this project most wants to know of real hardware, in order of worth, in one call of about eight minutes.
#
#   benchmarks/gpu_day.sh OUT                        # on a GPU host with vLLM
#   benchmarks/gpu_day.sh OUT --device cpu --tiny    # a rehearsal
#
# SECONDS_IN_ALL=480 bounds the call, PYTHON names the interpreter. VLLM_PACK=DIR, where vLLM has to be installed without
# a network first, is a folder with an `install_remote.sh PARTS TARGET` that leaves TARGET/env.sh. Each part is bounded
# too, and what it finds is in OUT as soon as it is known: a second call goes on where this one was. The last lines are a
# table of all parts.
set -uo pipefail
out=${1:?usage: gpu_day.sh OUT [--device cpu --tiny]} && shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
if [[ ${VLLM_PACK:-} ]]; then
  bash "$VLLM_PACK/install_remote.sh" "$VLLM_PACK" /tmp/vllm || exit
  . /tmp/vllm/env.sh
fi
until_s=$(($(date +%s) + ${SECONDS_IN_ALL:-480}))
mkdir -p "$out"

part() { # NAME SECONDS SCRIPT STAGE...
  local name=$1 seconds=$2 script=$3 left=$((until_s - $(date +%s))) stages=() stage begun_s status
  shift 3
  ((seconds < left)) || seconds=$left
  if ((seconds < 5)); then
    printf '\n#### %s: no time is left\n' "$name"
    return
  fi
  for stage; do stages+=(--stage "$stage"); done
  begun_s=$(date +%s)
  printf '\n#### %s: %s s at most\n' "$name" "$seconds"
  timeout --kill-after=15 "$((seconds + 20))" \
    "$python" "$here/$script" "${stages[@]}" --out "$out" --seconds "$seconds" "${options[@]}"
  status=$?
  printf '#### %s: %s s, exit status %s\n' "$name" "$(($(date +%s) - begun_s))" "$status"
}

options=("$@")
part "1 a live server" 90 gpu_serving.py live
part "2 floors and the profiler" 30 gpu_check.py floors
part "2 ceilings" 30 gpu_serving.py floors
part "3 delays put in" 50 gpu_check.py taxes
part "3 the engine's loop, a long recording" 60 gpu_serving.py truth
options=("$@" --model llama)
part "4 graph modes" 90 gpu_serving.py modes
options=("$@")
part "5 what is lost" 60 gpu_check.py sessions graphs
part "6 the papers" 90 gpu_check.py findings
part "7 cost in pairs" 480 gpu_serving.py cost
exec "$python" "$here/gpu_day.py" "$out"
