#!/usr/bin/env bash
# Third-party clients that the tests drive: Bazel 4.2.3 from Debian 12 with the rule packages its toolchain files load.
# Without apt or root nothing is installed and the tests that need a client say so.
set -euo pipefail
packages=(bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib g++)
dpkg --status "${packages[@]}" >/dev/null 2>&1 && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "tests/clients: Bazel is not here and this is not root with apt; the tests with Bazel will be skipped" >&2
  exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
