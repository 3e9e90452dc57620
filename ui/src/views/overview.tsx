// Everything at a glance: what runs, what ran, where, and what was written down.

import { useStore } from "../store";
import { RecentActions, RunningActions } from "./actions";
import { Ledger } from "./ledger";
import { Nodes } from "./nodes";

export function Overview() {
  const state = useStore();
  return (
    <>
      <h1 class="voice">Overview</h1>
      <div class="columns">
        <div>
          <RunningActions actions={state.actions} />
          <RecentActions actions={state.actions} most={15} />
        </div>
        <div>
          <Nodes nodes={state.nodes} actions={state.actions} />
          <Ledger most={14} />
        </div>
      </div>
    </>
  );
}
