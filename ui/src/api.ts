// The API's shapes (docs/reference/http.md), and the calls that are not the stream. It keeps nothing.

export interface Node {
  node: string;
  hostname: string;
  version: string;
  state: string;
  tier: string;
  slots: number;
  /** What its actions may use together; 0 is not told. */
  cpu_milli: number;
  memory_bytes: number;
  disk_bytes: number;
  gpus: number;
  joined_at_unix_ms: number;
  /** Of the newest ledger entry that names it. */
  last_seen_unix_ms: number;
  sessions: number;
  properties: [string, string][];
  resources: number;
}

/** A node without a session, as the ledger has it. */
export interface Absent {
  node: string;
  state: string;
  drained: boolean;
  cordoned: boolean;
  left_at_unix_ms: number | null;
  last_seen_unix_ms: number;
}

export interface Nodes {
  nodes: Node[];
  absent: Absent[];
  /** Entries of the ledger that are not read yet. */
  behind: number;
}

export interface Resource {
  kind: string;
  name: string;
  version: string;
  attributes: [string, string][];
}

export interface Resources {
  node: string;
  kinds: [string, number][];
  left_out: number;
  matching: number;
  resources: Resource[];
}

export type ActionState = "waiting" | "queued" | "executing" | "completed" | "failed" | "cancelled" | "unknown";

export interface Action {
  id: string;
  action: string;
  instance: string;
  state: ActionState;
  arguments: string[];
  worker: string;
  attempts: number;
  submitted_at_unix_ms: number;
  assigned_at_unix_ms: number | null;
  completed_at_unix_ms: number | null;
  exit_code: number | null;
  cached: boolean;
  error: string;
  message: string;
  entry: number | null;
}

export interface Actions {
  running: Action[];
  recent: Action[];
  more_running: boolean;
  behind: number;
}

export type Value = string | number | boolean | string[];

export interface Entry {
  index: number;
  leaf: string;
  kind: string;
  at_unix_ms: number;
  fields: Record<string, Value>;
}

export interface Head {
  size: number;
  root: string;
  origin: string;
  note: string;
  verifier_key: string;
}

export interface Hello {
  version: string;
  now_unix_ms: number;
  limited: boolean;
}

export interface LedgerNews {
  skipped: number;
  entries: Entry[];
  head: Head;
}

export interface Proof {
  holds: boolean;
  head?: Head;
  signature: { holds: boolean; message?: string };
  consistency?: { holds: boolean; from_size: number } | null;
  inclusion?: { holds: boolean; count: number; failed: number[] };
}

/** What the server refused, in its own words. */
export class Refusal extends Error {}

async function call<T>(path: string, init: RequestInit = {}): Promise<T> {
  const answer = await fetch(`/api/v1/${path}`, { cache: "no-store", ...init }).catch((error: unknown) => {
    if (init.signal?.aborted) throw error;
    throw new Refusal("the server does not answer; is it still running?");
  });
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text) as T;
  let message = text.trim() || `status ${answer.status}`;
  if (answer.headers.get("content-type")?.startsWith("application/json")) {
    message = (JSON.parse(text) as { error: { message: string } }).error.message;
  }
  throw new Refusal(message);
}

export const readResources = (node: string, kind: string, name: string, signal: AbortSignal) =>
  call<Resources>(`nodes/${encodeURIComponent(node)}/resources?${new URLSearchParams({ kind, name })}`, { signal });
export const readAction = (id: string) => call<Action>(`actions/${encodeURIComponent(id)}`);
export const readEntry = (index: number) => call<Entry>(`ledger/entries/${index}`);
export const readEntries = (from: number, count: number) =>
  call<{ size: number; entries: Entry[] }>(`ledger/entries?from=${from}&count=${count}`);

/** Ask the server to prove what this page shows; at most 200 leaves. */
export const prove = (known: { size: number; root: string } | null, leaves: [number, string][]) =>
  call<Proof>("ledger/verify", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ known, leaves }),
  });
