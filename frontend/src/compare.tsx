// Runs beside each other: what differs in their configs, curves with intervals, the spread over seeds.
import { useMemo } from "preact/hooks";
import type { Curve, Metric, Rate, Row, Table } from "./api";
import { address, useLive } from "./api";
import { Chart, Legend, type Point, type Series } from "./chart";
import { Abbreviation, Choice, Problem } from "./parts";
import { change, link } from "./route";
import { bySeeds, spread, value } from "./select";
import { MEANING, METRICS, SHORT, field, interval, percent, told } from "./words";

const MOST = 64;

export function Compare({ table, params }: { table: Table; params: URLSearchParams }) {
  const asked = params.getAll("run");
  const rows = asked.map((path) => table.runs.find((row) => row.path === path)).filter((row): row is Row => row !== undefined).slice(0, MOST);
  const metric = params.get("metric") ?? "asr";
  const seeds = useMemo(() => bySeeds(rows), [table, params]);
  const together = params.get("seeds") ? params.get("seeds") === "mean" : seeds.length < rows.length;
  const { data, error } = useLive<Record<string, { rounds: Curve[] }>>(address("curves", { path: rows.map((row) => row.path) }));
  const fields = table.fields.filter((name) => new Set(rows.map((row) => told(value(row, table.shared, name)))).size > 1);
  const groups: [string, Row[]][] = together ? seeds.map(([, of]) => [label(of, fields.filter((name) => name !== "seed")), of]) : rows.map((row) => [label([row], fields), [row]]);
  const names = unique(groups.map(([name]) => name));
  const series = useMemo<Series[]>(
    () => (data ? groups.map(([, of], i) => ({ name: names[i], points: together ? mean(of, data, metric) : curve(data[of[0].path]?.rounds ?? [], metric) })) : []),
    [data, metric, together, params],
  );
  if (!rows.length)
    return (
      <Problem>
        Choose runs in <a href={link("runs")}>the table</a>, then press Compare.
      </Problem>
    );
  return (
    <>
      <form class="controls" onSubmit={(event) => event.preventDefault()}>
        <Choice
          label="curve of"
          value={metric}
          of={[...METRICS, "bsnr", "loss"].map((name): [string, string] => [name, SHORT[name]])}
          onValue={(name) => change({ metric: name })}
        />
        {seeds.length < rows.length && (
          <Choice
            label="seeds"
            value={together ? "mean" : "each"}
            of={[["mean", "mean and range"], ["each", "each alone"]]}
            onValue={(name) => change({ seeds: name })}
          />
        )}
        <span class="quiet">
          {MEANING[metric]}; {together ? "band: lowest to highest seed" : "band: 95 % interval"}
        </span>
      </form>
      {asked.length > MOST && <Problem>The first {MOST} of {asked.length} runs are shown.</Problem>}
      {error && <Problem>{error}</Problem>}
      {groups.length <= 16 ? (
        <>
          <Chart series={series} label={SHORT[metric]} shares={(METRICS as string[]).includes(metric)} />
          <Legend names={names} links={groups.map(([, of]) => (of.length === 1 ? link("run", { path: of[0].path }) : undefined))} />
        </>
      ) : (
        <Problem>Curves of {groups.length} runs cannot be told apart: choose at most 16. The tables below hold all.</Problem>
      )}
      <h2>Final figures</h2>
      <div class="wide">
        <table>
          <thead>
            <tr>
              <th>run</th>
              <th>runs</th>
              {METRICS.map((name) => (
                <th key={name}>
                  <Abbreviation name={name} />
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {groups.map(([, of], i) => (
              <tr key={i}>
                <th scope="row">{names[i]}</th>
                <td class="number">{of.length}</td>
                {METRICS.map((name) => (
                  <td class="number" key={name}>
                    {final(of, name)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <h2>What differs in the configs</h2>
      {!fields.length && <p>Nothing: all fields are the same.</p>}
      {fields.length > 0 && (
        <div class="wide">
          <table>
            <thead>
              <tr>
                <th>field</th>
                {rows.map((row) => (
                  <th key={row.path}>
                    <a href={link("run", { path: row.path })} title={row.path}>
                      {row.name}
                    </a>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {fields.map((name) => (
                <tr key={name}>
                  <th scope="row" title={name}>
                    {field(name)}
                  </th>
                  {rows.map((row) => (
                    <td key={row.path}>{told(value(row, table.shared, name))}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );

  function label(of: Row[], names: string[]): string {
    const parts = names.map((name) => `${field(name)} ${told(value(of[0], table.shared, name))}`);
    return parts.length ? parts.join(", ") : of[0].name;
  }
}

/** The same name twice would be one curve. */
function unique(names: string[]): string[] {
  const seen = new Map<string, number>();
  return names.map((name) => {
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count > 1 ? `${name} (${count})` : name;
  });
}

function final(of: Row[], name: Metric) {
  if (of.length === 1) {
    const rate = of[0][name];
    return rate ? `${percent(rate[0])} (${interval(rate)})` : "–";
  }
  const found = spread(of, name);
  return found ? `${percent(found.mean)} (${percent(found.low)} – ${percent(found.high)}, ${found.n} seeds)` : "–";
}

export function curve(rounds: Curve[], metric: string): Point[] {
  return rounds.map((record) => {
    if (metric === "bsnr" || metric === "loss") return { round: record.round, value: record[metric], low: null, high: null };
    const rate: Rate = record[metric as Metric];
    return { round: record.round, value: rate?.[0] ?? null, low: rate?.[1] ?? null, high: rate?.[2] ?? null };
  });
}

function mean(of: Row[], data: Record<string, { rounds: Curve[] }>, metric: string): Point[] {
  const found = new Map<number, number[]>();
  for (const row of of)
    for (const point of curve(data[row.path]?.rounds ?? [], metric)) if (point.value !== null) found.set(point.round, [...(found.get(point.round) ?? []), point.value]);
  return [...found]
    .sort(([a], [b]) => a - b)
    .map(([round, all]) => ({ round, value: all.reduce((a, b) => a + b, 0) / all.length, low: Math.min(...all), high: Math.max(...all) }));
}
