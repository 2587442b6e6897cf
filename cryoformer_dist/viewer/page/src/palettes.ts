// Colours that people with any colour vision tell apart: cividis-like for numbers, Okabe and Ito's for categories, a
// ring of lightness and hue for angles.
import type { Column } from "./server";

const NUMBERS = ["#00224e", "#213f6e", "#4c556c", "#6c6e72", "#8d8878", "#b2a570", "#d9c55c", "#fee838"];
const ANGLES = ["#e2d9e2", "#8eb3c8", "#5a6fb6", "#4b1f5d", "#2f1436", "#661f52", "#ab4a54", "#d0a084", "#e2d9e2"];
const CATEGORIES = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#332288", "#882255", "#44aa99",
];
export const PLAIN = "#3b6ea5";
const SHADES = 64;

function parse(hex: string): number[] {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function between(stops: string[], at: number): string {
  const place = at * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  const [low, high] = [parse(stops[first]), parse(stops[first + 1])];
  const mixed = low.map((value, i) => Math.round(value + (place - first) * (high[i] - value)));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

export interface Colouring {
  colours: string[];
  /** For each particle: the place of its colour, whole for categories, else from 0 to 1. */
  values: Float32Array;
  continuous: boolean;
  legend: { label: string; colour: string }[];
  low: number;
  high: number;
}

export function colourBy(column: Column, values: Float32Array): Colouring {
  return column.scale === "category" ? byCategory(values) : byNumber(column, values);
}

function byCategory(values: Float32Array): Colouring {
  const names = [...new Set(values)].sort((a, b) => a - b);
  const place = new Map(names.map((name, i) => [name, i]));
  const colours = names.map((_, i) => CATEGORIES[i % CATEGORIES.length]);
  return {
    colours,
    values: values.map((value) => place.get(value)!),
    continuous: false,
    legend: names.map((name, i) => ({ label: String(name), colour: colours[i] })),
    low: names[0],
    high: names[names.length - 1],
  };
}

function byNumber(column: Column, values: Float32Array): Colouring {
  const stops = column.scale === "angle" ? ANGLES : NUMBERS;
  const [low, high] = column.scale === "angle" ? [column.low, column.high] : robustRange(values);
  const span = high - low || 1;
  return {
    colours: Array.from({ length: SHADES }, (_, i) => between(stops, i / (SHADES - 1))),
    values: values.map((value) => Math.min(1, Math.max(0, (value - low) / span))),
    continuous: true,
    legend: [],
    low,
    high,
  };
}

/** Without the outermost hundredth on each side: one odd particle must not take all colours. */
function robustRange(values: Float32Array): [number, number] {
  const every = Math.max(1, Math.floor(values.length / 20000));
  const sample = Float32Array.from({ length: Math.ceil(values.length / every) }, (_, i) => values[i * every]).sort();
  return [sample[Math.floor(0.01 * (sample.length - 1))], sample[Math.ceil(0.99 * (sample.length - 1))]];
}

export function gradient(colours: string[]): string {
  return `linear-gradient(to right, ${colours.join(",")})`;
}

/** As the ChimeraX script of a run paints it. */
export function flexibilityColour(at: number): number[] {
  return parse(between(["#ccd4df", "#d9d6c8", "#f0c763", "#ea7f35", "#c62f3b", "#7a1236"], Math.min(1, Math.max(0, at))));
}
