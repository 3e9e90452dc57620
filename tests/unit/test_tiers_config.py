"""Tables of tiers: what is taken, and what is refused with its key and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildnet.app.tiers import TIERS_MAX, parse_tiers
from buildnet.errors import InvalidRequest

S3 = {"name": "bucket", "kind": "s3", "bucket": "cache"}
REDIS = {"name": "hot", "kind": "redis", "address": "redis://localhost:6379/1"}
REAPI = {"name": "up", "kind": "reapi", "address": "grpcs://cache.example:443"}
VARIABLES = {"KEY": "id-1", "SECRET": "word-2", "EMPTY": ""}


def test_defaults_suit_the_kind() -> None:
    bucket, hot, up = parse_tiers([S3, REDIS, REAPI], {})
    assert [tier.write for tier in (bucket, hot, up)] == ["back"] * 3
    assert (hot.blob_size_bytes_max, bucket.blob_size_bytes_max) == (1 << 20, 64 << 30)
    assert (bucket.prefix, up.prefix) == ("buildnet", "")
    assert bucket.read
    assert not bucket.required
    assert bucket.native()["region"] == "us-east-1"


def test_sizes_and_times_have_units() -> None:
    (tier,) = parse_tiers([{**REDIS, "blob_size_max": "1.5 MiB", "timeout": "250ms", "ttl": "2 h"}], {})
    assert (tier.blob_size_bytes_max, tier.timeout_s, tier.options["ttl_s"]) == (3 << 19, 0.25, 7200)
    (tier,) = parse_tiers([{**REDIS, "blob_size_max": 4096, "timeout": 3}], {})
    assert (tier.blob_size_bytes_max, tier.timeout_s) == (4096, 3.0)


def test_credentials_come_from_variables_and_files_and_are_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("word-2\n")
    table = {**S3, "access_key_id_env": "KEY", "secret_access_key_file": str(path)}
    (tier,) = parse_tiers([table], VARIABLES)
    assert tier.native()["access_key_id"] == "id-1"
    assert tier.native()["secret_access_key"] == "word-2"
    assert "word-2" not in repr(tier)
    assert "id-1" not in repr(tier)


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ({**S3, "bukcet": "x"}, "bukcet", "did you mean bucket"),
        ({**S3, "ttl": "1h"}, "ttl", "not a key of a tier of kind s3"),
        ({**REDIS, "password": "x"}, "password", "password_env or password_file"),
        ({**REDIS, "password_env": "NOT_SET"}, "password_env", "NOT_SET is not set"),
        ({**REDIS, "password_env": "EMPTY"}, "password_env", "not set or empty"),
        ({**REDIS, "password_env": "KEY", "password_file": "/x"}, "password_env", "both given"),
        ({**REDIS, "password_file": "/nowhere/at/all"}, "password_file", "cannot be read"),
        ({**REDIS, "address": "http://localhost"}, "address", "redis://HOST:PORT or rediss://HOST:PORT"),
        ({**REDIS, "address": "redis://localhost:port"}, "address", "not an address"),
        ({"name": "x", "kind": "redis"}, "address", "address is missing"),
        ({**REAPI, "certificate_file": "/dev/null"}, "key_file", "go together"),
        ({**S3, "access_key_id_env": "KEY"}, "access_key_id_env", "go together"),
        ({**S3, "kind": "gcs"}, "kind", "s3, redis, reapi"),
        ({**S3, "write": "sometimes"}, "write", "through, back, never"),
        ({**S3, "read": "yes"}, "read", "true or false"),
        ({**S3, "name": "Bucket"}, "name", "no name"),
        ({**S3, "timeout": "5 minutes"}, "timeout", 'such as "2 s"'),
        ({**S3, "timeout": 0}, "timeout", 'such as "2 s"'),
        ({**S3, "blob_size_max": True}, "blob_size_max", 'such as "16 MiB"'),
        ({**S3, "queue_entries_max": 0}, "queue_entries_max", "from 1 to"),
        ({"kind": "s3", "name": "x"}, "bucket", "bucket is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(table: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        parse_tiers([REDIS | {"name": "first"}, table], VARIABLES)
    assert caught.value.fields["field"] == f"cache.tier.1.{key}"


def test_a_credential_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest, match="may hold no credential") as caught:
        parse_tiers([{**REDIS, "address": "redis://user:word-2@localhost"}], {})
    assert "word-2" not in caught.value.message


def test_names_are_unique_and_tiers_few() -> None:
    with pytest.raises(InvalidRequest, match="two tiers are called 'hot'"):
        parse_tiers([REDIS, REDIS], {})
    with pytest.raises(InvalidRequest, match="more than the"):
        parse_tiers([REDIS] * (TIERS_MAX + 1), {})
