"""`--strict`: what an action writes beside its declared outputs fails it, and is named; asking to write is refused."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from buildnet._native import probe_isolation
from buildnet.cli.main import cli
from buildnet.client import connect
from buildnet.errors import BuildNetError, DeadlinePassed, NoCapableWorker
from tests.conftest import House

pytestmark = pytest.mark.skipif(
    not (probe_isolation()["namespaces"] and probe_isolation()["network_namespace"]),
    reason="this kernel refuses namespaces",
)


def test_undeclared_writes_are_refused_by_a_strict_worker_alone(house: House) -> None:
    script = "echo a > kept; echo b > besides; echo c > /tmp/scratch"
    words = ["sh", "-c", script]
    with connect(house.up("--slots", "1", name="plain").url) as client:
        ran = client.run(words, outputs=["kept"])
        assert ran.exit_code == 0
        assert ran.effects is not None
        assert ran.effects.undeclared_writes == ("besides",)
        assert (ran.effects.assurance, ran.effects.effects["write"]) == ("enforced", "ambient")
    with connect(house.up("--slots", "1", "--strict", name="strict").url) as client:
        with pytest.raises(BuildNetError, match="besides") as refused:
            client.run(words, outputs=["kept"])
        assert refused.value.code == "output_invalid"
        assert "effect:write=ambient" in refused.value.message
        whole = client.run(words, outputs=["kept", "besides"])
        assert whole.effects is not None
        assert (whole.exit_code, whole.effects.undeclared_write_count) == (0, 0)
        assert whole.effects.effects["write"] == "declared"
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


def test_a_person_is_told_what_an_action_could_do_and_wrote(house: House) -> None:
    server = house.up("--slots", "1")
    script = "echo a > 'be\033sides'; mkdir made"
    ran = CliRunner().invoke(cli, ["run", "--url", server.url, "-v", "--", "sh", "-c", script])
    assert ran.exit_code == 0
    assert "it wrote beside its outputs: be\\x1bsides, made/\n" in ran.stderr
    shown = CliRunner().invoke(cli, ["actions", "show", "--url", server.url, "newest"]).stdout
    assert "\x1b" not in shown
    told = {line[:20].rstrip(): line[21:] for line in shown.splitlines()}
    assert told["exit_code"] == "0"
    assert told["isolation"] == "namespaces, enforced"
    assert told["undeclared writes"] == "be\\x1bsides, made/"
    assert told["submitted_at"].endswith(" UTC")
    facts = json.loads(CliRunner().invoke(cli, ["actions", "show", "--json", "--url", server.url, "newest"]).stdout)
    assert facts["effects"]["undeclared_writes"] == ["be\x1bsides", "made/"]


def test_a_person_is_told_which_limit_ended_an_action(house: House) -> None:
    server = house.up("--slots", "1")
    ran = CliRunner().invoke(cli, ["run", "--url", server.url, "--timeout", "0.5", "--", "sleep", "60"])
    assert isinstance(ran.exception, DeadlinePassed)
    shown = CliRunner().invoke(cli, ["actions", "show", "--url", server.url, "newest"])
    assert shown.exit_code == 0, shown.output
    told = {line[:20].rstrip(): line[21:] for line in shown.stdout.splitlines()}
    assert (told["state"], told["limit hit"]) == ("failed", "wall")
    assert "its whole timeout" in told["message"]
