"""Who may call what: every scope against every call, tokens that do not hold, instances, namespaces, revocation."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buildnet._native import Link
from buildnet.access import keys, tokens
from buildnet.client import Client, Credentials
from buildnet.errors import BuildNetError, Cancelled, Forbidden, NodeDown, Unauthenticated
from buildnet.ledger import audit
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from buildnet.wire.native import translated
from tests.conftest import COMMAND, House
from tests.flow.guarded import AC, CAS, RE, Code, Guarded

NAME = f"blobs/{'0' * 64}/1"
READ = bs.ReadRequest(resource_name=NAME).SerializeToString()
STATUS = bs.QueryWriteStatusRequest(resource_name=f"uploads/1/{NAME}").SerializeToString()
WRITE = bs.WriteRequest(resource_name=f"uploads/1/{NAME}").SerializeToString()
V1 = "/buildnet.v1."
OPERATIONS = "/google.longrunning.Operations/"
READERS = {"read", "worker", "admin"}
WRITERS = {"write", "cas-only", "worker", "admin"}

# Each call with the scopes that may make it; None for everybody, credentials or not.
CALLS: dict[str, tuple[bytes, set[str] | None]] = {
    RE + "Capabilities/GetCapabilities": (b"", set(tokens.SCOPES)),
    CAS + "FindMissingBlobs": (b"", READERS | WRITERS),
    CAS + "BatchUpdateBlobs": (b"", WRITERS),
    CAS + "BatchReadBlobs": (b"", READERS),
    CAS + "GetTree": (b"", READERS),
    CAS + "SplitBlob": (b"", READERS),
    CAS + "SpliceBlob": (b"", WRITERS),
    AC + "GetActionResult": (b"", READERS),
    AC + "UpdateActionResult": (b"", {"write", "admin"}),
    "/google.bytestream.ByteStream/Read": (READ, READERS),
    "/google.bytestream.ByteStream/Write": (WRITE, WRITERS),
    "/google.bytestream.ByteStream/QueryWriteStatus": (STATUS, WRITERS),
    RE + "Execution/Execute": (b"", {"execute", "admin"}),
    RE + "Execution/WaitExecution": (b"", {"execute", "admin"}),
    OPERATIONS + "GetOperation": (b"", {"execute", "admin"}),
    OPERATIONS + "ListOperations": (b"", {"execute", "admin"}),
    OPERATIONS + "CancelOperation": (b"", {"execute", "admin"}),
    V1 + "ActionService/ListActions": (b"", READERS),
    V1 + "ActionService/GetAction": (b"", READERS),
    V1 + "ActionService/StreamLogs": (b"", READERS),
    V1 + "ActionService/ExplainAction": (b"", READERS),
    V1 + "ActionService/GetActionHistory": (b"", READERS),
    V1 + "ActionService/DiffActions": (b"", READERS),
    V1 + "ActionService/CancelAction": (b"", {"execute", "admin"}),
    V1 + "ActionService/SubmitAction": (b"", {"execute", "admin"}),
    V1 + "ActionService/SubmitActions": (b"", {"execute", "admin"}),
    V1 + "ActionService/GetResult": (b"", READERS),
    # It never ends by itself; a body that is none shows who may ask.
    V1 + "ActionService/WatchActions": (b"\xff", READERS),
    V1 + "JobService/SubmitJob": (b"", {"execute", "admin"}),
    V1 + "LedgerService/Tail": (b"", READERS),
    V1 + "LedgerService/GetCheckpoint": (b"", READERS),
    V1 + "LedgerService/ProveInclusion": (b"", READERS),
    V1 + "LedgerService/GetReceipt": (b"", READERS),
    V1 + "LedgerService/ListAccounts": (b"", READERS),
    V1 + "LedgerService/Statement": (b"", READERS),
    # The ledger is written by what happens, by nobody's call.
    V1 + "LedgerService/Append": (b"", set()),
    V1 + "FleetService/Join": (b"", {"worker", "admin"}),
    V1 + "FleetService/KeepLog": (b"", {"worker", "admin"}),
    V1 + "FleetService/ListNodes": (b"", READERS),
    # It never ends by itself; a body that is none shows who may ask.
    V1 + "FleetService/WatchNodes": (b"\xff", READERS),
    V1 + "ResourceService/ListResources": (b"", READERS),
    V1 + "ResourceService/ExplainResources": (b"", READERS),
    V1 + "FleetService/DrainNode": (b"", {"admin"}),
    V1 + "FleetService/CordonNode": (b"", {"admin"}),
    V1 + "FleetService/RemoveNode": (b"", {"admin"}),
    V1 + "FleetService/AllowNode": (b"", {"admin"}),
    V1 + "FleetService/SetNodeTier": (b"", {"admin"}),
    V1 + "FleetService/CreateJoinToken": (b"", {"admin"}),
    V1 + "FleetService/ListJoinTokens": (b"", {"admin"}),
    V1 + "FleetService/RevokeJoinToken": (b"", {"admin"}),
    # Who opens a session proves it by its handshake.
    V1 + "TransportService/Open": (b"", None),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": (b"", set(tokens.SCOPES)),
    "/grpc.health.v1.Health/Check": (b"", None),
    "/grpc.health.v1.Health/List": (b"", None),
    "/no.such.Service/Call": (b"", set(tokens.SCOPES)),
}
REFUSALS = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A controller with a local worker that lets nobody in without a token."""
    house = House(tmp_path_factory.mktemp("guarded"))
    try:
        yield Guarded(house.up("--slots", "1", "--anonymous", "none"))
    finally:
        house.close()


def fresh() -> bytes:
    return f"{time.monotonic_ns()}".encode()


@pytest.mark.parametrize("scope", [*tokens.SCOPES, ""])
def test_every_scope_against_every_call(guarded: Guarded, scope: str) -> None:
    caller = guarded.caller(guarded.token(scope) if scope else "")
    wrong = {}
    for path, (body, scopes) in CALLS.items():
        code = caller.code(path, body)
        if scopes is None or scope in scopes:
            right = code not in REFUSALS
        else:
            right = code is (Code.PERMISSION_DENIED if scope else Code.UNAUTHENTICATED)
        if not right:
            wrong[path] = code
    caller.close()
    assert not wrong


def test_a_refusal_names_the_right_and_the_instance(guarded: Guarded) -> None:
    caller = guarded.caller(guarded.token("read", subject="dora"))
    with pytest.raises(grpc.RpcError, match=r'"dora" may not write the action cache in instance "team/x".*scope write'):
        caller.update(caller_digest(), 0, "team/x")


def caller_digest() -> re.Digest:
    digest = Digest.of(fresh())
    return re.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


def signing(state: Path) -> tuple[Ed25519PrivateKey, bytes]:
    """The key that a controller's tokens are signed with, as PyJWT takes it, and its public half."""
    key = keys.load_or_create(state)
    return Ed25519PrivateKey.from_private_bytes(key.seed), key.public


def broken_tokens(guarded: Guarded) -> dict[str, str]:
    good = guarded.token("admin")
    head, claims, signature = good.split(".")
    own, public = signing(guarded.state)
    kid = tokens.key_id(public)
    stranger, strange = signing(guarded.state / "stranger")
    said = jwt.decode(good, options={"verify_signature": False})
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": kid}).encode()).rstrip(b"=").decode()
    return {
        "expired": guarded.token("admin", expires_s=-1),
        "not valid yet": guarded.token("admin", valid_s=300),
        "altered": f"{head}.{claims}.{signature[:-4]}AAAA",
        "of another key": jwt.encode(said, stranger, "EdDSA", {"kid": tokens.key_id(strange)}),
        "of another key in our name": jwt.encode(said, stranger, "EdDSA", {"kid": kid}),
        "unsigned": f"{unsigned}.{claims}.",
        "signed by the public key as a secret": jwt.encode(said, public, "HS256", {"kid": kid}),
        "for another audience": jwt.encode({**said, "aud": "others"}, own, "EdDSA", {"kid": kid}),
        "without an end": jwt.encode({k: v for k, v in said.items() if k != "exp"}, own, "EdDSA", {"kid": kid}),
        "none at all": "letmein",
        "too long": "a" * 5000,
    }


def test_tokens_that_do_not_hold_are_refused_by_grpc_and_http_and_never_told(guarded: Guarded) -> None:
    hash_ = Digest.of(b"x").hash
    for name, token in broken_tokens(guarded).items():
        caller = guarded.caller(token)
        with pytest.raises(grpc.RpcError) as refused:
            caller.raw(CAS + "FindMissingBlobs")
        assert refused.value.code() is Code.UNAUTHENTICATED, name
        status, headers, body = caller.http("GET", f"/cas/{hash_}")
        assert status == 401, name
        challenge = headers.get_all("www-authenticate")
        assert challenge[0] == 'Bearer realm="buildnet", error="invalid_token"'
        assert challenge[1].startswith("Basic ")
        assert token not in refused.value.details() + body.decode() + str(headers)
        caller.close()
    status, headers, _ = guarded.caller().http("GET", f"/cas/{hash_}")
    assert (status, headers.get_all("www-authenticate")[0]) == (401, 'Bearer realm="buildnet"')


def test_a_token_made_by_any_jwt_library_with_the_key_is_believed(guarded: Guarded) -> None:
    own, public = signing(guarded.state)
    claims = {"aud": ["buildnet", "more"], "jti": "1", "exp": time.time() + 60.5, "scope": "read", "iss": "else"}
    token = jwt.encode(claims, own, "EdDSA", {"kid": tokens.key_id(public)})
    assert guarded.caller(token).code(CAS + "FindMissingBlobs") is Code.OK


def test_a_token_ends_while_its_caller_goes_on_calling(guarded: Guarded) -> None:
    caller = guarded.caller(guarded.token("read", expires_s=4))
    assert caller.code(CAS + "FindMissingBlobs") is Code.OK
    while (code := caller.code(CAS + "FindMissingBlobs")) is Code.OK:
        time.sleep(0.05)
    assert code is Code.UNAUTHENTICATED


def test_http_takes_the_token_as_bearer_or_as_a_password(guarded: Guarded) -> None:
    data = fresh()
    path = f"/cas/{Digest.of(data).hash}"
    token = guarded.token("read", "cas-only")
    nobody = guarded.caller()
    basic = base64.b64encode(f"gradle:{token}".encode()).decode()
    assert nobody.http("PUT", path, data, authorization=f"Basic {basic}")[0] == 200
    assert nobody.http("GET", path, authorization=f"bearer {token}")[2] == data
    status, _, body = nobody.http("PUT", f"/ac/{Digest.of(data).hash}", data, authorization=f"Basic {basic}")
    assert (status, b"write the action cache" in body) == (403, True)
    assert nobody.http("GET", path, authorization="Basic eDp5")[0] == 401
    assert nobody.http("GET", path)[0] == 401
    # Whoever looks from this machine needs no token for what names no blob and no token.
    assert nobody.http("GET", "/status")[0] == 200


def test_a_large_upload_that_is_refused_is_told_so(guarded: Guarded) -> None:
    data = bytes(8 << 20)
    status, _, _ = guarded.caller().http("PUT", f"/cas/{Digest.of(data).hash}", data)
    assert status == 401


def test_a_token_is_limited_to_its_instances_by_segments(guarded: Guarded) -> None:
    caller = guarded.caller(guarded.token("read", "write", instances=("team/",)))
    digest = caller.put(fresh(), "team")
    caller.update(digest, 0, "team/a/b")
    for instance in ("", "teams", "other", "other/team"):
        with pytest.raises(grpc.RpcError) as refused:
            caller.put(b"x", instance)
        assert refused.value.code() is Code.PERMISSION_DENIED
        assert json.dumps(instance) in refused.value.details()
        path = f"/{instance}/ac/{digest.hash}".replace("//", "/")
        assert caller.http("PUT", path, b"value")[0] == 403
    assert caller.http("PUT", f"/team/x/ac/{digest.hash}", b"value")[0] == 200


@pytest.mark.parametrize("instance", ["a\x01b", "a\x00", "\x1f", "x" * 256, "é" * 200, "a\x85"])
def test_instance_names_that_could_be_anothers_key_are_refused(guarded: Guarded, instance: str) -> None:
    caller = guarded.caller(guarded.token("admin"))
    digest = caller_digest()
    for path, request in (
        (AC + "GetActionResult", re.GetActionResultRequest(instance_name=instance, action_digest=digest)),
        (AC + "UpdateActionResult", re.UpdateActionResultRequest(instance_name=instance, action_digest=digest)),
        (CAS + "FindMissingBlobs", re.FindMissingBlobsRequest(instance_name=instance)),
        (RE + "Execution/Execute", re.ExecuteRequest(instance_name=instance, action_digest=digest)),
        ("/google.bytestream.ByteStream/Read", bs.ReadRequest(resource_name=f"{instance}/{NAME}")),
    ):
        assert caller.code(path, request.SerializeToString()) is Code.INVALID_ARGUMENT, path
    quoted = "".join(f"%{byte:02x}" for byte in instance.encode())
    assert caller.http("PUT", f"/{quoted}/ac/{digest.hash}", b"v")[0] == 400


def test_capabilities_say_what_this_caller_may_do(guarded: Guarded) -> None:
    def offered(*scopes: str) -> tuple[bool, bool]:
        caller = guarded.caller(guarded.token(*scopes))
        answer = caller.ask(RE + "Capabilities/GetCapabilities", re.GetCapabilitiesRequest(), re.ServerCapabilities)
        updates = answer.cache_capabilities.action_cache_update_capabilities.update_enabled
        # REAPI GetCapabilities: what is no executor tells no capabilities of one.
        assert answer.HasField("execution_capabilities") == answer.execution_capabilities.exec_enabled
        return updates, answer.execution_capabilities.exec_enabled

    assert offered("read", "write") == (True, False)
    assert offered("read", "cas-only") == (False, False)
    assert offered("read", "cas-only", "execute") == (False, True)
    assert offered("admin") == (True, True)


def test_results_of_an_untrusted_writer_stay_in_its_namespace(guarded: Guarded) -> None:
    trusted = guarded.caller(guarded.token("read", "write"))
    pr = guarded.caller(guarded.token("read", "write", namespace="pr"))
    fork = guarded.caller(guarded.token("read", "write", namespace="fork"))
    mine, theirs = caller_digest(), caller_digest()
    pr.update(mine, 7)
    assert (pr.result(mine), trusted.result(mine), fork.result(mine)) == (7, None, None)
    trusted.update(theirs, 3)
    assert (pr.result(theirs), trusted.result(theirs), fork.result(theirs)) == (3, 3, 3)
    # Its own comes first, for itself only.
    pr.update(theirs, 9)
    assert (pr.result(theirs), trusted.result(theirs), fork.result(theirs)) == (9, 3, 3)
    # The blobs are everybody's: content is truth.
    blob = pr.put(fresh())
    assert trusted.http("GET", f"/cas/{blob.hash}")[0] == 200


def test_namespaces_hold_over_http_and_between_the_two(guarded: Guarded) -> None:
    trusted = guarded.caller(guarded.token("read", "write"))
    pr = guarded.caller(guarded.token("read", "write", namespace="pr"))
    entry = f"/team/ac/{caller_digest().hash}"
    assert pr.http("PUT", entry, b"poison")[0] == 200
    assert (pr.http("GET", entry)[2], trusted.http("GET", entry)[0]) == (b"poison", 404)
    assert trusted.http("PUT", entry, b"good")[0] == 200
    assert (pr.http("GET", entry)[2], trusted.http("GET", entry)[2]) == (b"poison", b"good")
    action = caller_digest()
    pr.update(action, 5, "team")
    assert trusted.http("GET", f"/team/ac/{action.hash}")[0] == 404
    assert pr.http("GET", f"/team/ac/{action.hash}")[0] == 200


async def test_what_an_untrusted_caller_has_executed_is_not_cached_for_others(guarded: Guarded) -> None:
    argv = ["/bin/sh", "-c", f"echo {time.monotonic_ns()}"]
    url = guarded.role.url

    def client(**more: object) -> Client:
        token = guarded.token("read", "cas-only", "execute", **more)
        return Client(url, instance="team", credentials=Credentials(token=lambda: token))

    async with client(namespace="pr") as pr, client() as trusted:
        first = await pr.run(argv)
        assert (first.exit_code, first.cached) == (0, False)
        assert (await pr.run(argv)).cached
        second = await trusted.run(argv)
        assert not second.cached
        assert (await trusted.run(argv)).cached
        shown = {info.instance for info in await trusted.actions()}
        assert shown <= {"team", ""}


async def test_a_caller_in_a_namespace_stops_only_its_own(guarded: Guarded) -> None:
    def client(**more: object) -> Client:
        token = guarded.token("read", "cas-only", "execute", **more)
        return Client(guarded.role.url, credentials=Credentials(token=lambda: token))

    async with client(namespace="pr") as pr, client() as trusted:
        running = asyncio.ensure_future(trusted.run(["/bin/sleep", "60"], do_not_cache=True))
        while not (found := [info for info in await pr.actions() if info.state == "executing"]):
            await asyncio.sleep(0.02)
        with pytest.raises(Forbidden, match="may stop only what was begun there"):
            await pr.cancel(found[0].id)
        await trusted.cancel(found[0].id)
        with pytest.raises(Cancelled):
            await running


@contextmanager
def told_by_stdin(url: str, state: Path) -> Iterator[Callable[[str], None]]:
    """A worker that is given its tokens as the local one is."""
    arguments = ["join", url, "--state", str(state), "--slots", "1", "--token-from-stdin", "--until-stdin-closes"]
    with subprocess.Popen([*COMMAND, *arguments, "--quiet"], stdin=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None

        def tell(token: str) -> None:
            assert worker.stdin is not None
            worker.stdin.write(f"{token}\n")
            worker.stdin.flush()

        yield tell
        worker.stdin.close()
        assert worker.wait(20) is not None


async def test_a_worker_outlives_the_token_that_it_joined_with(house: House) -> None:
    server = Guarded(house.up("--no-worker", "--anonymous", "none"))
    first, token = server.token("worker", id="first"), server.token("read", "cas-only", "execute")
    async with Client(server.role.url, credentials=Credentials(token=lambda: token)) as client:
        with told_by_stdin(server.role.url, house.directory / "renewed") as tell:
            tell(first)
            while not await client.nodes():
                await asyncio.sleep(0.05)
            keys.revoke(server.state, "first", 0)
            while server.caller(first).code(CAS + "FindMissingBlobs") is Code.OK:
                await asyncio.sleep(0.05)
            # It takes its input and leaves its output by the link, whose token is refused.
            with pytest.raises(NodeDown, match="refused this worker's credentials"):
                await client.run(["/bin/cat", "in"], inputs={"in": fresh()})
            tell(server.token("worker"))
            while await exit_code(client) != 0:
                await asyncio.sleep(0.05)


async def exit_code(client: Client) -> int | None:
    try:
        return (await client.run(["/bin/cat", "in"], inputs={"in": fresh()})).exit_code
    except BuildNetError:
        return None


async def test_what_belongs_to_other_instances_is_not_seen(guarded: Guarded) -> None:
    def client(instance: str) -> Client:
        token = guarded.token("read", "cas-only", "execute", instances=(instance,))
        return Client(guarded.role.url, instance=instance, credentials=Credentials(token=lambda: token))

    async with client("red") as red, client("blue") as blue:
        done = await red.run(["/bin/echo", str(time.monotonic_ns())])
        operation = done.operation.rsplit("/", 1)[-1]
        assert [info.id for info in await red.actions()] == [operation]
        assert await blue.actions() == []
        with pytest.raises(Exception, match="no operation is called"):
            await blue.action(operation)
        with pytest.raises(Exception, match="no operation is called"):
            await blue.cancel(operation)
        with pytest.raises(Forbidden, match="every instance"):
            await blue.accounts()
        receipt = await red.receipt(done.action)
        assert json.loads(receipt.body)["instance"] == "red"
        assert [index async for index, _ in red.ledger_tail(kinds=["action.published"])] == [receipt.index]
        assert [index async for index, _ in blue.ledger_tail()] == []
        with pytest.raises(Forbidden, match="not of an instance"):
            await blue.ledger_entry(receipt.index)


def test_a_link_takes_another_token_without_dialling_anew(guarded: Guarded) -> None:
    link = Link(guarded.role.url, token=guarded.token("read", expires_s=-1))
    with pytest.raises(Unauthenticated), translated():
        link.put_bytes(b"x")
    link.set_token(guarded.token("cas-only"))
    with translated():
        assert link.put_bytes(b"x") == Digest.of(b"x").text
    link.close()


def buildnet(*arguments: str, token: str = "", text: str = "") -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "BUILDNET_TOKEN": token}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=env, input=text)


def test_a_token_is_made_shown_used_and_revoked_by_the_command_line(guarded: Guarded, tmp_path: Path) -> None:
    state = ("--state", str(guarded.state))
    made = buildnet("token", "create", *state, "--scope", "read,execute,cas-only", "--expires", "1h", "--json")
    facts = json.loads(made.stdout)
    assert facts["scopes"] == ["read", "execute", "cas-only"]
    token = facts["token"]
    shown = buildnet("token", "show", *state, "--json", token=token)
    assert (shown.returncode, json.loads(shown.stdout)["state"]) == (0, "valid")
    file = tmp_path / "token"
    file.write_text(token + "\n")
    ran = buildnet("run", *state, "--token-file", str(file), "--", "echo", "hello")
    assert (ran.returncode, ran.stdout) == (0, "hello\n"), ran.stderr
    assert buildnet("token", "revoke", *state, facts["id"]).returncode == 0
    caller = guarded.caller(token)
    while (code := caller.code(CAS + "FindMissingBlobs")) is Code.OK:
        time.sleep(0.05)
    assert code is Code.UNAUTHENTICATED
    shown = buildnet("token", "show", *state, "-", text=token)
    assert (shown.returncode, "revoked" in shown.stdout) == (1, True)
    refused = buildnet("run", *state, "--json", "--", "echo", "hello", token=token)
    assert (refused.returncode, json.loads(refused.stderr)["error"]["code"]) == (125, "unauthenticated")
    assert token not in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scope", "reed"), "is not a scope"),
        (("--scope", ","), "no scope"),
        (("--expires", "soon"), "is not a duration"),
        (("--expires", "99999d"), "ten years"),
        (("--scope", "worker", "--instance", "team"), "every instance"),
        (("--scope", "admin", "--namespace", "pr"), "published for everybody"),
        (("--instance", "a\x01b"), "control character"),
    ],
)
def test_a_token_that_means_nothing_is_not_made(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    ended = buildnet("token", "create", "--state", str(tmp_path / "state"), *options)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert said in ended.stderr
    assert not (tmp_path / "state").exists()


def test_the_key_is_its_owners_alone_and_another_controller_may_trust_it(house: House, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "public.pem"
    token = buildnet("token", "create", "--state", str(first), "--scope", "read").stdout.strip()
    assert keys.key_path(first).stat().st_mode & 0o777 == 0o600
    second.write_text(buildnet("token", "key", "--state", str(first)).stdout)
    trusting = Guarded(house.up("--no-worker", "--anonymous", "none", "--trusted-key", str(second)))
    assert trusting.caller(token).code(CAS + "FindMissingBlobs") is Code.OK
    distrusting = Guarded(house.up("--no-worker", "--anonymous", "none", name="other"))
    assert distrusting.caller(token).code(CAS + "FindMissingBlobs") is Code.UNAUTHENTICATED


def test_an_open_door_holds_a_token_to_its_word_and_passes_over_what_is_none(house: House) -> None:
    server = Guarded(house.up("--no-worker"))
    assert server.caller().code(CAS + "FindMissingBlobs") is Code.OK
    assert server.caller("turbo-wants-any-token").code(CAS + "BatchUpdateBlobs") is Code.OK
    assert server.caller(server.token("read")).code(CAS + "BatchUpdateBlobs") is Code.PERMISSION_DENIED
    assert server.caller(server.token("read", expires_s=-1)).code(CAS + "FindMissingBlobs") is Code.UNAUTHENTICATED


def test_readers_may_be_let_in_without_credentials(house: House) -> None:
    server = Guarded(house.up("--no-worker", "--anonymous", "read"))
    assert server.caller().code(CAS + "FindMissingBlobs") is Code.OK
    assert server.caller().code(CAS + "BatchUpdateBlobs") is Code.PERMISSION_DENIED
    assert server.caller("nonsense").code(CAS + "FindMissingBlobs") is Code.UNAUTHENTICATED


def test_each_start_tells_the_ledger_the_rules_that_it_goes_by(tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        for anonymous in ("read", "read", "none"):
            role = house.up("--no-worker", "--anonymous", anonymous)
            keys.revoke(Path(role.ready["state"]), f"token-{len(house.roles)}", 0)
            assert role.stop() == 0
        entries = [json.loads(body) for _, body in audit.iterate(tmp_path / "controller")]
    finally:
        house.close()
    kinds = [entry["kind"] for entry in entries]
    assert kinds.count("access.configured") == kinds.count("controller.started") == 3
    first, second, third = (entry for entry in entries if entry["kind"] == "access.configured")
    assert first["anonymous"] == ["read"]
    assert third["anonymous"] == []
    assert first["rules_sha256"] == second["rules_sha256"] != third["rules_sha256"]
    assert [entry["revoked"] for entry in (first, second, third)] == [0, 1, 2]
    # Its own: by it are signed the tokens that it makes.
    assert [entry["keys"] for entry in (first, second, third)] == [1] * 3
