"""What a command may touch is declared, and a plan promises no more than its backend enforces.
Pure: starts nothing.

Effects are declared as platform properties `effect:NAME=LEVEL`. What is not declared gets a default, and a plan that
says `advisory` where that cannot be enforced. What is declared is enforced or refused, never quietly weakened.

| property | levels | undeclared |
|---|---|---|
| `effect:network` | `none`: no interface but loopback; `ambient`: the machine's network | `none` |
| `effect:read` | `declared`: inputs and the worker's toolchain; `ambient`: the machine's files too | `declared` |
| `effect:write` | `declared`: to write anything but declared outputs fails; `ambient`: it is told | `ambient` |
| `effect:clock`, `effect:random` | `ambient`: the machine's own | `ambient` |

On a strict worker all that is not declared is `none` or `declared`, nothing is advisory, and `effect:write=ambient` is
not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from buildnet.errors import InvalidRequest, SandboxFailed
from buildnet.model.action import Properties
from buildnet.model.amounts import AMOUNT_MAX, Amounts
from buildnet.model.effect import EFFECT_PREFIX, Effect

Isolation = Literal["namespaces", "process"]
Assurance = Literal["enforced", "advisory"]

DEFAULTS: Final[Mapping[str, str]] = {
    "network": "none",
    "read": "declared",
    "write": "ambient",
    "clock": "ambient",
    "random": "ambient",
}

# Those that are built, of the vocabulary in `model/effect.py`.
_LEVELS: Final[Mapping[str, frozenset[str]]] = {
    "network": frozenset({"none", "ambient"}),
    "read": frozenset({"declared", "ambient"}),
    "write": frozenset({"declared", "ambient"}),
    "clock": frozenset({"ambient"}),
    "random": frozenset({"ambient"}),
}
# Shown besides to a command that has the machine's network: how to find another machine by name.
_NAMES: Final = ("/etc/gai.conf", "/etc/host.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf")

# By the least that a shell can run with; the most processes are the kernel's PID_MAX_LIMIT.
_BOUNDS: Final = {
    "memory_bytes": (1, AMOUNT_MAX, "bytes"),
    "pids_max": (1, 1 << 22, "processes"),
    "disk_bytes": (1, AMOUNT_MAX, "bytes"),
    "log_size_bytes_max": (1, AMOUNT_MAX, "bytes"),
}

_GPU_CONTROL: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")

SEARCH_PATH: Final = ("/usr/local/bin", "/usr/bin", "/bin")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use. None: as much as the machine has.

    `memory_bytes` and `pids_max` are of the whole action, `cpu_s` of each process, `cpu_milli` is its share of the
    processors beside others (thousandths of one), and all that it may have where `cpu_is_capped`; `disk_bytes` is what
    its execution root and /tmp may take together, `log_size_bytes_max` of stdout and stderr together.
    """

    memory_bytes: int | None = None
    pids_max: int | None = 1024
    cpu_s: float | None = None
    cpu_milli: int | None = None
    disk_bytes: int | None = None
    log_size_bytes_max: int = 1 << 30
    cpu_is_capped: bool = False

    def __post_init__(self) -> None:
        for name, (least, most, unit) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidRequest(
                    f"no action can be run within {name} of {value}; it must be {least} to {most} {unit}", field=name
                )

    def within(self, whole: Amounts) -> Limits:
        """These limits on a worker that has so much: no command may have more than all of them together."""
        return replace(
            self,
            memory_bytes=_lower(whole.memory_bytes, self.memory_bytes),
            disk_bytes=_lower(whole.disk_bytes, self.disk_bytes),
        )

    def reserving(self, cpu_milli: int = 0, memory_bytes: int = 0, disk_bytes: int = 0) -> Limits:
        """These limits for an action for which a lease counts so much; 0 leaves the worker's own, which no lease
        raises.
        """
        return replace(
            self,
            cpu_milli=cpu_milli or self.cpu_milli,
            memory_bytes=_lower(memory_bytes, self.memory_bytes),
            disk_bytes=_lower(disk_bytes, self.disk_bytes),
        )


def _lower(asked: int, own: int | None) -> int | None:
    return min(asked, own) if asked and own else asked or own


@dataclass(frozen=True, slots=True)
class Means:
    """What a worker runs commands with. `private_network`: a command can be kept from the machine's
    network. `toolchain`: paths of the machine that every command may read. `strict`: what a command writes is declared.
    `devices` are the names of the files in its `device_directory`: those of the gpus that a command is given are shown.
    """

    isolation: Isolation
    private_network: bool
    toolchain: tuple[str, ...] = ()
    strict: bool = False
    devices: frozenset[str] = frozenset()
    device_directory: str = "/dev"


def means_of(
    probe: Mapping[str, bool], wanted: str | None = None, toolchain: tuple[str, ...] = (), *, strict: bool = False
) -> Means:
    """Choose the backend: the one wanted, else the strongest that the kernel's probe allows.

    Raises:
        SandboxFailed: namespaces are wanted and the kernel refuses them; or a strict worker would have to trust
        commands.
    """
    namespaces = probe.get("namespaces", False)
    private_network = probe.get("network_namespace", False)
    if strict and not (namespaces and private_network and wanted != "process"):
        raise SandboxFailed(
            "a strict worker needs namespaces and networks of its own for what it runs, which "
            f"{'it is told not to use' if wanted == 'process' else 'this kernel refuses'}; see `buildnet doctor`, "
            "or start it without --strict"
        )
    if wanted == "namespaces" and not namespaces:
        raise SandboxFailed(
            "this kernel refuses unprivileged namespaces; allow them "
            "(kernel.unprivileged_userns_clone=1) or accept isolation 'process'"
        )
    if wanted == "process" or not namespaces:
        return Means("process", private_network=False, toolchain=toolchain)
    return Means("namespaces", private_network, toolchain, strict)


class Variables(tuple[tuple[str, str], ...]):
    """Variables whose values are secret: they are in no `repr`, so in no log or error."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Variables({[name for name, _ in self]})"


NO_SECRETS: Final = Variables()


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run one command.

    `env` is exactly what the Command says (REAPI Command.environment_variables): nothing of the
    worker's own leaks in, but for `gpu_variables` where it has gpus. `gpus` are the numbers of those that it is given,
    `devices` their files, and where each appears in a /dev of its own.
    `shown` are the machine's paths that it may read, `/` for all of them; `unenforced` are the effects that it is
    trusted to keep to. `secrets` are variables too, whose values its output may not show.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    isolation: Isolation
    network: bool
    timeout_s: float
    limits: Limits
    shown: tuple[str, ...] = ()
    effects: Mapping[str, str] = field(default_factory=dict)
    unenforced: frozenset[str] = frozenset()
    secrets: Variables = NO_SECRETS
    gpus: tuple[int, ...] = ()
    devices: tuple[tuple[str, str], ...] = ()

    @property
    def assurance(self) -> Assurance:
        """`enforced` when every effect is, else `advisory`."""
        return "advisory" if self.unenforced else "enforced"

    @property
    def writes_are_strict(self) -> bool:
        """Whether to write anything but declared outputs fails the action."""
        return self.effects.get("write") == "declared"


def offered_effects(means: Means) -> Properties:
    """Every `effect:` property that a worker with these means can enforce."""
    return frozenset(
        (EFFECT_PREFIX + name, level)
        for name, levels in _LEVELS.items()
        for level in levels
        if _enforced(name, level, means)
    )


def plan_of(
    argv: Sequence[str],
    env: Sequence[tuple[str, str]],
    properties: Properties,
    means: Means,
    limits: Limits,
    timeout_s: float,
    secrets: Variables = NO_SECRETS,
    gpus: tuple[int, ...] | None = None,
) -> Plan:
    """Decide how to run a command. `secrets` are the values of those that its properties name, `gpus` the numbers of
    those that it is given; None on a worker that has none to give.

    Raises:
        InvalidRequest: no arguments, a name or argument that no process can be given, or an unknown
        effect.
        SandboxFailed: an effect is declared at a level that this worker cannot enforce.
    """
    _check(argv, env)
    declared = _declared(properties)
    for name, level in declared.items():
        if not _enforced(name, level, means):
            raise SandboxFailed(
                f"{EFFECT_PREFIX}{name}={level} cannot be enforced by isolation "
                f"{means.isolation!r} on this worker; declare another level of "
                f"{' or '.join(sorted(_LEVELS[name]))}, or use a worker that offers it"
            )
    effects = dict(DEFAULTS) | ({"write": "declared"} if means.strict else {}) | declared
    unenforced = frozenset(name for name, level in effects.items() if not _enforced(name, level, means))
    network = effects["network"] == "ambient"
    given = () if gpus is None else gpu_variables(gpus, means.isolation)
    names = {name for name, _ in given}
    return Plan(
        argv=tuple(argv),
        env=(*(variable for variable in env if variable[0] not in names), *given),
        isolation=means.isolation,
        network=network,
        timeout_s=timeout_s,
        limits=limits,
        shown=("/",) if effects["read"] == "ambient" else means.toolchain + (_NAMES if network else ()),
        effects=effects,
        unenforced=unenforced,
        secrets=secrets,
        gpus=gpus or (),
        devices=gpu_devices(gpus or (), means),
    )


def gpu_variables(gpus: Sequence[int], isolation: Isolation) -> tuple[tuple[str, str], ...]:
    """What tells a command which gpus it has; with none, that it has none, whatever else it could open.

    Source: CUDA C++ programming guide, environment variables; NVIDIA Container Toolkit, GPU enumeration.
    """
    # CUDA counts those whose files are there.
    counted = range(len(gpus)) if isolation == "namespaces" else gpus
    # By default it counts the fastest first, where drivers go by the place on the bus.
    return (
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("CUDA_VISIBLE_DEVICES", ",".join(map(str, counted))),
        ("NVIDIA_VISIBLE_DEVICES", ",".join(map(str, gpus))),
    )


def gpu_devices(gpus: Sequence[int], means: Means) -> tuple[tuple[str, str], ...]:
    """The device files of these gpus and those that all of a driver's have in common, each with its place in a /dev of
    the command's own; none without gpus, or where the command sees the machine's /dev.
    """
    if not gpus or means.isolation != "namespaces":
        return ()
    names = [f"nvidia{number}" for number in gpus] + [name for name in _GPU_CONTROL if name in means.devices]
    return tuple((f"{means.device_directory}/{name}", f"/dev/{name}") for name in names)


def _enforced(name: str, level: str, means: Means) -> bool:
    if level not in _LEVELS[name]:
        return False
    match name, level:
        case "network", "none":
            return means.private_network
        case "read", "declared":
            return means.isolation == "namespaces"
        case "write", "ambient":
            return not means.strict
        case _:
            return True


def _declared(properties: Properties) -> dict[str, str]:
    declared: dict[str, str] = {}
    for key, level in sorted(properties):
        if not key.startswith(EFFECT_PREFIX):
            continue
        effect = Effect.parse(key, level)
        if declared.setdefault(effect.name, effect.text) != effect.text:
            raise InvalidRequest(
                f"{key} is declared twice, as {declared[effect.name]} and {level}; declare it once",
                field="platform.properties",
            )
    return declared


def _check(argv: Sequence[str], env: Sequence[tuple[str, str]]) -> None:
    if not argv or not argv[0]:
        raise InvalidRequest("the command has no arguments; the first is the program", field="command.arguments")
    if any("\0" in argument for argument in argv):
        raise InvalidRequest("an argument holds a NUL byte", field="command.arguments")
    for name, value in env:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest(
                f"{name!r} cannot name an environment variable, or its value holds a NUL byte",
                field="command.environment_variables",
            )


def search_path(env: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Directories to look in for a program named without a slash: PATH of the Command, else the
    usual ones.

    REAPI 2.3: a bare name is looked up in the PATH of the *Command's* environment. A relative or
    empty entry would mean the working directory, which is full of inputs; as in POSIX it does.
    """
    for name, value in reversed(env):
        if name == "PATH":
            return tuple(entry or "." for entry in value.split(":"))
    return SEARCH_PATH
