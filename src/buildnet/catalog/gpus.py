"""GPUs, as their drivers tell them: NVIDIA's by nvidia-smi, others by sysfs. A machine without one is a machine."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from buildnet.model.resource import Resource, attributes_of, speakable
from buildnet.ports import Found

GPUS_MAX: Final = 64
QUERY: Final = ("index", "name", "memory.total", "driver_version", "compute_cap", "uuid")
SMI_ARGUMENTS: Final = (f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
_VENDORS: Final = {"0x1002": "amd", "0x8086": "intel", "0x10de": "nvidia"}
_CARD: Final = re.compile(r"card\d{1,4}")

Ask = Callable[[Sequence[str]], bytes | None]


class Gpus:
    """A ports.Discoverer: one `gpu` each, named by its driver and number, as in nvidia0 or card1.

    Args:
        ask: runs nvidia-smi with arguments; returns what it printed, or None where there is none.
        root: where /sys is looked for; another one in tests.
    """

    name = "gpus"

    def __init__(self, ask: Ask, root: Path = Path("/")) -> None:
        self._ask = ask
        self._root = root

    def watched(self) -> Sequence[str]:
        """Nothing: a GPU that comes is seen at the next full look."""
        return ()

    def discover(self) -> Found:
        """See ports.Discoverer."""
        answer = self._ask(SMI_ARGUMENTS)
        nvidia = list(nvidia_gpus(answer)) if answer is not None else []
        others = [gpu for gpu in self._drm() if not (nvidia and gpu.attribute("vendor") == "nvidia")]
        found = [*nvidia, *others]
        return Found(found[:GPUS_MAX], max(0, len(found) - GPUS_MAX))

    def _drm(self) -> Iterator[Resource]:
        try:
            cards = sorted(path for path in (self._root / "sys/class/drm").iterdir() if _CARD.fullmatch(path.name))
        except OSError:
            return
        for card in cards:
            vendor = _VENDORS.get(_line(card / "device/vendor"))
            if vendor is None:
                # A server's management controller draws text consoles; it computes nothing.
                continue
            memory = _line(card / "device/mem_info_vram_total")
            facts = attributes_of(
                vendor=vendor,
                device=_line(card / "device/device") or None,
                memory_bytes=int(memory) if memory.isdecimal() else None,
            )
            yield Resource("gpu", card.name, attributes=facts)


def nvidia_gpus(answer: bytes) -> Iterator[Resource]:
    """What `nvidia-smi` with SMI_ARGUMENTS prints: a line each, memory in MiB. Lines that are otherwise are errors."""
    for row in csv.reader(answer.decode(errors="replace").splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY) or not re.fullmatch(r"\d{1,4}", row[0]) or not all(map(speakable, row)):
            continue
        index, model, memory, driver, compute, uuid = (cell.strip() for cell in row)
        yield Resource(
            "gpu",
            f"nvidia{index}",
            attributes=attributes_of(
                vendor="nvidia",
                model=model,
                memory_bytes=int(memory) << 20 if re.fullmatch(r"\d{1,12}", memory) else None,
                driver=driver,
                compute=compute,
                uuid=uuid,
            ),
        )


def _line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(256).decode(errors="replace").strip()
    except OSError:
        return ""
    return text if speakable(text) else ""
