// Every place of the page, in the order of the header. The first is where an unknown address leads.

import type { ComponentType } from "preact";
import { ActionsView } from "./actions";
import { LedgerView } from "./ledger";
import { NodesView } from "./nodes";
import { Overview } from "./overview";

export interface View {
  name: string;
  title: string;
  View: ComponentType<{ rest: string }>;
}

export const VIEWS: View[] = [
  { name: "", title: "Overview", View: Overview },
  { name: "nodes", title: "Nodes", View: NodesView },
  { name: "actions", title: "Actions", View: ActionsView },
  { name: "ledger", title: "Ledger", View: LedgerView },
];
