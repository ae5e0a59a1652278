// A sweep as a map: two fields as axes, a figure as colour, the mean over all other fields.
import { useState } from "preact/hooks";
import type { Row, Table } from "./api";
import { Choice, Problem, Search } from "./parts";
import { change, link } from "./route";
import { passes, spread, value } from "./select";
import { shownFields, values } from "./runs";
import { MEANING, METRICS, SHORT, field, figure, percent, told } from "./words";

/** Cividis at five places: one order for all eyes, also in grey. */
const STOPS = [
  [0, 34, 78],
  [65, 77, 107],
  [124, 123, 120],
  [188, 175, 111],
  [254, 232, 56],
];

function color(share: number): { background: string; color: string } {
  const place = Math.max(0, Math.min(1, share)) * (STOPS.length - 1);
  const i = Math.min(STOPS.length - 2, Math.floor(place));
  const mixed = STOPS[i].map((one, k) => Math.round(one + (STOPS[i + 1][k] - one) * (place - i)));
  const light = (0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]) / 255;
  return { background: `rgb(${mixed.join(" ")})`, color: light > 0.5 ? "#000" : "#fff" };
}

export function Heat({ table, params }: { table: Table; params: URLSearchParams }) {
  const filter = params.get("filter") ?? "";
  const rows = table.runs.filter((row) => row.status !== "damaged" && passes(row, table.shared, filter));
  const fields = shownFields(table).filter((name) => values(table, rows, name).length > 1);
  const usable = [...fields.filter((name) => name !== "seed"), ...fields.filter((name) => name === "seed")];
  const down = params.get("y") ?? usable[0] ?? "";
  const across = params.get("x") ?? usable.find((name) => name !== down) ?? "";
  const metric = params.get("metric") ?? "asr";
  const [cell, setCell] = useState<[string, string] | null>(null);
  if (!across || !down)
    return (
      <Problem>
        A heat map needs runs of which two fields differ, as a sweep gives them: <code>undertow sweep demo attack.client_share=0.3,0.6 defenses=none,median</code>.
      </Problem>
    );
  const at = (x: string, y: string) => rows.filter((row) => told(value(row, table.shared, across)) === x && told(value(row, table.shared, down)) === y);
  const [xs, ys] = [values(table, rows, across), values(table, rows, down)];
  const shares = (METRICS as string[]).includes(metric);
  const found = rows.map((row) => figure(row, metric)).filter((one): one is number => one !== null);
  const [low, high] = shares ? [0, 1] : [Math.min(...found), Math.max(...found)];
  const others = fields.filter((name) => name !== across && name !== down);
  const choices = usable.map((name): [string, string] => [name, field(name)]);
  const write = (one: number) => (shares ? percent(one) : one.toPrecision(3));
  return (
    <>
      <form class="controls" onSubmit={(event) => event.preventDefault()}>
        <Search id="filter" value={filter} label="filter: words, data.name=world, seed=0" onValue={(text) => change({ filter: text })} />
        <Choice label="colour" value={metric} of={[...METRICS, "bsnr"].map((name): [string, string] => [name, SHORT[name]])} onValue={(name) => change({ metric: name })} />
        <Choice label="across" value={across} of={choices} onValue={(name) => change(name === down ? { x: name, y: across } : { x: name })} />
        <Choice label="down" value={down} of={choices} onValue={(name) => change(name === across ? { y: name, x: down } : { y: name })} />
      </form>
      <p class="quiet">
        {MEANING[metric]}. Each cell is the mean of its runs{others.length ? `, over ${others.map(field).join(", ")}` : ""}; press one to see them.
      </p>
      <div class="wide">
        <table class="heat">
          <thead>
            <tr>
              <th scope="col">
                {field(down)} ↓ · {field(across)} →
              </th>
              {xs.map((x) => (
                <th scope="col" key={x}>
                  {x}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {ys.map((y) => (
              <tr key={y}>
                <th scope="row">{y}</th>
                {xs.map((x) => {
                  const all = at(x, y);
                  const told = spread(all, metric);
                  const on = cell?.[0] === x && cell[1] === y;
                  return (
                    <td key={x} class={on ? "on" : ""}>
                      <button
                        type="button"
                        style={told ? color((told.mean - low) / (high - low || 1)) : {}}
                        aria-pressed={on}
                        aria-label={`${field(down)} ${y}, ${field(across)} ${x}: ${told ? write(told.mean) : "no figure"}`}
                        title={told ? `${told.n} runs, from ${write(told.low)} to ${write(told.high)}` : "no run"}
                        onClick={() => setCell(on ? null : [x, y])}
                      >
                        {told ? write(told.mean) : "–"}
                        {told && told.n > 1 && (
                          <small>
                            {write(told.low)} – {write(told.high)}
                          </small>
                        )}
                      </button>
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Scale low={write(low)} high={write(high)} />
      {cell && <Cell rows={at(...cell)} title={`${field(down)} ${cell[1]}, ${field(across)} ${cell[0]}`} metric={metric} />}
    </>
  );
}

function Scale({ low, high }: { low: string; high: string }) {
  return (
    <p class="scale" aria-hidden="true">
      {low}{" "}
      {Array.from({ length: 24 }, (_, i) => (
        <span key={i} style={color(i / 23)} />
      ))}{" "}
      {high}
    </p>
  );
}

function Cell({ rows, title, metric }: { rows: Row[]; title: string; metric: string }) {
  return (
    <section class="cell" aria-live="polite">
      <h2>{title}</h2>
      <ul>
        {rows.map((row) => (
          <li key={row.path}>
            <a href={link("run", { path: row.path })}>{row.name}</a>: {SHORT[metric]}{" "}
            {metric === "bsnr" ? row.bsnr?.toPrecision(3) : percent(figure(row, metric))}
            {row.asr && row.asr[0] > 0 && (
              <>
                {" "}
                · <a href={link("run", { path: row.path, tab: "outputs", show: "fooled" })}>see outputs in which the backdoor fired</a>
              </>
            )}
          </li>
        ))}
      </ul>
      {rows.length > 1 && <a href={link("compare", { run: rows.map((row) => row.path) })}>Compare them</a>}
    </section>
  );
}
