"""What every Discoverer keeps: it finds sound resources, the same ones when nothing changed, and says what to watch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildnet.catalog.plugins import Setting, built_in
from buildnet.model.resource import check_resource
from buildnet.ports import Discoverer


@pytest.fixture(params=["tools", "machine", "gpus", "endpoints"])
def discoverer(request: pytest.FixtureRequest, tmp_path: Path) -> Discoverer:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "gcc").write_text("#!/bin/sh\necho 12.2.0\n")
    (place / "gcc").chmod(0o755)
    (place / "gone").symlink_to("nowhere")
    (tmp_path / "endpoints.toml").write_text('[[endpoint]]\nname = "db"\n')
    found = {one.name: one for one in built_in(Setting(tmp_path, (str(place), "/no/such/place", "relative")))}
    return found[str(request.param)]


def test_it_finds_sound_resources_one_of_a_key(discoverer: Discoverer) -> None:
    found = discoverer.discover()
    for resource in found.resources:
        check_resource(resource)
    assert len({resource.key for resource in found.resources}) == len(found.resources)
    assert (found.left_out, list(found.notes)) == (0, [])


def test_it_finds_the_same_again(discoverer: Discoverer) -> None:
    def facts() -> set[object]:
        # Free space is what changes by itself.
        return {
            (r.key, r.version, tuple(fact for fact in r.attributes if fact[0] != "free_bytes"))
            for r in discoverer.discover().resources
        }

    assert facts() == facts()


def test_what_it_watches_are_absolute_directories(discoverer: Discoverer) -> None:
    discoverer.discover()
    assert all(os.path.isabs(directory) for directory in discoverer.watched())
