// The page: one run's particles as a latent map, what is chosen there, and maps of it.
import { makeOverlay, type Mode, type Overlay, type Point } from "./drawing";
import { Gates } from "./gates";
import { busily, debounced, fillSelect, find, make, tell } from "./page";
import { colourBy, gradient, PLAIN, type Colouring } from "./palettes";
import { Panels, type Tab } from "./panels";
import { Particles } from "./particles";
import { format } from "./scale";
import { makeScatter, type Scatter } from "./scatter";
import * as server from "./server";
import { Volume } from "./volume";

// A click means the particle nearest to it within this.
const NEAR_PIXELS = 10;
const POLL_MILLISECONDS = 4000;
const FIRST_COLOURS = ["cluster", "confidence", "pc3", "defocus_angstrom"];

class Viewer {
  private scatter: Scatter;
  private overlay: Overlay;
  private volume: Volume;
  private gates: Gates;
  private panels: Panels;
  private values: [Float32Array, Float32Array] = [new Float32Array(), new Float32Array()];
  private visible: Uint8Array = new Uint8Array();
  private colouring!: Colouring;
  private mode: Mode = "pan";
  private ends: number[] = [];
  private axes: [string, string];

  constructor(private particles: Particles) {
    const names = particles.run.columns.map((column) => column.name);
    this.axes = particles.has("pc2") ? ["pc1", "pc2"] : [names[0], names[Math.min(1, names.length - 1)]];
    this.scatter = makeScatter(find<HTMLCanvasElement>("points"), particles.run.particles, () => this.overlay?.draw());
    this.overlay = makeOverlay(find<HTMLCanvasElement>("overlay"), this.scatter, {
      drawn: (mode, line) => this.takeLine(mode, line),
      rested: (at) => void this.showHover(at && this.findNearest(at, NEAR_PIXELS)),
    });
    const mark = (particle: number | null) => {
      this.overlay.marked = particle === null ? null : [this.values[0][particle], this.values[1][particle]];
      this.overlay.draw();
    };
    this.volume = new Volume(particles, mark, () => {
      this.overlay.stop = this.volume.stop;
      this.overlay.draw();
    });
    this.gates = new Gates(particles, debounced(() => void this.chooseAnew(), 120));
    this.panels = new Panels(particles, (particle) => void this.showParticle(particle));
    this.fillSelects();
    this.listen();
  }

  private fillSelects(): void {
    const names = this.particles.run.columns.map((column) => column.name);
    const colour = find<HTMLSelectElement>("colour");
    const keep = names.includes(colour.value) ? colour.value : chooseColour(this.particles);
    fillSelect(find<HTMLSelectElement>("x"), names, this.axes[0]);
    fillSelect(find<HTMLSelectElement>("y"), names, this.axes[1]);
    fillSelect(colour, ["", ...names], keep);
    colour.options[0].textContent = "none";
    this.describeRun();
  }

  private describeRun(): void {
    const run = this.particles.run;
    document.title = `${run.name} · cryoformer-dist`;
    find("name").textContent = run.name;
    find("about").textContent =
      `${run.particles.toLocaleString("en")} particles · step ${run.step} · box ${run.box}, ` +
      `${format(run.voxel_size_angstrom)} Å · ${run.dimensions} latent dimensions`;
    const suffix = /\.(star|cs)$/.exec(run.source.toLowerCase())?.[0];
    const kinds = [...(suffix ? [suffix] : []), ".pkl"];
    const boxes = kinds.map((kind, i) => makeCheck(kind === ".pkl" ? "ind.pkl" : kind, `kind${kind}`, i === 0 && !!suffix));
    if (run.refined) boxes.push(makeCheck("poses as trained", "refined", false));
    find("kinds").replaceChildren(...boxes);
  }

  async start(): Promise<void> {
    await this.placePoints();
    document.body.dataset.painted = String(Math.round(performance.now()));
    this.tellCount();
    this.panels.open("images");
    if (this.particles.run.maps.includes("consensus.mrc")) {
      await this.volume.ask({ kind: "file", name: "consensus.mrc" }, "consensus.mrc");
    }
    window.setInterval(() => void this.followTraining(), POLL_MILLISECONDS);
    await this.followTraining();
  }

  private async placePoints(): Promise<void> {
    this.values = await Promise.all([this.particles.read(this.axes[0]), this.particles.read(this.axes[1])]);
    this.scatter.place(...this.values);
    this.overlay.labels = this.axes.map((name) => {
      const unit = this.particles.column(name).unit;
      return unit ? `${name.replace(/_(deg|angstrom)$/, "")} (${unit})` : name;
    }) as [string, string];
    this.overlay.marked = null;
    this.drawLassos();
    await this.colour();
  }

  private drawLassos(): void {
    const here = this.particles.lassos.filter(({ axes }) => axes[0] === this.axes[0] && axes[1] === this.axes[1]);
    this.overlay.polygons = here.map(({ polygon }) => polygon);
    this.overlay.draw();
  }

  private async colour(): Promise<void> {
    const name = find<HTMLSelectElement>("colour").value;
    if (name) {
      const column = this.particles.column(name);
      this.colouring = colourBy(column, await this.particles.read(name));
      showLegend(this.colouring, column);
    } else {
      const values = new Float32Array(this.particles.run.particles);
      this.colouring = { colours: [PLAIN], values, continuous: false, legend: [], low: 0, high: 0 };
      find("legend").replaceChildren();
    }
    await this.paint();
  }

  private async paint(): Promise<void> {
    this.visible = await this.particles.visible();
    await this.scatter.paint(this.colouring, this.visible);
  }

  private async chooseAnew(): Promise<void> {
    await busily(async () => {
      if (!(await this.particles.choose())) return;
      this.tellCount();
      this.drawLassos();
      this.gates.draw();
      await this.paint();
      this.panels.renew("selection");
    });
  }

  private tellCount(): void {
    const { count, run, told } = this.particles;
    find("count").textContent = `${count.toLocaleString("en")} of ${run.particles.toLocaleString("en")} particles`;
    find("count").dataset.count = String(count);
    find("origin").textContent = told || "all particles";
  }

  private takeLine(mode: Mode, line: Point[]): void {
    if (mode === "pan") {
      const particle = this.findNearest(line[0], NEAR_PIXELS);
      return particle === null ? undefined : void this.showParticle(particle);
    }
    if (mode === "path") {
      if (line.length < 3) return this.pickEnd(line[0]);
      this.ends = [];
      return this.followPath(line);
    }
    if (line.length < 3) return;
    const how = find<HTMLSelectElement>("how").value;
    const lasso: server.Lasso = { how: how === "replace" ? "union" : (how as server.Lasso["how"]), axes: this.axes, polygon: line };
    this.particles.lassos = how === "replace" ? [lasso] : [...this.particles.lassos, lasso];
    void this.chooseAnew();
  }

  /** The first click of two marks a particle, the second joins them. */
  private pickEnd(at: Point): void {
    const particle = this.findNearest(at, Infinity)!;
    this.ends = this.ends.length === 1 ? [...this.ends, particle] : [particle];
    const points = this.ends.map((end): Point => [this.values[0][end], this.values[1][end]]);
    this.overlay.picked = points;
    this.overlay.path = [];
    this.volume.forgetPath();
    this.overlay.draw();
    if (points.length === 2) this.followPath(points);
  }

  /** The particle nearest to a place, among those that gates let through, if one is as near as that. */
  private findNearest([x, y]: Point, pixels: number): number | null {
    const [across, up] = [this.scatter.x, this.scatter.y].map((scale) => scale.toPixel(1) - scale.toPixel(0));
    const [xs, ys] = this.values;
    let [nearest, least]: [number | null, number] = [null, pixels ** 2];
    for (let i = 0; i < xs.length; i++) {
      const distance = ((xs[i] - x) * across) ** 2 + ((ys[i] - y) * up) ** 2;
      if (distance < least && this.visible[i]) [nearest, least] = [i, distance];
    }
    return nearest;
  }

  private followPath(line: Point[]): void {
    const ends = this.ends.length === 2 ? this.ends : [];
    if (!ends.length) this.overlay.picked = [];
    this.volume.forgetPath();
    const following = this.volume.follow(this.axes, ends.length ? [] : line, ends);
    // The line as its stops lie on it, once these are known.
    const look = window.setInterval(() => {
      if (!this.volume.path) return;
      clearInterval(look);
      this.overlay.path = this.volume.path.points;
      this.overlay.draw();
    }, 30);
    void following.finally(() => clearInterval(look));
  }

  private async showParticle(particle: number): Promise<void> {
    await this.volume.ask({ kind: "particle", particle }, await this.particles.name(particle));
  }

  private async showHover(particle: number | null): Promise<void> {
    const name = find<HTMLSelectElement>("colour").value;
    find("hover").hidden = particle === null;
    if (particle === null) return;
    const value = name ? ` · ${name} ${format((await this.particles.read(name))[particle])}` : "";
    find("hover").textContent = `${await this.particles.name(particle)}${value}`;
  }

  private showMean(): void {
    const title = this.particles.chosen ? `${this.particles.count} selected` : "all particles";
    void this.volume.ask({ kind: "selection", chosen: this.particles.describe() }, title);
  }

  /** Show the latents unrolled by UMAP, made first where they are not there yet. */
  private async unroll(): Promise<void> {
    const button = find<HTMLButtonElement>("umap");
    button.disabled = true;
    await busily(async () => {
      if (!this.particles.has("umap1")) {
        tell("the latents are being unrolled: up to a minute or two", true);
        this.particles.renew(await server.embed());
      }
      this.axes = ["umap1", "umap2"];
      this.overlay.path = this.overlay.picked = [];
      this.fillSelects();
      await this.placePoints();
    });
    button.disabled = false;
  }

  private clear(): void {
    this.particles.lassos = [];
    this.gates.clear();
    this.overlay.path = this.overlay.picked = [];
    this.ends = [];
    this.volume.forgetPath();
    void this.chooseAnew();
  }

  private async save(): Promise<void> {
    await busily(async () => {
      const name = find<HTMLInputElement>("file").value.trim();
      const files = [".star", ".cs", ".pkl"].filter((kind) => isChecked(`kind${kind}`));
      const { written, particles } = await server.save(name, this.particles.describe(), files, isChecked("refined"));
      tell(`${particles.toLocaleString("en")} particles written`, true);
      const items = written.map((path) => {
        const file = path.split("/").pop()!;
        return make("li", {}, make("a", { href: `api/written/${encodeURIComponent(file)}`, download: file, textContent: path }));
      });
      find("written").replaceChildren(...items);
    });
  }

  private setMode(mode: Mode): void {
    this.mode = mode;
    this.overlay.setMode(mode);
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-mode]")) {
      button.ariaPressed = String(button.dataset.mode === mode);
    }
  }

  private async followTraining(): Promise<void> {
    if (document.hidden) return;
    // The server may be gone for a moment, as a tunnel may.
    const progress = await server.fetchProgress().catch(() => null);
    if (!progress) return;
    find("live").hidden = progress.finished && progress.newestStep === progress.shownStep;
    if (!progress.finished) this.panels.renew("progress");
    const isNewer = progress.newestStep !== null && progress.newestStep !== progress.shownStep;
    if (isNewer && find<HTMLInputElement>("follow").checked) await busily(() => this.showNewest());
  }

  private async showNewest(): Promise<void> {
    this.particles.renew(await server.showNewest());
    this.fillSelects();
    this.gates.clear();
    this.volume.forgetPath();
    this.volume.listFiles();
    this.overlay.path = this.overlay.picked = [];
    // A lasso goes round other particles now.
    this.particles.lassos = [];
    await this.particles.choose();
    this.tellCount();
    await this.placePoints();
    this.panels.renew("run");
  }

  private listen(): void {
    for (const [i, id] of ["x", "y"].entries()) {
      find<HTMLSelectElement>(id).onchange = (event) => {
        this.axes = this.axes.map((name, k) => (k === i ? (event.target as HTMLSelectElement).value : name)) as [string, string];
        this.overlay.path = this.overlay.picked = [];
        void busily(() => this.placePoints());
      };
    }
    find("colour").onchange = () => void busily(() => this.colour());
    find("clear").onclick = () => this.clear();
    find("mean").onclick = () => this.showMean();
    find("umap").onclick = () => void this.unroll();
    find("save").onclick = () => void this.save();
    find("home").onclick = () => this.scatter.reset();
    find("help").onclick = () => find<HTMLDialogElement>("keys").showModal();
    find("message").onclick = () => (find("message").hidden = true);
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-mode]")) {
      button.onclick = () => this.setMode(button.dataset.mode as Mode);
    }
    this.setMode("pan");
    document.addEventListener("keydown", (event) => this.press(event));
    document.addEventListener("keyup", (event) => event.key === "Shift" && this.overlay.setMode(this.mode));
  }

  private press(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches("select, input:not([type=checkbox], [type=range])")) return;
    if (event.key === "Shift" && this.mode === "pan") return this.overlay.setMode("lasso");
    const tabs: Tab[] = ["images", "views", "training", "fsc"];
    const actions: Record<string, () => void> = {
      v: () => this.setMode("pan"), Escape: () => this.setMode("pan"), l: () => this.setMode("lasso"), p: () => this.setMode("path"),
      a: () => this.clear(), m: () => this.showMean(), r: () => this.scatter.reset(), f: () => this.volume.resetView(),
      " ": () => this.volume.play(), "+": () => this.volume.nudgeLevel(1), "-": () => this.volume.nudgeLevel(-1),
      "?": () => find<HTMLDialogElement>("keys").showModal(),
    };
    if (!target.matches("input[type=range]")) {
      actions.ArrowRight = () => this.volume.step(1);
      actions.ArrowLeft = () => this.volume.step(-1);
    }
    tabs.forEach((tab, i) => (actions[String(i + 1)] = () => this.panels.open(tab)));
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || (event.key === " " && target.matches("button"))) return;
    event.preventDefault();
    action();
  }
}

function chooseColour(particles: Particles): string {
  return FIRST_COLOURS.find((name) => particles.has(name)) ?? "";
}

function makeCheck(label: string, id: string, checked: boolean): HTMLElement {
  return make("label", {}, make("input", { type: "checkbox", id, checked }), ` ${label}`);
}

function isChecked(id: string): boolean {
  return (document.getElementById(id) as HTMLInputElement | null)?.checked ?? false;
}

function showLegend(colouring: Colouring, column: server.Column): void {
  const words = make("div", { textContent: `${column.meaning}${column.unit ? ` (${column.unit})` : ""}` });
  if (!colouring.continuous) {
    const swatches = colouring.legend.slice(0, 24).map(({ label, colour }) => {
      const dot = make("i");
      dot.style.background = colour;
      return make("span", {}, dot, label);
    });
    find("legend").replaceChildren(make("div", { className: "swatches" }, ...swatches), words);
    return;
  }
  const strip = make("div", { className: "strip" });
  strip.style.background = gradient(colouring.colours);
  const ends = make("div", { className: "ends" }, make("span", { textContent: format(colouring.low) }), make("span", { textContent: format(colouring.high) }));
  find("legend").replaceChildren(strip, ends, words);
}

void busily(async () => {
  const particles = new Particles(await server.fetchRun());
  // On their way while the page is made.
  for (const name of ["pc1", "pc2", chooseColour(particles)]) if (particles.has(name)) void particles.read(name);
  await new Viewer(particles).start();
});
