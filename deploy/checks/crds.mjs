// Check PodMonitors and PrometheusRules against the operator's schemas: `node crds.mjs WORK_FOLDER FILE.json…`.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, ...files] = process.argv.slice(2);
const schemas = "node_modules/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index.js";
const models = await import(pathToFileURL(resolve(folder, schemas)));

const objects = files.flatMap((file) => JSON.parse(readFileSync(file, "utf8")));
for (const object of objects) {
  if (!(object.kind in models)) throw new Error(`the operator knows no ${object.kind}`);
  new models[object.kind](object).validate(); // throws with the path of what is wrong
}
console.log(`${objects.length} objects of the Prometheus operator are valid`);
