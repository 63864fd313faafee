#!/usr/bin/env bash
# rehearse.sh: .ci/run as on a new machine. What is committed is cloned into a folder of its own, which is home, cache and /tmp too, and bpffs is not mounted.
# All of it, mounts and processes included, ends with the run, however that ends.
set -eu
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
[ "$(id -u)" -eq 0 ] || { echo "rehearse.sh: run this as root, as the tests are" >&2; exit 1; }
[ -z "$(git -C "$root" status --porcelain)" ] || echo "rehearse.sh: what is not committed is not rehearsed" >&2
new=$(mktemp --directory /var/tmp/nodeagent-rehearse-XXXXXX)
leave() { # Go makes its module cache read-only
  chmod -R u+w "$new" && rm -rf "$new"
}
trap leave EXIT
trap 'exit 130' INT TERM
git clone --quiet "$root" "$new/clone"
mkdir "$new/home" "$new/tmp"
chmod 1777 "$new/tmp"

enter='
  set -eu
  mount --make-rprivate /
  while mountpoint --quiet /sys/fs/bpf; do umount --lazy /sys/fs/bpf; done
  mount --bind "$0/tmp" /tmp
  cd "$0/clone"
  .ci/run && exit 0 # not by exec: process 1 reaps what others leave to it
  exit $?'
unset GOPATH GOCACHE GOMODCACHE PIP_CACHE_DIR VIRTUAL_ENV
export HOME=$new/home XDG_CACHE_HOME=$new/home/.cache
unshare --mount --pid --fork --kill-child --mount-proc bash -c "$enter" "$new"
