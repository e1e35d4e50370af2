// SPDX-License-Identifier: Apache-2.0
// The main job, shown: a host, two strictly stateful firewalls, a client and two VMs in network
// namespaces. Every step has an expectation; the exit status is 1 if any of them was not met.

import { existsSync } from "node:fs";
import { styleText } from "node:util";
import type { FlowEntry } from "../src/ops/types.ts";
import { FAMILIES, type Family } from "../test/support/addresses.ts";
import type { Counts } from "../test/support/firewall.ts";
import { Lab } from "../test/support/lab.ts";
import { Lasthop } from "../test/support/lasthop.ts";
import { repositoryPath } from "../test/support/paths.ts";
import { type Output, run } from "../test/support/run.ts";
import type { Site, Vm } from "../test/support/site.ts";
import { buildSite } from "../test/support/topology.ts";

type Style = Parameters<typeof styleText>[0];

const terminal = process.stdout.isTTY === true && process.env.TERM !== "dumb";
const colours = terminal && !process.env.NO_COLOR;
const paint = (style: Style, text: string) => (colours ? styleText(style, text) : text);
const say = (text = "") => process.stdout.write(`${text}\n`);

/** Seconds after which a client gives up; a working one needs milliseconds. */
const PATIENCE_SECONDS = 1;

const PICTURE = `
                        ┌────────────┐              ┌──────┐
                ┌──────▶│ firewall a │────────▶up-a─┤      │        ┌─────┐
                │       └────────────┘              │      ├─tap1───┤ vm1 │
 ┌────────┐ request                                 │      │        └─────┘
 │ client ├─────┤                                   │ host │
 └────────┘ reply                                   │      │        ┌─────┐
                │       ┌────────────┐              │      ├─tap2───┤ vm2 │
                └──✗────│ firewall b │◀────────up-b─┤      │        └─────┘
                        └────────────┘              └──────┘
`;
const ASCII: Record<string, string> = { "─": "-", "│": "|", "▶": ">", "◀": "<", "✗": "X" };
const COLOUR_OF: [RegExp, Style][] = [
  [/firewall a|request/g, "green"],
  [/firewall b|reply|✗/g, "red"],
  [/client|vm\d/g, "cyan"],
  [/host/g, "bold"],
  [/up-[ab]|tap\d/g, "yellow"],
];

function picture(): string {
  if (!terminal) return PICTURE.replace(/[─│▶◀✗]/g, (sign) => ASCII[sign]!).replace(/[┌┐└┘├┤]/g, "+");
  return COLOUR_OF.reduce(
    (text, [words, style]) => text.replace(words, (word) => paint(style, word)),
    PICTURE,
  );
}

const failures: string[] = [];

function expect(met: boolean, what: string): void {
  if (!met) failures.push(what);
  say(`  ${met ? paint("green", "ok    ") : paint("red", "FAILED")} ${what}`);
}

function step(title: string): void {
  say();
  say(paint("bold", `== ${title}`));
}

function indent(text: string): string {
  return text.trimEnd().replace(/^/gm, "    ");
}

interface Stage {
  lab: Lab;
  site: Site;
  lasthop: Lasthop;
}

/** Shows a command as a person would type it, and what it says. */
async function show({ lasthop }: Stage, ...args: string[]): Promise<Output> {
  say(paint("dim", `  $ lasthop ${args.map((word) => (/[\s[]/.test(word) ? `'${word}'` : word)).join(" ")}`));
  const output = await lasthop.run(...args);
  const text = output.stdout + output.stderr;
  if (text !== "") say(indent(text));
  if (output.status !== 0) expect(false, `lasthop ${args[0]} ends with status 0, not ${output.status}`);
  return output;
}

function curl({ site }: Stage, vm: Vm, family: Family): Promise<Output> {
  const address = family === 4 ? vm.address[4] : `[${vm.address[6]}]`;
  const timeout = ["--connect-timeout", String(PATIENCE_SECONDS), "--max-time", "5"];
  return site.client.namespace.run(["curl", "-sS", "--noproxy", "*", ...timeout, `http://${address}/`]);
}

function sayCurl(vm: Vm, family: Family, { status, stdout, stderr }: Output): void {
  say(paint("dim", `  client $ curl http://${family === 4 ? vm.address[4] : `[${vm.address[6]}]`}/`));
  say(indent(status === 0 ? stdout : stderr));
}

function counts(site: Site): Promise<[Counts, Counts]> {
  return Promise.all([site.a.counts(), site.b.counts()]);
}

function sayCarried(a: Counts, b: Counts): void {
  const row = (...cells: (string | number)[]) =>
    say(
      `    ${cells.map((cell, at) => (at === 0 ? String(cell).padEnd(12) : String(cell).padStart(12))).join("")}`,
    );
  row("", "requests", "replies", "dropped");
  for (const [name, of] of [
    ["firewall a", a],
    ["firewall b", b],
  ] as const) {
    const carried = (direction: "request" | "reply") => of.packets("carried", { direction });
    row(name, carried("request"), carried("reply"), of.packets("dropped"));
  }
}

async function without(stage: Stage): Promise<void> {
  const { site } = stage;
  step("Without lasthop the connection fails");
  await site.resetCounts();
  const outputs = await Promise.all(FAMILIES.map((family) => curl(stage, site.vm, family)));
  for (const [at, family] of FAMILIES.entries()) {
    sayCurl(site.vm, family, outputs[at]!);
    expect(outputs[at]!.status === 28, `IPv${family}: the client waits in vain`);
  }
  const [a, b] = await counts(site);
  sayCarried(a, b);
  for (const family of FAMILIES) {
    const requests = a.packets("carried", { family, direction: "request" });
    const dropped = b.packets("dropped", { family, direction: "reply" });
    expect(requests > 0, `IPv${family}: firewall a let the request in`);
    expect(dropped > 0, `IPv${family}: firewall b dropped the reply, whose request it has not seen`);
  }
}

async function attach(stage: Stage): Promise<void> {
  const { site } = stage;
  step("Attach: two uplinks towards the firewalls, one tap for each VM");
  for (const uplink of site.uplinks) await show(stage, "attach", uplink, "--role", "uplink");
  for (const tap of site.taps) await show(stage, "attach", tap, "--role", "tap");
  const { interfaces } = await stage.lasthop.status();
  expect(interfaces.length === 4 && interfaces.every((one) => one.state === "ok"), "all four are attached");
}

async function udp({ site }: Stage, vm: Vm, family: Family): Promise<void> {
  const text = `hello ${vm.name}`;
  let answer: string;
  try {
    const timeoutMs = PATIENCE_SECONDS * 1000;
    answer = (await site.client.agent.call("udp", { host: vm.address[family], port: 7, text, timeoutMs }))
      .text;
  } catch (error) {
    answer = error instanceof Error ? error.message : String(error);
  }
  expect(
    answer === text,
    `IPv${family}: ${vm.name} echoes a UDP datagram${answer === text ? "" : ` (${answer})`}`,
  );
}

async function works(stage: Stage): Promise<void> {
  const { site } = stage;
  step("With lasthop it works: TCP, UDP and ping, over IPv4 and IPv6");
  await site.resetCounts();
  for (const vm of site.vms) {
    for (const family of FAMILIES) {
      const output = await curl(stage, vm, family);
      sayCurl(vm, family, output);
      const answered = output.status === 0 && output.stdout.includes(`hello from ${vm.name}`);
      expect(answered, `IPv${family}: ${vm.name} answers over TCP`);
      await udp(stage, vm, family);
    }
  }
  for (const family of FAMILIES) {
    const ping = ["ping", "-n", "-q", "-c", "3", "-i", "0.05", "-W", "1", site.vm.address[family]];
    expect((await site.client.namespace.run(ping)).status === 0, `IPv${family}: ping comes back`);
  }
  say();
  say("  Which firewall carried what, in packets:");
  const [a, b] = await counts(site);
  sayCarried(a, b);
  for (const family of FAMILIES) {
    const both = (["request", "reply"] as const).every(
      (direction) => a.packets("carried", { family, direction }) > 0,
    );
    expect(both, `IPv${family}: firewall a carried both directions`);
  }
  expect(a.packets("dropped") === 0, "firewall a dropped nothing");
  expect(b.packets("carried") + b.packets("dropped") === 0, "firewall b saw nothing");
}

async function tables(stage: Stage): Promise<void> {
  const { site, lasthop } = stage;
  step("What lasthop has learned");
  const key = "kept";
  const { local_port } = await site.client.agent.call("open", { key, host: site.vm.address[4], port: 7 });
  await site.client.agent.call("echo", { key });
  await show(stage, "flows", "list");
  const flows = await lasthop.flows("--address", site.client.address[4]);
  const live = flows.find((flow: FlowEntry) => flow.remote_port === local_port);
  expect(live?.tier === "established", "the open connection is in the table of established flows");
  expect(
    flows.every((flow) => flow.last_hop?.mac === site.a.mac),
    `every flow goes back to ${site.a.mac}, which is firewall a`,
  );
  await show(stage, "last-hops", "list");
  const { stdout } = await show(
    stage,
    ...["explain", "tcp", `${site.client.address[4]}:${local_port}`, `${site.vm.address[4]}:7`],
  );
  expect(stdout.includes(site.a.mac), "explain names firewall a's MAC");
  await site.client.agent.call("close", { key });
}

async function detach(stage: Stage): Promise<void> {
  const { site, lab } = stage;
  step("Detach: nothing of lasthop stays");
  await show(stage, "detach", "--all", "--purge");
  expect(!existsSync(lab.pinRoot), "no table and no link is pinned any longer");
  const output = await curl(stage, site.vm, 4);
  sayCurl(site.vm, 4, output);
  expect(output.status === 28, "and the connection fails as before");
}

async function main(): Promise<number> {
  const preflight = await run([repositoryPath("scripts/preflight.sh")]);
  process.stderr.write(preflight.stderr);
  if (preflight.status !== 0) return 1;
  const began = performance.now();
  const lab = new Lab();
  lab.onInterrupt(() => say(`\n${paint("yellow", "interrupted; taking everything down")}`));
  try {
    say(paint("bold", "lasthop: a connection goes back through the firewall it came from"));
    say(picture());
    say("Requests come in through firewall a. The default gateway of the VMs is firewall b, which lets in");
    say("only connections that it has seen begin. Both are real: nftables with connection tracking.");
    const site = await buildSite(lab);
    const stage: Stage = { lab, site, lasthop: await Lasthop.on(lab, site.host) };
    await without(stage);
    await attach(stage);
    await works(stage);
    await tables(stage);
    await detach(stage);
  } finally {
    await lab.close();
  }
  say();
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  if (failures.length === 0) {
    say(paint("green", `Everything behaved as it should, in ${seconds} s. Namespaces are gone again.`));
    return 0;
  }
  say(paint("red", `${failures.length} expectations were not met, in ${seconds} s:`));
  for (const failure of failures) say(`  ${failure}`);
  return 1;
}

// Whoever reads may stop, as `head` does; what was built is taken down on the way out.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(1);
});

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
