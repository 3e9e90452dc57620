#!/bin/bash
# Runs a command in a guest with cgroup v2 and systemd, whatever this machine has, and ends with its exit code. The guest sees
# this machine's files; what it writes is in its memory, save for a scratch disk at /scratch (ext4), and goes with it.
#
# It is Linux as a process (user-mode Linux): no virtualisation is needed, one processor, system calls are slow.
# Debian: apt install user-mode-linux busybox-static cpio systemd e2fsprogs
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/guest.sh [--as USER | --session USER] COMMAND...

By itself as root, in a service that was handed its control group (Delegate=yes).
  --as USER       as USER, in a scope of the user's systemd that was handed over
  --session USER  as USER, in a login session, which owns no control group
Example: tests/guest.sh .venv/bin/python -m pytest -q -p no:cacheprovider tests/flow/test_groups.py
UML names the kernel (linux.uml), UML_MODULES its modules (/usr/lib/uml/modules/VERSION), MEMORY its memory (2500M).
TEXT
}

case "$PWD/" in /tmp/*) echo "the guest has a /tmp of its own: start this elsewhere" >&2; exit 2 ;; esac
as=root session=
case "${1:-}" in
    --as) as=$2; shift 2 ;;
    --session) as=$2 session=yes; shift 2 ;;
    --help | -h | "") usage; exit 0 ;;
esac

kernel=$(command -v "${UML:-linux.uml}") || { echo "no ${UML:-linux.uml}: install user-mode-linux, or set UML" >&2; exit 2; }
busybox=$(command -v busybox) || { echo "no busybox: install busybox-static" >&2; exit 2; }
modules=${UML_MODULES:-$(ls -d "$(dirname "$kernel")"/../lib/uml/modules/* | tail -1)}
place=$(mktemp -d)
guest=
end() {
    if [ -n "$guest" ]; then kill "$guest" 2>/dev/null || true; wait "$guest" 2>/dev/null || true; fi
    rm -rf "$place"
}
trap end EXIT
trap 'exit 130' INT TERM

root=$place/initramfs
mkdir -p "$root"/{host,proc,dev,memory,new,modules} "$place/shared"
cp "$busybox" "$root/busybox"
find "$modules" \( -name overlay.ko -o -name erofs.ko -o -name libcrc32c.ko \) -exec cp {} "$root/modules" \;
truncate -s 8G "$place/scratch"
mkfs.ext4 -q -F "$place/scratch"

cat >"$root/init" <<INIT
#!/busybox sh
b=/busybox
\$b mount -t proc none /proc && \$b mount -t devtmpfs none /dev
# Twice: one may need another.
for turn in 1 2; do for module in /modules/*.ko; do \$b insmod \$module 2>/dev/null; done; done
\$b mount -t hostfs -o ro host /host
\$b mount -t tmpfs -o size=70% memory /memory && \$b mkdir /memory/upper /memory/work
\$b mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /new || exec \$b poweroff -f
\$b mkdir -p /new/scratch /new/guest
\$b mount -t tmpfs memory /new/tmp
\$b mount -t ext4 /dev/ubda /new/scratch || exec \$b poweroff -f
\$b chmod 1777 /new/scratch
\$b mount -t hostfs -o $place/shared guest /new/guest
# Nothing of the host's own units, disks or privacy: homes may be looked into by the user of the guest.
\$b rm -f /new/etc/fstab
\$b chmod 755 /new/root
\$b cp /new/guest/*.target /new/guest/*.service /new/etc/systemd/system/
\$b umount /proc /dev
exec \$b switch_root /new /lib/systemd/systemd --unit=guest.target systemd.unified_cgroup_hierarchy=1
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$place/initramfs.gz"

cat >"$place/shared/guest.target" <<'UNIT'
[Unit]
Requires=basic.target systemd-logind.service guest.service
After=basic.target
AllowIsolate=yes
UNIT
cat >"$place/shared/guest.service" <<'UNIT'
[Unit]
After=basic.target systemd-logind.service
[Service]
ExecStart=/bin/bash /guest/run
ExecStopPost=/bin/systemctl poweroff --force --force
Delegate=yes
UNIT
{
    echo "cd $(printf %q "$PWD") && export TMPDIR=/scratch PYTHONDONTWRITEBYTECODE=1 HOME=${HOME:-/root}"
    echo "PATH=$(printf %q "$PATH") PYTHONPATH=$(printf %q "${PYTHONPATH:-}") && export PATH PYTHONPATH"
    printf 'exec '
    # shellcheck disable=SC2016
    [ "$as" = root ] || [ -n "$session" ] || printf 'env XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --scope --quiet -p Delegate=yes '
    printf '%q ' "$@"
} >"$place/shared/command"
{
    if [ "$as" = root ]; then
        echo "bash /guest/command >/guest/output 2>&1"
    else
        echo "loginctl enable-linger $as"
        echo "systemctl start user@\$(id -u $as).service"
        echo "systemd-run --quiet --wait --pipe -p PAMName=login -p User=$as bash /guest/command >/guest/output 2>&1"
    fi
    echo 'echo $? >/guest/exit_code'
} >"$place/shared/run"
touch "$place/shared/output"

cd /
TMPDIR=/dev/shm "$kernel" mem="${MEMORY:-2500M}" umid="guest$$" initrd="$place/initramfs.gz" rdinit=/init root=/dev/ram0 \
    ubd0="$place/scratch" con=null con0=fd:0,fd:1 ssl=null </dev/null >"$place/console" 2>&1 &
guest=$!
tail --pid="$guest" -n +1 -f "$place/shared/output"
wait "$guest" || true
guest=
[ -s "$place/shared/exit_code" ] || { tail -60 "$place/console" >&2; echo "the guest ended before the command did" >&2; exit 1; }
exit "$(cat "$place/shared/exit_code")"
