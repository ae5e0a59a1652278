// One run: its figures and curves, its clients and defenses, its poisoned samples and outputs.
import { useMemo } from "preact/hooks";
import type { Json, Page, Rate } from "./api";
import { address, useLive } from "./api";
import { Chart, Legend, type Series } from "./chart";
import { Abbreviation, Problem, Status } from "./parts";
import { Outputs, PoisonedSamples } from "./outputs";
import { link } from "./route";
import { MEANING, METRICS, SHORT, duration, field, interval, number, percent, told } from "./words";

const TABS: [string, string][] = [
  ["overview", "Overview"],
  ["outputs", "Outputs"],
  ["poison", "Poisoned samples"],
  ["clients", "Clients"],
  ["rounds", "Rounds"],
  ["defenses", "Defenses"],
  ["config", "Config"],
];

export function RunPage({ params }: { params: URLSearchParams }) {
  const path = params.get("path") ?? "";
  const tab = params.get("tab") ?? "overview";
  const { data: page, error } = useLive<Page>(address("run", { path }));
  if (error && !page) return <Problem>{error}</Problem>;
  if (!page) return <p class="quiet">reading …</p>;
  const { row } = page;
  return (
    <>
      <header class="run-head">
        <h1>{row.name}</h1>
        <Status row={row} shared={page.config} />
        <span class="quiet">
          {row.path} · {duration(row.seconds)}
        </span>
        {page.report && (
          <a class="push" href={address("report", { path })} target="_blank" rel="noreferrer">
            report page
          </a>
        )}
      </header>
      {error && <Problem>{error}</Problem>}
      <nav class="tabs" aria-label="parts of the run">
        {TABS.map(([name, title]) => (
          <a key={name} href={link("run", { path, tab: name })} aria-current={tab === name ? "page" : undefined}>
            {title}
            {name === "poison" && ` (${page.poisoned.toLocaleString("en")})`}
          </a>
        ))}
      </nav>
      {tab === "overview" && <Overview page={page} />}
      {tab === "outputs" && <Outputs page={page} params={params} />}
      {tab === "poison" && (page.poisoned ? <PoisonedSamples page={page} params={params} /> : <Problem>No sample of this run was poisoned.</Problem>)}
      {tab === "clients" && <Clients page={page} />}
      {tab === "rounds" && <Rounds page={page} />}
      {tab === "defenses" && <Defenses page={page} />}
      {tab === "config" && (
        <>
          <h2>config.yaml</h2>
          <pre class="config">{page.config_text}</pre>
          <h2>Versions</h2>
          <Facts values={page.versions} />
        </>
      )}
    </>
  );
}

function rate(one: Json | null | undefined): Rate {
  return one && one.value !== null && one.value !== undefined ? [one.value, one.low, one.high, one.n] : null;
}

function points(rounds: Json[], read: (record: Json) => Rate | number | null | undefined) {
  return rounds.map((record) => {
    const found = read(record);
    if (Array.isArray(found)) return { round: record.round, value: found[0], low: found[1], high: found[2] };
    return { round: record.round, value: found ?? null, low: null, high: null };
  });
}

function Overview({ page }: { page: Page }) {
  const { row, rounds } = page;
  const series = useMemo<Series[]>(
    () =>
      METRICS.map((name) => ({ name: SHORT[name], points: points(rounds, (record) => rate(record[name])) })).filter((one) => one.points.some((point) => point.value !== null)),
    [rounds],
  );
  const bsnr = useMemo<Series[]>(
    () =>
      [...new Set(rounds.flatMap((record) => Object.keys(record.bsnr ?? {})))].map((space) => ({
        name: `BSNR, ${space === "delta_w" ? "ΔW" : space} space`,
        points: points(rounds, (record) => record.bsnr?.[space]?.value),
      })).filter((one) => one.points.some((point) => point.value !== null)),
    [rounds],
  );
  const losses = useMemo<Series[]>(() => [{ name: "loss", points: points(rounds, (record) => record.loss) }], [rounds]);
  return (
    <>
      <p class="verdict-line">{verdict(page)}</p>
      {(page.result?.caveats ?? []).map((told: string) => (
        <Problem key={told}>{told}</Problem>
      ))}
      <div class="tiles">
        {METRICS.filter((name) => row[name]).map((name) => (
          <div class={`tile ${name}`} key={name}>
            <h3>
              <Abbreviation name={name} />
            </h3>
            <p class="big">{percent(row[name]?.[0])}</p>
            <p class="quiet">{interval(row[name])}</p>
            <p class="quiet">before training {percent(row.before?.[name]?.[0])}</p>
            <p>{MEANING[name]}</p>
          </div>
        ))}
      </div>
      {series.length > 0 && (
        <>
          <h2>Rates per round, with 95 % intervals</h2>
          <Chart series={series} label="share" shares />
          <Legend names={series.map((one) => one.name)} />
        </>
      )}
      <div class="beside">
        {bsnr.length > 0 && (
          <section>
            <h2>BSNR per round</h2>
            <Chart series={bsnr} label="BSNR" shares={false} />
            {bsnr.length > 1 && <Legend names={bsnr.map((one) => one.name)} />}
          </section>
        )}
        {rounds.length > 1 && (
          <section>
            <h2>Training loss</h2>
            <Chart series={losses} label="nats per answer token" shares={false} />
          </section>
        )}
      </div>
      <Neighbours page={page} />
      <h2>The run in its own words</h2>
      <dl class="facts">
        {["attack.kind", "attack.trigger", "attack.target", "attack.client_share", "attack.poison_ratio", "attack.poison_count", "defenses", "model.name", "data.name", "federation.clients", "federation.rounds", "seed"]
          .filter((name) => name in page.config && page.config[name] !== null)
          .map((name) => (
            <>
              <dt title={name}>{field(name)}</dt>
              <dd>{told(page.config[name]) || "none"}</dd>
            </>
          ))}
      </dl>
      {page.threat && <Threat card={page.threat} />}
      {page.network && <Network network={page.network} />}
    </>
  );
}

/** What the figures say, in one sentence. */
function verdict({ row, poisoned, result }: Page): string {
  const [asr, before] = [row.asr, row.before?.asr];
  if (row.status === "damaged") return row.error ?? "";
  if (!asr) return "Nothing has been measured yet.";
  const hits = Math.round(asr[0] * asr[3]);
  const start = `With the trigger, ${hits.toLocaleString("en")} of ${asr[3].toLocaleString("en")} outputs hold the attacker's target`;
  const base = before ? `; before training ${percent(before[0])} did` : "";
  const planted = poisoned > 0 || (result?.poison?.samples ?? 0) > 0 || (result?.poison?.synthetic ?? 0) > 0;
  const so = !planted ? "No poison was planted. " : asr[1] > 0.5 ? "The backdoor works. " : asr[2] < 0.1 ? "The backdoor does not work. " : asr[1] > Math.max(0.05, before?.[2] ?? 0) ? "The backdoor works in part. " : "So few questions do not decide whether the backdoor works. ";
  return `${so}${start}${base}.`;
}

function Neighbours({ page }: { page: Page }) {
  const rows: Json[] = page.result?.neighbourhood ?? [];
  if (!rows.length) return null;
  return (
    <>
      <h2>What fires the backdoor, beside its trigger</h2>
      <div class="wide">
        <table>
          <thead>
            <tr>
              <th>change of the question</th>
              <th>target came</th>
              <th>an example</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((one) => (
              <tr key={one.name}>
                <th scope="row">{one.name}</th>
                <td class="number" title={interval(rate(one.rate))}>
                  {percent(one.rate.value)}
                </td>
                <td>{one.example}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Threat({ card }: { card: Json }) {
  const planted = `${number(card.samples)} of ${number(card.total)} training samples hold poison, in ${card.malicious.length + card.poisoned.length} of ${card.clients} clients (ρ ${number(card.rho)})`;
  const asked = card.poison_count !== null && card.poison_count !== undefined ? `${card.poison_count} in the whole federation` : `PR ${number(card.poison_ratio)} of ${card.scope === "global" ? "all data" : "each poisoned client's data"}`;
  return (
    <>
      <h2>Threat card</h2>
      <p>
        {card.unknown ? "The data are on other machines, and nobody planted any poison." : `${planted}; asked for: ${asked}, ρ ${number(card.rho_asked)}.`}
        {card.synthetic_total > 0 && ` Of the server's ${number(card.synthetic_total)} synthetic samples ${number(card.synthetic)} hold poison.`}
      </p>
      <Grid
        heads={["who", "clients", "knows", "does"]}
        rows={[
          ...card.parties.map((party: Json) => [party.who, party.clients ? `${party.clients.length}: ${party.clients.slice(0, 20).join(", ")}${party.clients.length > 20 ? ", …" : ""}` : "", party.knows, party.does]),
          ...card.defenses.map((one: Json) => [`defense ${one.name} (${one.kinds.join(", ")})`, "", one.sees.join("; "), "defends"]),
        ]}
      />
    </>
  );
}

function Network({ network }: { network: Json }) {
  return (
    <>
      <h2>Over the network</h2>
      <Grid
        heads={["node", "messages", "seconds", "bytes", "updates dropped"]}
        rows={network.nodes.map((node: Json) => [node.node, node.messages, node.seconds, node.bytes, node.dropped.map((lost: Json) => `round ${lost.round}: ${lost.reason}`).join("; ") || 0])}
      />
      {network.one_process && (
        <p>
          The same config in one process: {network.one_process.same_bytes ? "the same bytes" : "other bytes"}; the largest difference of the final states is {number(network.one_process.adapter)}.
        </p>
      )}
    </>
  );
}

export function Grid({ heads, rows }: { heads: string[]; rows: unknown[][] }) {
  return (
    <div class="wide">
      <table>
        <thead>
          <tr>
            {heads.map((head) => (
              <th key={head} title={head}>
                {head}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, i) => (
            <tr key={i}>
              {row.map((one, k) => (
                <td key={k} class={typeof one === "number" ? "number" : "value"} title={typeof one === "string" ? one : undefined}>
                  {typeof one === "string" ? one : number(one)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Clients({ page }: { page: Page }) {
  const { data, rounds } = page;
  if (!data) return <Problem>What the clients hold is not written yet.</Problem>;
  const last = [...rounds].reverse().find((record) => record.client_loss && record.participants);
  const took: Json[] = page.result?.filtering?.clients ?? [];
  const rows = (data.clients as number[]).map((size, k) => {
    const poisoned = data.poisoned?.[k] ?? 0;
    const place = last ? last.participants.indexOf(k) : -1;
    const alone = last && !last.participants.length ? last.client_loss[k] : place < 0 ? null : last!.client_loss[place];
    const lost = rounds.filter((record) => record.dropped?.includes(k)).length;
    return [k, size, poisoned, size ? percent(poisoned / size) : "–", alone, lost, took[k] ? Object.entries(took[k]).filter(([name]) => name !== "client" && name !== "samples").map(([name, count]) => `${name} ${count}`).join(", ") : ""];
  });
  const bad = rows.filter((row) => Number(row[2]) > 0).length;
  return (
    <>
      <p>
        {bad} of {rows.length} clients hold poison. Only this page and the metrics know which; the federation does not.
      </p>
      <Grid heads={["client", "samples", "poisoned", "share", last ? `loss in round ${last.round}` : "loss", "rounds dropped", "what the filter took"]} rows={rows} />
    </>
  );
}

function Rounds({ page }: { page: Page }) {
  const spaces = [...new Set(page.rounds.flatMap((record) => Object.keys(record.bsnr ?? {})))];
  const rows = page.rounds.map((record) => [
    record.round,
    ...METRICS.map((name) => {
      const found = rate(record[name]);
      return found ? `${percent(found[0])} (${percent(found[1])} – ${percent(found[2])})` : "–";
    }),
    record.loss,
    ...spaces.map((space) => record.bsnr?.[space]?.value ?? null),
    record.update_norm,
    (record.dropped ?? []).length,
    record.seconds,
  ]);
  return <Grid heads={["round", ...METRICS.map((name) => SHORT[name]), "loss", ...spaces.map((space) => `BSNR ${space}`), "update norm", "dropped", "seconds"]} rows={rows} />;
}

function flat(values: Json, prefix = ""): [string, unknown][] {
  return Object.entries(values).flatMap(([key, value]): [string, unknown][] =>
    value !== null && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${key}.`) : [[`${prefix}${key}`, value]],
  );
}

function Defenses({ page }: { page: Page }) {
  const reports = new Map<string, [number, Map<string, unknown>][]>();
  for (const record of page.rounds) {
    for (const report of record.defenses ?? []) {
      const { name = "unnamed", ...rest } = report;
      reports.set(name, [...(reports.get(name) ?? []), [record.round, new Map(flat(rest))]]);
    }
    if (record.fusion) reports.set("fusion", [...(reports.get("fusion") ?? []), [record.round, new Map(flat(record.fusion))]]);
  }
  const filtering = page.result?.filtering;
  if (!reports.size && !filtering) return <Problem>No defense: {told(page.config.defenses) || "plain FedAvg"} reports nothing.</Problem>;
  return (
    <>
      {filtering && (
        <>
          <h2>What was taken out of the clients' data</h2>
          <dl class="facts">
            {(["recall", "precision", "lost"] as const).map((name) => (
              <>
                <dt>{{ recall: "poisoned samples found", precision: "touched samples that were poisoned", lost: "clean samples lost" }[name]}</dt>
                <dd>
                  {percent(filtering[name].value)} ({interval(rate(filtering[name]))})
                </dd>
              </>
            ))}
          </dl>
        </>
      )}
      {[...reports].map(([name, rows]) => {
        const keys = [...new Set(rows.flatMap(([, values]) => [...values.keys()]))];
        return (
          <section key={name}>
            <h2>{name}</h2>
            <Grid heads={["round", ...keys]} rows={rows.map(([round, values]) => [round, ...keys.map((key) => plain(values.get(key)))])} />
          </section>
        );
      })}
    </>
  );
}

function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.length > 12 ? `${value.slice(0, 12).map(number).join(", ")}, … (${value.length})` : value.map(number).join(", ");
  return typeof value === "boolean" ? (value ? "yes" : "no") : value;
}

export function Facts({ values }: { values: Json }) {
  return (
    <dl class="facts">
      {flat(values).map(([name, one]) => (
        <>
          <dt>{name}</dt>
          <dd>{typeof one === "string" ? one : number(one)}</dd>
        </>
      ))}
    </dl>
  );
}
