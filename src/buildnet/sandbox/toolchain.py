"""Which of a machine's files every action may read: its toolchains, and nothing of its people or services.

Only names paths; the launcher shows them. It refuses what a private root cannot show.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import Final

from buildnet.errors import InvalidRequest

TOOLCHAIN: Final = (
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/sbin",
    "/usr",
    "/gnu/store",
    "/nix/store",
    # What compilers, interpreters and the dynamic linker read of /etc. No key, no password, no credential of a
    # package manager: /etc/ssl/private, /etc/shadow, pip.conf and npmrc stay out.
    "/etc/alternatives",
    "/etc/ca-certificates.conf",
    "/etc/crypto-policies",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/java",
    "/etc/java-*",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/perl",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/python3*",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
"""Shown where they exist."""

PATHS_MAX: Final = 256
_OWN: Final = ("/buildnet", "/dev", "/proc", "/var/tmp")


def toolchain_of(added: Iterable[str] = ()) -> tuple[str, ...]:
    """The paths of a worker that exist now: the usual ones and those added. Looks at the file system.

    Raises:
        InvalidRequest: an added path is not absolute, is not there, is the action's own, or they are too many.
    """
    found = [path for pattern in TOOLCHAIN for path in sorted(glob.glob(pattern))]
    added = list(added)
    for path in added:
        if not os.path.isabs(path) or os.path.normpath(path) != path or path == "/":
            raise InvalidRequest(
                f"the toolchain path {path!r} is not an absolute path of a directory or file; to show an action the "
                "whole machine, let it declare effect:read=ambient",
                field="toolchain_path",
            )
        if any(path == own or path.startswith(own + "/") for own in _OWN):
            raise InvalidRequest(
                f"the toolchain path {path} lies where each action has a place of its own; move it",
                field="toolchain_path",
            )
        if not os.path.exists(path):
            raise InvalidRequest(f"the toolchain path {path} is not there", field="toolchain_path")
    paths = tuple(dict.fromkeys([*found, *added]))
    if len(paths) > PATHS_MAX:
        raise InvalidRequest(
            f"{len(paths)} toolchain paths are too many; name at most {PATHS_MAX}, or a directory that holds them",
            field="toolchain_path",
        )
    return paths


def accounts(uid: int, gid: int) -> dict[str, str]:
    """The small files of /etc that name this user and its home, and nobody else of the machine."""
    users, groups = {0: "root", 65534: "nobody"}, {0: "root", 65534: "nogroup"}
    users.setdefault(uid, "build")
    groups.setdefault(gid, "build")

    def user(number: int) -> str:
        group, home, shell = (
            (gid, "/tmp", "/bin/sh") if number == uid else (number, "/nonexistent", "/usr/sbin/nologin")
        )
        return f"{users[number]}:x:{number}:{group}:{users[number]}:{home}:{shell}\n"

    return {
        "/etc/group": "".join(f"{groups[number]}:x:{number}:\n" for number in sorted(groups)),
        "/etc/hosts": "127.0.0.1 localhost buildnet\n::1 localhost\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "/etc/passwd": "".join(user(number) for number in sorted(users)),
    }
