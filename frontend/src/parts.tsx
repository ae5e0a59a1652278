// Small pieces that several views share.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Rate, Row } from "./api";
import { MEANING, SHORT, duration, interval, percent, rounds } from "./words";

const SIGNS = { finished: "✓", running: "▶", stopped: "■", damaged: "!" } as const;

export function Status({ row, shared }: { row: Row; shared: Record<string, any> }) {
  const planned = rounds(row, shared);
  const going = row.status === "running" || row.status === "stopped";
  const left = row.status === "running" && row.left ? `, ${duration(row.left)} left` : "";
  return (
    <span class={`status ${row.status}`} title={row.error}>
      <span aria-hidden="true">{SIGNS[row.status]} </span>
      {row.status}
      {going && planned !== null && (
        <span class="progress">
          {" "}
          round {row.round ?? 0} of {planned}
          {left}
          <progress max={planned || 1} value={row.round ?? 0} aria-label="rounds done" />
        </span>
      )}
    </span>
  );
}

export function RateCell({ rate, kind }: { rate: Rate | undefined; kind: string }) {
  if (!rate) return <td class="number">–</td>;
  return (
    <td class={`number rate ${kind}`} title={interval(rate)}>
      <span class="bar" style={{ width: `${100 * rate[0]}%` }} />
      <span class="figure">{percent(rate[0])}</span>
    </td>
  );
}

export function Abbreviation({ name }: { name: string }) {
  return <abbr title={MEANING[name]}>{SHORT[name] ?? name}</abbr>;
}

export function Problem({ children }: { children: ComponentChildren }) {
  return (
    <p class="problem" role="alert">
      {children}
    </p>
  );
}

/** A text field whose value is reported when typing rests. */
export function Search({ value, label, onValue, id }: { value: string; label: string; onValue: (text: string) => void; id?: string }) {
  const [text, setText] = useState(value);
  const timer = useRef(0);
  const sent = useRef(value);
  useEffect(() => {
    if (value !== sent.current) setText(value);
    sent.current = value;
  }, [value]);
  return (
    <input
      id={id}
      type="search"
      aria-label={label}
      placeholder={label}
      value={text}
      spellcheck={false}
      onInput={(event) => {
        const now = event.currentTarget.value;
        setText(now);
        clearTimeout(timer.current);
        timer.current = window.setTimeout(() => {
          sent.current = now;
          onValue(now);
        }, 150);
      }}
    />
  );
}

export function Choice({ label, value, of, onValue }: { label: string; value: string; of: [string, string][]; onValue: (value: string) => void }) {
  return (
    <label class="choice">
      {label}{" "}
      <select value={value} onChange={(event) => onValue(event.currentTarget.value)}>
        {of.map(([key, name]) => (
          <option key={key} value={key}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

/** Text with every place of `mark` marked; text alone, whatever it looks like. */
export function Marked({ text, mark }: { text: string; mark: string }) {
  if (!mark || !text.includes(mark)) return <>{text}</>;
  const pieces = text.split(mark);
  return (
    <>
      {pieces.map((piece, i) => (
        <>
          {i > 0 && <mark>{mark}</mark>}
          {piece}
        </>
      ))}
    </>
  );
}

/** The words of `after` with those marked that `before` lacks. */
export function Changed({ before, after }: { before: string; after: string }) {
  const [a, b] = [before.split(/(\s+)/), after.split(/(\s+)/)];
  if (a.length * b.length > 400_000) return <>{after}</>;
  // longest common subsequence of words, then what is not in it is new
  const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      long[i][j] = a[i].toLowerCase() === b[j].toLowerCase() ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const pieces: [string, boolean][] = [];
  for (let i = 0, j = 0; j < b.length; ) {
    if (i < a.length && a[i].toLowerCase() === b[j].toLowerCase()) {
      pieces.push([b[j], false]);
      i++;
      j++;
    } else if (i < a.length && long[i + 1][j] >= long[i][j + 1]) i++;
    else {
      const last = pieces[pieces.length - 1];
      if (last?.[1]) last[0] += b[j];
      else pieces.push([b[j], true]);
      j++;
    }
  }
  return <>{pieces.map(([text, fresh]) => (fresh && text.trim() ? <mark>{text}</mark> : text))}</>;
}

/** A list of any length of which only what is seen is in the page; arrow keys move, Enter opens. */
export function VirtualList(props: {
  count: number;
  height: number;
  label: string;
  row: (index: number) => ComponentChildren;
  onSeen: (from: number, to: number) => void;
  onOpen: (index: number) => void;
}) {
  const { count, height, label, row, onSeen, onOpen } = props;
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [seen, setSeen] = useState(800);
  const [active, setActive] = useState(0);
  const from = Math.max(0, Math.floor(top / height) - 4);
  const to = Math.min(count, Math.ceil((top + seen) / height) + 4);
  useEffect(() => onSeen(from, to), [from, to, count]);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => box.current && setSeen(box.current.clientHeight));
    if (box.current) observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  const move = (index: number) => {
    const now = Math.max(0, Math.min(count - 1, index));
    setActive(now);
    const view = box.current;
    if (!view) return;
    if (now * height < view.scrollTop) view.scrollTop = now * height;
    if ((now + 1) * height > view.scrollTop + view.clientHeight) view.scrollTop = (now + 1) * height - view.clientHeight;
  };
  const page = Math.max(1, Math.floor(seen / height) - 1);
  const steps: Record<string, number> = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -count, End: count };
  return (
    <div
      class="virtual"
      ref={box}
      role="listbox"
      tabIndex={0}
      aria-label={label}
      aria-activedescendant={count ? `row-${active}` : undefined}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}
      onKeyDown={(event) => {
        if (event.key === "Enter" && count) onOpen(active);
        else if (event.key in steps) move(active + steps[event.key]);
        else return;
        event.preventDefault();
      }}
    >
      <div class="space" style={{ height: `${count * height}px` }}>
        {Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i).map((index) => (
          <div
            key={index}
            id={`row-${index}`}
            role="option"
            aria-selected={index === active}
            aria-setsize={count}
            aria-posinset={index + 1}
            class={`item ${index === active ? "active" : ""}`}
            style={{ transform: `translateY(${index * height}px)`, height: `${height}px` }}
            onClick={() => {
              setActive(index);
              onOpen(index);
            }}
          >
            {row(index)}
          </div>
        ))}
      </div>
    </div>
  );
}

/** A window over the page; Escape closes it. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    box.current?.showModal();
  }, []);
  return (
    <dialog ref={box} aria-label={title} onClose={onClose} onClick={(event) => event.target === box.current && box.current?.close()}>
      <header>
        <h2>{title}</h2>
        <button type="button" onClick={() => box.current?.close()}>
          Close
        </button>
      </header>
      {children}
    </dialog>
  );
}
