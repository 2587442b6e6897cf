// A straight scale between numbers and pixels, as regl-scatterplot wants it (d3's interface, the part it uses).
export interface Scale {
  domain(values?: number[]): number[];
  range(values?: number[]): number[];
  toPixel(value: number): number;
  toValue(pixel: number): number;
}

export function makeScale(low: number, high: number): Scale {
  let domain = [low, high];
  let range = [0, 1];
  const slope = () => (range[1] - range[0]) / (domain[1] - domain[0] || 1);
  return {
    domain: (values) => (values ? (domain = [...values]) : domain),
    range: (values) => (values ? (range = [...values]) : range),
    toPixel: (value) => range[0] + (value - domain[0]) * slope(),
    toValue: (pixel) => domain[0] + (pixel - range[0]) / slope(),
  };
}

export function findTicks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough)!;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

export function format(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1);
  return Number(value.toPrecision(size >= 1000 ? 6 : 3)).toString();
}

/** To a thousandth of a span. */
export function roundLike(value: number, span: number): number {
  const digits = Math.max(0, Math.min(12, 3 - Math.floor(Math.log10(span || 1))));
  return Number(value.toFixed(digits));
}

export function extent(values: Float32Array): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
