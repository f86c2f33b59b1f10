#!/usr/bin/env bash
# Unpack ONNX Runtime's C header and jansson from Debian's packages into a folder; needs no root.
# The header comes from Debian 13 (libonnxruntime-dev), by this system's own mirror, whatever
# Debian runs here: programs built with an older header run on a newer library. jansson comes from
# the release that runs here, since a newer one may need a newer libc.
set -euo pipefail
target=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

suites=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages')
mirror=$(awk '!/security/ { print $1; exit }' <<< "$suites")
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
if [ -z "$mirror" ] || [ -z "$release" ]; then
  echo "fetch-deps.sh: this system names no Debian mirror; use make ORT_HOME=/path" >&2
  exit 1
fi

# Lists of its own: the system's may be missing, and stay as they are.
download_from() {
  local suite=$1 apt
  shift
  mkdir -p "$suite"/{lists/partial,cache/archives/partial,parts}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
    > "$suite/parts/main.list"
  apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/$suite/parts"
    -o "Dir::State::lists=$work/$suite/lists" -o "Dir::Cache=$work/$suite/cache"
    -o APT::Sandbox::User="$(id -un)")
  "${apt[@]}" update
  "${apt[@]}" download "$@"
}

download_from trixie libonnxruntime-dev
download_from "$release" libjansson-dev libjansson4
for package in ./*.deb; do
  dpkg-deb -x "$package" unpacked
done
mkdir -p "$(dirname "$target")"
rm -rf "$target"
mv unpacked "$target"
