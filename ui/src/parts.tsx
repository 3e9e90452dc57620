// Small pieces that every view is made of: a state by shape and word, a time, an id, a text that may be hostile.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Action } from "./api";
import { clock, duration, plain, shortId } from "./format";
import { serverNow_ms } from "./store";

export type Look = "good" | "bad" | "busy" | "waits" | "ended";

const SHAPES: Record<Look, ComponentChildren> = {
  good: <path d="M2.5 6.5 5 9l4.5-6" class="stroke" />,
  bad: <path d="M6 1.2 11 10.4H1z" />,
  busy: <path d="M6 1a5 5 0 1 1-5 5" class="stroke spin" />,
  waits: <circle cx="6" cy="6" r="4" class="stroke" />,
  ended: <rect x="2" y="2" width="8" height="8" />,
};

export function Status({ look, word }: { look: Look; word: string }) {
  return (
    <span class={`status ${look}`}>
      <svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">
        {SHAPES[look]}
      </svg>
      {word}
    </span>
  );
}

export function ActionStatus({ action }: { action: Action }) {
  switch (action.state) {
    case "queued":
      return <Status look="waits" word="queued" />;
    case "executing":
      return <Status look="busy" word="running" />;
    case "failed":
      return <Status look="bad" word={plain(action.error || "failed")} />;
    case "cancelled":
      return <Status look="ended" word="cancelled" />;
    default:
      if (action.exit_code) return <Status look="bad" word={`exit ${action.exit_code}`} />;
      return <Status look="good" word={action.cached ? "cached" : "done"} />;
  }
}

/** Text from anywhere, in a direction of its own. */
export function Text({ children, wide }: { children: string; wide?: boolean }) {
  const shown = plain(children);
  return wide ? (
    <bdi class="wide">{shown}</bdi>
  ) : (
    <bdi class="text" title={shown}>
      {shown}
    </bdi>
  );
}

export function Id({ children, href }: { children: string; href?: string | undefined }) {
  const code = <code title={plain(children)}>{shortId(children)}</code>;
  return href ? <a href={href}>{code}</a> : code;
}

export function At({ unix_ms }: { unix_ms: number }) {
  const at = new Date(unix_ms);
  const iso = Number.isNaN(at.getTime()) ? "" : at.toISOString();
  return (
    <time dateTime={iso} title={iso}>
      {clock(unix_ms)}
    </time>
  );
}

/** How long something has gone on, counted up. */
export function Since({ unix_ms }: { unix_ms: number }) {
  const [, turn] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => turn((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  return <span>{duration(serverNow_ms() - unix_ms)}</span>;
}

export function Section(props: { id: string; title: string; aside?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section aria-labelledby={props.id}>
      <div class="title">
        <h2 id={props.id}>{props.title}</h2>
        {props.aside}
      </div>
      {props.children}
    </section>
  );
}

export const Empty = ({ children }: { children: ComponentChildren }) => <p class="empty">{children}</p>;
