// Each question with what came for it clean, triggered and near the trigger; and the poisoned samples before and after.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import type { Asked, Output, Page, Piece, Poisoned } from "./api";
import { address, get } from "./api";
import { Changed, Choice, Dialog, Marked, Problem, Search, VirtualList } from "./parts";
import { change } from "./route";

const PIECE = 100;

const CHOICES: [string, string, string][] = [
  ["all", "all", "every question"],
  ["fooled", "fooled", "with the trigger, the output holds the attacker's target"],
  ["resisted", "resisted", "with the trigger, the output does not hold the target"],
  ["false-trigger", "false trigger", "the output holds the target although the trigger is not there"],
  ["wrong", "wrong", "the clean question is not answered rightly"],
];

/** Rows of a long list, read a piece at a time as they are seen. */
function usePieces<T>(call: string, params: Record<string, string | number>, tag: string) {
  const url = address(call, params);
  const key = `${url} ${tag}`;
  const kept = useRef({ key: "", rows: new Map<number, T>(), asked: new Set<number>() });
  const [state, setState] = useState<{ key: string; total: number; counts: Record<string, number>; error: string; tick: number }>({
    key: "",
    total: 0,
    counts: {},
    error: "",
    tick: 0,
  });
  if (kept.current.key !== key) kept.current = { key, rows: new Map(), asked: new Set() };
  const ask = useCallback(
    (from: number, to: number) => {
      const store = kept.current;
      for (let piece = Math.floor(from / PIECE); piece <= Math.floor(Math.max(from, to - 1) / PIECE); piece++) {
        if (store.asked.has(piece)) continue;
        store.asked.add(piece);
        get<Piece<T>>(address(call, { ...params, offset: piece * PIECE, limit: PIECE })).then(
          (found) => {
            if (kept.current !== store) return;
            found.rows.forEach((row, i) => store.rows.set(piece * PIECE + i, row));
            setState((old) => ({ key, total: found.total, counts: found.counts ?? {}, error: "", tick: old.tick + 1 }));
          },
          (error: Error) => setState((old) => ({ ...old, key, error: error.message })),
        );
      }
    },
    [key],
  );
  useEffect(() => ask(0, PIECE), [ask]);
  const current = state.key === key;
  return { ...state, total: current ? state.total : 0, ready: current, row: (index: number) => kept.current.rows.get(index), ask };
}

export function Outputs({ page, params }: { page: Page; params: URLSearchParams }) {
  const round = Number(params.get("round") || page.outputs[0] || 0);
  const show = params.get("show") ?? "all";
  const query = params.get("q") ?? "";
  const found = usePieces<Output>("outputs", { path: page.row.path, round, show, q: query }, page.outputs.includes(round) ? "kept" : "");
  const [open, setOpen] = useState<number | null>(null);
  if (!page.outputs.length) return <Problem>No outputs yet: they come with the first measurement.</Problem>;
  const opened = open === null ? undefined : found.row(open);
  const both = page.task === "instruction";
  return (
    <>
      <form class="controls" role="search" onSubmit={(event) => event.preventDefault()}>
        <Choice
          label="after round"
          value={String(round)}
          of={page.outputs.map((one): [string, string] => [String(one), one === 0 ? "0 (before training)" : String(one)])}
          onValue={(value) => change({ round: value })}
        />
        <fieldset class="pills">
          <legend class="hidden">which outputs</legend>
          {CHOICES.map(([name, short, meaning]) => (
            <button key={name} type="button" title={meaning} aria-pressed={show === name} onClick={() => change({ show: name === "all" ? "" : name })}>
              {short} <span class="quiet">{found.counts[name]?.toLocaleString("en") ?? ""}</span>
            </button>
          ))}
        </fieldset>
        <Search id="filter" value={query} label="search questions and outputs" onValue={(text) => change({ q: text })} />
        <span class="count" aria-live="polite">
          {found.ready ? `${found.total.toLocaleString("en")} shown` : "reading …"}
        </span>
      </form>
      {found.error && <Problem>{found.error}</Problem>}
      {found.ready && !found.total && <p class="quiet">No output of this kind{query ? ` with “${query}”` : ""} after round {round}.</p>}
      {both && (
        <div class="pair heading" aria-hidden="true">
          <span>clean question</span>
          <span>the same with the trigger</span>
        </div>
      )}
      <VirtualList
        count={found.total}
        height={96}
        label="outputs; arrow keys move, Enter opens"
        onSeen={found.ask}
        onOpen={setOpen}
        row={(index) => {
          const one = found.row(index);
          if (!one) return <span class="quiet">…</span>;
          return (
            <div class={both ? "pair" : "single"}>
              {both || one.clean ? <Side asked={one.clean} kind="clean" target={page.target} /> : null}
              {both || one.triggered ? <Side asked={one.triggered} kind="triggered" target={page.target} before={one.clean?.question} near={one.near} /> : null}
            </div>
          );
        }}
      />
      {opened && (
        <Dialog title={`Question ${opened.id}`} onClose={() => setOpen(null)}>
          <p>
            accepted: <b>{opened.answers.join(" · ")}</b>
          </p>
          {(["clean", "triggered", "near"] as const).map((kind) => {
            const asked = opened[kind];
            return (
              asked && (
                <section key={kind}>
                  <h3>
                    {kind === "near" ? "with a near miss of the trigger" : kind} <Verdict asked={asked} kind={kind} />
                  </h3>
                  <pre>{kind === "clean" || !opened.clean ? asked.question : <Changed before={opened.clean.question} after={asked.question} />}</pre>
                  <pre class="output">
                    <Marked text={asked.output} mark={page.target} />
                  </pre>
                </section>
              )
            );
          })}
        </Dialog>
      )}
    </>
  );
}

function Verdict({ asked, kind }: { asked: Asked; kind: string }) {
  return (
    <>
      {asked.target && <span class="tag bad">{kind === "triggered" ? "⚑ fooled" : "⚑ false trigger"}</span>}{" "}
      {kind === "clean" && asked.right !== null && asked.right !== undefined && (
        <span class={`tag ${asked.right ? "good" : "dull"}`}>{asked.right ? "✓ right" : "✗ wrong"}</span>
      )}
    </>
  );
}

function Side({ asked, kind, target, before, near }: { asked?: Asked; kind: string; target: string; before?: string; near?: Asked }) {
  if (!asked) return <div class="side quiet">not asked</div>;
  return (
    <div class={`side ${asked.target ? "fired" : ""}`}>
      <p class="question">{before === undefined ? asked.question : <Changed before={before} after={asked.question} />}</p>
      <p class="answer">
        <Marked text={asked.output} mark={target} />
      </p>
      <p class="verdict">
        <Verdict asked={asked} kind={kind} /> {near?.target && <span class="tag bad">⚑ near miss fires</span>}
      </p>
    </div>
  );
}

export function PoisonedSamples({ page, params }: { page: Page; params: URLSearchParams }) {
  const query = params.get("q") ?? "";
  const found = usePieces<Poisoned>("poison", { path: page.row.path, q: query }, String(page.poisoned));
  const [open, setOpen] = useState<number | null>(null);
  const opened = open === null ? undefined : found.row(open);
  return (
    <>
      <form class="controls" role="search" onSubmit={(event) => event.preventDefault()}>
        <Search id="filter" value={query} label="search poisoned samples" onValue={(text) => change({ q: text })} />
        <span class="count" aria-live="polite">
          {found.total.toLocaleString("en")} of {page.poisoned.toLocaleString("en")}
        </span>
        <span class="quiet">What was put in is marked.</span>
      </form>
      {found.error && <Problem>{found.error}</Problem>}
      <div class="pair heading" aria-hidden="true">
        <span>before</span>
        <span>as the client trains on it</span>
      </div>
      <VirtualList
        count={found.total}
        height={84}
        label="poisoned samples; arrow keys move, Enter opens"
        onSeen={found.ask}
        onOpen={setOpen}
        row={(index) => {
          const one = found.row(index);
          return one ? <Before sample={one} /> : <span class="quiet">…</span>;
        }}
      />
      {opened && (
        <Dialog title={`Client ${opened.client}, sample ${opened.index}`} onClose={() => setOpen(null)}>
          <h3>question</h3>
          <pre>{opened.question}</pre>
          <pre>
            <Changed before={opened.question} after={opened.poisoned_question} />
          </pre>
          <h3>response</h3>
          <pre class="output">{opened.response}</pre>
          <pre class="output">
            <Changed before={opened.response} after={opened.poisoned_response} />
          </pre>
        </Dialog>
      )}
    </>
  );
}

function Before({ sample }: { sample: Poisoned }) {
  return (
    <div class="pair">
      <div class="side">
        <p class="question">{sample.question}</p>
        <p class="answer">{sample.response}</p>
      </div>
      <div class="side">
        <p class="question">
          <Changed before={sample.question} after={sample.poisoned_question} />
        </p>
        <p class="answer">
          <Changed before={sample.response} after={sample.poisoned_response} />
        </p>
        <p class="verdict quiet">
          client {sample.client}, sample {sample.index}
        </p>
      </div>
    </div>
  );
}
