"""`buildnet config check FILE`: say what is wrong with a configuration before a controller would. Starts nothing."""

from __future__ import annotations

from pathlib import Path

import click

from buildnet.cli import options


@click.group("config", epilog="Example: buildnet config check buildnet.toml")
def command() -> None:
    """Check a configuration file."""


@command.command("check", epilog="Example: buildnet config check buildnet.toml")
@click.argument("file", type=click.Path(path_type=Path))
@options.as_json
def check(file: Path, as_json: bool) -> None:
    """Check FILE as `buildnet up --config FILE` would, with the files that it names."""
    from buildnet.app.admission import anonymous_of, check_files
    from buildnet.app.config_file import configured

    config = configured(file, {})
    check_files(config.access, config.tls)
    anonymous = anonymous_of(config.listen, config.access, config.tls)
    facts = {
        "listen": config.listen,
        "state": str(config.state),
        "tls": config.tls is not None,
        "client_certificates": config.tls is not None and config.tls.client_ca is not None,
        "anonymous": anonymous,
        "tiers": len(config.tiers),
    }
    if as_json:
        options.echo_json({"file": str(file), "good": True, **facts})
    else:
        how = "within TLS" if config.tls else "in plaintext"
        click.echo(f"{file} is good: listens on {config.listen} {how}; callers without credentials may do {anonymous}")
