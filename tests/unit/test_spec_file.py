"""A file of actions is taken as it is meant, or refused with what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buildnet.client import spec_file
from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import FileInput, OutputInput, TreeInput, spec_of
from buildnet.model.amounts import Amounts
from buildnet.model.digest import EMPTY, Digest

FULL: dict[str, Any] = {
    "arguments": ["cc"],
    "inputs": [
        {"path": "t", "tree": EMPTY.text},
        {"path": "f", "file": EMPTY.text, "executable": True},
        {"path": "o", "output": "x/y", "of": "other"},
        {"local": "here"},
        {"path": "there", "local": "/abs"},
    ],
    "variables": {"A": "1"},
    "pins": {"gcc": "12"},
    "working_directory": "w",
    "outputs": ["out"],
    "effects": {"network": "none"},
    "resources": {"cpus": 1.5, "memory": "1GiB", "disk": "2 GiB", "gpus": 1},
    "require": ["arch=x86_64"],
    "platform": {"OSFamily": "linux"},
    "timeout": "2m",
    "secrets": {"T": "ci/t"},
    "do_not_cache": True,
    "salt": "s",
    "priority": 3,
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    draft = spec_file.read(written(tmp_path, FULL))[""]
    assert draft.local == {"here": tmp_path / "here", "there": Path("/abs")}
    tree = Digest.of(b"tree")
    assert draft.spec(tree) == spec_of(
        ["cc"],
        inputs=[
            TreeInput("t", EMPTY),
            FileInput("f", EMPTY, executable=True),
            OutputInput("o", "other", "x/y"),
            TreeInput("", tree),
        ],
        variables={"A": "1"},
        pins={"gcc": "12"},
        working_directory="w",
        outputs=["out"],
        effects={"network": "none"},
        resources=Amounts(1500, 1 << 30, 2 << 30, 1),
        constraints=["arch=x86_64"],
        platform=[("OSFamily", "linux")],
        timeout_s=120.0,
        secrets={"T": "ci/t"},
        do_not_cache=True,
        salt=b"s",
    )
    assert draft.spec(tree).priority == 3


WRONG: list[tuple[object, str]] = [
    ([], "must be an object"),
    ({"actions": []}, "specs by names"),
    ({"actions": {}, "more": 1}, "no key 'more'"),
    ({"argument": ["a"]}, "did you mean 'arguments'"),
    ({"arguments": "cc"}, "arguments must be a list"),
    ({"arguments": [1]}, "must be texts"),
    ({"arguments": ["a"], "priority": True}, "priority must be a whole number"),
    ({"arguments": ["a"], "variables": {"A": 1}}, "must be texts"),
    ({"arguments": ["a"], "inputs": ["x"]}, "input 1 must be an object"),
    ({"arguments": ["a"], "inputs": [{"path": "x"}]}, "needs one of"),
    ({"arguments": ["a"], "inputs": [{"tree": EMPTY.text, "file": EMPTY.text}]}, "needs one of"),
    ({"arguments": ["a"], "inputs": [{"path": "x", "file": "nothing"}]}, "is not a digest"),
    ({"arguments": ["a"], "inputs": [{"path": "x", "output": "y"}]}, "of which action"),
    ({"arguments": ["a"], "inputs": [{"local": "x"}, {"path": "x", "local": "y"}]}, "two inputs"),
    ({"arguments": ["a"], "inputs": [{"path": "x", "file": EMPTY.text, "executable": "yes"}]}, "true or false"),
    ({"arguments": ["a"], "resources": {"cpu": 1}}, "did you mean 'cpus'"),
    ({"arguments": ["a"], "resources": {"gpus": 1.5}}, "whole number"),
    ({"arguments": ["a"], "timeout": "soon"}, "is not a duration"),
]


@pytest.mark.parametrize(("document", "said"), WRONG)
def test_what_is_meant_otherwise_is_told(tmp_path: Path, document: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        spec_file.read(written(tmp_path, document))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"salt": "\\ud800"}'])
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="is not JSON"):
        spec_file.read(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        spec_file.read(tmp_path / "none.json")
