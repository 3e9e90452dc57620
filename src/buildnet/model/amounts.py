"""What actions use up while they run, and workers have to give: whole numbers, so that sums come back to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

AMOUNT_MAX: Final = 1 << 50
"""No amount of bytes is above this: a pebibyte."""

CPU_MILLI_MAX: Final = 999_999_999
"""A million cpus, less a thousandth: six digits before the dot of `resource:cpus`, three behind."""

GPUS_MAX: Final = 1024

RESOURCE_PREFIX: Final = "resource:"
"""What is asked is said by platform properties: `resource:cpus` is a decimal number of at most three places, the others
are whole numbers.
"""
CPUS, MEMORY, DISK, GPUS = (RESOURCE_PREFIX + name for name in ("cpus", "memory_bytes", "disk_bytes", "gpus"))

_UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class Amounts:
    """Asked by an action, or offered by a worker.

    `cpu_milli` is thousandths of a processor; `disk_bytes` is scratch space. Zero is not asked, or not told.
    """

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0

    def within(self, whole: Amounts) -> bool:
        """Whether a worker that offers `whole`, and runs nothing, has room for this.

        What the worker did not tell bounds nothing, but for gpus: those that are not told are not there.
        """
        return (
            (not whole.cpu_milli or self.cpu_milli <= whole.cpu_milli)
            and (not whole.memory_bytes or self.memory_bytes <= whole.memory_bytes)
            and (not whole.disk_bytes or self.disk_bytes <= whole.disk_bytes)
            and self.gpus <= whole.gpus
        )

    def out_of_bounds(self) -> str:
        """For people: the first amount that nobody may ask for, and what it may be; empty when all may be."""
        bounds = (
            (CPUS, self.cpu_milli, CPU_MILLI_MAX, "thousandths"),
            (MEMORY, self.memory_bytes, AMOUNT_MAX, "bytes"),
            (DISK, self.disk_bytes, AMOUNT_MAX, "bytes"),
            (GPUS, self.gpus, GPUS_MAX, "gpus"),
        )
        for name, amount, most, unit in bounds:
            if not 0 <= amount <= most:
                return f"{name} is {amount}; it must be 0 to {most} {unit}"
        return ""

    def properties(self) -> tuple[tuple[str, str], ...]:
        """As platform properties, sorted; what is zero is not there."""
        told = (
            (CPUS, self.cpu_milli, decimal_of_milli(self.cpu_milli)),
            (DISK, self.disk_bytes, str(self.disk_bytes)),
            (GPUS, self.gpus, str(self.gpus)),
            (MEMORY, self.memory_bytes, str(self.memory_bytes)),
        )
        return tuple((name, text) for name, amount, text in told if amount)

    @property
    def text(self) -> str:
        """For people: `2 cpus, 4 GiB of memory`; empty when all is zero."""
        parts = []
        if self.cpu_milli:
            parts.append("1 cpu" if self.cpu_milli == 1000 else f"{self.cpu_milli / 1000:g} cpus")
        if self.memory_bytes:
            parts.append(f"{_size(self.memory_bytes)} of memory")
        if self.disk_bytes:
            parts.append(f"{_size(self.disk_bytes)} of disk")
        if self.gpus:
            parts.append("1 gpu" if self.gpus == 1 else f"{self.gpus} gpus")
        return ", ".join(parts)


NOTHING: Final = Amounts()


def decimal_of_milli(milli: int) -> str:
    """Thousandths as the shortest decimal number: 1500 is 1.5, 2000 is 2."""
    whole, rest = divmod(milli, 1000)
    return f"{whole}.{rest:03}".rstrip("0") if rest else str(whole)


def _size(size_bytes: int) -> str:
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {name}"
    return f"{size_bytes} bytes"
