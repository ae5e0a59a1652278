// Curves over rounds with their intervals, drawn by Observable Plot as SVG: they follow the theme and print.
import * as Plot from "@observablehq/plot";
import { useEffect, useRef } from "preact/hooks";
import { percent } from "./words";

export interface Point {
  round: number;
  value: number | null;
  low: number | null;
  high: number | null;
}

export interface Series {
  name: string;
  points: Point[];
}

/** Okabe and Ito's colours, told apart by colour-blind people; each with a dash of its own besides. */
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#999933"];
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "12 4", "3 2 3 6", "1 3", "7 2 2 2 2 2"];

export function look(index: number): { color: string; dash: string } {
  return { color: COLORS[index % COLORS.length], dash: DASHES[Math.floor(index / COLORS.length + index) % DASHES.length] };
}

export function Chart({ series, label, shares }: { series: Series[]; label: string; shares: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const view = box.current;
    if (!view) return;
    const draw = () => {
      const drawn = series.map((one, i) => ({
        ...look(i),
        points: one.points.filter((point) => point.value !== null).map((point) => ({ ...point, name: one.name })),
      }));
      const bands = drawn.map(({ color, points }) =>
        Plot.areaY(points.filter((point) => point.low !== null), { x: "round", y1: "low", y2: "high", fill: color, fillOpacity: 0.13 }),
      );
      const marks = drawn.flatMap(({ color, dash, points }) => [
        Plot.lineY(points, { x: "round", y: "value", stroke: color, strokeWidth: 2, strokeDasharray: dash }),
        ...(points.length < 40 ? [Plot.dot(points, { x: "round", y: "value", fill: color, r: 2.2 })] : []),
      ]);
      const told = drawn.flatMap(({ points }) => points);
      const write = (point: (typeof told)[number]) =>
        shares
          ? `${point.name}\nround ${point.round}: ${percent(point.value)}${point.low === null ? "" : ` (${percent(point.low)} – ${percent(point.high)})`}`
          : `${point.name}\nround ${point.round}: ${point.value?.toPrecision(4)}`;
      const figure = Plot.plot({
        className: "chart",
        width: view.clientWidth || 700,
        height: 300,
        marginLeft: 52,
        ariaLabel: label,
        x: { label: "round", tickFormat: "d", interval: 1, ticks: 8 },
        y: shares ? { label, domain: [0, 1], tickFormat: (value: number) => `${Math.round(100 * value)} %`, grid: true } : { label, grid: true },
        marks: [...bands, ...marks, Plot.tip(told, Plot.pointer({ x: "round", y: "value", title: write }))],
      });
      // Its own rules stand in our style sheet: the page allows no style but from files.
      figure.querySelectorAll("style").forEach((style) => style.remove());
      view.replaceChildren(figure);
    };
    draw();
    let width = view.clientWidth;
    const observer = new ResizeObserver(() => {
      if (Math.abs(view.clientWidth - width) > 4) {
        width = view.clientWidth;
        draw();
      }
    });
    observer.observe(view);
    return () => observer.disconnect();
  }, [series, label, shares]);
  return <div class="chart-box" ref={box} />;
}

export function Legend({ names, links }: { names: string[]; links?: (string | undefined)[] }) {
  return (
    <ul class="legend">
      {names.map((name, i) => (
        <li key={name}>
          <svg width="30" height="10" aria-hidden="true">
            <line x1="0" x2="30" y1="5" y2="5" stroke={look(i).color} stroke-width="3" stroke-dasharray={look(i).dash} />
          </svg>{" "}
          {links?.[i] ? <a href={links[i]}>{name}</a> : name}
        </li>
      ))}
    </ul>
  );
}
