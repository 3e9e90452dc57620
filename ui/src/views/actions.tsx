// What runs, what ran, and one action in full.

import { useEffect, useState } from "preact/hooks";
import { readAction, Refusal } from "../api";
import type { Action, Actions } from "../api";
import { count, duration, number, words } from "../format";
import { ActionStatus, At, Empty, Id, Section, Since, Text } from "../parts";
import { linkTo } from "../router";
import { useStore } from "../store";

export function ActionsView({ rest }: { rest: string }) {
  const state = useStore();
  if (rest) return <OneAction id={rest} />;
  return (
    <>
      <h1>Actions</h1>
      <RunningActions actions={state.actions} />
      <RecentActions actions={state.actions} most={50} />
    </>
  );
}

const command = (action: Action) => words(action.arguments) || "(a command that is not known any more)";

function took(action: Action) {
  if (action.completed_at_unix_ms === null) return <Since unix_ms={action.submitted_at_unix_ms} />;
  return <span>{duration(action.completed_at_unix_ms - action.submitted_at_unix_ms)}</span>;
}

function Rows({ actions, caption }: { actions: Action[]; caption: string }) {
  return (
    <div class="scroll">
      <table>
        <caption class="voice">{caption}</caption>
        <thead>
          <tr>
            <th scope="col">State</th>
            <th scope="col" class="main">
              Command
            </th>
            <th scope="col">Node</th>
            <th scope="col" class="number">
              Time
            </th>
            <th scope="col" class="number">
              Entry
            </th>
          </tr>
        </thead>
        <tbody>
          {actions.map((action) => (
            <tr key={action.id}>
              <td>
                <ActionStatus action={action} />
              </td>
              <th scope="row" class="main">
                <a class="command" href={linkTo("actions", action.id)}>
                  <Text>{command(action)}</Text>
                </a>
              </th>
              <td>{action.worker && <Id href={linkTo("nodes", action.worker)}>{action.worker}</Id>}</td>
              <td class="number">{took(action)}</td>
              <td class="number">
                {action.entry !== null && <a href={linkTo("ledger", String(action.entry))}>{action.entry}</a>}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function RunningActions({ actions }: { actions: Actions | null }) {
  const running = actions?.running ?? [];
  const executing = running.filter((action) => action.state === "executing").length;
  const aside = running.length > 0 && (
    <p class="aside">
      {number(executing)} running, {number(running.length - executing)}
      {actions?.more_running ? " and more" : ""} queued
    </p>
  );
  return (
    <Section id="running" title="Running" aside={aside}>
      {actions === null ? (
        <Empty>Waiting for the server.</Empty>
      ) : running.length === 0 ? (
        <Empty>
          Nothing runs. Try <code>buildnet run -- echo hello</code>
        </Empty>
      ) : (
        <Rows actions={running} caption="Actions that run or wait, newest first" />
      )}
    </Section>
  );
}

export function RecentActions({ actions, most }: { actions: Actions | null; most: number }) {
  const recent = actions?.recent ?? [];
  return (
    <Section id="recent" title="Recent">
      {recent.length === 0 ? (
        <Empty>
          {actions?.behind ? `The ledger is being read: ${count(actions.behind, "entry", "entries")} to go.` : "Nothing has ended yet."}
        </Empty>
      ) : (
        <Rows actions={recent.slice(0, most)} caption="Actions that have ended, newest first" />
      )}
    </Section>
  );
}

function OneAction({ id }: { id: string }) {
  const state = useStore();
  const live = [...(state.actions?.running ?? []), ...(state.actions?.recent ?? [])].find((a) => a.id === id);
  const [read, setRead] = useState<Action | string | null>(null);
  const isLive = live !== undefined;
  useEffect(() => {
    if (isLive) return undefined;
    let wanted = true;
    readAction(id)
      .then((action) => wanted && setRead(action))
      .catch((error: unknown) => wanted && setRead(error instanceof Refusal ? error.message : String(error)));
    return () => {
      wanted = false;
    };
  }, [id, isLive]);
  const action = live ?? (typeof read === "object" ? read : null);
  return (
    <>
      <h1>Action</h1>
      <a href={linkTo("actions")}>All actions</a>
      {action === null ? (
        <p class="empty" role="status">
          {typeof read === "string" ? <Text wide>{read}</Text> : "Waiting for the server."}
        </p>
      ) : (
        <Facts action={action} />
      )}
    </>
  );
}

function Facts({ action }: { action: Action }) {
  return (
    <dl class="record">
      <dt>State</dt>
      <dd>
        <ActionStatus action={action} />
      </dd>
      <dt>Command</dt>
      <dd class="command">
        <Text wide>{command(action)}</Text>
      </dd>
      {action.message && (
        <>
          <dt>Message</dt>
          <dd>
            <Text wide>{action.message}</Text>
          </dd>
        </>
      )}
      <dt>Action</dt>
      <dd class="hash">
        <Text wide>{action.action}</Text>
      </dd>
      <dt>Instance</dt>
      <dd>{action.instance ? <Text wide>{action.instance}</Text> : "the empty name"}</dd>
      <dt>Node</dt>
      <dd>{action.worker ? <Id href={linkTo("nodes", action.worker)}>{action.worker}</Id> : "none"}</dd>
      <dt>Submitted</dt>
      <dd>
        <At unix_ms={action.submitted_at_unix_ms} />, took {took(action)}
      </dd>
      {action.assigned_at_unix_ms !== null && (
        <>
          <dt>Given to its node</dt>
          <dd>
            <At unix_ms={action.assigned_at_unix_ms} />
            {action.attempts > 1 && `, ${count(action.attempts, "attempt")}`}
          </dd>
        </>
      )}
      <dt>Ledger entry</dt>
      <dd>
        {action.entry === null ? "none yet" : <a href={linkTo("ledger", String(action.entry))}>{action.entry}</a>}
      </dd>
      <dt>What it prints</dt>
      <dd>
        <code>buildnet actions logs {action.id.slice(0, 12)}</code>
      </dd>
    </dl>
  );
}
