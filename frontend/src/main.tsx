// The page of `undertow view`.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Table } from "./api";
import { useLive } from "./api";
import { Compare } from "./compare";
import { Documents } from "./document";
import { Heat } from "./heat";
import { Dialog, Problem } from "./parts";
import { link, useRoute } from "./route";
import { RunPage } from "./run";
import { Runs } from "./runs";

const KEYS: [string, string][] = [
  ["/", "filter or search"],
  ["Tab, Enter", "go through links and buttons"],
  ["Space", "choose the run whose box is marked"],
  ["↑ ↓, j k, Page, Home, End", "move in a list of outputs"],
  ["Enter", "open the output"],
  ["Esc", "close it"],
  ["g r · g h · g c · g s", "runs, heat map, comparison, scans and audits"],
  ["?", "this help"],
];

function App() {
  const route = useRoute();
  const { data: table, error } = useLive<Table>("api/table");
  const [help, setHelp] = useState(false);
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "");
  useEffect(() => {
    let before = "";
    const pressed = (event: KeyboardEvent) => {
      const inField = event.target instanceof Element && event.target.matches("input, select, textarea");
      if (event.ctrlKey || event.metaKey || event.altKey || (inField && event.key !== "Escape")) return;
      if (event.key === "Escape" && inField) (event.target as HTMLElement).blur();
      const places: Record<string, string> = { r: "runs", h: "heat", c: "compare", s: "scans" };
      if (before === "g" && places[event.key]) location.hash = `#/${places[event.key]}`;
      else if (event.key === "?") setHelp(true);
      else if (event.key === "/") {
        document.getElementById("filter")?.focus();
        event.preventDefault();
      }
      before = event.key;
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  useEffect(() => {
    document.title = table ? `${route.page === "run" ? `${route.params.get("path")} · ` : ""}${table.folder} · Undertow` : "Undertow";
  }, [table?.folder, route]);
  const next = theme === "" ? "dark" : theme === "dark" ? "light" : "";
  const turn = () => {
    setTheme(next);
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    try {
      if (next) localStorage.setItem("undertow-theme", next);
      else localStorage.removeItem("undertow-theme");
    } catch {
      // no storage: for this page alone
    }
  };
  const places: [string, string][] = [
    ["runs", "Runs"],
    ["heat", "Heat map"],
    ["compare", "Compare"],
    ["scans", `Scans and audits${table?.documents.length ? ` (${table.documents.length})` : ""}`],
  ];
  return (
    <>
      <header class="top">
        <a class="brand" href={link("runs")}>
          Undertow <span class="quiet">{table?.folder}</span>
        </a>
        <nav aria-label="views">
          {places.map(([page, name]) => (
            <a key={page} href={link(page)} aria-current={route.page === page ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <button type="button" class="push plain" onClick={turn} title="colours: as the system, dark, light">
          {theme === "" ? "◐ system" : theme === "dark" ? "● dark" : "○ light"}
        </button>
        <button type="button" class="plain" onClick={() => setHelp(true)} title="keys (?)">
          ? keys
        </button>
      </header>
      <main>
        {error && <Problem>{error}</Problem>}
        {!table && !error && <p class="quiet">reading the folder …</p>}
        {table && route.page === "runs" && <Runs table={table} params={route.params} />}
        {table && route.page === "heat" && <Heat table={table} params={route.params} />}
        {table && route.page === "compare" && <Compare table={table} params={route.params} />}
        {table && route.page === "scans" && <Documents table={table} params={route.params} />}
        {route.page === "run" && table && <RunPage key={route.params.get("path")} params={route.params} />}
      </main>
      {help && (
        <Dialog title="Keys" onClose={() => setHelp(false)}>
          <dl class="facts">
            {KEYS.map(([key, meaning]) => (
              <>
                <dt>
                  <kbd>{key}</kbd>
                </dt>
                <dd>{meaning}</dd>
              </>
            ))}
          </dl>
        </Dialog>
      )}
    </>
  );
}

render(<App />, document.getElementById("app")!);
