// The latent map: points drawn by regl-scatterplot. Which are faint or hidden is a matter of colour and order. Many
// points are moved as a picture, and drawn anew when the mouse rests: GL in software takes a while for a million.
import createScatterplot, { createSpatialIndex } from "regl-scatterplot";
import type { Colouring } from "./palettes";
import { extent, makeScale, type Scale } from "./scale";

const FAINT = "#e3e7ee";
const HIDDEN = "#ffffff";
// Of what the canvas shows, the share that points take.
const FILLED = 0.92;
// More points than this are drawn as squares, without blending.
const MANY = 100_000;
const REST_MILLISECONDS = 120;

export interface Scatter {
  x: Scale;
  y: Scale;
  /** Show other columns along the axes, from as far away as needed to see all. */
  place(x: Float32Array, y: Float32Array): void;
  /** Colour points; visible says of each 0: hidden, 1: faint, 2: as it is. */
  paint(colouring: Colouring, visible: Uint8Array): Promise<void>;
  /** Move by pixels, and zoom by a factor about a pixel. */
  move(across: number, down: number): void;
  zoom(factor: number, x: number, y: number): void;
  reset(): void;
}

/** What is at pixel p of the picture is to be seen at scale * p + (x, y). */
interface Shift {
  scale: number;
  x: number;
  y: number;
}

const NONE: Shift = { scale: 1, x: 0, y: 0 };

function pointSize(count: number): number {
  return count > MANY ? 1.5 : Math.max(2.5, Math.min(7, 260 / Math.sqrt(count)));
}

export function makeScatter(canvas: HTMLCanvasElement, particles: number, moved: () => void): Scatter {
  const rows: number[][] = Array.from({ length: particles }, () => [0, 0, 0]);
  const frame = canvas.parentElement!;
  const many = particles > MANY;
  const plot = createScatterplot({
    canvas,
    width: "auto",
    height: "auto",
    aspectRatio: frame.clientWidth / frame.clientHeight,
    backgroundColor: [1, 1, 1, 1],
    pointSize: pointSize(particles),
    opacity: many ? 1 : 0.85,
    performanceMode: many,
    colorBy: "z",
    cameraIsFixed: true,
    deselectOnEscape: false,
    actionKeyMap: {},
    xScale: makeScale(-1, 1),
    yScale: makeScale(-1, 1),
  } as unknown as Parameters<typeof createScatterplot>[0]);
  const set = (properties: object) => plot.set(properties as Parameters<typeof plot.set>[0]);
  // Nobody asks the plot which point is where: an index of one point is as good as one of a million.
  const index = createSpatialIndex([[0, 0]] as unknown as Parameters<typeof createSpatialIndex>[0]);
  const scatter = { x: makeScale(-1, 1), y: makeScale(-1, 1) } as Scatter;
  // Of the picture as it was drawn last: how it is moved, and how far that has been asked for.
  let shift = NONE;
  let asked: Shift | null = null;
  let domains = [scatter.x.domain(), scatter.y.domain()];
  let rest = 0;

  plot.subscribe("drawing", () => {
    if (!asked) return;
    domains = [scatter.x.domain(), scatter.y.domain()];
    const scale = shift.scale / asked.scale;
    shift = { scale, x: shift.x - scale * asked.x, y: shift.y - scale * asked.y };
    asked = null;
    show();
  });
  new ResizeObserver(() => {
    if (frame.clientWidth && frame.clientHeight) set({ aspectRatio: frame.clientWidth / frame.clientHeight });
    moved();
  }).observe(frame);

  /** Move the picture and what is drawn over it. */
  function show(): void {
    canvas.style.transform = `translate(${shift.x}px,${shift.y}px) scale(${shift.scale})`;
    const [width, height] = [frame.clientWidth, frame.clientHeight];
    scatter.x.domain(seen(domains[0], shift.x / width, shift.scale));
    scatter.y.domain(seen(domains[1], (height - shift.y) / height - shift.scale, shift.scale));
    moved();
  }

  /** Have the points drawn where the picture is. */
  function commit(): void {
    const [width, height] = [frame.clientWidth, frame.clientHeight];
    const view = Float32Array.from(plot.get("cameraView") as unknown as ArrayLike<number>);
    const { scale, x, y } = shift;
    view[0] *= scale;
    view[5] *= scale;
    view[12] = scale * view[12] + (width / height) * (scale - 1 + (2 * x) / width);
    view[13] = scale * view[13] + (1 - scale) - (2 * y) / height;
    asked = shift;
    set({ cameraView: view });
  }

  function change(next: Shift): void {
    shift = next;
    show();
    clearTimeout(rest);
    rest = window.setTimeout(function settle() {
      // What was asked for last has to be drawn first.
      if (asked) rest = window.setTimeout(settle, REST_MILLISECONDS);
      else commit();
    }, many ? REST_MILLISECONDS : 0);
  }

  function stretch(values: Float32Array, axis: 0 | 1): Scale {
    const [low, high] = extent(values);
    const [middle, half] = [(low + high) / 2, ((high - low) / 2 || 1) / FILLED];
    for (let i = 0; i < particles; i++) rows[i][axis] = (values[i] - middle) / half;
    return makeScale(middle - half, middle + half);
  }

  scatter.place = (x, y) => {
    scatter.reset();
    [scatter.x, scatter.y] = [stretch(x, 0), stretch(y, 1)];
    domains = [scatter.x.domain(), scatter.y.domain()];
    set({ xScale: scatter.x, yScale: scatter.y });
  };
  scatter.paint = async (colouring, visible) => {
    const colours = colouring.colours;
    const last = colours.length - 1;
    const own = colouring.continuous ? (value: number) => Math.round(value * last) : (value: number) => value;
    for (let i = 0; i < particles; i++) {
      rows[i][2] = visible[i] === 2 ? own(colouring.values[i]) : colours.length + (visible[i] ? 0 : 1);
    }
    set({ pointColor: [...colours, FAINT, HIDDEN], pointOrder: orderBy(visible) });
    const options = { zDataType: "categorical", spatialIndex: await index };
    await plot.draw(rows as [number, number, number][], options as object);
    moved();
  };
  scatter.move = (across, down) => change({ ...shift, x: shift.x + across, y: shift.y + down });
  scatter.zoom = (factor, x, y) =>
    change({ scale: shift.scale * factor, x: factor * shift.x + (1 - factor) * x, y: factor * shift.y + (1 - factor) * y });
  scatter.reset = () => {
    clearTimeout(rest);
    [shift, asked] = [NONE, null];
    canvas.style.transform = "";
    plot.reset();
    domains = [scatter.x.domain(), scatter.y.domain()];
    moved();
  };
  return scatter;
}

/** The part of a domain that is seen once it is stretched, and moved by a share of what is shown. */
function seen([low, high]: number[], by: number, scale: number): number[] {
  const span = (high - low) / scale;
  return [low - by * span, low - by * span + span];
}

/** What is hidden first, so that it covers nothing; null where there is nothing to order. */
function orderBy(visible: Uint8Array): number[] | null {
  const layers: number[][] = [[], [], []];
  for (let i = 0; i < visible.length; i++) layers[visible[i]].push(i);
  return layers[2].length === visible.length ? null : layers[0].concat(layers[1], layers[2]);
}
