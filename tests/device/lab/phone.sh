#!/bin/bash
# Runs the real adbd in a throw-away Android-like sandbox on 127.0.0.1:PORT, where arm64 programs run under qemu.
# Usage: phone.sh ADBD PORT STATE_DIR DATA_BYTES
#   ADBD        the binary that build_adbd.sh made
#   STATE_DIR   what a test sees and sets: adb_keys (one authorised public key a line), sock/adbd (the authorisation dialog),
#               props (for getprop), services/NAME (for dumpsys)
#   DATA_BYTES  size of /data on the "phone" (a small one gives a full device)
# Needs: packages.txt; Linux 6.7 or newer (binfmt_misc in a user namespace)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export LAB=$here ADBD=$(readlink -f "$1") PORT=$2 STATE=$(cd "$3" && pwd) SIZE=$4
mkdir -p "$STATE/sock" "$STATE/services"; rm -f "$STATE/sock/adbd"; : >> "$STATE/adb_keys"; : >> "$STATE/props"
exec unshare -U -r -m bash -c '
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
args=(--die-with-parent --unshare-pid --unshare-ipc --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64
  --dir /bin --symlink /system/bin/sh /bin/sh --proc /proc --dev /dev --ro-bind /sys /sys
  --ro-bind /etc/ld.so.cache /etc/ld.so.cache --ro-bind /etc/passwd /etc/passwd
  --ro-bind "$LAB/getprop" /system/bin/getprop --ro-bind "$STATE/props" /system/props
  --ro-bind "$LAB/dumpsys" /system/bin/dumpsys --ro-bind "$STATE/services" /system/services --symlink /usr/bin/mksh /system/bin/sh
  --size "$SIZE" --tmpfs /data --dir /data/local/tmp --dir /data/misc/adb --bind "$STATE/adb_keys" /data/misc/adb/adb_keys
  --bind "$STATE/sock" /dev/socket --ro-bind "$ADBD" /apex/adbd --ro-bind "$LAB/init.py" /apex/init.py
  --chdir / --clearenv --setenv PATH /system/bin --setenv ADBD_PORT "$PORT" --setenv ANDROID_DATA /data --setenv ADB_TRACE "")
for applet in $(/usr/bin/toybox); do args+=(--symlink /usr/bin/toybox "/system/bin/$applet"); done
exec bwrap "${args[@]}" /usr/bin/python3 /apex/init.py /apex/adbd
'
