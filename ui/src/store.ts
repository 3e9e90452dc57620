// The one state of the page, fed by the stream of events. Views read it and never write it; what is held is bounded.

import { useEffect, useState } from "preact/hooks";
import type { Absent, Action, Actions, Entry, Head, Hello, LedgerNews, Node, Nodes } from "./api";
import { shortId, words } from "./format";

export type Connection = "connecting" | "live" | "lost";

export interface State {
  connection: Connection;
  hello: Hello | null;
  /** Milliseconds that the server's clock is ahead of this one. */
  skew_ms: number;
  nodes: Node[] | null;
  /** Nodes that left or were removed, the last seen first. */
  absent: Absent[];
  actions: Actions | null;
  /** Newest last, without a gap. */
  entries: Entry[];
  head: Head | null;
  /** The last thing worth saying to who does not see the page. */
  said: string;
}

const ENTRIES_KEPT_MAX = 500;
const RETRY_MS = 5000;

let state: State = {
  connection: "connecting",
  hello: null,
  skew_ms: 0,
  nodes: null,
  absent: [],
  actions: null,
  entries: [],
  head: null,
  said: "",
};
const listeners = new Set<() => void>();

function change(part: Partial<State>): void {
  state = { ...state, ...part };
  for (const listener of listeners) listener();
}

export function useStore(): State {
  const [, turn] = useState(0);
  useEffect(() => {
    const listener = () => turn((n) => n + 1);
    listeners.add(listener);
    // What came between the first look and this moment.
    listener();
    return () => void listeners.delete(listener);
  }, []);
  return state;
}

/** The server's time now. */
export const serverNow_ms = () => Date.now() + state.skew_ms;

/** Entries before those that are held. */
export function addOlder(older: Entry[]): void {
  const first = state.entries[0];
  const last = older[older.length - 1];
  if (first && last && last.index + 1 === first.index) change({ entries: [...older, ...state.entries] });
}

function nodesSaid(before: Node[] | null, after: Node[]): string {
  if (before === null) return "";
  const names = (nodes: Node[]) => new Map(nodes.map((node) => [node.node, node.hostname || shortId(node.node)]));
  const [was, is] = [names(before), names(after)];
  const joined = [...is].filter(([node]) => !was.has(node)).map(([, name]) => `${name} joined`);
  const left = [...was].filter(([node]) => !is.has(node)).map(([, name]) => `${name} left`);
  return [...joined, ...left].join(", ");
}

function failuresSaid(before: Actions | null, after: Actions): string {
  if (before === null) return "";
  const known = new Set(before.recent.map((action) => action.id));
  const bad = (action: Action) => action.state === "failed" || (action.exit_code ?? 0) !== 0;
  const failed = after.recent.filter((action) => !known.has(action.id) && bad(action));
  const first = failed[0];
  if (!first) return "";
  const more = failed.length > 1 ? ` and ${failed.length - 1} more` : "";
  return `${words(first.arguments) || shortId(first.action)} failed${more}`;
}

function onLedger(news: LedgerNews): void {
  const last = state.entries[state.entries.length - 1];
  const first = news.entries[0];
  const follows = news.skipped === 0 && last && (!first || first.index === last.index + 1);
  const all = follows ? [...state.entries, ...news.entries] : first ? news.entries : state.entries;
  change({ entries: all.slice(-ENTRIES_KEPT_MAX), head: news.head });
}

export function connect(lastId = ""): void {
  const source = new EventSource(`/api/v1/events${lastId && `?last-event-id=${lastId}`}`);
  let newest = lastId;
  const on = <T>(name: string, take: (data: T) => void) =>
    source.addEventListener(name, (event: MessageEvent<string>) => {
      if (event.lastEventId) newest = event.lastEventId;
      take(JSON.parse(event.data) as T);
    });
  on<Hello>("hello", (hello) =>
    change({ connection: "live", hello, skew_ms: hello.now_unix_ms - Date.now() }),
  );
  on<Nodes>("nodes", ({ nodes, absent }) => {
    const said = nodesSaid(state.nodes, nodes);
    change(said ? { nodes, absent, said } : { nodes, absent });
  });
  on<Actions>("actions", (actions) => {
    const said = failuresSaid(state.actions, actions);
    change(said ? { actions, said } : { actions });
  });
  on<LedgerNews>("ledger", onLedger);
  on("reset", () => change({ entries: [], head: null, said: "the ledger at this address is another one" }));
  source.addEventListener("error", () => {
    change({ connection: "lost" });
    // A browser goes on by itself after a connection that broke, never after an answer that was a refusal.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => connect(newest), RETRY_MS);
  });
}
