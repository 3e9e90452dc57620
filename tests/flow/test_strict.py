"""`--strict`: what an action writes beside its declared outputs fails it, and is named; asking to write is refused."""

from __future__ import annotations

import pytest

from buildnet._native import probe_isolation
from buildnet.client import connect
from buildnet.errors import BuildNetError, NoCapableWorker
from tests.conftest import House

pytestmark = pytest.mark.skipif(
    not (probe_isolation()["namespaces"] and probe_isolation()["network_namespace"]),
    reason="this kernel refuses namespaces",
)


def test_undeclared_writes_are_refused_by_a_strict_worker_alone(house: House) -> None:
    script = "echo a > kept; echo b > besides; echo c > /tmp/scratch"
    words = ["sh", "-c", script]
    with connect(house.up("--slots", "1", name="plain").url) as client:
        assert client.run(words, outputs=["kept"]).exit_code == 0
    with connect(house.up("--slots", "1", "--strict", name="strict").url) as client:
        with pytest.raises(BuildNetError, match="besides") as refused:
            client.run(words, outputs=["kept"])
        assert refused.value.code == "output_invalid"
        assert "effect:write=ambient" in refused.value.message
        assert client.run(words, outputs=["kept", "besides"]).exit_code == 0
        with pytest.raises(NoCapableWorker, match="effect:write=ambient"):
            client.run(words, outputs=["kept"], effects={"write": "ambient"})


def test_the_file_makes_it_strict_too(house: House) -> None:
    config = house.directory / "buildnet.toml"
    config.write_text("[worker]\nstrict = true\n")
    with (
        connect(house.up("--slots", "1", "--config", str(config)).url) as client,
        pytest.raises(BuildNetError, match="besides"),
    ):
        client.run(["sh", "-c", "echo a > besides"])
