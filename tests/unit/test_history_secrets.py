"""What looks like a secret is hidden, and what does not is shown as it is."""

from __future__ import annotations

import pytest

from buildnet.history.secrets import HIDDEN, TEXT_CHARACTERS_MAX, is_secret, shown_arguments, shown_text, shown_value


@pytest.mark.parametrize(
    "name", ["GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "api-key", "ApiKey", "HTTP_AUTH", "NPM_PAT", "PASS"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    assert shown_value(name, "hunter2") == HIDDEN


@pytest.mark.parametrize("name", ["PATH", "PWD", "AUTHOR", "COMPASS", "KEYBOARD", "PATCH", "CC", "MONKEY"])
def test_names_of_nothing_secret(name: str) -> None:
    assert not is_secret(name)
    assert shown_value(name, "value") == "value"


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--token=abc", f"--token={HIDDEN}"),
        ("DB_PASSWORD='a b' run --fast", f"DB_PASSWORD={HIDDEN} run --fast"),
        ("https://me:hunter2@host/x", f"https://me:{HIDDEN}@host/x"),
        ("Authorization: Bearer abc def", f"Authorization: {HIDDEN}"),
        ("ghp_abcdefghijklmnopqrstuvwx", HIDDEN),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc", HIDDEN),
        ("-DNAME=value", "-DNAME=value"),
        ("https://host:80/x@y", "https://host:80/x@y"),
        ("", ""),
    ],
)
def test_arguments(argument: str, shown: str) -> None:
    assert shown_text(argument) == shown


def test_what_follows_an_option_for_a_secret() -> None:
    argv = ("curl", "--password", "hunter2", "--api-key", "-x", "plain", "--user", "me")
    assert shown_arguments(argv) == ("curl", "--password", HIDDEN, "--api-key", "-x", "plain", "--user", "me")


def test_long_texts_cost_little() -> None:
    # A pattern that backtracks would take minutes for it.
    text = "a" * 2_000_000 + "=" + "b-" * 1_000_000 + "://" * 500_000
    assert shown_text(text) == "a" * TEXT_CHARACTERS_MAX + f"… ({len(text) - TEXT_CHARACTERS_MAX} more characters)"
    assert not is_secret("a" * 5_000_000 + "token"), "no name is so long"
