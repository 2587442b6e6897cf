// Bundles the page into ../static: one script, one style sheet, one document, and the licences of what it holds.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "static");
mkdirSync(out, { recursive: true });

const result = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.ts"],
  outfile: join(out, "viewer.js"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  // vtk.js times itself aloud.
  drop: ["console"],
  metafile: true,
  write: true,
});
for (const file of ["index.html", "viewer.css"]) copyFileSync(join(here, "src", file), join(out, file));

// regl-scatterplot's file holds these already.
const packages = new Set(["@flekschas/utils", "camera-2d-simple", "dom-2d-camera", "earcut", "kdbush", "regl-line"].map((name) => `node_modules/${name}`));
for (const input of Object.keys(result.metafile.inputs)) {
  const found = [...input.matchAll(/node_modules\/((?:@[^/]+\/)?[^/]+)/g)].pop();
  if (found) packages.add(found[0].startsWith("node_modules") ? input.slice(0, found.index + found[0].length) : found[1]);
}
const described = [...packages].map((folder) => [folder, JSON.parse(readFileSync(join(here, folder, "package.json"), "utf8"))]);
described.sort(([, one], [, other]) => (one.name < other.name ? -1 : 1));
const licences = described.map(([folder, about]) => {
  return `${about.name} ${about.version} (${about.license})\n\n${readLicence(join(here, folder))}\n`;
});
writeFileSync(join(out, "LICENSES.txt"), `viewer.js holds the following packages.\n\n${licences.join(`\n${"-".repeat(78)}\n\n`)}`);

function readLicence(folder) {
  const file = readdirSync(folder).find((name) => /^(licen[cs]e|copying)/i.test(name));
  if (file) return readFileSync(join(folder, file), "utf8").trim();
  // Some have it at the end of what they say of themselves.
  const [, text] = readFileSync(join(folder, "README.md"), "utf8").split(/^LICENSE.*\n-+\n/m);
  if (!text) throw new Error(`${folder}: no licence to be found`);
  return text.trim();
}
