#!/usr/bin/env bash
# Run by the GitHub runner before a job's first step (ACTIONS_RUNNER_HOOK_JOB_STARTED): the steps find variables, and the log
# shows no token. A token that is rotated while the job runs is not masked anew; the one the job has stays valid to its own end.
#
# CHITTY_CREDENTIALS_DIR: where they are mounted (default /var/run/chitty), in the layout env.
set -euo pipefail
dir=${CHITTY_CREDENTIALS_DIR:-/var/run/chitty}
[ -d "$dir" ] || exit 0
# All of one rotation.
at=$(readlink -f -- "$dir/..data" || true)
[ -d "$at" ] || at=$dir
for file in "$at"/*; do
  name=${file##*/}
  # Variables are in upper case; outputs, files for tools and the end of the tokens are not.
  case "$name" in *[!A-Z0-9_]*) continue ;; esac
  value=$(cat -- "$file")
  if [ "$name" != CLOUDFLARE_ACCOUNT_ID ]; then
    # A mask is one line.
    while IFS= read -r line; do
      [ -z "$line" ] || printf '::add-mask::%s\n' "${line//%/%25}"
    done <<< "$value"
  fi
  mark="end-$(cat /proc/sys/kernel/random/uuid)"
  printf '%s<<%s\n%s\n%s\n' "$name" "$mark" "$value" "$mark" >> "$GITHUB_ENV"
done
if [ -e "$at/expires_at" ]; then
  ends=$(cat -- "$at/expires_at")
  if end=$(date -u -d "$ends" +%s) && [ "$end" -le "$(date -u +%s)" ]; then
    echo "::warning title=Tokens have ended::The tokens mounted at $dir ended at $ends, and no new ones came."
  fi
fi
