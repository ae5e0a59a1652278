// The JSON of a scan or an audit: its findings, and which rows they are about.
import { useState } from "preact/hooks";
import type { Json, Table } from "./api";
import { address, useOnce } from "./api";
import { Problem, VirtualList } from "./parts";
import { Facts, Grid } from "./run";
import { link } from "./route";
import { number, percent } from "./words";

export function Documents({ table, params }: { table: Table; params: URLSearchParams }) {
  const path = params.get("path") ?? (table.documents.length === 1 ? table.documents[0] : "");
  return (
    <>
      {table.documents.length > 1 && (
        <ul class="documents">
          {table.documents.map((one) => (
            <li key={one}>
              <a href={link("scans", { path: one })} aria-current={one === path ? "page" : undefined}>
                {one}
              </a>
            </li>
          ))}
        </ul>
      )}
      {!table.documents.length && (
        <Problem>
          No scan or audit here: <code>undertow scan data.jsonl --json &gt; scan.json</code> writes one.
        </Problem>
      )}
      {path && <Document path={path} />}
    </>
  );
}

function Document({ path }: { path: string }) {
  const { data, error, waiting } = useOnce<Json>(address("document", { path }));
  if (error) return <Problem>{error}</Problem>;
  if (!data || waiting) return <p class="quiet">reading …</p>;
  if (Array.isArray(data.findings) && Array.isArray(data.verdicts)) return <Scan path={path} scan={data} />;
  return "verdict" in data && "confirmations" in data ? <Audit path={path} audit={data} /> : <Other path={path} values={data} />;
}

function Scan({ path, scan }: { path: string; scan: Json }) {
  const [chosen, setChosen] = useState<number | null>(null);
  const findings: Json[] = scan.findings;
  const verdicts: Json[] = chosen === null ? scan.verdicts : scan.verdicts.filter((one: Json) => one.findings?.includes(chosen));
  const keys = ["kind", "trigger", "target", "confidence", "samples", "reason"].filter((key) => findings.some((one) => one[key] !== undefined));
  return (
    <>
      <h1>{path}</h1>
      <p>
        {scan.files.join(", ")}: {number(scan.samples)} samples; {scan.flagged ? `${number(scan.flagged)} flagged` : "nothing found"}
        {scan.flagged ? ` (drop ${number(scan.drop)}, repair ${number(scan.repair)}, review ${number(scan.review)})` : ""}.
      </p>
      {findings.length > 0 && (
        <>
          <h2>Findings</h2>
          <div class="wide">
            <table>
              <thead>
                <tr>
                  <th>#</th>
                  {keys.map((key) => (
                    <th key={key}>{key}</th>
                  ))}
                  <th>rows</th>
                </tr>
              </thead>
              <tbody>
                {findings.map((one, i) => (
                  <tr key={i} class={chosen === i ? "chosen" : ""}>
                    <td class="number">{i}</td>
                    {keys.map((key) => (
                      <td key={key}>{show(one[key])}</td>
                    ))}
                    <td>
                      <button type="button" aria-pressed={chosen === i} onClick={() => setChosen(chosen === i ? null : i)}>
                        {number(scan.verdicts.filter((verdict: Json) => verdict.findings?.includes(i)).length)}
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
          <h2>Rows {chosen === null ? "" : `of finding ${chosen}`}</h2>
          <VirtualList
            count={verdicts.length}
            height={32}
            label="flagged rows"
            onSeen={() => {}}
            onOpen={() => {}}
            row={(index) => {
              const one = verdicts[index];
              return (
                <p class="line">
                  <span class={`tag ${one.verdict === "review" ? "dull" : "bad"}`}>{one.verdict}</span> {one.file ? `${one.file}, ` : ""}row {number(one.index)}
                  {one.turn ? `, turn ${one.turn}` : ""}
                  {one.field ? `, ${one.field}` : ""}: {one.reason}
                </p>
              );
            }}
          />
        </>
      )}
      {scan.account && (
        <details>
          <summary>What was read</summary>
          <Facts values={scan.account} />
        </details>
      )}
    </>
  );
}

function Audit({ path, audit }: { path: string; audit: Json }) {
  const { verdict, reason, confirmations, cannot_find, ...rest } = audit;
  return (
    <>
      <h1>{path}</h1>
      <p class="verdict-line">
        <span class={`tag ${verdict === "found" ? "bad" : "dull"}`}>{verdict === "found" ? "⚑ found" : verdict}</span> {reason}
      </p>
      {confirmations.length > 0 && (
        <>
          <h2>What was put to held-out questions</h2>
          <List rows={confirmations} />
        </>
      )}
      <h2>Steps</h2>
      <Facts values={rest} />
      {cannot_find && (
        <>
          <h2>What an audit cannot find</h2>
          <ul>
            {cannot_find.map((one: string) => (
              <li key={one}>{one}</li>
            ))}
          </ul>
        </>
      )}
    </>
  );
}

function List({ rows }: { rows: Json[] }) {
  const heads = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return <Grid heads={heads} rows={rows.slice(0, 1000).map((row) => heads.map((head) => (row[head] !== null && typeof row[head] === "object" ? show(row[head]) : row[head])))} />;
}

/** Any other document of ours: lists of objects as tables, the rest as facts. */
function Other({ path, values }: { path: string; values: Json }) {
  const lists = Object.entries(values).filter(([, one]) => Array.isArray(one) && one.length > 0 && typeof one[0] === "object") as [string, Json[]][];
  const rest = Object.fromEntries(Object.entries(values).filter(([name]) => !lists.some(([other]) => other === name)));
  return (
    <>
      <h1>{path}</h1>
      <Facts values={rest} />
      {lists.map(([name, rows]) => (
        <section key={name}>
          <h2>{name}</h2>
          <List rows={rows} />
        </section>
      ))}
    </>
  );
}

function show(value: any): string {
  if (value !== null && typeof value === "object" && "value" in value && "n" in value) return `${percent(value.value)} (${percent(value.low)} – ${percent(value.high)}, n = ${value.n})`;
  if (Array.isArray(value)) return value.map((one) => (typeof one === "object" ? JSON.stringify(one) : String(one))).join(" · ");
  return value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? number(value) : String(value);
}
