// SPDX-License-Identifier: Apache-2.0
// Two firewalls and a host on one switch, with a VXLAN device between them, and a VM behind the host's bridge. Both
// firewalls have the client's address, so that one can ask and the other be answered.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Addresses, Family } from "./addresses.ts";
import type { Ground } from "./fixture.ts";
import { Lab, type Namespace } from "./lab.ts";
import { Lasthop } from "./lasthop.ts";
import { newIndex } from "./plan.ts";
import { type Background, must, sleep, until } from "./run.ts";

export const VTEP = {
  host: { 4: "192.0.2.1", 6: "2001:db8:2::1" },
  a: { 4: "192.0.2.2", 6: "2001:db8:2::2" },
  b: { 4: "192.0.2.3", 6: "2001:db8:2::3" },
  /** Where nobody is. */
  c: { 4: "192.0.2.4", 6: "2001:db8:2::4" },
} as const;
const CLIENT: Addresses = { 4: "198.51.100.7", 6: "2001:db8:c::7" };
const VM: Addresses = { 4: "10.0.0.10", 6: "2001:db8:10::10" };
const INSIDE = {
  a: { 4: "10.0.0.2", 6: "2001:db8:10::2" },
  b: { 4: "10.0.0.3", 6: "2001:db8:10::3" },
} as const;
const VM_MAC = "02:00:00:00:0d:10";
const GROUP = { 4: "239.1.1.1", 6: "ff05::100" } as const;
const VNI = 100;
const VXLAN_PORT = 4789;
const SPEAKER_PORT = 9;
const FAMILIES: readonly Family[] = [4, 6];
const QUIET_MS = 200;

export type FirewallName = "a" | "b";

export interface VtepOptions {
  learning: boolean;
  ageingSeconds?: number;
  /** Unknown MACs are asked for in a multicast group, not at each VTEP. */
  group?: boolean;
  /** The host's device is shared. */
  external?: boolean;
}

/** A frame as tshark finds it on the host's underlay. */
export interface Outer {
  destination: string;
  vni: number;
  inner_destination_mac: string;
}

/** Answers, and speaks again when told to. */
const SPEAKER = `
const { createSocket } = require("node:dgram");
const { createInterface } = require("node:readline");
const peers = new Map();
for (const type of ["udp4", "udp6"]) {
  const socket = createSocket({ type, ipv6Only: type === "udp6" });
  socket.on("message", (data, { address, port }) => {
    peers.set(port, { socket, address });
    socket.send(data, port, address, () => console.log("asked by " + port));
  });
  socket.bind(${SPEAKER_PORT}, type === "udp4" ? "0.0.0.0" : "::", () => console.log("listening " + type));
}
createInterface({ input: process.stdin }).on("line", (line) => {
  const { socket, address } = peers.get(Number(line));
  socket.send("unasked", Number(line), address, () => console.log("spoke " + line));
});
`;

const ASKER = `
const [type, from, port, to] = process.argv.slice(1);
const socket = require("node:dgram").createSocket(type);
socket.bind(Number(port), from, () => socket.send("asked", ${SPEAKER_PORT}, to, () => {
  console.log(socket.address().port);
  socket.close();
}));
`;

export class VtepGround {
  readonly lab: Lab;
  readonly host: Namespace;
  readonly lasthop: Lasthop;
  readonly #outer: Family;
  readonly #firewalls: Readonly<Record<FirewallName, Namespace>>;
  readonly #macs = { a: "02:00:00:00:0a:01", b: "02:00:00:00:0b:01" };
  readonly #directory = mkdtempSync(join(tmpdir(), `lasthop-vtep-${process.pid}-`));
  #speaker: Background | undefined;
  #captures = 0;
  #said = 0;

  private constructor(
    lab: Lab,
    host: Namespace,
    firewalls: Readonly<Record<FirewallName, Namespace>>,
    lasthop: Lasthop,
    outer: Family,
  ) {
    this.lab = lab;
    this.host = host;
    this.#firewalls = firewalls;
    this.lasthop = lasthop;
    this.#outer = outer;
  }

  static async build(outer: Family, options: VtepOptions): Promise<VtepGround> {
    const lab = new Lab();
    try {
      const [host, vm, fabric, a, b] = ["host", "vm", "switch", "a", "b"].map((name) => lab.namespace(name));
      const all = [host!, vm!, fabric!, a!, b!];
      await must(["ip", "-batch", "-"], { input: all.map(({ name }) => `netns add ${name}\n`).join("") });
      for (const namespace of all) {
        await namespace.must([
          "sysctl",
          "-qw",
          "net.ipv6.conf.all.accept_dad=0",
          "net.ipv6.conf.default.accept_dad=0",
          "net.ipv6.conf.default.router_solicitations=0",
        ]);
        await namespace.ip("link set dev lo up");
      }
      await fabric!.ip(
        "link add name sw type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set dev sw up",
      );
      const ground = new VtepGround(lab, host!, { a: a!, b: b! }, await Lasthop.on(lab, host!), outer);
      await plug(fabric!, host!, VTEP.host);
      await plug(fabric!, a!, VTEP.a);
      await plug(fabric!, b!, VTEP.b);
      await host!.ip(`neigh replace ${VTEP.c[outer]} lladdr 02:00:00:00:0c:01 dev u0 nud permanent`);
      await ground.#buildHost(vm!, options);
      for (const name of ["a", "b"] as const) await ground.#buildFirewall(name, options);
      await ground.#startSpeaker(vm!);
      return ground;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  /** What a daemon needs to be started on. */
  get asGround(): Ground {
    return { lab: this.lab, lasthop: this.lasthop, site: { host: this.host } } as unknown as Ground;
  }

  mac(firewall: FirewallName): string {
    return this.#macs[firewall];
  }

  async close(): Promise<void> {
    await this.lab.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** A static entry for a firewall's MAC. */
  async enter(firewall: FirewallName): Promise<void> {
    await this.host.must([
      "bridge",
      "fdb",
      "add",
      this.mac(firewall),
      "dev",
      "vxlan0",
      "dst",
      VTEP[firewall][this.#outer],
    ]);
  }

  async changeMac(firewall: FirewallName, mac: string): Promise<void> {
    this.#macs[firewall] = mac;
    await this.#firewalls[firewall].ip(`link set dev vxlan0 address ${mac}`);
    await this.#introduce(firewall);
  }

  /** The client asks the VM by a firewall; returns its port, which names the flow. */
  async ask(firewall: FirewallName, family: Family, port = 0): Promise<number> {
    const before = this.#askedBy(port);
    const argv = [process.execPath, "-e", ASKER, `udp${family}`, CLIENT[family], String(port), VM[family]];
    const own = Number(await this.#firewalls[firewall].must(argv));
    await until(() => this.#askedBy(own) > before, "the VM to be asked");
    return own;
  }

  /** The VM sends once more on that flow: what of it leaves the host. */
  async heard(port: number): Promise<Outer[]> {
    const file = join(this.#directory, `${this.#captures++}.pcap`);
    const tcpdump = this.host.start([
      ...["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-i", "u0", "-Q", "out", "-w", file],
      ...["udp", "port", String(VXLAN_PORT)],
    ]);
    await tcpdump.writes(/listening on/, "stderr");
    const speaker = this.#speaker!;
    const count = ++this.#said;
    speaker.child.stdin.write(`${port}\n`);
    await until(() => speaker.stdout.split("spoke ").length > count, "the VM to speak");
    await sleep(QUIET_MS);
    await tcpdump.stop("SIGINT");
    return await this.#decode(file, port);
  }

  #askedBy(port: number): number {
    return this.#speaker!.stdout.split(`asked by ${port}\n`).length - 1;
  }

  async #decode(file: string, port: number): Promise<Outer[]> {
    const destination = this.#outer === 4 ? "ip.dst" : "ipv6.dst";
    const fields = [destination, "vxlan.vni", "eth.dst", "udp.dstport"];
    const text = await must([
      ...["tshark", "-r", file, "-n", "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"],
      ...fields.flatMap((field) => ["-e", field]),
    ]);
    const frames = text.split("\n").filter(Boolean);
    return frames.flatMap((line) => {
      const [to, vni, macs, ports] = line.split("\t").map((cell) => cell.split(","));
      if (ports!.at(-1) !== String(port)) return [];
      return [{ destination: to![0]!, vni: Number(vni![0]), inner_destination_mac: macs!.at(-1)! }];
    });
  }

  async #buildHost(vm: Namespace, { learning, ageingSeconds, group, external }: VtepOptions): Promise<void> {
    const { host } = this;
    // Its address says of which family the VTEPs in its table are.
    const own = external
      ? `external local ${VTEP.host[this.#outer]}`
      : `id ${VNI} local ${VTEP.host[this.#outer]}${group ? ` group ${GROUP[this.#outer]} dev u0` : ""}`;
    const ageing = ageingSeconds === undefined ? "" : ` ageing ${ageingSeconds}`;
    await host.ip(
      "link add name br type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
      `link add name vxlan0 type vxlan ${own} dstport ${VXLAN_PORT} ${learning ? "" : "no"}learning${ageing}`,
      `link add name tap1 index ${newIndex()} type veth peer name eth0 address ${VM_MAC} netns ${vm.name}`,
      ...["br", "vxlan0", "tap1"].map(
        (name) => `link set dev ${name} ${name === "br" ? "" : "master br "}up`,
      ),
    );
    if (learning && !group) {
      for (const firewall of ["a", "b"] as const) {
        const dst = VTEP[firewall][this.#outer];
        await host.must(["bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vxlan0", "dst", dst]);
      }
    }
    await vm.ip("link set dev eth0 up", ...FAMILIES.map((family) => `addr add ${wide(VM[family])} dev eth0`));
    for (const family of FAMILIES) {
      await vm.ip(
        `neigh replace ${INSIDE.b[family]} lladdr ${this.mac("b")} dev eth0 nud permanent`,
        `route add default via ${INSIDE.b[family]} dev eth0`,
      );
    }
  }

  async #buildFirewall(name: FirewallName, { group }: VtepOptions): Promise<void> {
    const namespace = this.#firewalls[name];
    const outer = this.#outer;
    const far = group ? `group ${GROUP[outer]} dev u0` : `remote ${VTEP.host[outer]}`;
    await namespace.ip(
      `link add name vxlan0 address ${this.mac(name)} type vxlan id ${VNI} local ${VTEP[name][outer]} ${far} dstport ${VXLAN_PORT}`,
      "link set dev vxlan0 up",
      ...FAMILIES.flatMap((family) => [
        `addr add ${wide(INSIDE[name][family])} dev vxlan0`,
        `addr add ${CLIENT[family]} dev lo`,
      ]),
    );
    await this.#introduce(name);
  }

  async #introduce(name: FirewallName): Promise<void> {
    const lines = FAMILIES.map(
      (family) => `neigh replace ${VM[family]} lladdr ${VM_MAC} dev vxlan0 nud permanent`,
    );
    await this.#firewalls[name].ip(...lines);
  }

  async #startSpeaker(vm: Namespace): Promise<void> {
    this.#speaker = vm.start([process.execPath, "-e", SPEAKER]);
    await this.#speaker.writes(/(listening udp[46]\s+){2}/);
  }
}

async function plug(fabric: Namespace, namespace: Namespace, address: Addresses): Promise<void> {
  const port = `p${newIndex()}`;
  await fabric.ip(
    `link add name ${port} index ${newIndex()} type veth peer name u0 index ${newIndex()} netns ${namespace.name}`,
    `link set dev ${port} master sw up`,
  );
  await namespace.ip(
    "link set dev u0 up",
    ...FAMILIES.map((family) => `addr add ${wide(address[family])} dev u0`),
  );
}

function wide(address: string): string {
  return address.includes(":") ? `${address}/64` : `${address}/24`;
}
