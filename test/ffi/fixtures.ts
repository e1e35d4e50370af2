// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const BUILD = fileURLToPath(new URL("../../build/test/", import.meta.url));

export interface Fixtures {
  /** The compiled fixture.bpf.c and refused.bpf.c. */
  fixture: string;
  refused: string;
  /** A directory on the bpf file system. */
  pins: string;
  /** The ends of a veth pair. */
  veth: readonly [string, string];
  remove(): void;
}

/** Compiles the BPF sources and makes what the tests attach to; everything carries the process id. */
export function makeFixtures(): Fixtures {
  mkdirSync(BUILD, { recursive: true });
  const directory = mkdtempSync(`${BUILD}ffi-${process.pid}-`);
  const pins = `/sys/fs/bpf/lasthop-ffi-${process.pid}`;
  const veth = [`lhf${process.pid}a`, `lhf${process.pid}b`] as const;
  const undo = [() => rmSync(directory, { recursive: true })];
  const remove = () => {
    for (const step of undo.splice(0).reverse()) step();
  };
  try {
    mkdirSync(pins);
    undo.push(() => removePins(pins));
    run("ip", "link", "add", veth[0], "type", "veth", "peer", "name", veth[1]);
    // A test removes the pair to see what becomes of its links.
    undo.push(() => interfaceExists(veth[0]) && run("ip", "link", "del", veth[0]));
    const [fixture, refused] = ["fixture", "refused"].map((name) => compile(name, directory)) as [
      string,
      string,
    ];
    return { fixture, refused, pins, veth, remove };
  } catch (error) {
    remove();
    throw error;
  }
}

export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

export function interfaceIndex(name: string): number {
  return (JSON.parse(run("ip", "-j", "link", "show", "dev", name)) as { ifindex: number }[])[0]!.ifindex;
}

function interfaceExists(name: string): boolean {
  return (JSON.parse(run("ip", "-j", "link", "show")) as { ifname: string }[]).some(
    (link) => link.ifname === name,
  );
}

function compile(name: string, directory: string): string {
  const object = `${directory}/${name}.bpf.o`;
  const machine = run("uname", "-m").trim();
  const flags = [
    "-target",
    "bpf",
    "-mcpu=v3",
    "-O2",
    "-g",
    "-Wall",
    "-Werror",
    `-I/usr/include/${machine}-linux-gnu`,
  ];
  run("clang", ...flags, "-c", `${HERE}${name}.bpf.c`, "-o", object);
  return object;
}

// A recursive rmSync would stat and list in ways that bpffs has not; pins are one level deep.
function removePins(directory: string): void {
  for (const name of readdirSync(directory)) rmSync(`${directory}/${name}`);
  rmdirSync(directory);
}
