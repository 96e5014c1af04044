# The first process of a node's PID namespace, in a mount namespace of its own: when it ends, or its parent
# does, the kernel ends everything in here, and every mount goes with the last process.
# Arguments: the node's directory, its mark, the kubelet, and the kubelet's own arguments.
set -eu
dir=$1 mark=$2 kubelet=$3
shift 3

# What containerd, runc and the kubelet insist on writing to is the node's own. The mark is what the
# clean-up knows the node's processes by.
for place in /run /var/lib /var/log /opt; do
  mount -t tmpfs -o mode=0755 "$mark" "$place"
done
mkdir -p /var/lib/kubelet /run/lock

# Both come back when they fail, as a service manager would have it.
(
  while :; do
    containerd --config "$dir/containerd.toml" || true
    sleep 1
  done
) >>"$dir/containerd.log" 2>&1 &
(
  until [ -S "$dir/containerd.sock" ]; do sleep 0.1; done
  while :; do
    "$kubelet" "$@" || true
    sleep 1
  done
) >>"$dir/kubelet.log" 2>&1 &

# Reaps whatever loses its parent.
while :; do wait || true; sleep 1; done
