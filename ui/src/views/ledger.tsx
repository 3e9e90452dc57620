// The ledger's tail under its head, and the button that proves it.

import { useEffect, useState } from "preact/hooks";
import { prove, readEntries, readEntry, Refusal } from "../api";
import type { Entry, Head, Proof, Value } from "../api";
import { count, number, plain } from "../format";
import { At, Empty, Id, Section, Status, Text } from "../parts";
import { linkTo } from "../router";
import { addOlder, useStore } from "../store";

const LEAVES_MAX = 200;
const OLDER_COUNT = 50;

export function LedgerView({ rest }: { rest: string }) {
  if (rest) return <OneEntry name={rest} />;
  return (
    <>
      <h1>Ledger</h1>
      <Ledger most={200} whole />
    </>
  );
}

/** The first head that this browser saw of a ledger: what came later must continue it. */
function firstHead(head: Head): { size: number; root: string } {
  const name = `buildnet-head ${head.verifier_key}`;
  const here = { size: head.size, root: head.root };
  try {
    const kept = localStorage.getItem(name);
    if (kept) return JSON.parse(kept) as { size: number; root: string };
    localStorage.setItem(name, JSON.stringify(here));
  } catch {
    // A browser that keeps nothing: the head of this visit is the first.
  }
  return here;
}

export function Ledger({ most, whole = false }: { most: number; whole?: boolean }) {
  const { entries, head, hello } = useStore();
  const [known, setKnown] = useState<{ size: number; root: string } | null>(null);
  const key = head?.verifier_key;
  useEffect(() => {
    if (head) setKnown(firstHead(head));
  }, [key]);
  const shown = entries.slice(-most).reverse();
  const aside = head && <p class="aside">{count(head.size, "entry", "entries")}</p>;
  if (hello?.limited) {
    return (
      <Section id="ledger" title="Ledger">
        <Empty>Your token is limited to some instances, and the ledger tells of all of them.</Empty>
      </Section>
    );
  }
  return (
    <Section id="ledger" title={whole ? "Tail" : "Ledger"} aside={aside}>
      {head === null ? (
        <Empty>Waiting for the server.</Empty>
      ) : (
        <>
          <HeadPanel head={head} known={known} shown={shown} />
          <Rows entries={shown} />
          {whole ? <Older entries={entries} /> : <a href={linkTo("ledger")}>More of the ledger</a>}
        </>
      )}
    </Section>
  );
}

function HeadPanel(props: { head: Head; known: { size: number; root: string } | null; shown: Entry[] }) {
  const { head, known, shown } = props;
  const [proof, setProof] = useState<Proof | string | null>(null);
  const [asked, setAsked] = useState(false);
  const ask = async () => {
    setAsked(true);
    const leaves = shown.slice(0, LEAVES_MAX).map((entry): [number, string] => [entry.index, entry.leaf]);
    try {
      setProof(await prove(known, leaves));
    } catch (error) {
      setProof(error instanceof Refusal ? error.message : String(error));
    }
    setAsked(false);
  };
  return (
    <div class="head">
      <dl>
        <dt>Head</dt>
        <dd>
          <code class="hash" title={head.root}>
            {head.root.slice(0, 16)}…{head.root.slice(-8)}
          </code>
        </dd>
        <dt>Origin</dt>
        <dd>
          <Text>{head.origin}</Text>
        </dd>
      </dl>
      <button type="button" onClick={() => void ask()} disabled={asked}>
        {asked ? "Verifying" : "Verify"}
      </button>
      <div class="proof" role="status" aria-live="polite">
        {typeof proof === "string" ? <Status look="bad" word={plain(proof)} /> : proof && <Proved proof={proof} />}
      </div>
    </div>
  );
}

function Proved({ proof }: { proof: Proof }) {
  const { head, signature, consistency, inclusion } = proof;
  const line = (holds: boolean, good: string, bad: string) => (
    <li>
      <Status look={holds ? "good" : "bad"} word={holds ? good : bad} />
    </li>
  );
  return (
    <>
      <p>
        {proof.holds ? "Proved: the server computed every hash anew." : "This does not hold. Keep what you see, and run "}
        {!proof.holds && <code>buildnet ledger verify</code>}
      </p>
      <ul>
        {line(
          signature.holds,
          `the head of ${count(head?.size ?? 0, "entry", "entries")} is signed by the ledger's key`,
          plain(signature.message ?? "the head is not signed by the ledger's key"),
        )}
        {consistency &&
          line(
            consistency.holds,
            `it continues the head of ${count(consistency.from_size, "entry", "entries")} that this browser saw first`,
            `it does not continue the head of ${count(consistency.from_size, "entry", "entries")} that this browser saw first`,
          )}
        {inclusion &&
          line(
            inclusion.holds,
            `the ${count(inclusion.count, "entry", "entries")} shown ${inclusion.count === 1 ? "is" : "are"} under it`,
            `not under it as shown: ${inclusion.failed.slice(0, 10).join(", ")}`,
          )}
      </ul>
    </>
  );
}

function Rows({ entries }: { entries: Entry[] }) {
  return (
    <div class="scroll">
      <table class="ledger">
        <caption class="voice">The newest entries of the ledger, newest first</caption>
        <thead>
          <tr>
            <th scope="col" class="number">
              Entry
            </th>
            <th scope="col">Time</th>
            <th scope="col">Kind</th>
            <th scope="col" class="main">
              What
            </th>
          </tr>
        </thead>
        <tbody>
          {entries.map((entry) => (
            <tr key={entry.index}>
              <th scope="row" class="number">
                <a href={linkTo("ledger", String(entry.index))}>{entry.index}</a>
              </th>
              <td>
                <At unix_ms={entry.at_unix_ms} />
              </td>
              <td class="kind">
                <Text>{entry.kind}</Text>
              </td>
              <td class="main">
                <Text>{brief(entry)}</Text>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const HASH = /^[0-9a-f]{32,128}(\/\d+)?$/;

/** The fields of an entry on one line, hashes cut short. */
function brief(entry: Entry): string {
  const told = (value: Value) => {
    const text = Array.isArray(value) ? value.join(", ") : String(value);
    return HASH.test(text) ? text.slice(0, 12) : text;
  };
  const fields = Object.entries(entry.fields).filter(([name, value]) => name !== "v" && value !== "");
  return fields.map(([name, value]) => `${name} ${told(value)}`).join("  ");
}

function Older({ entries }: { entries: Entry[] }) {
  const [refused, setRefused] = useState("");
  const first = entries[0]?.index ?? 0;
  if (first === 0) return <p class="empty">This is the beginning of the ledger.</p>;
  const read = async () => {
    const from = Math.max(0, first - OLDER_COUNT);
    try {
      addOlder((await readEntries(from, first - from)).entries);
      setRefused("");
    } catch (error) {
      setRefused(error instanceof Refusal ? error.message : String(error));
    }
  };
  return (
    <>
      <button type="button" onClick={() => void read()}>
        Older entries
      </button>
      <p role="status">{refused && <Text wide>{refused}</Text>}</p>
    </>
  );
}

function OneEntry({ name }: { name: string }) {
  const index = /^\d{1,15}$/.test(name) ? Number(name) : -1;
  const { entries } = useStore();
  const held = entries.find((entry) => entry.index === index);
  const [read, setRead] = useState<Entry | string | null>(null);
  const isHeld = held !== undefined;
  useEffect(() => {
    setRead(null);
    if (isHeld) return undefined;
    if (index < 0) return setRead("An entry is named by its number.");
    let wanted = true;
    readEntry(index)
      .then((entry) => wanted && setRead(entry))
      .catch((error: unknown) => wanted && setRead(error instanceof Refusal ? error.message : String(error)));
    return () => {
      wanted = false;
    };
  }, [index, isHeld]);
  const entry = held ?? (typeof read === "object" ? read : null);
  return (
    <>
      <h1>Entry {index >= 0 && number(index)}</h1>
      <a href={linkTo("ledger")}>The ledger's tail</a>
      {entry === null ? (
        <p class="empty" role="status">
          {typeof read === "string" ? <Text wide>{read}</Text> : "Waiting for the server."}
        </p>
      ) : (
        <dl class="record">
          <dt>Kind</dt>
          <dd>
            <Text wide>{entry.kind}</Text>
          </dd>
          <dt>Time</dt>
          <dd>
            <At unix_ms={entry.at_unix_ms} />
          </dd>
          {Object.entries(entry.fields).map(([field, value]) => (
            <Field key={field} name={field} value={value} />
          ))}
          <dt>Leaf</dt>
          <dd class="hash">
            <Text wide>{entry.leaf}</Text>
          </dd>
          <dt>Prove it offline</dt>
          <dd>
            <code>buildnet ledger prove {entry.index}</code>
          </dd>
        </dl>
      )}
    </>
  );
}

function Field({ name, value }: { name: string; value: Value }) {
  const values = Array.isArray(value) ? value : [String(value)];
  return (
    <>
      <dt>
        <Text wide>{name}</Text>
      </dt>
      {values.map((one, at) => (
        <dd key={at}>
          {(name === "worker" || name === "node") && one ? (
            <Id href={linkTo("nodes", one)}>{one}</Id>
          ) : one ? (
            <Text wide>{one}</Text>
          ) : (
            <span class="empty">empty</span>
          )}
        </dd>
      ))}
    </>
  );
}
