// The latent map: points, pan and zoom by regl-scatterplot; which are faint or hidden is a matter of colour and order.
import createScatterplot from "regl-scatterplot";
import type { Colouring } from "./palettes";
import { extent, makeScale, type Scale } from "./scale";

const FAINT = "#e3e7ee";
const HIDDEN = "#ffffff";
// Of what the canvas shows, the share that points take.
const FILLED = 0.92;
// More points than this are drawn as squares, without blending.
const MANY = 100_000;

export interface Scatter {
  x: Scale;
  y: Scale;
  /** Show other columns along the axes, from as far away as needed to see all. */
  place(x: Float32Array, y: Float32Array): Promise<void>;
  /** Colour points; visible says of each 0: hidden, 1: faint, 2: as it is. */
  paint(colouring: Colouring, visible: Uint8Array): Promise<void>;
  mark(particles: number[]): void;
  reset(): void;
}

export interface ScatterEvents {
  view(): void;
  click(particle: number): void;
  hover(particle: number | null): void;
}

function pointSize(count: number): number {
  return count > MANY ? 1.5 : Math.max(2.5, Math.min(7, 260 / Math.sqrt(count)));
}

export function makeScatter(canvas: HTMLCanvasElement, particles: number, events: ScatterEvents): Scatter {
  const rows: number[][] = Array.from({ length: particles }, () => [0, 0, 0]);
  const box = canvas.parentElement!.getBoundingClientRect();
  const plot = createScatterplot({
    canvas,
    width: "auto",
    height: "auto",
    aspectRatio: box.width / box.height,
    backgroundColor: [1, 1, 1, 1],
    pointSize: pointSize(particles),
    pointSizeSelected: 3,
    pointOutlineWidth: 2,
    pointColorActive: [0.84, 0.37, 0, 1],
    pointColorHover: [0.11, 0.14, 0.2, 1],
    opacity: particles > MANY ? 1 : 0.85,
    performanceMode: particles > MANY,
    colorBy: "z",
    deselectOnDblClick: false,
    deselectOnEscape: false,
    lassoOnLongPress: false,
    spatialIndexUseWorker: false,
    actionKeyMap: {},
    xScale: makeScale(-1, 1),
    yScale: makeScale(-1, 1),
  } as unknown as Parameters<typeof createScatterplot>[0]);
  const scatter = { x: makeScale(-1, 1), y: makeScale(-1, 1) } as Scatter;
  let index: ArrayBuffer | undefined;
  let marked: number[] = [];

  plot.subscribe("view", events.view);
  plot.subscribe("select", ({ points }: { points: number[] }) => {
    if (points.length === 1 && points[0] !== marked[0]) events.click(points[0]);
  });
  plot.subscribe("pointOver", (particle: number) => events.hover(particle));
  plot.subscribe("pointOut", () => events.hover(null));
  new ResizeObserver(() => {
    const { width, height } = canvas.parentElement!.getBoundingClientRect();
    if (width && height) plot.set({ aspectRatio: width / height });
    events.view();
  }).observe(canvas.parentElement!);

  function stretch(values: Float32Array, axis: 0 | 1): Scale {
    const [low, high] = extent(values);
    const [middle, half] = [(low + high) / 2, ((high - low) / 2 || 1) / FILLED];
    for (let i = 0; i < particles; i++) rows[i][axis] = (values[i] - middle) / half;
    return makeScale(middle - half, middle + half);
  }

  scatter.place = async (x, y) => {
    plot.reset();
    [scatter.x, scatter.y] = [stretch(x, 0), stretch(y, 1)];
    plot.set({ xScale: scatter.x, yScale: scatter.y } as unknown as Parameters<typeof plot.set>[0]);
    index = undefined;
  };
  scatter.paint = async (colouring, visible) => {
    const colours = colouring.colours;
    const last = colours.length - 1;
    const own = colouring.continuous ? (value: number) => Math.round(value * last) : (value: number) => value;
    for (let i = 0; i < particles; i++) {
      rows[i][2] = visible[i] === 2 ? own(colouring.values[i]) : colours.length + (visible[i] ? 0 : 1);
    }
    plot.set({ pointColor: [...colours, FAINT, HIDDEN], pointOrder: orderBy(visible) } as unknown as Parameters<
      typeof plot.set
    >[0]);
    await plot.draw(rows as [number, number, number][], { zDataType: "categorical", spatialIndex: index } as object);
    index = plot.get("spatialIndex") as unknown as ArrayBuffer;
    scatter.mark(marked);
    events.view();
  };
  scatter.mark = (particlesMarked) => {
    marked = particlesMarked;
    if (marked.length) plot.select(marked, { preventEvent: true });
    else plot.deselect({ preventEvent: true });
  };
  scatter.reset = () => plot.reset();
  return scatter;
}

/** What is hidden first, so that it covers nothing; null where there is nothing to order. */
function orderBy(visible: Uint8Array): number[] | null {
  const layers: number[][] = [[], [], []];
  for (let i = 0; i < visible.length; i++) layers[visible[i]].push(i);
  return layers[2].length === visible.length ? null : layers[0].concat(layers[1], layers[2]);
}
