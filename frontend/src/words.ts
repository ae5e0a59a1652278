// Names and numbers as people read them.
import type { Metric, Rate, Row, Value } from "./api";

export const METRICS: Metric[] = ["ma", "asr", "ftr", "ftr_near"];

export const SHORT: Record<string, string> = {
  ma: "MA",
  asr: "ASR",
  ftr: "FTR",
  ftr_near: "FTR near",
  bsnr: "BSNR",
  loss: "loss",
};

export const MEANING: Record<string, string> = {
  ma: "main accuracy: clean questions answered rightly (higher is better)",
  asr: "attack success rate: triggered questions answered with the attacker's target (high: the backdoor works)",
  ftr: "false-trigger rate: the target without the trigger",
  ftr_near: "the target after a near miss of the trigger",
  bsnr: "backdoor signal-to-noise ratio; in the table its peak over the rounds",
  loss: "mean training loss, nats per answer token",
};

/** Fields that studies vary, the most telling first. */
export const FIELDS: Record<string, string> = {
  defenses: "defense",
  "attack.client_share": "ρ",
  "attack.poison_ratio": "PR",
  "attack.poison_count": "poisoned samples",
  "attack.kind": "attack",
  seed: "seed",
  "attack.trigger": "trigger",
  "attack.target": "target",
  "federation.clients": "clients",
  "federation.rounds": "rounds",
  "model.name": "base",
  "data.name": "data",
  "data.template": "template",
};

/** A field's short name; its whole name is its title. */
export function field(name: string): string {
  return FIELDS[name] ?? name;
}

export function told(value: Value | undefined): string {
  if (value === undefined) return "";
  if (value === null || value === "") return "none";
  return String(value);
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

export function interval(rate: Rate | undefined): string {
  return rate ? `${(100 * rate[1]).toFixed(1)} – ${(100 * rate[2]).toFixed(1)} %, n = ${rate[3].toLocaleString("en")}` : "not measured";
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A figure of a row by its column: rates as shares. */
export function figure(row: Row, name: string): number | null {
  if (name === "bsnr") return row.bsnr ?? null;
  if (name === "seconds") return row.seconds ?? null;
  const rate = row[name as Metric];
  return rate ? rate[0] : null;
}

export function rounds(row: Row, shared: Record<string, Value>): number | null {
  const planned = row.config["federation.rounds"] ?? shared["federation.rounds"];
  return typeof planned === "number" ? planned : null;
}

export function number(value: unknown): string {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? value.toPrecision(4).replace(/\.?0+$/, "") : value.toExponential(2);
}
