"""Actions as people write them in JSON: one, or a graph by names. What is not known is refused, with what was meant.

{"actions": {"compile": {"arguments": ["gcc", "-c", "a.c"], "inputs": [{"path": "a.c", "local": "a.c"}],
                         "outputs": ["a.o"]},
             "link": {"arguments": ["gcc", "a.o"], "inputs": [{"path": "a.o", "of": "compile", "output": "a.o"}],
                      "outputs": ["a.out"]}}}
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import ActionSpec, FileInput, Input, OutputInput, TreeInput, spec_of
from buildnet.model.amounts import Amounts
from buildnet.model.digest import Digest
from buildnet.model.quantity import duration_s_of, milli_of, size_bytes_of

FILE_BYTES_MAX: Final = 64 << 20
_KEYS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "arguments": list,
    "inputs": list,
    "variables": dict,
    "pins": dict,
    "working_directory": str,
    "outputs": list,
    "effects": dict,
    "resources": dict,
    "require": list,
    "platform": dict,
    "timeout": (str, int, float),
    "secrets": dict,
    "tier": str,
    "do_not_cache": bool,
    "salt": str,
    "priority": int,
}
_NAMES: Final[Mapping[type, str]] = {
    list: "a list",
    dict: "an object",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
_RESOURCES: Final = ("cpus", "memory", "disk", "gpus")
_SOURCES: Final = ("local", "tree", "file", "output")
_INPUT_KEYS: Final = ("path", *_SOURCES, "of", "executable")


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec whose local inputs, paths in the tree by paths on this machine, are still to be uploaded."""

    fields: Mapping[str, Any]
    inputs: tuple[Input, ...]
    local: Mapping[str, Path]

    def spec(self, uploaded: Digest | None) -> ActionSpec:
        """The spec, once the tree of its local inputs is known.

        Raises:
            InvalidRequest: something in it cannot be meant.
        """
        tree = () if uploaded is None else (TreeInput("", uploaded),)
        return spec_of(inputs=(*self.inputs, *tree), **self.fields)


def read(path: Path) -> dict[str, Draft]:
    """The actions of a file by name; a single action is called "".

    Raises:
        InvalidRequest: it cannot be read, or something in it is not known; the message says where.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", field="file") from error
    if len(data) > FILE_BYTES_MAX:
        raise InvalidRequest(f"{path} is over {FILE_BYTES_MAX} bytes", field="file")
    try:
        document = json.loads(data)
        # Half of a pair of surrogates, which JSON can spell, is no text.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", field="file") from error
    base = path.absolute().parent
    if isinstance(document, dict) and "actions" in document:
        _only(document, ("actions",), str(path))
        actions = document["actions"]
        if not isinstance(actions, dict):
            raise InvalidRequest(f"{path}: actions must be an object, specs by names", field="actions")
        return {name: _draft(spec, base, f"{path}: action {name!r}") for name, spec in actions.items()}
    return {"": _draft(document, base, str(path))}


def _draft(spec: Any, base: Path, where: str) -> Draft:
    if not isinstance(spec, dict):
        raise InvalidRequest(f"{where}: an action must be an object", field="actions")
    _only(spec, tuple(_KEYS), where)
    for key, value in spec.items():
        kind = _KEYS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = kind if isinstance(kind, tuple) else (kind,)
            raise InvalidRequest(f"{where}: {key} must be {' or '.join(_NAMES[name] for name in names)}", field=key)
    fields = {key: spec[key] for key in spec if key not in ("inputs", "require", "platform", "timeout", "resources")}
    for key in ("variables", "pins", "effects", "secrets", "platform"):
        _texts(spec.get(key, {}).values(), f"{where}: values of {key}", key)
    for key in ("arguments", "outputs", "require"):
        _texts(spec.get(key, ()), f"{where}: {key}", key)
    fields.setdefault("arguments", ())
    fields["constraints"] = spec.get("require", ())
    fields["platform"] = tuple(spec.get("platform", {}).items())
    fields["salt"] = fields.get("salt", "").encode()
    fields["resources"] = _resources(spec.get("resources", {}), where)
    if (timeout := spec.get("timeout")) is not None:
        fields["timeout_s"] = float(duration_s_of(timeout, "timeout") if isinstance(timeout, str) else timeout)
    inputs: list[Input] = []
    local: dict[str, Path] = {}
    for number, one in enumerate(spec.get("inputs", ()), 1):
        found = _input(one, base, f"{where}: input {number}")
        if isinstance(found, tuple):
            if found[0] in local:
                raise InvalidRequest(f"{where}: two inputs are at {found[0]!r}", field="inputs")
            local[found[0]] = found[1]
        else:
            inputs.append(found)
    return Draft(fields, tuple(inputs), local)


def _input(one: Any, base: Path, where: str) -> Input | tuple[str, Path]:
    if not isinstance(one, dict):
        raise InvalidRequest(f"{where} must be an object", field="inputs")
    _only(one, _INPUT_KEYS, where)
    sources = [key for key in _SOURCES if key in one]
    if len(sources) != 1:
        raise InvalidRequest(f"{where} needs one of {', '.join(_SOURCES)}", field="inputs")
    executable = one.get("executable", False)
    _texts((value for key, value in one.items() if key != "executable"), where, "inputs")
    if not isinstance(executable, bool):
        raise InvalidRequest(f"{where}: executable is true or false", field="inputs")
    source = sources[0]
    value, path = str(one[source]), str(one.get("path", one.get("local", "")))
    match source:
        case "local":
            return path, base / value
        case "tree":
            return TreeInput(path, Digest.parse(value))
        case "file":
            return FileInput(path, Digest.parse(value), executable)
    if "of" not in one:
        raise InvalidRequest(f'{where}: say of which action it is the output, as in "of": "compile"', field="inputs")
    return OutputInput(path, one["of"], value)


def _resources(amounts: Mapping[str, Any], where: str) -> Amounts:
    _only(amounts, _RESOURCES, f"{where}: resources")
    gpus = amounts.get("gpus", 0)
    if not isinstance(gpus, int) or isinstance(gpus, bool):
        raise InvalidRequest(f"{where}: gpus must be a whole number", field="resources")
    return Amounts(
        cpu_milli=milli_of(str(amounts["cpus"]), "resources") if "cpus" in amounts else 0,
        memory_bytes=size_bytes_of(str(amounts["memory"]), "resources") if "memory" in amounts else 0,
        disk_bytes=size_bytes_of(str(amounts["disk"]), "resources") if "disk" in amounts else 0,
        gpus=gpus,
    )


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InvalidRequest(f"{where} has no key {key!r}; {meant}", field=key)


def _texts(values: Any, where: str, field: str) -> None:
    for value in values:
        if not isinstance(value, str):
            raise InvalidRequest(f"{where} must be texts, not {value!r}", field=field)
