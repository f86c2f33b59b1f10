#!/usr/bin/env bash
# Unpack ONNX Runtime's C header and jansson from Debian's packages into a folder; needs no root.
# The header comes from Debian 13 (libonnxruntime-dev), by this system's own mirror, whatever
# Debian runs here: programs built with an older header run on a newer library.
set -euo pipefail
target=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial cache/archives/partial parts
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > parts/trixie.list
newer=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/parts"
  -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
apt-get "${newer[@]}" -qq update
apt-get "${newer[@]}" -qq download libonnxruntime-dev
apt-get -qq -o APT::Sandbox::User=root download libjansson-dev libjansson4
for package in ./*.deb; do
  dpkg-deb -x "$package" unpacked
done
mkdir -p "$(dirname "$target")"
rm -rf "$target"
mv unpacked "$target"
