#!/usr/bin/env bash
# room.sh COMMAND [ARGUMENT]…: run COMMAND in a room of its own: network, mounts, processes, the top of the cgroup2 tree, /run and bpffs are its own.
# So labs and pins of the same names do not meet, and whatever COMMAND leaves behind ends with it.
set -eu
tree=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$tree" ] || { echo "no cgroup2 is mounted" >&2; exit 1; }
group=$(mktemp --directory "$tree/room-XXXXXX")

leave() { # rmdir waits for the last process to be reaped
  for _ in {1..50}; do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$group" ] || return 0
    sleep 0.1
  done
  echo "$group cannot be removed" >&2
}
trap leave EXIT

enter='
  set -eu
  mount --make-rprivate /
  mount -t proc proc /proc
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/netns /run/lock
  umount --lazy /sys/fs/bpf 2>/dev/null || true
  mount -t bpf bpf /sys/fs/bpf
  umount --lazy "$0"
  mount -t cgroup2 cgroup2 "$0"
  ip link set lo up
  "$@" && exit 0 # not by exec: process 1 reaps what others leave to it
  exit $?'
( echo "$BASHPID" > "$group/cgroup.procs" && exec unshare --mount --net --cgroup --pid --fork --kill-child bash -c "$enter" "$tree" "$@" )
