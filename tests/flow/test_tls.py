"""TLS on the one port: stock clients, client certificates, files that change, a worker and a local one within it."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from buildnet.client import Client, Credentials
from buildnet.errors import NodeDown, Unauthenticated
from buildnet.model.digest import Digest
from tests.conftest import COMMAND, House, Role
from tests.flow.authority import Authority, Files
from tests.flow.guarded import AC, CAS, Code, Guarded


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the clients, which is not the server's."""
    return Authority(tmp_path_factory.mktemp("clients"), "clients")


CONFIG = """
[controller]
listen = "127.0.0.1:0"
slots = 1

[tls]
certificate = "server.pem"
key = "server.key"
client_ca = "clients.pem"

[access]
certificate_scopes = ["read"]

[[access.certificate]]
name = "DNS:builder.example"
scopes = ["read", "write", "execute"]

[[access.certificate]]
name = "URI:spiffe://example/pr"
scopes = ["read", "write"]
namespace = "pr"
instances = ["team"]
"""


def place(files: Files, directory: Path) -> None:
    """Put a certificate where a server reads it, the key first, each at once."""
    for source, name in ((files.key, "server.key"), (files.certificate, "server.pem")):
        shutil.copy(source, directory / f"{name}.new")
        (directory / f"{name}.new").rename(directory / name)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, clients: Authority
) -> Iterator[tuple[Guarded, Path]]:
    """A controller with a local worker, within TLS, by a configuration file."""
    directory = tmp_path_factory.mktemp("served")
    place(authority.issue("server", loopback=True), directory)
    shutil.copy(clients.file, directory / "clients.pem")
    (directory / "buildnet.toml").write_text(CONFIG)
    house = House(directory)
    try:
        yield Guarded(house.up("--config", str(directory / "buildnet.toml")), authority.file), directory
    finally:
        house.close()


def shown(files: Files) -> tuple[bytes, bytes]:
    return files.certificate.read_bytes(), files.key.read_bytes()


def handshake(server: Guarded, *protocols: str) -> tuple[str | None, int]:
    """The protocol that was agreed and the serial of the server's certificate."""
    context = ssl.create_default_context(cafile=str(server.ca_file))
    context.set_alpn_protocols(list(protocols))
    host, port = server.listen.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname=host) as s,
    ):
        return s.selected_alpn_protocol(), int(str(s.getpeercert()["serialNumber"]), 16)  # type: ignore[index]


def test_both_protocols_are_spoken_within_tls(served: tuple[Guarded, Path]) -> None:
    server, _ = served
    assert server.role.url == f"grpcs://{server.listen}"
    assert handshake(server, "h2", "http/1.1")[0] == "h2"
    assert handshake(server, "http/1.1")[0] == "http/1.1"
    caller = server.caller(server.token("read", "write"))
    digest = caller.put(b"within tls")
    assert caller.http("GET", f"/cas/{digest.hash}")[2] == b"within tls"


def test_plaintext_and_strangers_certificates_get_nowhere(served: tuple[Guarded, Path], tmp_path: Path) -> None:
    server, _ = served
    host, port = server.listen.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        # At most an alert of TLS, and the end.
        assert b"HTTP" not in plain.makefile("rb").read()
    stranger = Authority(tmp_path / "stranger").issue("builder", dns=("builder.example",))
    caller = server.caller(certificate=shown(stranger))
    assert caller.code(CAS + "FindMissingBlobs") is Code.UNAVAILABLE
    assert server.caller().code(CAS + "FindMissingBlobs") is Code.UNAUTHENTICATED
    absent = Digest.of(b"absent").hash
    assert server.caller().http("GET", f"/cas/{absent}")[0] == 401


def test_a_certificate_may_do_what_its_name_is_granted(served: tuple[Guarded, Path], clients: Authority) -> None:
    server, _ = served
    builder = server.caller(certificate=shown(clients.issue("builder", dns=("builder.example",))))
    unnamed = server.caller(certificate=shown(clients.issue("unnamed")))
    pr = server.caller(certificate=shown(clients.issue("pr", uris=("spiffe://example/pr",))))
    digest = builder.put(b"by certificate", "team")
    builder.update(digest, 4, "team")
    assert unnamed.result(digest, "team") == 4
    assert unnamed.code(AC + "UpdateActionResult") is Code.PERMISSION_DENIED
    pr.update(digest, 6, "team")
    assert (pr.result(digest, "team"), unnamed.result(digest, "team")) == (6, 4)
    assert pr.code(AC + "UpdateActionResult") is Code.PERMISSION_DENIED
    # A token says more exactly what its holder means to be.
    both = server.caller(server.token("read"), shown(clients.issue("builder2", dns=("builder.example",))))
    assert both.code(CAS + "BatchUpdateBlobs") is Code.PERMISSION_DENIED


async def test_the_local_worker_works_for_a_controller_within_tls(
    served: tuple[Guarded, Path], authority: Authority
) -> None:
    server, _ = served
    token = server.token("read", "cas-only", "execute")
    credentials = Credentials(ca_pem=authority.file.read_bytes(), token=lambda: token)
    async with Client(server.role.url, credentials=credentials) as client:
        assert (await client.run(["/bin/echo", "hello"])).exit_code == 0
    async with Client(server.role.url, credentials=Credentials(token=lambda: token)) as client:
        with pytest.raises(NodeDown):
            await client.capabilities()
    controller = server.role.process.pid
    workers = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    seen = b"".join(Path(f"/proc/{pid}/{what}").read_bytes() for pid in workers for what in ("cmdline", "environ"))
    assert b"--token-from-stdin" in seen
    # What every token begins with.
    assert b"eyJ" not in seen


def test_a_connection_that_never_shakes_hands_stops_nobody(served: tuple[Guarded, Path]) -> None:
    server, _ = served
    host, port = server.listen.rsplit(":", 1)
    idle = [socket.create_connection((host, int(port)), 10) for _ in range(50)]
    assert server.caller(server.token("read")).code(CAS + "FindMissingBlobs") is Code.OK
    for connection in idle:
        connection.close()


def test_a_new_certificate_is_taken_up_and_a_bad_one_is_not(
    tmp_path: Path, house: House, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = authority.issue("one", loopback=True), authority.issue("two", loopback=True)
    place(first, tmp_path)
    files = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    server = Guarded(house.up("--no-worker", *files), authority.file)
    held = server.caller()
    assert held.code(CAS + "FindMissingBlobs") is Code.OK
    assert handshake(server)[1] == first.serial
    place(second, tmp_path)
    while handshake(server)[1] != second.serial:
        pass
    # Connections that are open go on.
    assert held.code(CAS + "FindMissingBlobs") is Code.OK
    (tmp_path / "server.pem").write_text("torn")
    told = ""
    while "stays in force" not in told:
        assert handshake(server)[1] == second.serial
        told += capfd.readouterr().err
    assert str(tmp_path / "server.pem") in told
    assert "PRIVATE" not in told


def test_a_worker_joins_within_tls_by_a_token_in_a_file(house: House, tmp_path: Path, authority: Authority) -> None:
    files = authority.issue("remote", loopback=True)
    tls = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--anonymous", "none")
    server = Guarded(house.up("--no-worker", *tls), authority.file)
    token = tmp_path / "token"
    token.write_text(server.token("worker"))
    shows = ("--ca-file", str(authority.file), "--token-file", str(token))
    worker: Role = house.join(server.role.url, "--slots", "1", *shows)
    assert worker.ready["ready"]
    user = tmp_path / "user"
    user.write_text(server.token("read", "cas-only", "execute"))
    ran = buildnet(
        "run", "--url", server.role.url, "--ca-file", str(authority.file), "--token-file", str(user), "--", "pwd"
    )
    assert ran.returncode == 0, ran.stderr
    refused = buildnet("join", server.role.url, "--state", str(tmp_path / "w2"), "--ca-file", str(authority.file))
    assert (refused.returncode, "credentials" in refused.stderr) == (125, True)
    user_join = ("--ca-file", str(authority.file), "--token-file", str(user))
    refused = buildnet("join", server.role.url, "--state", str(tmp_path / "w3"), *user_join)
    assert (refused.returncode, "join as a worker" in refused.stderr) == (125, True)


async def test_the_client_shows_its_certificate(
    served: tuple[Guarded, Path], authority: Authority, clients: Authority
) -> None:
    server, _ = served
    certificate, key = shown(clients.issue("sdk", dns=("builder.example",)))
    mine = Credentials(authority.file.read_bytes(), certificate, key)
    async with Client(server.role.url, credentials=mine) as client:
        assert await client.read(await client.upload(b"both halves")) == b"both halves"
        assert (await client.capabilities())["execution"]
    async with Client(server.role.url, credentials=Credentials(authority.file.read_bytes())) as client:
        with pytest.raises(Unauthenticated):
            await client.upload(b"x")
        with pytest.raises(Unauthenticated):
            await client.capabilities()


def buildnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"}
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen", "0.0.0.0:0"), "in plaintext"),
        (("--listen", "[::]:0"), "in plaintext"),
        (("--listen", "0.0.0.0:0", "--anonymous", "all", "--insecure-plaintext"), "without credentials"),
        (
            ("--listen", "0.0.0.0:0", "--anonymous", "all", "--tls-cert", "server.pem", "--tls-key", "server.key"),
            "without credentials",
        ),
        (("--tls-cert", "server.pem"), "both a certificate and its key"),
        (("--client-ca", "server.pem"), "both a certificate and its key"),
        (("--tls-cert", "absent.pem", "--tls-key", "server.key"), "absent.pem"),
        (("--tls-cert", "server.pem", "--tls-key", "other.key"), "server.pem"),
        (("--tls-cert", "server.pem", "--tls-key", "server.key", "--client-ca", "server.key"), "server.key"),
        (("--trusted-key", "server.pem"), "server.pem does not hold a public key of Ed25519"),
    ],
)
def test_what_would_let_anybody_in_is_refused_at_the_start(
    tmp_path: Path, authority: Authority, options: tuple[str, ...], said: str
) -> None:
    place(authority.issue("refusals", loopback=True), tmp_path)
    shutil.copy(authority.issue("other").key, tmp_path / "other.key")
    ended = subprocess.run(
        [*COMMAND, "up", "--state", "state", "--listen", "127.0.0.1:0", *options, "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
    )
    assert (ended.returncode, ended.stdout) == (125, "")
    assert said in json.loads(ended.stderr.splitlines()[-1])["error"]["message"]


def test_beyond_this_machine_everybody_must_show_a_token(house: House, authority: Authority) -> None:
    files = authority.issue("public", loopback=True)
    tls = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key))
    role = house.up("--no-worker", *tls, listen="0.0.0.0:0")
    role.ready["listen"] = f"127.0.0.1:{role.ready['listen'].rsplit(':', 1)[1]}"
    server = Guarded(role, authority.file)
    assert server.caller().code(CAS + "FindMissingBlobs") is Code.UNAUTHENTICATED
    assert server.caller(server.token("read")).code(CAS + "FindMissingBlobs") is Code.OK
    with pytest.raises(grpc.RpcError, match="no credentials"):
        server.caller().raw(CAS + "FindMissingBlobs")
