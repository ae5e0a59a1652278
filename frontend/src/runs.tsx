// The table of runs: filter, sort, group, choose some to compare.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Row, Table } from "./api";
import { Abbreviation, Choice, Problem, RateCell, Search, Status } from "./parts";
import { change, go, link } from "./route";
import { compare, grouped, passes, sorted, spread, value } from "./select";
import { FIELDS, METRICS, duration, field, figure, percent, told } from "./words";

/** Rows in the page at first; more come as one scrolls. */
const STEP = 60;
/** Fields shown at first. */
const FIRST = 4;

export function shownFields(table: Table): string[] {
  const of = table.fields;
  return [...Object.keys(FIELDS).filter((name) => of.includes(name)), ...of.filter((name) => !(name in FIELDS))];
}

export function Runs({ table, params }: { table: Table; params: URLSearchParams }) {
  const filter = params.get("filter") ?? "";
  const by = params.get("group") ?? "";
  const sort = params.get("sort") ?? "name";
  const chosen = useMemo(() => new Set(params.getAll("run")), [params]);
  const all = useMemo(() => shownFields(table), [table]);
  const fields = params.has("all") ? all : all.slice(0, FIRST);
  const rows = useMemo(
    () => sorted(table.runs.filter((row) => passes(row, table.shared, filter)), table.shared, sort),
    [table, filter, sort],
  );
  const metrics = METRICS.filter((name) => name !== "ftr_near" || rows.some((row) => row.ftr_near));
  const choose = (paths: string[], on: boolean) => {
    const now = new Set(chosen);
    paths.forEach((path) => (on ? now.add(path) : now.delete(path)));
    change({ run: [...now] });
  };
  const groups: [string, Row[]][] = by ? grouped(rows, table.shared, by) : [["", rows]];
  const several = new Set(table.runs.map((row) => row.group)).size > 1;
  const columns: [string, string][] = [
    ["name", "run"],
    ["status", "status"],
    ...fields.map((name): [string, string] => [name, field(name)]),
  ];
  return (
    <>
      <form class="controls" role="search" onSubmit={(event) => event.preventDefault()}>
        <Search id="filter" value={filter} label="filter: words, defenses=none, asr>0.5" onValue={(text) => change({ filter: text })} />
        <Choice
          label="group by"
          value={by}
          of={[["", "nothing"], ["folder", "folder"], ["status", "status"], ...all.map((name): [string, string] => [name, field(name)])]}
          onValue={(name) => change({ group: name })}
        />
        {all.length > FIRST && (
          <button type="button" onClick={() => change({ all: params.has("all") ? "" : "1" })}>
            {params.has("all") ? "fewer columns" : `all ${all.length} fields that differ`}
          </button>
        )}
        <span class="count" aria-live="polite">
          {rows.length === table.runs.length ? `${rows.length} runs` : `${rows.length} of ${table.runs.length} runs`}
          {!table.complete && ", reading …"}
        </span>
        <span class="push">
          {chosen.size > 0 && (
            <button type="button" onClick={() => change({ run: [] })}>
              choose none
            </button>
          )}{" "}
          <button type="button" class="main" disabled={chosen.size < 1} onClick={() => go("compare", { run: [...chosen] })}>
            Compare {chosen.size || ""}
          </button>{" "}
          <a class="button" href={link("heat", { filter })}>
            Heat map
          </a>
        </span>
      </form>
      {table.complete && !table.runs.length && !table.documents.length && (
        <Problem>
          This folder holds no run yet. <code>undertow run demo</code> makes one; this page shows it as soon as it begins.
        </Problem>
      )}
      <div class="wide">
        <table class="runs">
          <thead>
            <tr>
              <th>
                <span class="hidden">chosen</span>
              </th>
              {columns.map(([name, short]) => (
                <Heading key={name} name={name} short={short} sort={sort} />
              ))}
              {metrics.map((name) => (
                <Heading key={name} name={name} short={<Abbreviation name={name} />} sort={sort} first="-" />
              ))}
              <Heading name="seconds" short="time" sort={sort} />
            </tr>
          </thead>
          {groups.map(([name, members]) => (
            <Group key={name} name={by ? `${field(by)} = ${name}` : ""} rows={members} metrics={metrics} width={columns.length}>
              {{ fields, table, chosen, choose, several }}
            </Group>
          ))}
        </table>
      </div>
    </>
  );
}

function Heading({ name, short, sort, first = "" }: { name: string; short: any; sort: string; first?: string }) {
  const mine = sort.replace(/^-/, "") === name;
  const down = sort.startsWith("-");
  const next = mine ? (down ? name : `-${name}`) : `${first}${name}`;
  return (
    <th scope="col" aria-sort={mine ? (down ? "descending" : "ascending") : "none"}>
      <button type="button" class="plain" title={name} onClick={() => change({ sort: next })}>
        {short}
        <span aria-hidden="true">{mine ? (down ? " ↓" : " ↑") : ""}</span>
      </button>
    </th>
  );
}

interface Shown {
  fields: string[];
  table: Table;
  chosen: Set<string>;
  choose: (paths: string[], on: boolean) => void;
  several: boolean;
}

function Group(props: { name: string; rows: Row[]; metrics: string[]; width: number; children: Shown }) {
  const { name, rows, metrics, width } = props;
  const { fields, table, chosen, choose, several } = props.children;
  const [open, setOpen] = useState(true);
  const [most, setMost] = useState(STEP);
  const end = useRef<HTMLTableRowElement>(null);
  const shown = open ? rows.slice(0, most) : [];
  useEffect(() => {
    if (!end.current) return;
    const observer = new IntersectionObserver((found) => found.some((one) => one.isIntersecting) && setMost((now) => now + STEP), { rootMargin: "600px" });
    observer.observe(end.current);
    return () => observer.disconnect();
  }, [shown.length < rows.length, most]);
  const paths = rows.map((row) => row.path);
  const whole = paths.length > 0 && paths.every((path) => chosen.has(path));
  return (
    <tbody>
      {name && (
        <tr class="group">
          <td>
            <input type="checkbox" aria-label={`choose all with ${name}`} checked={whole} onChange={(event) => choose(paths, event.currentTarget.checked)} />
          </td>
          <th colSpan={width} scope="rowgroup">
            <button type="button" class="plain" aria-expanded={open} onClick={() => setOpen(!open)}>
              {open ? "▾" : "▸"} {name}
            </button>{" "}
            <span class="quiet">{rows.length === 1 ? "1 run" : `mean of ${rows.length} runs`}</span>
          </th>
          {metrics.map((metric) => {
            const found = spread(rows, metric);
            return (
              <td class="number" title={found ? `from ${percent(found.low)} to ${percent(found.high)}` : ""}>
                {found ? percent(found.mean) : "–"}
              </td>
            );
          })}
          <td />
        </tr>
      )}
      {shown.map((row) => (
        <tr key={row.path} class={chosen.has(row.path) ? "chosen" : ""}>
          <td>
            <input
              type="checkbox"
              aria-label={`choose ${row.path}`}
              checked={chosen.has(row.path)}
              onChange={(event) => choose([row.path], event.currentTarget.checked)}
            />
          </td>
          <th scope="row">
            <a class="run" href={link("run", { path: row.path })} title={row.path}>
              {several && row.group !== "." && <span class="quiet">{row.group}/</span>}
              {row.name}
            </a>
            {!!row.caveats && (
              <span class="caveat" title="a figure of this run comes with a caveat">
                {" "}
                ⚠
              </span>
            )}
          </th>
          <td>
            <Status row={row} shared={table.shared} />
          </td>
          {fields.map((key) => (
            <td key={key} class="value" title={told(value(row, table.shared, key))}>
              {told(value(row, table.shared, key))}
            </td>
          ))}
          {metrics.map((metric) => (
            <RateCell key={metric} kind={metric} rate={row[metric as "ma"]} />
          ))}
          <td class="number">{duration(figure(row, "seconds"))}</td>
        </tr>
      ))}
      {open && shown.length < rows.length && (
        <tr ref={end}>
          <td colSpan={width + metrics.length + 2} class="quiet">
            {rows.length - shown.length} more …
          </td>
        </tr>
      )}
    </tbody>
  );
}

export function values(table: Table, rows: Row[], name: string): string[] {
  return [...new Set(rows.map((row) => told(value(row, table.shared, name))))].sort(compare);
}
