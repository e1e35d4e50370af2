// SPDX-License-Identifier: Apache-2.0
// A site as tests see it: who is there, and which way requests and replies go by default.

import { type Addresses, FAMILIES, mac, outside, VM_PREFIX } from "./addresses.ts";
import type { Agent } from "./agent.ts";
import type { Firewall } from "./firewall.ts";
import type { Lab, Namespace } from "./lab.ts";

/** A client or a VM: an address in a namespace, and a process there that uses it. */
export class Party {
  readonly name: string;
  readonly namespace: Namespace;
  readonly address: Addresses;
  #agent: Agent | undefined;

  constructor(name: string, namespace: Namespace, address: Addresses) {
    this.name = name;
    this.namespace = namespace;
    this.address = address;
  }

  get agent(): Agent {
    this.#agent ??= this.namespace.agent();
    return this.#agent;
  }
}

export class Vm extends Party {
  readonly tap: string;
  readonly mac: string;
  readonly gateway: Addresses;

  constructor(
    name: string,
    namespace: Namespace,
    address: Addresses,
    tap: string,
    mac: string,
    gateway: Addresses,
  ) {
    super(name, namespace, address);
    this.tap = tap;
    this.mac = mac;
    this.gateway = gateway;
  }
}

/** A client in the network of the VMs (bridged host) or of an uplink (routed host). */
export class OnLinkClient extends Party {
  readonly uplink: string;
  readonly mac: string;

  constructor(name: string, namespace: Namespace, address: Addresses, uplink: string, mac: string) {
    super(name, namespace, address);
    this.uplink = uplink;
    this.mac = mac;
  }
}

export class Site {
  readonly lab: Lab;
  readonly kind: "bridged" | "routed" | "routed_bridge";
  readonly host: Namespace;
  readonly clients: Party[] = [];
  readonly vms: Vm[] = [];
  readonly firewalls = new Map<string, Firewall>();
  /** Names of the host's interfaces towards firewalls (and an on-link client). */
  readonly uplinks: string[] = [];
  onLinkClient: OnLinkClient | undefined;
  /** Which of several sites in one host. */
  readonly number: number;
  readonly #uplinkMacs = new Map<string, string>();

  constructor(lab: Lab, kind: Site["kind"], host: Namespace, number: number) {
    this.lab = lab;
    this.number = number;
    this.kind = kind;
    this.host = host;
  }

  get client(): Party {
    return this.clients[0]!;
  }

  get vm(): Vm {
    return this.vms[0]!;
  }

  get taps(): string[] {
    return this.vms.map((vm) => vm.tap);
  }

  firewall(name: string): Firewall {
    const found = this.firewalls.get(name);
    if (found === undefined) throw new Error(`no firewall ${name}`);
    return found;
  }

  get a(): Firewall {
    return this.firewall("a");
  }

  get b(): Firewall {
    return this.firewall("b");
  }

  /** The uplink by which a firewall's frames come in. */
  uplinkOf(name: string): string {
    return this.uplinks.length === 1
      ? this.uplinks[0]!
      : this.uplinks[[...this.firewalls.keys()].indexOf(name)]!;
  }

  /** The MAC of the host's interface towards a firewall. */
  uplinkMac(name: string): string {
    return this.#uplinkMacs.get(this.uplinkOf(name))!;
  }

  /** The MAC of the host's end of vm1's tap, to which it sends if the host routes to taps. */
  get tapMac(): string {
    return mac(0x7a, 1, this.number);
  }

  addUplink(name: string, mac: string): void {
    this.uplinks.push(name);
    this.#uplinkMacs.set(name, mac);
  }

  /** Sends the further requests (and answers) of some clients through another firewall. */
  async routeClientsBy(name: string, clients: readonly Party[] = this.clients): Promise<void> {
    const index = [...this.firewalls.keys()].indexOf(name);
    await Promise.all(
      clients.map((client) => {
        const gateway = outside(index, this.clients.indexOf(client), 1);
        const lines = FAMILIES.map(
          (family) =>
            `route replace ${VM_PREFIX[family]} via ${gateway[family]} src ${client.address[family]}`,
        );
        return client.namespace.ip(...lines);
      }),
    );
  }

  /** Changes the default gateway of the VMs, or of the host if it routes. */
  async routeRepliesBy(name: string): Promise<void> {
    const gateway = this.firewall(name).address;
    const routers = this.kind === "bridged" ? this.vms.map((vm) => vm.namespace) : [this.host];
    const lines = FAMILIES.map((family) => `route replace default via ${gateway[family]}`);
    await Promise.all(routers.map((router) => router.ip(...lines)));
  }

  async resetCounts(): Promise<void> {
    await Promise.all([...this.firewalls.values()].map((firewall) => firewall.reset()));
  }

  /** Servers in every VM: HTTP on 80, TCP and UDP echo on 7. */
  async serve(): Promise<void> {
    await Promise.all(this.vms.map((vm) => vm.agent.call("serve", { name: vm.name })));
  }
}
