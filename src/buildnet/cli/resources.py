"""`buildnet resources ls|watch|explain`. No name of a node's tool reaches the terminal as anything but letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import options

if TYPE_CHECKING:
    from buildnet.client.resources import ResourceNews
    from buildnet.model.resource import Resource

_NODE_SHOWN = 12
_FACTS_SHOWN = 100


@click.group("resources", epilog="Example: buildnet resources explain 'gcc>=12'")
def command() -> None:
    """What nodes offer, and which of them meet a constraint."""


def printable(text: str) -> str:
    """The text with everything that a terminal might obey written as an escape; a server is not believed either."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _facts(resource: Resource) -> str:
    # The features of a processor are many, and told last.
    features = [
        name for name, value in resource.attributes if resource.kind == "cpu" and value == 1 and name != "cores"
    ]
    others = [f"{name}={value}" for name, value in resource.attributes if name not in features]
    words = " ".join((*others, *features))
    return printable(words if len(words) <= _FACTS_SHOWN else f"{words[: _FACTS_SHOWN - 1]}…")


def _json(node: str, resource: Resource) -> dict[str, Any]:
    return {
        "node": node,
        "kind": resource.kind,
        "name": resource.name,
        "version": resource.version,
        "attributes": dict(resource.attributes),
    }


@command.command("ls", epilog="Example: buildnet resources ls --kind toolchain")
@options.of_server
@click.option("--kind", default="", help="Only this kind, as in tool, toolchain, cpu, gpu or endpoint.")
@click.option("--node", default="", help="Only this node, by its id or the beginning of it.")
@options.as_json
def ls(url: str | None, state: Path | None, instance: str, kind: str, node: str, as_json: bool) -> None:
    """List what nodes offer, by node, kind and name. With --json one object a line."""
    with options.connected(url, state, instance) as client:
        found = client.resources(kind=kind, node=node)
        if as_json:
            for name, resource in found:
                options.echo_json(_json(name, resource))
            return
        options.echo_table(
            ["NODE", "KIND", "NAME", "VERSION", "FACTS"],
            [
                [printable(name)[:_NODE_SHOWN], r.kind, printable(r.name), printable(r.version) or "-", _facts(r)]
                for name, r in found
            ],
        )


@command.command("watch", epilog="Example: buildnet resources watch --kind tool")
@options.of_server
@click.option("--kind", default="", help="Only this kind.")
@click.option("--node", default="", help="Only this node, by its id or the beginning of it.")
@click.option("--changes", is_flag=True, help="Leave out what is there at the start.")
@options.as_json
def watch(
    url: str | None, state: Path | None, instance: str, kind: str, node: str, changes: bool, as_json: bool
) -> None:
    """Print what is there, then what changes: + is new or other, - is gone. Ctrl-C ends it."""
    with options.connected(url, state, instance) as client:
        told = not changes
        for news in _each(client.watch_resources(on_break=options.broke)):
            if not told:
                # The end of the first snapshot is of no node; the revision of an empty one is 0.
                told = not news.snapshot and not news.node
                continue
            for line in _lines(news, kind, node, as_json):
                if as_json:
                    options.echo_json(line)
                else:
                    click.echo(line)


def _each(told: Iterator[ResourceNews]) -> Iterator[ResourceNews]:
    """The same, where a later snapshot first takes back everything of every node."""
    nodes = set[str]()
    for news in told:
        if news.snapshot:
            for name in sorted(nodes):
                yield replace(news, snapshot=False, node=name, replaced=True)
            nodes.clear()
        if news.replaced and not news.present:
            nodes.discard(news.node)
        elif news.node:
            nodes.add(news.node)
        yield news


def _lines(news: ResourceNews, kind: str, node: str, as_json: bool) -> Iterator[Any]:
    if news.node and not news.node.startswith(node):
        return
    shown = printable(news.node)[:_NODE_SHOWN]
    if as_json:
        if news.replaced and not news.present:
            yield {"node": news.node, "gone": True}
        for resource in news.present:
            if not kind or resource.kind == kind:
                yield {**_json(news.node, resource), "gone": False}
        for key in news.gone:
            if not kind or key[0] == kind:
                yield {"node": news.node, "kind": key[0], "name": key[1], "gone": True}
        return
    if news.replaced and not news.present:
        yield f"- {shown}  everything"
    for resource in news.present:
        if not kind or resource.kind == kind:
            name = printable(f"{resource.kind}:{resource.name}")
            yield f"+ {shown}  {name}  {printable(resource.version) or '-'}  {_facts(resource)}".rstrip()
    for key in news.gone:
        if not kind or key[0] == kind:
            yield f"- {shown}  {printable(':'.join(key))}"


@command.command("explain", epilog="Example: buildnet resources explain 'gcc>=12' 'gpu.memory_bytes>=8GiB'")
@options.of_server
@options.as_json
@click.argument("constraints", metavar="CONSTRAINT...", nargs=-1, required=True)
def explain(url: str | None, state: Path | None, instance: str, constraints: tuple[str, ...], as_json: bool) -> None:
    """Say which nodes meet all constraints, and for each of the others why it does not."""
    with options.connected(url, state, instance) as client:
        verdicts = client.explain_resources(constraints)
    if as_json:
        options.echo_json(
            [{"node": v.node, "meets": v.meets, "reasons": list(v.reasons), "left_out": v.left_out} for v in verdicts]
        )
        return
    if not verdicts:
        click.echo("no node has joined; `buildnet join` is how one does")
    for verdict in verdicts:
        click.echo(f"{printable(verdict.node)[:_NODE_SHOWN]}  {'meets it' if verdict.meets else 'does not'}")
        for reason in verdict.reasons:
            click.echo(f"    {printable(reason)}")
        if verdict.left_out and not verdict.meets:
            click.echo(f"    it left {verdict.left_out} resources out of what it announced")
