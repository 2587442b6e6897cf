// The particles: their columns, how they are coloured, and which of them are chosen.
import * as server from "./server";
import type { Chosen, Column, Lasso, Run } from "./server";

export class Particles {
  lassos: Lasso[] = [];
  readonly gates = new Map<string, { low: number | null; high: number | null }>();
  /** Places of the chosen ones; null while that is all of them. */
  chosen: Uint32Array | null = null;
  told = "";
  private values = new Map<string, Promise<Float32Array>>();
  private asked = 0;

  constructor(public run: Run) {}

  /** Columns of another checkpoint take the place of those that are here. */
  renew(run: Run): void {
    this.run = run;
    this.values.clear();
  }

  column(name: string): Column {
    return this.run.columns.find((column) => column.name === name)!;
  }

  has(name: string): boolean {
    return this.run.columns.some((column) => column.name === name);
  }

  read(name: string): Promise<Float32Array> {
    if (!this.values.has(name)) {
      const reading = server.fetchColumn(name);
      // What failed is asked for again.
      reading.catch(() => this.values.delete(name));
      this.values.set(name, reading);
    }
    return this.values.get(name)!;
  }

  /** By its row in the file that the particles came from. */
  async name(particle: number): Promise<string> {
    return `particle of row ${(await this.read("source_row"))[particle]}`;
  }

  describe(): Chosen {
    return { lassos: this.lassos, gates: [...this.gates].map(([column, range]) => ({ column, ...range })) };
  }

  /** Ask which are chosen; false if something else was asked for meanwhile. */
  async choose(): Promise<boolean> {
    const turn = ++this.asked;
    if (!this.lassos.length && !this.gates.size) {
      [this.chosen, this.told] = [null, ""];
      return true;
    }
    const { particles, told } = await server.choose(this.describe());
    if (turn !== this.asked) return false;
    [this.chosen, this.told] = [particles, told];
    return true;
  }

  /** Of each 0 where a gate is shut, 1 where it is not chosen, else 2. */
  async visible(): Promise<Uint8Array> {
    const shown = new Uint8Array(this.run.particles).fill(this.chosen && this.lassos.length ? 1 : 2);
    for (const [name, { low, high }] of this.gates) {
      const values = await this.read(name);
      const [least, most] = [low ?? -Infinity, high ?? Infinity];
      for (let i = 0; i < shown.length; i++) if (values[i] < least || values[i] > most) shown[i] = 0;
    }
    if (this.lassos.length) this.chosen?.forEach((place) => (shown[place] = 2));
    return shown;
  }

  get count(): number {
    return this.chosen ? this.chosen.length : this.run.particles;
  }
}
