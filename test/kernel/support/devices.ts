// SPDX-License-Identifier: Apache-2.0
// A private network namespace with the netdevs that the programs are run on. Test runs look up the ingress
// device and the route in the caller's namespace, so this thread moves into a new one; it goes with the
// process, which is the whole clean-up.

import { spawnSync } from "node:child_process";
import { readlinkSync, writeFileSync } from "node:fs";
import { loadFfi } from "../../../src/ffi/index.ts";
import { FAMILIES } from "./scene.ts";

const CLONE_NEWNET = 0x40000000;

/** One attached interface of the scene. `uplink` and `tap` as roles; MACs are the host's side. */
export const PORTS = {
  uplink_a: { role: "UPLINK", slot: 1, zone: 0, mac: "02:00:00:00:0a:01" },
  uplink_b: { role: "UPLINK", slot: 2, zone: 0, mac: "02:00:00:00:0a:02" },
  tap_1: { role: "TAP", slot: 3, zone: 0, mac: "02:00:00:00:0a:03" },
  tap_2: { role: "TAP", slot: 4, zone: 0, mac: "02:00:00:00:0a:04" },
  uplink_z: { role: "UPLINK", slot: 5, zone: 7, mac: "02:00:00:00:0a:05" },
  tap_z: { role: "TAP", slot: 6, zone: 7, mac: "02:00:00:00:0a:06" },
  /** Not attached to anything. */
  stranger: { role: "NONE", slot: 0, zone: 0, mac: "02:00:00:00:0a:07" },
  /** The bridge of a routed host whose VMs are behind one. */
  bridge: { role: "BRIDGE", slot: 0, zone: 0, mac: "02:00:00:00:0a:08" },
} as const;

export type PortName = keyof typeof PORTS;

/** Interface indexes by name, the same in every run. */
export const IFINDEX = Object.fromEntries(
  Object.keys(PORTS).map((name, position) => [name, 100 + position]),
) as Record<PortName, number>;

/** The far ends of the veth pairs. */
export const PEER_IFINDEX = Object.fromEntries(
  Object.entries(IFINDEX).map(([name, ifindex]) => [name, ifindex + 100]),
) as Record<PortName, number>;

/** Room for frames that a packet socket does not send in one piece. */
export const MTU = 9000;

/** An ifindex that no netdev has. */
export const IFINDEX_GONE = 4000;

function ip(lines: string[], family: "-4" | "-6" = "-4"): void {
  const run = spawnSync("ip", [family, "-batch", "-"], { input: `${lines.join("\n")}\n`, encoding: "utf8" });
  if (run.status !== 0) {
    throw new Error(`ip -batch: ${run.error?.message ?? run.stderr}`);
  }
}

/** Moves this thread into a new network namespace; commands that it starts are in it too. */
export function enterPrivateNamespace(): void {
  const before = readlinkSync("/proc/thread-self/ns/net");
  const unshare = loadFfi().open("libc.so.6").function("unshare", "i32", ["i32"]);
  if (unshare(CLONE_NEWNET) !== 0 || readlinkSync("/proc/thread-self/ns/net") === before) {
    throw new Error("unshare(CLONE_NEWNET) failed: kernel tests need root");
  }
}

export function createDevices(): void {
  ip(
    Object.entries(PORTS).flatMap(([name, { mac }]) => {
      const head = `link add ${name} index ${IFINDEX[name as PortName]} address ${mac}`;
      return [
        name === "bridge"
          ? `${head} type bridge`
          : `${head} type veth peer name ${name}_peer index ${PEER_IFINDEX[name as PortName]}`,
        // Without link-local addresses the kernel itself is quiet.
        ...(name === "bridge" ? [name] : [name, `${name}_peer`]).flatMap((one) => [
          `link set ${one} addrgenmode none mtu ${MTU}`,
          `link set ${one} up`,
        ]),
      ];
    }),
  );
  for (const family of ["ipv4", "ipv6"]) {
    writeFileSync(`/proc/sys/net/${family}/conf/all/forwarding`, "1");
  }
  ip(FAMILIES.ipv4.routes, "-4");
  ip(FAMILIES.ipv6.routes, "-6");
}
