// Check dashboards against the types that Grafana publishes: `node dashboards.mjs WORK_FOLDER FILE.json…`.
// Each file becomes a TypeScript program whose literals must have the types of dashboard, panel options and field
// configuration; tsc then finds a field that is unknown, of the wrong type or missing.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const schema = "./node_modules/@grafana/schema/dist/esm/raw";
const plugins = { stat: "Stat", bargauge: "BarGauge", timeseries: "TimeSeries" };

const head = [
  `import type { Dashboard } from "${schema}/dashboard/x/dashboard_types.gen";`,
  ...Object.entries(plugins).map(
    ([type, name]) =>
      `import type * as ${type} from "${schema}/composable/${type}/panelcfg/x/${name}PanelCfg_types.gen";`,
  ),
  // JSON holds the values of enums, not their names.
  "type Json<T> = T extends string ? `${T}` : T extends number ? (`${T}` extends `${infer N extends number}` ? N : never)",
  "  : T extends boolean | null | undefined ? T : T extends (infer U)[] ? Json<U>[]",
  "  : unknown extends T ? T : { [K in keyof T]: Json<T[K]> };",
];

const programs = files.map((file) => {
  const board = JSON.parse(readFileSync(file, "utf8"));
  const body = [`export const board: Json<Dashboard> = ${JSON.stringify(board, null, 1)};`];
  for (const panel of board.panels.filter(({ type }) => type !== "row")) {
    if (!(panel.type in plugins)) throw new Error(`${file}: no published type known here for a panel of ${panel.type}`);
    body.push(`export const options${panel.id}: Partial<Json<${panel.type}.Options>> = ${JSON.stringify(panel.options)};`);
    if (panel.type === "timeseries") {
      const custom = JSON.stringify(panel.fieldConfig.defaults.custom);
      body.push(`export const custom${panel.id}: Json<timeseries.FieldConfig> = ${custom};`);
    }
  }
  const program = join(folder, `${basename(file, ".json")}.ts`);
  writeFileSync(program, [...head, ...body].join("\n"));
  return program;
});

const flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"];
execFileSync("node", [join(folder, "node_modules", "typescript", "bin", "tsc"), ...flags, ...programs], { stdio: "inherit" });
console.log(`${files.length} dashboards have the types of @grafana/schema`);
