"""The Python SDK: run commands, move trees, follow what happens. Everything the command line does is done with it.

    import buildnet.client

    with buildnet.client.connect("grpc://127.0.0.1:8980") as net:
        result = net.run(["gcc", "-c", "hello.c", "-o", "hello.o"], inputs=["hello.c"], outputs=["hello.o"])
        result.outputs["hello.o"].download("hello.o")

`Client` is the same with `await`.
"""

from buildnet.client.actions import ActionFilter
from buildnet.client.client import Client
from buildnet.client.fleet import JoinTokenInfo, NodeInfo
from buildnet.client.history import PastRun, Why
from buildnet.client.results import ActionInfo, EffectsTold, LogPiece, Output, RunResult
from buildnet.client.submission import GraphOutcome, SubmittedGraph
from buildnet.client.sync import SyncClient, connect
from buildnet.model.credentials import Credentials
from buildnet.model.digest import Digest

__all__ = [
    "ActionFilter",
    "ActionInfo",
    "Client",
    "Credentials",
    "Digest",
    "EffectsTold",
    "GraphOutcome",
    "JoinTokenInfo",
    "LogPiece",
    "NodeInfo",
    "Output",
    "PastRun",
    "RunResult",
    "SubmittedGraph",
    "SyncClient",
    "Why",
    "connect",
]
