#!/bin/sh
# Print which tests a change needs, as pytest's -m: `sh scripts/proofs.sh`; why, on standard error.
#
# What only a change inside vLLM's processes can break is marked nightly. This looks whether taxbreak_vllm/serving/ or
# the plugin differ from where the branch left main; on main itself, from the commit before. CI, which
# has minutes, runs those of every change and says that the others are due.
#
# BASE=…  the commit to compare with
set -eu
cd "$(dirname "$0")/.."

say() { printf 'tests: %s\n' "$*" >&2; }

find_base() {
    for main in ${BASE:-} upstream/main origin/main main; do
        base=$(git merge-base HEAD "$main" 2>/dev/null) || continue
        [ "$base" = "$(git rev-parse HEAD)" ] || { printf '%s' "$base"; return; }
    done
    git rev-parse --quiet --verify HEAD~1
}

inside="taxbreak_vllm/serving taxbreak_vllm/plugin.py"
if ! base=$(find_base 2>/dev/null); then
    say "nothing to compare with: those of every change"
    printf 'not nightly'
    exit
fi
short=$(git rev-parse --short "$base")
# shellcheck disable=SC2086 # words on purpose
changed=$(git diff --name-only "$base" -- $inside && git ls-files --others --exclude-standard -- $inside)
differ="$(printf '%s' "$changed" | tr '\n' ' ') differ from $short"
if [ -z "$changed" ]; then
    say "those of every change: nothing inside vLLM differs from $short"
    printf 'not nightly'
elif [ -n "${CI:-}" ]; then
    say "those of every change; $differ, so make test-nightly is due too"
    printf 'not nightly'
else
    say "the nightly ones too: $differ"
    printf 'nightly or not nightly'
fi
