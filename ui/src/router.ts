// Which view the address names: `#/`, `#/nodes`, `#/actions/ID`. A view to come is one more row in `views/index.ts`.

import { useEffect, useState } from "preact/hooks";

export interface Place {
  view: string;
  rest: string;
}

export function placeOf(hash: string): Place {
  const [view = "", ...rest] = hash.replace(/^#\/?/, "").split("/");
  let name = rest.join("/");
  try {
    name = decodeURIComponent(name);
  } catch {
    // A hand-written address with a stray percent sign names what it says.
  }
  return { view, rest: name };
}

export const linkTo = (view: string, rest = "") => `#/${view}${rest && `/${encodeURIComponent(rest)}`}`;

export function usePlace(): Place {
  const [place, go] = useState(() => placeOf(location.hash));
  useEffect(() => {
    const turn = () => go(placeOf(location.hash));
    addEventListener("hashchange", turn);
    return () => removeEventListener("hashchange", turn);
  }, []);
  return place;
}
