#!/bin/bash
# provision.sh FOLDER NAME: call this machine NAME, and make it a node of the VM lab, from the files in FOLDER: nodeagent.deb, ca/ and guest/. Runs as root in the VM, and may run again.
set -euo pipefail
files=$1
hostnamectl set-hostname "$2"
grep -q " $2\$" /etc/hosts || echo "127.0.1.1 $2" >> /etc/hosts
trap 'rm -rf "$files"' EXIT # the authority's keys are in it, and readable
say() { echo "$(hostname): $*"; }

[[ -e /sys/kernel/btf/vmlinux ]] || say "this kernel has no BTF: no socket bypass; nodeagent check says what else is missing"
install -d -m 755 /opt/nodeagent-lab /etc/nodeagent /etc/nodeagent/policies /var/lib/nodeagent
install -d -m 700 /var/lib/nodeagent/ca
install -m 755 "$files/guest/pods.py" /opt/nodeagent-lab/pods.py
install -m 644 "$files"/guest/*.service /etc/systemd/system/
if [[ $(systemd-detect-virt) == qemu ]]; then # not kvm: the processor is emulated
  install -D -m 644 "$files/guest/nodeagent.conf" /etc/systemd/system/nodeagent.service.d/lab.conf
  echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/lab # a minute less for the package
fi
install -m 600 "$files"/ca/*.pem /var/lib/nodeagent/ca/
chmod 644 /var/lib/nodeagent/ca/root-cert.pem
install -m 644 "$files/guest/agent.yaml" /etc/nodeagent/agent.yaml
if /opt/nodeagent-lab/pods.py units | grep -qw legacy.service; then cat "$files/guest/services.yaml" >> /etc/nodeagent/agent.yaml; fi
/opt/nodeagent-lab/pods.py objects /var/lib/nodeagent/mesh

say "pods"
systemctl daemon-reload
systemctl --quiet enable --now lab-node.service
/opt/nodeagent-lab/pods.py units | xargs systemctl --quiet enable --now

say "installing the package"
export DEBIAN_FRONTEND=noninteractive
# Its configuration is there already, and stays. What it depends upon a box has, or apt fetches it.
packaged() {
  apt-get -qq install -y --reinstall --no-install-recommends -o Dpkg::Options::=--force-confold "$files/nodeagent.deb"
}
packaged || { apt-get -qq update && packaged; }

say "what the agent finds here"
nodeagent check

systemctl is-active --quiet nodeagent || { journalctl --no-pager --unit nodeagent --lines 20; exit 1; }
say "the agent runs"
