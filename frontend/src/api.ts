// What the server sends, and how it is asked.
import { useEffect, useRef, useState } from "preact/hooks";

export type Rate = [value: number, low: number, high: number, n: number] | null;
export type Metric = "ma" | "asr" | "ftr" | "ftr_near";
export type Value = string | number | boolean | null;
export type Config = Record<string, Value>;

export interface Row extends Record<Metric, Rate | undefined> {
  path: string;
  group: string;
  name: string;
  status: "finished" | "running" | "stopped" | "damaged";
  changed: number;
  error?: string;
  round?: number;
  pace?: number | null;
  left?: number | null;
  seconds?: number;
  bsnr?: number | null;
  caveats?: number;
  before?: Record<Metric, Rate>;
  config: Config;
}

export interface Table {
  folder: string;
  complete: boolean;
  fields: string[];
  shared: Config;
  runs: Row[];
  documents: string[];
}

export interface Asked {
  question: string;
  output: string;
  target: boolean;
  right: boolean | null | undefined;
}

export interface Output {
  id: string;
  answers: string[];
  clean?: Asked;
  triggered?: Asked;
  near?: Asked;
}

export interface Poisoned {
  client: number;
  index: number;
  id: string;
  question: string;
  poisoned_question: string;
  response: string;
  poisoned_response: string;
}

export interface Piece<T> {
  total: number;
  rows: T[];
  counts?: Record<string, number>;
}

export type Json = Record<string, any>;

export interface Page {
  row: Row;
  config: Config;
  config_text: string;
  task: string;
  target: string;
  rounds: Json[];
  result: Json | null;
  data: Json | null;
  versions: Json;
  network: Json | null;
  threat: Json | null;
  poisoned: number;
  outputs: number[];
  report: boolean;
}

export interface Curve {
  round: number;
  ma: Rate;
  asr: Rate;
  ftr: Rate;
  ftr_near: Rate;
  bsnr: number | null;
  loss: number | null;
}

export function address(call: string, params: Record<string, string | number | string[]>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params))
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, String(one));
  return `api/${call}?${query}`;
}

export async function get<T>(url: string): Promise<T> {
  const answer = await fetch(url, { cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

/** Something of the server, asked again every `every` ms while the page is seen; null while it is not there yet. */
export function useLive<T>(url: string, every = 2000): { data: T | null; error: string } {
  const [found, setFound] = useState<{ url: string; data: T | null; error: string }>({ url, data: null, error: "" });
  const tag = useRef("");
  useEffect(() => {
    let over = false;
    let timer = 0;
    tag.current = "";
    const ask = async () => {
      let next = every;
      try {
        if (!document.hidden) {
          const answer = await fetch(url, { cache: "no-store", headers: tag.current ? { "If-None-Match": tag.current } : {} });
          if (answer.status !== 304) {
            const body = await answer.json();
            if (over) return;
            if (answer.ok) {
              tag.current = answer.headers.get("ETag") ?? "";
              setFound({ url, data: body, error: "" });
              if (body.complete === false) next = 150;
            } else setFound((old) => ({ url, data: old.url === url ? old.data : null, error: body.error ?? answer.statusText }));
          } else setFound((old) => (old.error ? { ...old, error: "" } : old));
        }
      } catch {
        if (!over) setFound((old) => ({ ...old, error: "undertow view has ended; start it again, and this page goes on" }));
      }
      if (!over) timer = window.setTimeout(ask, next);
    };
    void ask();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [url, every]);
  return found.url === url ? found : { data: null, error: "" };
}

/** Something of the server, asked once; the last answer stays until the next is there. */
export function useOnce<T>(url: string | null): { data: T | null; error: string; waiting: boolean } {
  const [found, setFound] = useState<{ url: string | null; data: T | null; error: string }>({ url: null, data: null, error: "" });
  useEffect(() => {
    if (url === null) return;
    let over = false;
    get<T>(url).then(
      (data) => over || setFound({ url, data, error: "" }),
      (error: Error) => over || setFound({ url, data: null, error: error.message }),
    );
    return () => {
      over = true;
    };
  }, [url]);
  return { ...found, waiting: found.url !== url };
}
