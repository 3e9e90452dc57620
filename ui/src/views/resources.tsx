// What was found on one node: counted by kind, searched by name. The server looks; the page holds what it shows.

import { useEffect, useState } from "preact/hooks";
import { type Node, readResources, Refusal, type Resource, type Resources } from "../api";
import { count, number } from "../format";
import { Empty, Section, Text } from "../parts";

const FACTS_SHOWN_MAX = 12;

export function NodeResources({ node }: { node: Node }) {
  const [kind, setKind] = useState("");
  const [name, setName] = useState("");
  const [found, setFound] = useState<Resources | null>(null);
  const [refusal, setRefusal] = useState("");
  useEffect(() => {
    if (!node.resources) return setFound(null);
    // Of answers that overtake each other the newest question's counts.
    const asked = new AbortController();
    readResources(node.node, kind, name, asked.signal).then(
      (answer) => {
        setFound(answer);
        setRefusal("");
      },
      (error: unknown) => {
        if (!asked.signal.aborted) setRefusal(error instanceof Refusal ? error.message : String(error));
      },
    );
    return () => asked.abort();
  }, [node.node, node.resources, kind, name]);
  return (
    <Section id="resources" title="Resources" aside={found && <p class="aside">{asideOf(found)}</p>}>
      {refusal ? (
        <p role="alert">{refusal}</p>
      ) : found === null ? (
        <Empty>{node.resources ? "Waiting for the server." : "The node has announced nothing yet."}</Empty>
      ) : (
        <>
          <form class="search" role="search" aria-label="Resources" onSubmit={(event) => event.preventDefault()}>
            <label>
              Kind
              <select value={kind} onChange={(event) => setKind(event.currentTarget.value)}>
                <option value="">all</option>
                {found.kinds.map(([one, many]) => (
                  <option key={one} value={one}>
                    {one} ({number(many)})
                  </option>
                ))}
              </select>
            </label>
            <label>
              Name or version
              <input type="search" value={name} onInput={(event) => setName(event.currentTarget.value)} />
            </label>
            <output>{shownOf(found)}</output>
          </form>
          <Table resources={found.resources} />
        </>
      )}
    </Section>
  );
}

const asideOf = ({ kinds, left_out }: Resources) =>
  count(
    kinds.reduce((sum, [, many]) => sum + many, 0),
    "resource",
  ) + (left_out ? `, ${number(left_out)} left out` : "");

function shownOf({ matching, resources }: Resources): string {
  if (matching === 0) return "none matches";
  return resources.length < matching ? `${number(resources.length)} of ${number(matching)} shown` : `${number(matching)} shown`;
}

function Table({ resources }: { resources: Resource[] }) {
  if (resources.length === 0) return <Empty>Nothing on this node matches.</Empty>;
  return (
    <div class="scroll">
      <table>
        <caption class="voice">What was found on the node, by kind and name</caption>
        <thead>
          <tr>
            <th scope="col">Kind</th>
            <th scope="col">Name</th>
            <th scope="col">Version</th>
            <th scope="col">Facts</th>
          </tr>
        </thead>
        <tbody>
          {resources.map((resource) => (
            <tr key={`${resource.kind}:${resource.name}`}>
              <td>{resource.kind}</td>
              <th scope="row">
                <Text>{resource.name}</Text>
              </th>
              <td>
                <Text>{resource.version}</Text>
              </td>
              <td>
                <Text wide>{factsOf(resource)}</Text>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function factsOf({ attributes }: Resource): string {
  const shown = attributes.slice(0, FACTS_SHOWN_MAX).map(([name, value]) => `${name}=${value}`);
  const left = attributes.length - shown.length;
  return shown.join(" ") + (left > 0 ? ` and ${number(left)} more` : "");
}
