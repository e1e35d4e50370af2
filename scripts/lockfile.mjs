// SPDX-License-Identifier: Apache-2.0
// node scripts/lockfile.mjs installed  - exit 0 if node_modules holds what package-lock.json pins
// node scripts/lockfile.mjs check      - exit 0 if package-lock.json fits package.json, else says what does not
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);
const read = (path) => JSON.parse(readFileSync(fileURLToPath(new URL(path, root)), "utf8"));

function installed() {
  if (!existsSync(fileURLToPath(new URL("node_modules/.package-lock.json", root)))) return false;
  const wanted = read("package-lock.json").packages;
  const present = read("node_modules/.package-lock.json").packages;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === "") return true;
    if (present[path] === undefined) return entry.optional === true; // other platforms' binaries
    return present[path].version === entry.version && present[path].integrity === entry.integrity;
  });
}

function check() {
  const manifest = read("package.json");
  const { packages } = read("package-lock.json");
  const wrong = [];
  const kinds = ["dependencies", "devDependencies", "optionalDependencies", "peerDependencies"];
  for (const kind of kinds) {
    const wanted = manifest[kind] ?? {};
    const locked = packages[""]?.[kind] ?? {};
    for (const name of new Set([...Object.keys(wanted), ...Object.keys(locked)])) {
      if (wanted[name] !== locked[name]) {
        wrong.push(
          `${kind}: ${name} is ${wanted[name]} in package.json, ${locked[name]} in package-lock.json`,
        );
      }
      if (!/^\d+\.\d+\.\d+$/.test(wanted[name] ?? "")) wrong.push(`${kind}: ${name} is not an exact version`);
    }
  }
  for (const [path, entry] of Object.entries(packages)) {
    // Other platforms' binaries are never installed, and may not have been there to be hashed.
    if (path !== "" && entry.integrity === undefined && !entry.optional)
      wrong.push(`${path} has no integrity hash`);
    // npm ci wants an entry for each of them all the same, and refuses a lock file without.
    for (const name of Object.keys(entry.optionalDependencies ?? {})) {
      if (
        packages[`node_modules/${name}`] === undefined &&
        packages[`${path}/node_modules/${name}`] === undefined
      ) {
        wrong.push(`${path} wants ${name}, which has no entry`);
      }
    }
  }
  for (const line of wrong) process.stderr.write(`lasthop: lock file: ${line}\n`);
  return wrong.length === 0;
}

const command = { installed, check }[process.argv[2]];
if (command === undefined) {
  process.stderr.write("usage: lockfile.mjs installed|check\n");
  process.exit(2);
}
process.exit(command() ? 0 : 1);
