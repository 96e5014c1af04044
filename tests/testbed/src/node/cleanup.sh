# Removes what is left of a node: the same after a stop, a panic or a crash. Every step may find its work done.
# Arguments: the node's directory, its mark, its bridge, its control group.
dir=$1 mark=$2 bridge=$3 group=$4

# Processes see the mark among their mounts; the first one takes containers with it, which do not.
tries=0
while [ $tries -lt 100 ]; do
  left=
  for process in /proc/[0-9]*; do
    # Not this script, which may run inside of nothing but has the mark as an argument, not as a mount.
    grep -qs " - tmpfs $mark " "$process/mountinfo" || continue
    left=1
    kill -9 "${process#/proc/}" 2>/dev/null
  done
  [ -n "$left" ] || break
  tries=$((tries + 1))
  sleep 0.1
done

busybox ip link delete "$bridge" 2>/dev/null

# A group is busy until the last of its processes is reaped.
tries=0
while [ $tries -lt 50 ]; do
  left=
  while read -r _ where kind _; do
    case $kind in cgroup | cgroup2) ;; *) continue ;; esac
    [ -d "$where/$group" ] || continue
    find "$where/$group" -depth -type d -exec rmdir {} + 2>/dev/null
    [ ! -d "$where/$group" ] || left=1
  done </proc/mounts
  [ -n "$left" ] || break
  tries=$((tries + 1))
  sleep 0.1
done

rm -rf -- "$dir"
[ -z "$left" ] && [ ! -e "$dir" ]
