// Panels below the map: images, views, training, FSC.
import { drawImage, drawLines, drawViews, type Line } from "./charts";
import { busily, fillSelect, find, make } from "./page";
import type { Particles } from "./particles";
import { format } from "./scale";
import * as server from "./server";

const IMAGES = 14;
const ROWS: [keyof server.Images["rows"], string, string][] = [
  ["images", "image", "as stored: noise whitened, protein bright"],
  ["filtered", "CTF-weighted", "weighted at each frequency by what the microscope transfers and the model expects to see"],
  ["projected", "model", "projection of this particle's own map at its pose, weighted in the same way"],
];
const CHARTS: [string, string][] = [
  ["loss", "loss"],
  ["latent_information_nats", "images say of conformation, nats"],
  ["noise_departure", "departure from the noise assumed"],
  ["particles_per_second", "particles per second"],
];
export type Tab = "images" | "views" | "training" | "fsc";

export class Panels {
  private tab: Tab = "images";
  private seed = 0;

  constructor(
    private particles: Particles,
    private picked: (particle: number) => void,
  ) {
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-tab]")) {
      button.onclick = () => this.open(button.dataset.tab as Tab);
    }
    new ResizeObserver(() => this.tab !== "images" && void this.draw()).observe(find("panel"));
  }

  open(tab: Tab): void {
    this.tab = tab;
    void this.draw();
  }

  /** The selection is another one, or the run went on. */
  renew(what: "selection" | "progress" | "run"): void {
    if (what === "run" || (this.tab === "training") === (what === "progress")) void this.draw();
  }

  private async draw(): Promise<void> {
    const tab = this.tab;
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-tab]")) {
      button.ariaSelected = String(button.dataset.tab === tab);
    }
    const draw = { images: this.drawImages, views: this.drawViews, training: this.drawTraining, fsc: this.drawCurves };
    await busily(() => draw[tab].call(this, () => tab === this.tab));
  }

  private fill(note: string, tools: Node[], ...children: Node[]): void {
    Object.assign(find("panelNote"), { textContent: note, title: note });
    find("panelTools").replaceChildren(...tools);
    find("panel").replaceChildren(...children);
  }

  private async drawImages(current: () => boolean): Promise<void> {
    if (!this.particles.count) return this.fill("no particle is selected", []);
    const shown = await server.fetchImages(this.particles.describe(), IMAGES, this.seed);
    const names = await Promise.all([...shown.particles].map((particle) => this.particles.name(particle)));
    if (!current()) return;
    const grid = make("div", { className: "montage" });
    grid.style.gridTemplateColumns = `auto repeat(${shown.particles.length}, 62px)`;
    for (const [row, label, meaning] of ROWS) {
      grid.append(make("span", { textContent: label, title: meaning }));
      shown.particles.forEach((particle, i) => {
        const canvas = make("canvas", { title: `${names[i]}: ${meaning}` });
        const pixels = shown.box ** 2;
        drawImage(canvas, shown.rows[row].subarray(i * pixels, (i + 1) * pixels), shown.box);
        canvas.onclick = () => this.picked(particle);
        grid.append(canvas);
      });
    }
    const others = make("button", { textContent: "draw others" });
    others.onclick = () => (this.seed++, void this.draw());
    this.fill(`${shown.particles.length} of ${this.particles.count}, at random`, [others], grid);
  }

  private async drawViews(current: () => boolean): Promise<void> {
    const [rot, tilt] = await Promise.all([this.particles.read("rot_deg"), this.particles.read("tilt_deg")]);
    if (!current()) return;
    const chosen = this.particles.chosen;
    const sets: [string, Uint32Array | null][] = [["all particles", null]];
    if (chosen) sets.push([`${chosen.length} selected`, chosen]);
    const figures = sets.map(([name]) => make("figure", {}, make("canvas"), make("figcaption", { textContent: name })));
    this.fill("views over the sphere: rot across, z up", [], ...figures);
    sets.forEach(([name, only], i) => {
      const most = drawViews(figures[i].querySelector("canvas")!, rot, tilt, only);
      figures[i].querySelector("figcaption")!.textContent = `${name}; darkest: ${format(most)} times as many as if even`;
    });
  }

  private async drawTraining(current: () => boolean): Promise<void> {
    const progress = await server.fetchProgress();
    if (!current()) return;
    const steps = progress.records.get("step")!;
    const told = CHARTS.filter(([name]) => progress.records.get(name)?.some(Number.isFinite));
    if (!told.length) return this.fill("no report of training yet", []);
    const figures = told.map(([, title]) => make("figure", {}, make("figcaption", { textContent: title }), make("canvas")));
    this.fill(progress.told, [], ...figures);
    told.forEach(([name], i) => {
      drawLines(figures[i].querySelector("canvas")!, [{ name, x: steps, y: progress.records.get(name)! }]);
    });
  }

  private async drawCurves(current: () => boolean): Promise<void> {
    const tables = await server.fetchCurves();
    if (!current()) return;
    if (!tables.size) return this.fill("no FSC yet: `halves` compares half-sets, `evaluate` a run with its truth", []);
    const select = make("select", { ariaLabel: "which comparison" });
    const figure = make("figure", {}, make("canvas"));
    const draw = () => {
      const table = tables.get(select.value)!;
      const x = table.get("frequency_per_angstrom")!;
      const names = [...table.keys()].filter((name) => !["shell", "frequency_per_angstrom", "resolution_angstrom"].includes(name));
      const lines: Line[] = names.map((name) => ({ name: name.replace(/^fsc_/, ""), x, y: table.get(name)! }));
      const labelX = (value: number) => (value ? `${format(1 / value)} Å` : "∞");
      drawLines(figure.querySelector("canvas")!, lines, { y: [0, 1], across: [0.143, 0.5], labelX });
    };
    select.onchange = draw;
    this.fill("dashed: 0.143 and 0.5", [select], figure);
    fillSelect(select, [...tables.keys()], [...tables.keys()][0]);
    draw();
  }
}
