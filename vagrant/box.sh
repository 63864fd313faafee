#!/usr/bin/env bash
# box.sh FILE.box [KERNEL]: a Vagrant box (provider libvirt) of Debian 12, made of Debian's packages alone; nothing is downloaded but them.
# KERNEL says whose kernel it has: bookworm (default), bullseye, bookworm-backports or trixie. All else is bookworm's, so that only the kernel differs.
# The box holds its kernel and initrd beside the disk and is booted with them directly: a boot loader would want a loop device to be written.
set -euo pipefail
box=$1 kernel=${2:-bookworm}
die() { echo "box.sh: $*" >&2; exit 1; }
say() { echo "box.sh: $*"; }
# What a Debian cloud image has, what the agent's package depends on, and what the checks look with. No kernel headers, no compiler.
packages=(systemd-sysv udev dbus apparmor sudo openssh-server openssh-sftp-server iproute2 iputils-ping kmod procps nftables curl tcpdump
  linux-libc-dev python3 python3-bpfcc python3-cryptography)
disk_mib=${BOX_DISK_MIB:-6144}
image=linux-image-cloud-amd64

[[ $kernel =~ ^(bookworm|bullseye|bookworm-backports|trixie)$ ]] || die "KERNEL: $kernel: allowed: bookworm, bullseye, bookworm-backports, trixie"
[[ -d $(dirname "$box") ]] || die "$(dirname "$box"): no such folder"
[[ $(id -u) -eq 0 ]] || die "run this as root: a root file system has files of root's"
[[ $(dpkg --print-architecture) == amd64 ]] || die "boxes are made of amd64 packages, and this machine is $(dpkg --print-architecture)"
for tool in mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs qemu-img:qemu-utils; do
  command -v "${tool%:*}" > /dev/null || die "${tool%:*} is missing: apt-get install ${tool#*:}"
done
key=$(dpkg --listfiles vagrant 2>/dev/null | grep 'keys/vagrant.pub$') || die "Vagrant's public key is missing: apt-get install vagrant"
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)}
[[ -n $mirror ]] || die "apt knows no mirror of bookworm: name one by DEBIAN_MIRROR=URL"
free=$(df --output=avail --block-size=1M "$(dirname "$box")" | tail -n 1)
[[ $free -ge 4096 ]] || die "$(dirname "$box"): $free MiB are free and 4096 are needed: make room there"

work=$(mktemp --directory "$(dirname "$box")/box-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

sources=("deb $mirror bookworm main")
hooks=()
if [[ $kernel != bookworm ]]; then
  sources+=("deb $mirror $kernel main")
  # Everything is bookworm's but the kernel: a suite that is newer would win for all packages.
  hooks+=(--setup-hook="printf 'Package: *\nPin: release n=$kernel\nPin-Priority: 1\n\nPackage: linux-image-*\nPin: release n=$kernel\nPin-Priority: 1001\n' > \"\$1/etc/apt/preferences.d/kernel\"")
fi

# The machine's side of what Vagrant expects of a box: its user with its key, sudo without a password, a network by DHCP.
furnish() {
  local root=$1
  chroot "$root" useradd --create-home --shell /bin/bash vagrant
  install -d -m 700 "$root/home/vagrant/.ssh"
  install -m 600 "$key" "$root/home/vagrant/.ssh/authorized_keys"
  chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
  printf 'vagrant ALL=(ALL) NOPASSWD: ALL\n' > "$root/etc/sudoers.d/vagrant"
  printf 'PermitRootLogin no\nPasswordAuthentication no\nUseDNS no\n' > "$root/etc/ssh/sshd_config.d/lab.conf"
  # By its MAC, as leases are looked up; a later file than those that Vagrant writes for its other networks.
  printf '[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n\n[DHCPv4]\nClientIdentifier=mac\n' > "$root/etc/systemd/network/80-dhcp.network"
  install -d "$root/etc/systemd/system/ssh.service.d" "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
  printf '%s\n' '[Service]' 'ExecStartPre=' 'ExecStartPre=-/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key' \
    'ExecStartPre=/usr/sbin/sshd -t' > "$root/etc/systemd/system/ssh.service.d/keys.conf"
  rm -f "$root"/etc/ssh/ssh_host_* # each machine makes its own; an RSA key would take an emulated processor a minute
  # An initrd that holds what this disk needs, and not what any machine may have: half a minute of an emulated boot.
  printf 'MODULES=list\n' > "$root/etc/initramfs-tools/conf.d/lab"
  printf 'virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n' > "$root/etc/initramfs-tools/modules"
  chroot "$root" update-initramfs -u 2> /dev/null > /dev/null
  printf '/dev/vda / ext4 errors=remount-ro 0 1\n' > "$root/etc/fstab"
  printf 'bookworm\n' > "$root/etc/hostname"
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' > "$root/etc/hosts"
  : > "$root/etc/machine-id"
  chroot "$root" systemctl --quiet enable systemd-networkd ssh
  # What would wait for a network that is not there, or start while the checks measure.
  chroot "$root" systemctl --quiet mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service
  find "$root/etc/apparmor.d" -maxdepth 1 -type f -delete # profiles of programs that are not there, compiled at each boot
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root/etc/resolv.conf"
  printf 'nameserver 192.168.121.1\n' > "$root/etc/resolv.conf"
}

say "root file system of bookworm with the kernel of $kernel: a minute"
export DEBIAN_FRONTEND=noninteractive
mmdebstrap --quiet --variant=minbase --include="$(IFS=,; echo "${packages[*]}"),$image" "${hooks[@]}" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm "$work/root" "${sources[@]}" 2> "$work/log" || { tail -n 20 "$work/log" >&2; die "mmdebstrap failed: is $mirror reached?"; }
furnish "$work/root"
release=$(ls "$work/root/lib/modules")
[[ $(wc -w <<< "$release") -eq 1 ]] || die "one kernel was to be installed, and there are: $release"
cp "$work/root/boot/vmlinuz-$release" "$work/vmlinuz"
cp "$work/root/boot/initrd.img-$release" "$work/initrd"

say "disk of $disk_mib MiB with Linux $release"
truncate --size="${disk_mib}M" "$work/disk"
mkfs.ext4 -q -d "$work/root" "$work/disk"
qemu-img convert -O qcow2 "$work/disk" "$work/box.img"
printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' $(((disk_mib + 1023) / 1024)) > "$work/metadata.json"
cat > "$work/Vagrantfile" << 'RUBY'
Vagrant.configure("2") do |config|
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.expand_path("vmlinuz", __dir__)
    libvirt.initrd = File.expand_path("initrd", __dir__)
    libvirt.cmd_line = "root=/dev/vda rw net.ifnames=0 console=ttyS0 mitigations=off"
  end
end
RUBY
tar --create --sparse --file "$work/box" --directory "$work" metadata.json Vagrantfile box.img vmlinuz initrd
mv "$work/box" "$box"
say "$box: $(du --human-readable "$box" | cut -f 1), Linux $release"
