// The frame around every view: skip link, header with its places, main, and the one voice of the page.

import { useEffect, useRef } from "preact/hooks";
import { useStore } from "./store";
import { linkTo, usePlace } from "./router";
import { VIEWS } from "./views";
import type { Connection } from "./store";

const WORDS: Record<Connection, string> = {
  connecting: "connecting",
  live: "live",
  lost: "connection lost, trying again",
};

export function App() {
  const place = usePlace();
  const state = useStore();
  const main = useRef<HTMLElement>(null);
  const shown = VIEWS.find((view) => view.name === place.view) ?? VIEWS[0];
  const first = useRef(true);
  useEffect(() => {
    document.title = shown?.name ? `${shown.title} · BuildNET` : "BuildNET";
    // Who follows a link with a keyboard or a reader goes on where the new view begins.
    if (!first.current) main.current?.focus();
    first.current = false;
  }, [place.view, place.rest]);
  if (!shown) return null;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href={linkTo("")} aria-label="BuildNET, overview">
          <Mark />
          BuildNET
        </a>
        <nav aria-label="Views">
          <ul>
            {VIEWS.map((view) => (
              <li key={view.name}>
                <a href={linkTo(view.name)} aria-current={view === shown ? "page" : undefined}>
                  {view.title}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        <p class={`line line-${state.connection}`} role="status">
          <span class="beat" aria-hidden="true" />
          {WORDS[state.connection]}
        </p>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        <shown.View rest={place.rest} />
      </main>
      <footer>
        <a href="/status">status</a>
        <a href="/metrics">metrics</a>
        {state.hello && <span>version {state.hello.version}</span>}
      </footer>
      <p class="voice" role="status" aria-live="polite">
        {state.said}
      </p>
    </>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="20" height="20" aria-hidden="true">
      <path d="M6 25 16 7l10 18M6 25h20M11 16h10" />
      <circle cx="16" cy="7" r="2.8" />
      <circle cx="6" cy="25" r="2.8" />
      <circle cx="26" cy="25" r="2.8" />
    </svg>
  );
}
