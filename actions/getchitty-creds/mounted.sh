#!/usr/bin/env bash
# Masks the tokens that are mounted on this runner and puts them out as a step's outputs. Says found=false, and nothing
# else, where none are mounted.
#
# CHITTY_CREDENTIALS_DIR: where they are mounted (default /var/run/chitty), in the layouts outputs or env.
# ASKED_RUNWAY: warn where they live shorter than this: 90s, 20m, 1h.
set -euo pipefail

dir=${CHITTY_CREDENTIALS_DIR:-/var/run/chitty}
names=(cloudflare_token account_id npm_token github_token neon_token neon_database_url register_token)
# What the layout env calls them.
variables=(CLOUDFLARE_API_TOKEN CLOUDFLARE_ACCOUNT_ID NPM_TOKEN GH_TOKEN NEON_API_KEY NEON_DATABASE_URL REGISTER_TOKEN)
declare -A values
ends=

# All of one rotation: the kubelet puts a new directory in the place of the one that ..data names, and removes the old.
read_all() {
  local at i file
  values=()
  ends=
  at=$(readlink -f -- "$dir/..data" || true)
  [ -d "$at" ] || at=$dir
  for i in "${!names[@]}"; do
    for file in "$at/${names[i]}" "$at/${variables[i]}"; do
      if [ -e "$file" ]; then
        values[${names[i]}]=$(cat -- "$file") || return 1
        break
      fi
    done
  done
  if [ -e "$at/expires_at" ]; then ends=$(cat -- "$at/expires_at") || return 1; fi
  [ -d "$at" ]
}

seconds() {
  [[ $1 =~ ^([0-9]{1,6})([smh])$ ]] || return 1
  case "${BASH_REMATCH[2]}" in
    h) echo $((10#${BASH_REMATCH[1]} * 3600)) ;;
    m) echo $((10#${BASH_REMATCH[1]} * 60)) ;;
    *) echo $((10#${BASH_REMATCH[1]})) ;;
  esac
}

if [ ! -d "$dir" ]; then
  echo "found=false" >> "$GITHUB_OUTPUT"
  exit 0
fi
if ! { read_all || read_all || read_all; }; then
  echo "::error title=Unreadable tokens::What is mounted at $dir cannot be read: the Pod needs fsGroup, and the volume defaultMode 0440."
  exit 1
fi
if [ "${#values[@]}" -eq 0 ]; then
  echo "found=false" >> "$GITHUB_OUTPUT"
  exit 0
fi
# As ChittyOS' action has it: an old name of the same.
if [ -z "${values[neon_token]-}" ] && [ -n "${values[neon_database_url]-}" ]; then
  values[neon_token]=${values[neon_database_url]}
fi

for name in "${!values[@]}"; do
  [ "$name" != account_id ] || continue
  # A mask is one line.
  while IFS= read -r line; do
    [ -z "$line" ] || printf '::add-mask::%s\n' "${line//%/%25}"
  done <<< "${values[$name]}"
done

if [ -n "$ends" ] && end=$(date -u -d "$ends" +%s); then
  left=$((end - $(date -u +%s)))
  if [ "$left" -le 0 ]; then
    echo "::error title=Tokens have ended::The tokens mounted at $dir ended at $ends, and no new ones came. Ask who runs this runner to look at 'kubectl describe ec' in its namespace."
    exit 1
  fi
  if [ -n "${ASKED_RUNWAY-}" ]; then
    if ! asked=$(seconds "$ASKED_RUNWAY"); then
      echo "::error title=Bad runway::Expected a runway such as 90s, 20m or 1h."
      exit 1
    fi
    if [ "$left" -lt "$asked" ]; then
      echo "::warning title=Short runway::These tokens end in $((left / 60)) min, at $ends, and $ASKED_RUNWAY were asked for: raise rotation.renewBefore of their EphemeralCredential."
    fi
  fi
fi

{
  echo "found=true"
  for name in "${!values[@]}"; do
    # A value may be of several lines; nobody can guess what ends it.
    mark="end-$(cat /proc/sys/kernel/random/uuid)"
    printf '%s<<%s\n%s\n%s\n' "$name" "$mark" "${values[$name]}" "$mark"
  done
} >> "$GITHUB_OUTPUT"
