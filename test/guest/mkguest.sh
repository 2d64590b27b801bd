#!/bin/bash
# mkguest.sh CACHE: a small Linux guest from Debian packages, as CACHE/image/{vmlinuz,initrd,version}.
# Debian's cloud kernel, a busybox RAM disk with ethtool, iperf3, nc.openbsd (UDP) and bridge, and ./init.  Nothing is installed: packages
# are fetched with "apt-get download" and unpacked under CACHE.  Does nothing when the image is up to date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$(realpath -m "${1:?which folder}")
out=$cache/image
packages=$cache/packages
tree=$cache/tree
modules='virtio_pci virtio_net virtio_blk virtio_rng virtio_console af_packet tun bridge 8021q uio_pci_generic cuse vhost_net'
tools='busybox-static ethtool libmnl0 iperf3 libiperf0 libsctp1 libssl3 netcat-openbsd libbsd0 libmd0 iproute2 libcap2'

mkdir -p "$packages" "$out"
exec 9>"$cache/lock"
flock 9 # two test files may start at once
if [ -s "$out/initrd" ] && [ "$out/initrd" -nt "$0" ] && [ "$out/initrd" -nt "$here/init" ]; then
  exit 0
fi

# fetch and unpack
if [ "$(cat "$tree/.done" 2>/dev/null)" != "$tools" ]; then
  kernel_of() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }'; }
  kernel=$(kernel_of)
  if [ -z "$kernel" ]; then
    [ "$(id -u)" != 0 ] || apt-get -qq update
    kernel=$(kernel_of)
  fi
  [ -n "$kernel" ] || { echo 'no linux-image-cloud-amd64 in the lists of apt (apt-get update?)' >&2; exit 1; }
  fetch() { (cd "$packages" && apt-get -qq -o APT::Sandbox::User=root download "$@"); }
  # shellcheck disable=SC2086 # a list of words
  fetch "$kernel" $tools || { [ "$(id -u)" = 0 ] && apt-get -qq update && fetch "$kernel" $tools; }
  rm -rf "$tree"
  mkdir -p "$tree"
  for p in $kernel $tools; do
    dpkg -x "$(ls -t "$packages/${p}"_*.deb | head -1)" "$tree"
  done
  echo "$tools" >"$tree/.done"
fi
busybox=$tree/bin/busybox
version=$(ls "$tree/lib/modules")
[ -s "$tree/lib/modules/$version/modules.dep" ] || "$busybox" depmod -b "$tree" "$version"

# the RAM disk's root
root=$(mktemp -d "$cache/root.XXXX")
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib64,etc,proc,sys,dev,run,tmp,mnt,root} "$root/lib/modules/$version"
cp "$busybox" "$root/bin/"
for applet in $("$busybox" --list); do
  [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done

# programs and their libraries (the unpacked ones first, else the host's), all in one folder
libraries() {
  LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu ldd "$1" |
    awk '/not found/ { print "missing: " $1 >"/dev/stderr" } { for (i = 1; i <= NF; i++) if ($i ~ "^/") print $i }'
}
for program in usr/sbin/ethtool sbin/ethtool usr/bin/iperf3 bin/nc.openbsd usr/bin/nc.openbsd sbin/bridge usr/sbin/bridge; do
  [ -f "$tree/$program" ] || continue
  cp "$tree/$program" "$root/bin/"
  libraries "$tree/$program" | while read -r library; do cp -nL "$library" "$root/lib64/"; done
done
ln -sfn ../lib64 "$root/lib/x86_64-linux-gnu"

# modules and what they depend on; one that is built in is in no list
for module in $modules; do
  awk -v m="$module" 'BEGIN { gsub(/[-_]/, "[-_]", m) }
    $1 ~ "(^|/)" m "\\.ko(\\.xz)?:$" { sub(":", "", $1); for (i = 1; i <= NF; i++) print $i }' \
    "$tree/lib/modules/$version/modules.dep"
done | sort -u | while read -r file; do
  target=$root/lib/modules/$version/$file
  mkdir -p "${target%/*}"
  case $file in
    *.xz) xz -dc "$tree/lib/modules/$version/$file" >"${target%.xz}" ;;
    *) cp "$tree/lib/modules/$version/$file" "$target" ;;
  esac
done
cp "$tree/lib/modules/$version/modules."{order,builtin} "$root/lib/modules/$version/"
"$busybox" depmod -b "$root" "$version"
install -m755 "$here/init" "$root/init"

cp "$tree/boot/vmlinuz-$version" "$out/vmlinuz"
echo "$version" >"$out/version"
(cd "$root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$out/initrd.tmp"
mv "$out/initrd.tmp" "$out/initrd" # last: its age tells whether the image is up to date
