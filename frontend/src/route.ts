// The page's place is its address: `#/runs?sort=asr`, so that a view can be kept and sent.
import { useEffect, useState } from "preact/hooks";

export interface Route {
  page: string;
  params: URLSearchParams;
}

function read(): Route {
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { page: page || "runs", params: new URLSearchParams(query) };
}

export function useRoute(): Route {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

export function link(page: string, params: Record<string, string | string[] | undefined> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params))
    for (const one of Array.isArray(value) ? value : [value]) if (one) query.append(name, one);
  const text = query.toString();
  return `#/${page}${text ? `?${text}` : ""}`;
}

export function go(page: string, params: Record<string, string | string[] | undefined> = {}): void {
  location.hash = link(page, params);
}

/** Change some values of this place without a new entry in the browser's history. */
export function change(values: Record<string, string | string[]>): void {
  const { page, params } = read();
  for (const [name, value] of Object.entries(values)) {
    params.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one) params.append(name, one);
  }
  const text = params.toString();
  history.replaceState(null, "", `#/${page}${text ? `?${text}` : ""}`);
  dispatchEvent(new Event("hashchange"));
}
