// The rows of runtimes.py for onnxruntime-node and onnxruntime-web.
//
//     node runtimes.mjs EXPORT DIR NODE_MODULES

function unpacked({ type, dims, data }) {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  return { type, dims, data: type === "uint8" ? bytes : new Float32Array(bytes.buffer) };
}

const largest = (values) => values.indexOf(Math.max(...values));

// A table row: runtime, file, largest logit difference, changed predictions, differently resized pictures.
async function row(title, name, ort, create, cases) {
  let [worst, changed, resized, shown] = [0, 0, 0, 0];
  try {
    const session = await create();
    for (const { given, outputs } of cases) {
      const { type, dims, data } = unpacked(given);
      const input = new ort.Tensor(type, data, dims);
      const found = await session.run({ [session.inputNames[0]]: input });
      const [logits, known] = [[...found.logits.data], [...unpacked(outputs.logits).data]];
      worst = Math.max(worst, ...logits.map((value, k) => Math.abs(value - known[k])));
      if (logits.some(Number.isNaN)) worst = NaN;
      changed += largest(logits) !== largest(known);
      if (outputs.pixels) {
        const pixels = unpacked(outputs.pixels).data;
        resized += found.pixels.data.some((value, k) => value !== pixels[k]);
        shown += 1;
      }
    }
  } catch (error) {
    const reason = `${error.message ?? error}`.split(/\s+/).join(" ").slice(-110).replaceAll("|", "/");
    return `| ${title} | ${name} | no: ${reason} | | |`;
  }
  const pixels = shown ? `${resized} of ${shown}` : "";
  return `| ${title} | ${name} | ${worst.toExponential(1)} | ${changed} of ${cases.length} | ${pixels} |`;
}

export async function browserRows(provider, names, most) {
  const bundle = provider === "webgpu" ? "ort.webgpu.bundle.min.mjs" : "ort.wasm.bundle.min.mjs";
  const ort = await import(`/node_modules/onnxruntime-web/dist/${bundle}`);
  const title = `onnxruntime-web ${ort.env.versions.web}, ${provider}`;
  const rows = [];
  for (const name of names) {
    const cases = (await (await fetch(`/cases/${name}.json`)).json()).slice(0, most);
    const create = () => ort.InferenceSession.create(`/export/${name}`, { executionProviders: [provider] });
    rows.push(await row(title, name, ort, create, cases));
  }
  return rows;
}

if (globalThis.process?.argv[1]?.endsWith("runtimes.mjs")) {
  const { readdir, readFile } = await import("node:fs/promises");
  const { createRequire } = await import("node:module");
  const [folder, place, modules] = process.argv.slice(2);
  Object.assign(process.env, { ORT_DISABLE_TELEMETRY: "1", ORT_TELEMETRY_DISABLED: "1" });
  const require = createRequire(`${await import("node:path").then((path) => path.resolve(modules))}/`);
  const ort = require("onnxruntime-node");
  const { version } = require("onnxruntime-node/package.json");
  for (const name of (await readdir(folder)).filter((each) => each.endsWith(".onnx")).sort()) {
    const cases = JSON.parse(await readFile(`${place}/${name}.json`, "utf8"));
    const create = () => ort.InferenceSession.create(`${folder}/${name}`);
    console.log(await row(`onnxruntime-node ${version}`, name, ort, create, cases));
  }
}
