// The map that is shown, its contour level, and the path that it may be a stop of.
import { busily, debounced, download, fillSelect, find, tell } from "./page";
import type { Particles } from "./particles";
import { extent, format } from "./scale";
import * as server from "./server";
import type { AskedMap, DensityMap } from "./server";
import { makeSurface, type Surface } from "./surface";

const STOPS = 15;
const PLAY_MILLISECONDS = 220;

export class Volume {
  path: server.Path | null = null;
  stop = 0;
  private made: Surface | null = null;
  private maps: (DensityMap | null)[] = [];
  private turn = 0;
  private levelChosen = false;
  private player = 0;
  private shown: AskedMap | null = null;

  constructor(
    private particles: Particles,
    /** Another map is asked for: of this particle, or of none. */
    private asked: (particle: number | null) => void,
    private moved: () => void,
  ) {
    const level = find<HTMLInputElement>("level");
    const draw = debounced(() => this.surface.setLevel(Number(level.value)), 30);
    level.oninput = () => {
      this.levelChosen = true;
      find("levelValue").textContent = format(Number(level.value));
      draw();
    };
    find<HTMLInputElement>("coloured").onchange = (event) =>
      this.surface.setColoured((event.target as HTMLInputElement).checked);
    find("turn").onclick = () => this.surface.reset();
    find<HTMLInputElement>("stop").oninput = (event) => this.goTo(Number((event.target as HTMLInputElement).value));
    find("play").onclick = () => this.play();
    find("film").onclick = () => this.shown && void this.film(find("shown").textContent!, [this.shown]);
    find("filmPath").onclick = () => this.path && void this.film("path", this.path.stops.map(atLatent));
    find<HTMLSelectElement>("files").onchange = (event) => {
      const name = (event.target as HTMLSelectElement).value;
      if (name) void this.ask({ kind: "file", name }, name);
    };
    this.listFiles();
  }

  /** Made when it is first needed: points come first. */
  private get surface(): Surface {
    return (this.made ??= makeSurface(find("surface")));
  }

  listFiles(): void {
    fillSelect(find<HTMLSelectElement>("files"), ["", ...this.particles.run.maps], "");
    find<HTMLSelectElement>("files").options[0].textContent = "map of the run …";
  }

  /** Ask for a map and show it, unless another was asked for meanwhile. */
  async ask(asked: AskedMap, title: string): Promise<void> {
    this.stopPlaying();
    this.asked(asked.kind === "particle" ? asked.particle : null);
    const turn = ++this.turn;
    await busily(async () => {
      const map = await server.fetchMap(asked);
      if (turn !== this.turn) return;
      this.levelChosen = this.levelChosen && asked.kind !== "file";
      this.shown = asked;
      this.show(map, map.averaged > 1 ? `${title}: mean of ${map.averaged} maps` : title);
    });
    if (asked.kind !== "file") find<HTMLSelectElement>("files").value = "";
  }

  private show(map: DensityMap, title: string): void {
    find("shown").textContent = title;
    find("flexible").hidden = map.flexibility === null;
    const slider = find<HTMLInputElement>("level");
    const top = extent(map.voxels)[1];
    slider.disabled = false;
    if (!this.levelChosen) {
      Object.assign(slider, { min: "0", max: String(top), step: String(top / 500) });
      slider.value = String(map.level);
      find("levelValue").textContent = format(map.level);
    }
    this.surface.setLevel(Number(slider.value));
    this.surface.show(map);
    find("surface").dataset.triangles = String(this.surface.triangles());
  }

  nudgeLevel(steps: number): void {
    const slider = find<HTMLInputElement>("level");
    slider.value = String(Number(slider.value) + steps * 10 * Number(slider.step));
    slider.dispatchEvent(new Event("input"));
  }

  resetView(): void {
    this.surface.reset();
  }

  /** Find the path along a line, and decode its stops one after the other; the slider moves at once. */
  async follow(axes: [string, string], corners: [number, number][], ends: number[]): Promise<void> {
    this.stopPlaying();
    await busily(async () => {
      const path = await server.fetchPath(axes, corners, ends, STOPS);
      [this.path, this.maps] = [path, path.stops.map(() => null)];
      const slider = find<HTMLInputElement>("stop");
      slider.max = String(STOPS - 1);
      find("pathBar").hidden = false;
      this.goTo(0);
      for (let i = 0; i < STOPS && this.path === path; i++) await this.load(path, i);
    });
  }

  private async load(path: server.Path, stop: number): Promise<DensityMap | null> {
    const map = this.maps[stop] ?? (await server.fetchMap(atLatent(path.stops[stop])));
    if (path !== this.path) return null;
    this.maps[stop] = map;
    find("stop").dataset.loaded = String(this.maps.filter(Boolean).length);
    return map;
  }

  goTo(stop: number): void {
    const path = this.path;
    if (!path) return;
    this.stop = Math.min(STOPS - 1, Math.max(0, stop));
    this.asked(null);
    find<HTMLInputElement>("stop").value = String(this.stop);
    find("stopText").textContent = `${this.stop + 1} of ${STOPS} · ${path.particles[this.stop]} particles nearest`;
    this.moved();
    const turn = ++this.turn;
    void this.load(path, this.stop).then(
      (map) => {
        if (!map || turn !== this.turn) return;
        this.shown = atLatent(path.stops[this.stop]);
        this.show(map, `path, stop ${this.stop + 1} of ${STOPS}`);
      },
      (error) => void busily(() => Promise.reject(error)),
    );
  }

  step(by: number): void {
    this.stopPlaying();
    this.goTo(this.stop + by);
  }

  /** There and back until stopped. */
  play(): void {
    if (!this.path || this.player) return this.stopPlaying();
    find("play").textContent = "pause";
    let [direction, at] = [1, this.stop];
    this.player = window.setInterval(() => {
      if (at + direction < 0 || at + direction >= STOPS) direction = -direction;
      at += direction;
      this.goTo(at);
    }, PLAY_MILLISECONDS);
  }

  private stopPlaying(): void {
    clearInterval(this.player);
    this.player = 0;
    find("play").textContent = "play";
  }

  /** Maps at the contour that is shown, drawn by the server: those of a path morph, a single one turns. */
  private async film(name: string, maps: AskedMap[]): Promise<void> {
    const buttons = ["film", "filmPath"].map((id) => find<HTMLButtonElement>(id));
    buttons.forEach((button) => (button.disabled = true));
    tell("the film is being drawn …", true);
    await busily(async () => {
      const { film, suffix, told } = await server.makeFilm(name, maps, Number(find<HTMLInputElement>("level").value));
      const file = `${name.replace(/[^A-Za-z0-9]+/g, "_")}${suffix}`;
      download(film, file);
      tell([file, told].filter(Boolean).join(", "), true);
    });
    buttons.forEach((button) => (button.disabled = false));
  }

  forgetPath(): void {
    this.stopPlaying();
    [this.path, this.maps] = [null, []];
    find("pathBar").hidden = true;
  }
}

function atLatent(latent: Float32Array): AskedMap {
  return { kind: "latent", latent: [...latent] };
}
