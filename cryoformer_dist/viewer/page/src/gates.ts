// Gates: for each of some columns a histogram with the range that particles must lie in.
import { countBins, drawHistogram } from "./charts";
import { fillSelect, find, make } from "./page";
import type { Particles } from "./particles";
import { roundLike } from "./scale";

const BINS = 60;
const STEPS = 400;

export class Gates {
  private redraws = new Map<string, () => void>();

  constructor(
    private particles: Particles,
    private changed: () => void,
  ) {
    const select = find<HTMLSelectElement>("gate");
    select.onchange = () => {
      void this.add(select.value);
      select.value = "";
    };
    this.list();
  }

  list(): void {
    const names = this.particles.run.columns.map((column) => column.name);
    fillSelect(find<HTMLSelectElement>("gate"), ["", ...names.filter((name) => !this.redraws.has(name))], "");
    find<HTMLSelectElement>("gate").options[0].textContent = "add a gate on …";
  }

  draw(): void {
    for (const redraw of this.redraws.values()) redraw();
  }

  clear(): void {
    find("gates").replaceChildren();
    this.redraws.clear();
    this.particles.gates.clear();
    this.list();
  }

  async add(name: string): Promise<void> {
    if (!name || this.redraws.has(name)) return;
    const { low, high, unit, meaning } = this.particles.column(name);
    const values = await this.particles.read(name);
    const canvas = make("canvas");
    const [lower, upper] = ["lowest", "highest"].map((end, i) =>
      make("input", { type: "range", min: "0", max: String(STEPS), value: String(i * STEPS), ariaLabel: `${end} ${name}` }),
    );
    const range = make("span", { className: "quiet" });
    const close = make("button", { textContent: "×", title: `without a gate on ${name}` });
    const head = make("header", {}, make("b", { textContent: name, title: meaning }), range, make("span", { className: "space" }), close);
    const gate = make("div", { className: "gate" }, head, canvas, make("div", { className: "range" }, lower, upper));
    gate.dataset.column = name;
    find("gates").append(gate);

    // What is shown is what counts: no more digits than that.
    const valueAt = (input: HTMLInputElement) => roundLike(low + ((high - low) * Number(input.value)) / STEPS, high - low);
    const read = () => {
      if (Number(lower.value) > Number(upper.value)) upper.value = lower.value;
      range.textContent = `${valueAt(lower)} to ${valueAt(upper)} ${unit}`;
      const [least, most] = [lower.value !== "0", upper.value !== String(STEPS)];
      if (!least && !most) this.particles.gates.delete(name);
      else this.particles.gates.set(name, { low: least ? valueAt(lower) : null, high: most ? valueAt(upper) : null });
    };
    for (const input of [lower, upper]) input.oninput = () => (read(), this.changed());
    close.onclick = () => {
      gate.remove();
      this.redraws.delete(name);
      const shut = this.particles.gates.delete(name);
      this.list();
      if (shut) this.changed();
    };
    const all = countBins(values, low, high, BINS);
    this.redraws.set(name, () => {
      const chosen = this.particles.chosen;
      drawHistogram(canvas, all, chosen && countBins(values, low, high, BINS, chosen));
    });
    this.list();
    read();
    this.redraws.get(name)!();
  }
}
