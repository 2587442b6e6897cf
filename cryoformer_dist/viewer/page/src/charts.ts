// Small charts on canvases: lines, histograms, views on a sphere.
import { findTicks, format } from "./scale";

const INK = "#1d2433";
const MUTED = "#5b6577";
const GRID = "#e4e7ec";
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

export function prepare(canvas: HTMLCanvasElement): { context: CanvasRenderingContext2D; width: number; height: number } {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, width * ratio);
  canvas.height = Math.max(1, height * ratio);
  const context = canvas.getContext("2d")!;
  context.scale(ratio, ratio);
  return { context, width, height };
}

export interface Line {
  name: string;
  x: Float32Array;
  y: Float32Array;
}

export interface Axes {
  y?: [number, number];
  /** Lines straight across, such as thresholds. */
  across?: number[];
  labelX?: (value: number) => string;
}

export function drawLines(canvas: HTMLCanvasElement, lines: Line[], axes: Axes = {}): void {
  const { context, width, height } = prepare(canvas);
  const [left, right, top, bottom] = [46, 8, 6, 20];
  const [x0, x1] = findRange(lines.map((line) => line.x));
  const [y0, y1] = axes.y ?? findRange(lines.map((line) => line.y));
  const toX = (value: number) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
  const toY = (value: number) => height - bottom - ((value - y0) / (y1 - y0 || 1)) * (height - top - bottom);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = MUTED;
  context.strokeStyle = GRID;
  for (const tick of findTicks(y0, y1, 4)) {
    rule(context, left, toY(tick), width - right);
    context.textAlign = "right";
    context.fillText(format(tick), left - 6, toY(tick) + 4);
  }
  context.textAlign = "center";
  for (const tick of findTicks(x0, x1, width > 400 ? 6 : 4)) {
    context.fillText(axes.labelX ? axes.labelX(tick) : format(tick), Math.min(toX(tick), width - 18), height - 5);
  }
  context.setLineDash([4, 3]);
  context.strokeStyle = "#98a2b3";
  for (const value of axes.across ?? []) rule(context, left, toY(value), width - right);
  context.setLineDash([]);
  lines.forEach((line, i) => {
    context.strokeStyle = LINES[i % LINES.length];
    context.lineWidth = 1.6;
    context.beginPath();
    let pen = false;
    line.y.forEach((value, k) => {
      if (!Number.isFinite(value)) return;
      if (pen) context.lineTo(toX(line.x[k]), toY(value));
      else context.moveTo(toX(line.x[k]), toY(value));
      pen = true;
    });
    context.stroke();
  });
  if (lines.length > 1) drawNames(context, lines, width - right);
}

function drawNames(context: CanvasRenderingContext2D, lines: Line[], right: number): void {
  context.textAlign = "right";
  lines.forEach((line, i) => {
    context.fillStyle = LINES[i % LINES.length];
    context.fillText(line.name, right - 4, 18 + 14 * i);
  });
}

function rule(context: CanvasRenderingContext2D, x: number, y: number, to: number): void {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(to, y);
  context.stroke();
}

function findRange(all: Float32Array[]): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  for (const values of all) {
    for (const value of values) {
      if (!Number.isFinite(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

export function countBins(values: Float32Array, low: number, high: number, bins: number, only?: Uint32Array): Uint32Array {
  const counts = new Uint32Array(bins);
  const scale = bins / (high - low || 1);
  const add = (value: number) => counts[Math.min(bins - 1, Math.max(0, Math.floor((value - low) * scale)))]++;
  if (only) for (const place of only) add(values[place]);
  else for (const value of values) add(value);
  return counts;
}

export function drawHistogram(canvas: HTMLCanvasElement, all: Uint32Array, some: Uint32Array | null): void {
  const { context, width, height } = prepare(canvas);
  const most = Math.max(...all, 1);
  // Square roots: few particles in a tail are seen too.
  const bar = (counts: Uint32Array, colour: string) => {
    context.fillStyle = colour;
    counts.forEach((count, i) => {
      const tall = Math.sqrt(count / most) * (height - 2);
      context.fillRect((i * width) / counts.length, height - tall, width / counts.length - 0.5, tall);
    });
  };
  bar(all, "#cfd6e1");
  if (some) bar(some, "#2563c9");
}

/** Views on the sphere (Mollweide), as many times as dense as were they spread evenly. */
export function drawViews(canvas: HTMLCanvasElement, rot: Float32Array, tilt: Float32Array, only: Uint32Array | null): number {
  const { context, width, height } = prepare(canvas);
  const total = only ? only.length : rot.length;
  const [across, up] = total > 20000 ? [72, 36] : [36, 18];
  const counts = new Uint32Array(across * up);
  const bin = (lon: number, sine: number) => {
    const i = Math.min(across - 1, Math.floor(((((lon % 360) + 540) % 360) / 360) * across));
    return Math.min(up - 1, Math.floor(((sine + 1) / 2) * up)) * across + i;
  };
  const add = (place: number) => counts[bin(rot[place], Math.cos((tilt[place] * Math.PI) / 180))]++;
  if (only) only.forEach(add);
  else for (let place = 0; place < rot.length; place++) add(place);
  const even = total / counts.length || 1;
  const most = Math.max(2, counts.reduce((high, count) => Math.max(high, count), 0) / even);
  const radius = Math.min(width / 4 - 4, height / 2 - 6);
  for (let py = -radius; py < radius; py += 1) {
    const theta = Math.asin(py / radius);
    const sine = (2 * theta + Math.sin(2 * theta)) / Math.PI;
    const half = 2 * radius * Math.cos(theta);
    for (let px = -half; px < half; px += 1) {
      const shade = Math.min(1, counts[bin((px / half) * 180, -sine)] / even / most);
      context.fillStyle = shadeOf(shade);
      context.fillRect(width / 2 + px, height / 2 + py, 1.2, 1.2);
    }
  }
  context.strokeStyle = INK;
  context.lineWidth = 1;
  context.beginPath();
  context.ellipse(width / 2, height / 2, 2 * radius, radius, 0, 0, 2 * Math.PI);
  context.stroke();
  return most;
}

function shadeOf(value: number): string {
  const mix = (from: number, to: number) => Math.round(from + value * (to - from));
  return `rgb(${mix(240, 0)},${mix(243, 52)},${mix(248, 110)})`;
}

export function drawImage(canvas: HTMLCanvasElement, values: Float32Array, side: number): void {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d")!;
  const pixels = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const grey = Math.max(0, Math.min(255, 128 + 42 * values[i]));
    // A row further up in the file is one further down on the screen: y points upwards, as in the map.
    const at = 4 * ((side - 1 - Math.floor(i / side)) * side + (i % side));
    pixels.data.set([grey, grey, grey, 255], at);
  }
  context.putImageData(pixels, 0, 0);
}
