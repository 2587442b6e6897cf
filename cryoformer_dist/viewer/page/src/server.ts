// What the server is asked, and what it answers. Addresses are relative: they begin with the token.

export interface Column {
  name: string;
  unit: string;
  meaning: string;
  scale: "number" | "category" | "angle";
  low: number;
  high: number;
}

export interface Run {
  name: string;
  home: string;
  step: number;
  particles: number;
  source: string;
  box: number;
  voxel_size_angstrom: number;
  dimensions: number;
  refined: boolean;
  maps: string[];
  columns: Column[];
}

export interface Lasso {
  how: "union" | "intersection" | "difference";
  axes: [string, string];
  polygon: [number, number][];
}

export interface Gate {
  column: string;
  /** Null: none. */
  low: number | null;
  high: number | null;
}

export interface Chosen {
  lassos: Lasso[];
  gates: Gate[];
}

export type AskedMap =
  | { kind: "particle"; particle: number }
  | { kind: "latent"; latent: number[] }
  | { kind: "selection"; chosen: Chosen }
  | { kind: "file"; name: string };

export interface DensityMap {
  box: number;
  voxels: Float32Array;
  /** As a share of where it is strongest. */
  flexibility: Float32Array | null;
  level: number;
  averaged: number;
  voxelSizeAngstrom: number;
}

export interface Path {
  stops: Float32Array[];
  points: [number, number][];
  particles: Float32Array;
}

export interface Images {
  particles: Uint32Array;
  box: number;
  rows: { images: Float32Array; filtered: Float32Array; projected: Float32Array };
}

export interface Progress {
  newestStep: number | null;
  shownStep: number;
  finished: boolean;
  told: string;
  records: Map<string, Float32Array>;
}

type Numbers = Float32Array | Uint32Array;

interface Answer {
  arrays: Map<string, { values: Numbers; shape: number[] }>;
  told: Record<string, unknown>;
}

async function fetchOk(path: string, body?: unknown): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`api/${path}`, body === undefined ? {} : { method: "POST", body: JSON.stringify(body) });
  } catch {
    throw new Error("the viewer's server does not answer; is `cryoformer-dist view`, or the tunnel to it, still running?");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error ?? `the server answers ${response.status}`);
  }
  return response;
}

async function fetchArrays(path: string, body?: unknown): Promise<Answer> {
  const response = await fetchOk(path, body);
  const about = JSON.parse(response.headers.get("X-About") ?? "{}");
  const buffer = await response.arrayBuffer();
  const arrays: Answer["arrays"] = new Map();
  let start = 0;
  for (const { name, dtype, shape } of about.arrays) {
    const count = shape.reduce((product: number, side: number) => product * side, 1);
    const bytes = count * (dtype === "float16" ? 2 : 4);
    arrays.set(name, { values: readNumbers(buffer, start, count, dtype), shape });
    start += Math.ceil(bytes / 4) * 4;
  }
  return { arrays, told: about };
}

function readNumbers(buffer: ArrayBuffer, start: number, count: number, dtype: string): Numbers {
  if (dtype === "float32") return new Float32Array(buffer, start, count);
  if (dtype === "uint32") return new Uint32Array(buffer, start, count);
  const halves = new Uint16Array(buffer, start, count);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = HALVES[halves[i]];
  return values;
}

// Every float16 there is: few browsers read them.
const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

function floats(answer: Answer, name: string): Float32Array {
  return answer.arrays.get(name)!.values as Float32Array;
}

export async function fetchRun(): Promise<Run> {
  return (await fetchOk("run")).json();
}

export async function showNewest(): Promise<Run> {
  return (await fetchOk("newest", {})).json();
}

/** The run with coordinates by UMAP among its columns. */
export async function embed(): Promise<Run> {
  return (await fetchOk("umap", {})).json();
}

export async function fetchColumn(name: string): Promise<Float32Array> {
  return floats(await fetchArrays(`column/${encodeURIComponent(name)}`), "values");
}

export async function choose(chosen: Chosen): Promise<{ particles: Uint32Array; told: string }> {
  const answer = await fetchArrays("choose", chosen);
  return { particles: answer.arrays.get("particles")!.values as Uint32Array, told: String(answer.told.told) };
}

export async function save(
  name: string,
  chosen: Chosen,
  files: string[],
  refined: boolean,
): Promise<{ written: string[]; particles: number }> {
  return (await fetchOk("save", { name, chosen, files, refined_poses: refined })).json();
}

export async function fetchMap(asked: AskedMap): Promise<DensityMap> {
  const answer = await fetchArrays("map", asked);
  const factors = answer.told.factors as Record<string, number>;
  const density = floats(answer, "voxels").map((value) => value * factors.voxels);
  return {
    box: answer.arrays.get("voxels")!.shape[0],
    voxels: density,
    flexibility: answer.arrays.has("flexibility") ? floats(answer, "flexibility") : null,
    level: Number(answer.told.level),
    averaged: Number(answer.told.averaged),
    voxelSizeAngstrom: Number(answer.told.voxel_size_angstrom),
  };
}

/** A film of maps that morph one into the next, or of one that turns. */
export async function makeFilm(name: string, maps: AskedMap[], level: number): Promise<{ film: Blob; suffix: string; told: string }> {
  const response = await fetchOk("film", { name, maps, level });
  const about = JSON.parse(response.headers.get("X-About") ?? "{}");
  return { film: await response.blob(), suffix: String(about.suffix), told: String(about.told) };
}

export async function fetchPath(
  axes: [string, string],
  corners: [number, number][],
  ends: number[],
  stops: number,
): Promise<Path> {
  const answer = await fetchArrays("path", { axes, corners, ends, stops });
  const { values, shape } = answer.arrays.get("latents")!;
  const points = floats(answer, "points");
  return {
    stops: Array.from({ length: shape[0] }, (_, i) => (values as Float32Array).slice(i * shape[1], (i + 1) * shape[1])),
    points: Array.from({ length: shape[0] }, (_, i) => [points[2 * i], points[2 * i + 1]]),
    particles: floats(answer, "particles"),
  };
}

export async function fetchImages(chosen: Chosen, count: number, seed: number): Promise<Images> {
  const answer = await fetchArrays("images", { chosen, count, seed });
  return {
    particles: answer.arrays.get("particles")!.values as Uint32Array,
    box: answer.arrays.get("images")!.shape[1],
    rows: {
      images: floats(answer, "images"),
      filtered: floats(answer, "filtered"),
      projected: floats(answer, "projected"),
    },
  };
}

export async function fetchProgress(): Promise<Progress> {
  const answer = await fetchArrays("progress");
  return {
    newestStep: answer.told.newest_step as number | null,
    shownStep: Number(answer.told.shown_step),
    finished: Boolean(answer.told.finished),
    told: String(answer.told.told),
    records: new Map([...answer.arrays].map(([name, { values }]) => [name, values as Float32Array])),
  };
}

export async function fetchCurves(): Promise<Map<string, Map<string, Float32Array>>> {
  const answer = await fetchArrays("curves");
  const tables = new Map((answer.told.tables as string[]).map((name) => [name, new Map<string, Float32Array>()]));
  for (const [name, { values }] of answer.arrays) {
    const cut = name.indexOf(": ");
    tables.get(name.slice(0, cut))!.set(name.slice(cut + 2), values as Float32Array);
  }
  return tables;
}
