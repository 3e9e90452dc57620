"""The configuration file: every option has a key, and every mistake is told with the file, the key and the reason."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.app.config_file import KEYS, configured, read
from buildnet.cli import up
from buildnet.errors import InvalidRequest
from buildnet.sandbox.policy import Limits
from tests.conftest import COMMAND
from tests.ledgers import WITNESS

FULL = f"""
[controller]
state = "here"
listen = "127.0.0.1:7"
slots = 3
worker = false

[cache]
size = "1.5 GiB"
keep = "15m"
durability = "power"

[[cache.tier]]
kind = "s3"
anything = {{ goes = [1, 2] }}

[[cache.tier]]
kind = "redis"

[ledger]
witnesses = [{{ url = "https://witness.example/w1", key = "{WITNESS.key.text}" }}]
witness_interval = "1m"

[tls]
certificate = "/etc/server.pem"
key = "server.key"
client_ca = "clients.pem"

[access]
anonymous = "read"
trusted_keys = ["other.pub"]
insecure_plaintext = true
certificate_scopes = []

[[access.certificate]]
name = "CN=ci"
scopes = ["read", "write"]
instances = ["team/"]
namespace = "ci"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "buildnet.toml"
    path.write_text(text)
    return path


def test_every_key_is_taken_and_paths_count_from_the_file(tmp_path: Path) -> None:
    config = configured(written(tmp_path, FULL), {})
    assert (config.state, config.listen, config.slots, config.worker) == (tmp_path / "here", "127.0.0.1:7", 3, False)
    assert (config.cache_size_bytes, config.cache_keep_s, config.durability) == (3 << 29, 900, "power")
    assert config.tiers == ({"kind": "s3", "anything": {"goes": [1, 2]}}, {"kind": "redis"})
    assert [(one.url, one.key) for one in config.witnesses] == [("https://witness.example/w1", WITNESS.key)]
    assert config.witness_interval_s == 60
    assert config.tls is not None
    assert (config.tls.certificate, config.tls.key) == (Path("/etc/server.pem"), tmp_path / "server.key")
    assert config.tls.client_ca == tmp_path / "clients.pem"
    assert (config.access.anonymous, config.access.insecure_plaintext) == ("read", True)
    assert config.access.trusted_keys == (tmp_path / "other.pub",)
    assert config.access.certificates[0].instances == ("team/",)


def test_an_option_outweighs_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, '[controller]\nslots = 3\nlisten = "127.0.0.1:7"\n')
    config = configured(path, up.overrides({"slots": 5, "no_worker": True, "cache_size": "64 MiB", "trusted_key": ()}))
    assert (config.slots, config.worker, config.listen) == (5, False, "127.0.0.1:7")
    assert (config.cache_size_bytes, config.durability) == (64 << 20, "process")


def test_the_slots_follow_the_processors_that_are_offered(tmp_path: Path) -> None:
    config = configured(None, up.overrides({"cpus": "1"}))
    assert (config.cpu_milli, config.slots) == (1000, 1)
    config = configured(written(tmp_path, "[worker]\ncpus = 0.5\n"), up.overrides({"slots": 3}))
    assert (config.cpu_milli, config.slots) == (500, 3)
    for cpus in ("0", "-1", "many", "0.0001"):
        with pytest.raises(InvalidRequest, match="is not a number over 0"):
            up.overrides({"cpus": cpus})


def test_an_action_may_ask_for_two_hours_unless_more_or_less_is_configured(tmp_path: Path) -> None:
    assert configured(None, {}).timeout_max_s == 7200
    assert configured(written(tmp_path, "[scheduler]\ntimeout_max = '20m'\n"), {}).timeout_max_s == 1200
    assert configured(None, up.overrides({"timeout_max": "4h"})).timeout_max_s == 14_400


def test_what_one_action_may_use_is_configured(tmp_path: Path) -> None:
    assert configured(None, {}).limits == Limits()
    path = written(
        tmp_path,
        "[worker]\nmemory_max = '8 GiB'\npids_max = 4096\ndisk_max = '10 GiB'\nlog_max = '1 MiB'\n"
        "cpu_limit = 'strict'\n",
    )
    limits = Limits(8 << 30, 4096, disk_bytes=10 << 30, log_size_bytes_max=1 << 20, cpu_is_capped=True)
    assert configured(path, {}).limits == limits
    outweighed = configured(path, up.overrides({"memory_max": "1 GiB", "cpu_limit": "share"})).limits
    assert outweighed == replace(limits, memory_bytes=1 << 30, cpu_is_capped=False)


def test_every_option_of_up_has_a_key() -> None:
    options = {parameter.name for parameter in up.command.params} - {"config", "as_json"}
    assert options == set(up.KEYS)
    known = {f"{section}.{key}" for section, keys in KEYS.items() for key in keys}
    assert set(up.KEYS.values()) <= known
    # The rest has no option: tables, and what they default to.
    assert {key for key in known - set(up.KEYS.values()) if not key.startswith("scheduler.")} == {
        "cache.tier",
        "access.certificate",
        "access.certificate_scopes",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cach]", r"\[cach\] is not a section; did you mean 'cache'\?"),
        ("[cache]\nsizes = '1 GiB'", r"\[cache\] has no key 'sizes'; did you mean 'size'\?"),
        ("[tls]\nzzz = 1", r"\[tls\] has no key 'zzz'; there are certificate, key, client_ca"),
        ("cache = 3", r"cache must be a section"),
        ("[cache]\nsize = 50", r"\[cache\] size must be a text, not 50"),
        ("[cache]\nsize = '50'", r"\[cache\] size: '50' is not a size"),
        ("[cache]\nsize = '1 B'", "too small"),
        ("[cache]\nkeep = '3 fortnights'", r"\[cache\] keep: .* is not a duration"),
        ("[cache]\ndurability = 'hope'", "durability 'hope' is not known"),
        ("[cache]\ntier = 3", r"\[\[cache.tier\]\]"),
        ("[worker]\ncpu_limit = 'hard'", "cpu_limit 'hard' is not known; use share or strict"),
        ("[worker]\npids_max = 0", "pids_max of 0"),
        ("[worker]\nmemory_max = '9'", "is not a size"),
        ("[scheduler]\ntimeout_max = '8d'", "1 s to 7 d"),
        ("[scheduler]\ntimeout_max = '0s'", "1 s to 7 d"),
        ("[log]\nsample = 5", "from 0 to 1"),
        ("[log]\nsample = nan", "from 0 to 1"),
        ("[log]\nslow_ms = -1", "from 0 to 86400000 ms"),
        ("[log]\naccess = '-'\nslow_ms = 99999999999999999999", "from 0 to 86400000 ms"),
        ("[worker]\ncpus = 0", r"\[worker\] cpus must be a number from 0.001"),
        ("[worker]\ncpus = 99999", r"a worker cannot offer 99999 cpus"),
        ("[controller]\nslots = true", r"\[controller\] slots must be a number, not True"),
        ("[controller]\nworker = 1", r"\[controller\] worker must be true or false"),
        ("[controller]\nlisten = '0.0.0.0:1'", "in plaintext"),
        ("[tls]\nkey = 'x'", "both a certificate and its key"),
        ("[access]\nanonymous = 'some'", "anonymous 'some' is not known"),
        ("[access]\ntrusted_keys = 'x'", r"\[access\] trusted_keys must be a list of texts"),
        ("[[access.certificate]]\nname = 'CN=x'", "no authority for them is named"),
        ("[[access.certificate]]\nscopes = []", r"\[\[access.certificate\]\] 1: lacks its name"),
        ("[[access.certificate]]\nname = 'ci'", r"\[\[access.certificate\]\] 1: 'ci' is not a certificate's name"),
        ("[[access.certificate]]\nname = 'CN=x'\nscopes = ['rite']", "'rite' is not a scope"),
        ("[[access.certificate]]\nnames = 'CN=x'", "did you mean 'name'"),
        ("[[ledger.witnesses]]\nurl = 'http://w'", r"\[\[ledger.witnesses\]\] 1: needs url and key"),
        ("[[ledger.witnesses]]\nurl = 'w'\nkey = 'x'", r"\[\[ledger.witnesses\]\] 1: a witness is reached over http"),
        ("[[ledger.witnesses]]\nurl = 'http://w'\nkey = 'x'", "this is not a verifier key"),
        ("[ledger]\nwitness_interval = '2d'", "every 1 s to 1 d"),
        ("[cache", "is not TOML"),
    ],
)
def test_a_mistake_is_told_with_file_key_and_reason(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidRequest, match=said) as refused:
        configured(path, {})
    assert refused.value.message.startswith(str(path))


@given(st.text(max_size=200))
def test_any_file_is_taken_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode(errors="replace"))
    with suppress(InvalidRequest):
        assert all("." in key for key in read(path))


def test_a_file_is_checked_by_the_command_line(tmp_path: Path) -> None:
    def check(text: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "config", "check", str(written(tmp_path, text)), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    good = check("[cache]\nsize = '1 GiB'\n")
    assert (good.returncode, json.loads(good.stdout)["anonymous"]) == (0, "all")
    bad = check("[cache]\nsice = '1 GiB'\n")
    assert (bad.returncode, "did you mean 'size'" in bad.stderr) == (125, True)
    absent = check("[tls]\ncertificate = 'absent.pem'\nkey = 'absent.key'\n")
    assert (absent.returncode, "absent.pem" in absent.stderr) == (125, True)
