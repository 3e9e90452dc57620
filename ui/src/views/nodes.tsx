// The nodes that have joined, how busy they are, and what they offer.

import type { Absent, Actions, Node } from "../api";
import { count, number, size } from "../format";
import { At, Empty, Id, Section, Text } from "../parts";
import { linkTo } from "../router";
import { useStore } from "../store";
import { NodeResources } from "./resources";

const SLOTS_DRAWN_MAX = 32;

export function NodesView({ rest }: { rest: string }) {
  const state = useStore();
  const nodes = rest && state.nodes ? state.nodes.filter((node) => node.node === rest) : state.nodes;
  return (
    <>
      <h1>Nodes</h1>
      {rest && <a href={linkTo("nodes")}>All nodes</a>}
      <Nodes nodes={nodes} actions={state.actions} whole />
      {rest && nodes?.[0] && <NodeResources key={rest} node={nodes[0]} />}
      <AbsentNodes absent={rest ? state.absent.filter((node) => node.node === rest) : state.absent} />
    </>
  );
}

/** Nodes that left, and how: what the ledger said of them last. */
function AbsentNodes({ absent }: { absent: Absent[] }) {
  if (absent.length === 0) return null;
  return (
    <Section id="absent" title="Not here">
      <div class="scroll">
        <table>
          <caption class="voice">Nodes without a session, the last seen first</caption>
          <thead>
            <tr>
              <th scope="col">Node</th>
              <th scope="col">State</th>
              <th scope="col">Left</th>
              <th scope="col">In the ledger last</th>
            </tr>
          </thead>
          <tbody>
            {absent.map((node) => (
              <tr key={node.node}>
                <th scope="row">
                  <Id href={linkTo("nodes", node.node)}>{node.node}</Id>
                </th>
                <td>
                  {node.state}
                  {node.drained && ", drained"}
                  {node.cordoned && ", cordoned"}
                </td>
                <td>{node.left_at_unix_ms !== null && <At unix_ms={node.left_at_unix_ms} />}</td>
                <td>
                  <At unix_ms={node.last_seen_unix_ms} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Section>
  );
}

interface Props {
  nodes: Node[] | null;
  actions: Actions | null;
  whole?: boolean;
}

export function Nodes({ nodes, actions, whole = false }: Props) {
  const slots = nodes?.reduce((sum, node) => sum + node.slots, 0) ?? 0;
  const aside = nodes && nodes.length > 0 && (
    <p class="aside">
      {count(nodes.length, "node")}, {count(slots, "slot")}
    </p>
  );
  return (
    <Section id="nodes" title={whole ? "Joined now" : "Nodes"} aside={aside}>
      {nodes === null ? (
        <Empty>Waiting for the server.</Empty>
      ) : nodes.length === 0 ? (
        <Empty>
          No node has joined. Have a line for one: <code>buildnet fleet tokens new</code>
        </Empty>
      ) : (
        <ul class="nodes">
          {nodes.map((node) => (
            <li key={node.node}>
              <NodeCard node={node} actions={actions} whole={whole} />
            </li>
          ))}
        </ul>
      )}
    </Section>
  );
}

function NodeCard({ node, actions, whole }: { node: Node; actions: Actions | null; whole: boolean }) {
  const busy = actions?.running.filter((a) => a.state === "executing" && a.worker === node.node).length ?? 0;
  return (
    <article>
      <h3>
        <Text>{node.hostname || node.node}</Text>
        <Id href={linkTo("nodes", node.node)}>{node.node}</Id>
        {node.state !== "active" && <span class="state">{node.state}</span>}
        {node.tier === "untrusted" && <span class="state">untrusted</span>}
      </h3>
      <Slots busy={busy} slots={node.slots} />
      {capacity(node) && <p class="facts">{capacity(node)}</p>}
      {whole && (
        <p class="facts">
          joined <At unix_ms={node.joined_at_unix_ms} />, version <Text>{node.version}</Text>
          {node.tier && `, ${node.tier}`}
          {node.sessions > 0 && `, ${count(node.sessions, "session")} by its key`}
        </p>
      )}
      {whole && <Properties node={node} />}
      {node.resources > 0 && (
        <p class="facts">
          <a href={linkTo("nodes", node.node)}>{count(node.resources, "resource")}</a>
        </p>
      )}
    </article>
  );
}

function Slots({ busy, slots }: { busy: number; slots: number }) {
  return (
    <p class="slots">
      {slots <= SLOTS_DRAWN_MAX && (
        <svg width={slots * 11} height="10" aria-hidden="true">
          {Array.from({ length: slots }, (_, at) => (
            <rect key={at} x={at * 11 + 0.5} y="0.5" width="8" height="9" class={at < busy ? "taken" : "free"} />
          ))}
        </svg>
      )}
      {number(busy)} of {count(slots, "slot")} busy
    </p>
  );
}

/** What its actions may use together, as far as it told. */
function capacity(node: Node): string {
  const told = [
    node.cpu_milli > 0 && count(node.cpu_milli / 1000, "processor"),
    node.memory_bytes > 0 && `${size(node.memory_bytes)} of memory`,
    node.disk_bytes > 0 && `${size(node.disk_bytes)} of disk`,
    node.gpus > 0 && count(node.gpus, "GPU"),
  ];
  return told.filter(Boolean).join(", ");
}

/** What a node said of itself when it joined; what was found on it is in `resources.tsx`. */
function Properties({ node }: { node: Node }) {
  if (node.properties.length === 0) return <p class="facts">offers no properties</p>;
  return (
    <ul class="chips" aria-label="Properties">
      {node.properties.map(([name, value]) => (
        <li key={`${name}=${value}`}>
          <Text>{value ? `${name}=${value}` : name}</Text>
        </li>
      ))}
    </ul>
  );
}
