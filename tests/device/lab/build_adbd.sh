#!/bin/bash
# Builds AOSP's own adbd for the Linux host from Debian 12's source package: a real peer for the tests of phones.
# Usage: build_adbd.sh OUTDIR        (about 3 minutes, 76 MB of Debian's sources; phone.py caches OUTDIR)
# Needs: packages.txt
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/parts"
# the machine's own Debian sources, read as deb-src, without touching /etc/apt
sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources > "$work/parts/src.sources"
apt="apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/parts -o Dir::State::lists=$work/lists -o APT::Sandbox::User=root"
cd "$work"; $apt update; $apt source android-platform-tools=29.0.6-28 >/dev/null   # unpacks and applies Debian's patches
cd android-platform-tools-29.0.6
# loopback only: unpatched, adbd listens on every interface
sed -i 's/result = network_inaddr_any_server(port, SOCK_STREAM, error);/result = network_loopback_server(port, SOCK_STREAM, error, true);/' system/core/adb/socket_spec.cpp
printf '#include <atomic>\n#include <optional>\n#include <android-base/thread_annotations.h>\n#undef THREAD_ANNOTATION_ATTRIBUTE__\n#define THREAD_ANNOTATION_ATTRIBUTE__(x)\n' > fix.h
# lets a test answer the "Allow USB debugging?" dialog over the adbd socket
printf '#include <stdlib.h>\nextern "C" int android_get_control_socket(const char*) { const char* v = getenv("ANDROID_SOCKET_adbd"); return v ? atoi(v) : -1; }\n' > shim.cpp
make -s -j"${JOBS:-1}" -f "$here/build_adbd.mk" CXX=g++ CC=gcc
install -m755 out/adbd "$out/adbd"
