// Which rows are shown, and in what order: the filter's words, sorting, groups.
import type { Config, Row, Value } from "./api";
import { figure, told } from "./words";

export function value(row: Row, shared: Config, name: string): Value | undefined {
  if (name === "folder") return row.group;
  if (name === "status") return row.status;
  return row.config[name] ?? shared[name];
}

/** Whether a row passes a filter: words that it holds somewhere, `field=value`, `asr>0.5`. All must hold. */
export function passes(row: Row, shared: Config, filter: string): boolean {
  return words(filter).every((word) => {
    const match = /^([\w.-]+)(<=|>=|!=|=|<|>)(.*)$/.exec(word);
    const found = match && named(row, shared, match[1].toLowerCase());
    if (!match || found === undefined || found === null) return everything(row).includes(word.toLowerCase());
    const [, , sign, given] = match;
    const text = told(found).toLowerCase();
    const [left, right] = [Number(found), Number(given.replace("%", "")) / (given.endsWith("%") ? 100 : 1)];
    const numbers = given.trim() !== "" && typeof found === "number" && !Number.isNaN(right);
    if (sign === "=") return numbers ? Math.abs(left - right) < 1e-12 : given === "" || text === given.toLowerCase();
    if (sign === "!=") return numbers ? Math.abs(left - right) >= 1e-12 : text !== given.toLowerCase();
    if (!numbers) return false;
    return sign === "<" ? left < right : sign === ">" ? left > right : sign === "<=" ? left <= right : left >= right;
  });
}

/** The words of a filter; what stands in double quotes is one. */
function words(filter: string): string[] {
  return (filter.match(/(?:[^\s"]|"[^"]*")+/g) ?? []).map((word) => word.replace(/"/g, ""));
}

function everything(row: Row): string {
  return [row.path, row.status, row.error ?? "", ...Object.entries(row.config).map(([key, one]) => `${key}=${told(one)}`)].join("\n").toLowerCase();
}

const ALIASES: Record<string, string> = { rho: "attack.client_share", pr: "attack.poison_ratio", defense: "defenses" };

/** A value by a name or its last part: `asr`, `seed`, `affected_share`. */
function named(row: Row, shared: Config, name: string): Value | undefined {
  if (["ma", "asr", "ftr", "ftr_near", "bsnr", "seconds"].includes(name)) return figure(row, name);
  const whole = ALIASES[name] ?? name;
  const direct = value(row, shared, whole);
  if (direct !== undefined) return direct;
  const key = [...Object.keys(row.config), ...Object.keys(shared)].find((one) => one.endsWith(`.${whole}`));
  return key === undefined ? undefined : value(row, shared, key);
}

/** A filter's word for a field's value. */
export function condition(name: string, one: Value | undefined): string {
  const text = `${name}=${told(one)}`;
  return /\s/.test(text) ? `"${text}"` : text;
}

export function compare(a: unknown, b: unknown): number {
  if (a === b) return 0;
  if (a === null || a === undefined || a === "") return 1;
  if (b === null || b === undefined || b === "") return -1;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

export function sorted(rows: Row[], shared: Config, by: string): Row[] {
  const down = by.startsWith("-");
  const name = by.replace(/^-/, "");
  const key = (row: Row): unknown =>
    name === "name" ? row.path : name === "changed" ? row.changed : (figure(row, name) ?? value(row, shared, name));
  return rows
    .map((row) => ({ row, key: key(row) }))
    .sort((a, b) => {
      const missing = Number(a.key === null || a.key === undefined) - Number(b.key === null || b.key === undefined);
      return missing || (down ? compare(b.key, a.key) : compare(a.key, b.key)) || compare(a.row.path, b.row.path);
    })
    .map(({ row }) => row);
}

export function grouped(rows: Row[], shared: Config, by: string): [string, Row[]][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const key = told(value(row, shared, by)) || "–";
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups].sort(([a], [b]) => compare(a, b));
}

export interface Spread {
  mean: number;
  low: number;
  high: number;
  n: number;
}

/** Mean and range over runs, of those that have the figure. */
export function spread(rows: Row[], name: string): Spread | null {
  const found = rows.map((row) => figure(row, name)).filter((one): one is number => one !== null);
  if (!found.length) return null;
  return { mean: found.reduce((a, b) => a + b, 0) / found.length, low: Math.min(...found), high: Math.max(...found), n: found.length };
}

/** Runs that differ in nothing but the seed, together. */
export function bySeeds(rows: Row[]): [string, Row[]][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const key = JSON.stringify(Object.entries(row.config).filter(([name]) => name !== "seed").sort());
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups];
}
