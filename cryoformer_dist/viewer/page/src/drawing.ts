// What is drawn over the latent map: axes, lassos and paths; and the drawing of them, which redraws no point.
import { findTicks, format } from "./scale";
import type { Scatter } from "./scatter";

export type Mode = "pan" | "lasso" | "path";
export type Point = [number, number];

export interface Overlay {
  setMode(mode: Mode): void;
  draw(): void;
  labels: [string, string];
  polygons: Point[][];
  path: Point[];
  /** Stop that is shown. */
  stop: number;
  /** Particles picked as ends of a path. */
  picked: Point[];
  /** The particle whose map is shown. */
  marked: Point | null;
}

const INK = "#1d2433";
const MUTED = "#667085";
const ACCENT = "#2563c9";
const PATH = "#d55e00";
// A lasso of more corners is no finer to the eye.
const MOST_CORNERS = 400;
const REST_MILLISECONDS = 60;

export interface Mouse {
  /** A line was drawn, or only a place clicked at. */
  drawn(mode: Mode, line: Point[]): void;
  /** The mouse rests at a place, or is gone. */
  rested(at: Point | null): void;
}

export function makeOverlay(canvas: HTMLCanvasElement, scatter: Scatter, mouse: Mouse): Overlay {
  const context = canvas.getContext("2d")!;
  let mode: Mode = "pan";
  let line: Point[] = [];
  let asked = false;
  let rest = 0;
  const overlay: Overlay = {
    labels: ["", ""], polygons: [], path: [], stop: 0, picked: [], marked: null,
    setMode(next) {
      mode = next;
      canvas.style.cursor = mode === "pan" ? "grab" : "crosshair";
    },
    draw() {
      if (!asked) requestAnimationFrame(paint);
      asked = true;
    },
  };
  const toPixels = (points: Point[]) => points.map(([x, y]): Point => [scatter.x.toPixel(x), scatter.y.toPixel(y)]);
  const toValues = ([x, y]: Point): Point => [scatter.x.toValue(x), scatter.y.toValue(y)];

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    mouse.rested(null);
    line = [[event.offsetX, event.offsetY]];
  });
  canvas.addEventListener("pointermove", (event) => {
    clearTimeout(rest);
    const here: Point = [event.offsetX, event.offsetY];
    if (!line.length) {
      rest = window.setTimeout(() => mouse.rested(toValues(here)), REST_MILLISECONDS);
      return;
    }
    const [x, y] = line[line.length - 1];
    if (Math.hypot(here[0] - x, here[1] - y) < 2) return;
    line.push(here);
    if (mode === "pan") scatter.move(here[0] - x, here[1] - y);
    else overlay.draw();
  });
  canvas.addEventListener("pointerup", () => {
    const points = thin(line).map(toValues);
    line = [];
    overlay.draw();
    if (points.length && (mode !== "pan" || points.length === 1)) mouse.drawn(mode, points);
  });
  canvas.addEventListener("pointerleave", () => {
    clearTimeout(rest);
    mouse.rested(null);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    scatter.zoom(Math.exp(-0.002 * event.deltaY), event.offsetX, event.offsetY);
  });

  function paint(): void {
    asked = false;
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = canvas.getBoundingClientRect();
    const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
    // Setting its size makes a new canvas, which is slow.
    if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    paintAxes(width, height);
    for (const polygon of overlay.polygons) stroke(toPixels(polygon), ACCENT, true);
    if (line.length) stroke(line, mode === "path" ? PATH : ACCENT, mode === "lasso");
    if (overlay.path.length) stroke(toPixels(overlay.path), PATH, false);
    overlay.path.forEach((point, i) => dot(toPixels([point])[0], i === overlay.stop ? 6 : 2.5, PATH));
    for (const point of toPixels(overlay.picked)) dot(point, 5, PATH);
    if (overlay.marked) ring(toPixels([overlay.marked])[0]);
  }

  function paintAxes(width: number, height: number): void {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = MUTED;
    context.textAlign = "center";
    for (const tick of findTicks(...(scatter.x.domain() as Point), 6)) {
      const x = scatter.x.toPixel(tick);
      if (x > 40 && x < width - 60) context.fillText(format(tick), x, height - 6);
    }
    context.textAlign = "left";
    for (const tick of findTicks(...(scatter.y.domain() as Point), 6)) {
      const y = scatter.y.toPixel(tick);
      if (y > 24 && y < height - 30) context.fillText(format(tick), 6, y + 4);
    }
    context.font = "600 12px system-ui, sans-serif";
    context.fillStyle = INK;
    context.fillText(overlay.labels[1], 6, 16);
    context.textAlign = "right";
    context.fillText(overlay.labels[0], width - 8, height - 6);
  }

  function stroke(points: Point[], colour: string, closed: boolean): void {
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (closed) {
      context.closePath();
      context.globalAlpha = 0.08;
      context.fillStyle = colour;
      context.fill();
      context.globalAlpha = 1;
    }
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.stroke();
  }

  function dot([x, y]: Point, radius: number, colour: string): void {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = "#ffffff";
    context.stroke();
  }

  function ring([x, y]: Point): void {
    for (const [colour, width] of [["#ffffff", 5], [INK, 2]] as const) {
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  overlay.setMode("pan");
  return overlay;
}

function thin(line: Point[]): Point[] {
  const every = Math.ceil(line.length / MOST_CORNERS);
  return line.filter((_, i) => i % every === 0 || i === line.length - 1);
}
