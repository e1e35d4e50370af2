// SPDX-License-Identifier: Apache-2.0
// `lasthop devices`: what its options hand to the operations, and how devices are shown.

import { afterEach, describe, expect, test, vi } from "vitest";
import {
  addDevice,
  downDevice,
  listDevices,
  removeDeviceByHand,
  setDeviceByHand,
  showDevice,
  upDevice,
} from "../../src/ops/devices.ts";
import type { DeviceEntry, DeviceSpec } from "../../src/ops/types.ts";
import { runCli } from "../support/cli.ts";
import { LAST_HOP } from "../support/entries.ts";

vi.mock("../../src/ops/devices.ts", () => ({
  addDevice: vi.fn(),
  downDevice: vi.fn(),
  listDevices: vi.fn(),
  removeDeviceByHand: vi.fn(),
  setDeviceByHand: vi.fn(),
  showDevice: vi.fn(),
  upDevice: vi.fn(),
}));

afterEach(() => {
  vi.resetAllMocks();
});

const run = (line: string) => runCli(line.split(" "));
const context = expect.objectContaining({ pinRoot: "/sys/fs/bpf/lasthop" });
const CHANGE = {
  name: "fw",
  state: "down" as const,
  cause: "operator" as const,
  actions: ["device fw: taken down"],
};

const DEVICE: DeviceEntry = {
  name: "fw",
  origin: "config",
  state: "down",
  cause: "probe",
  operator_down: false,
  changed_seconds_ago: 252,
  flaps: 3,
  macs: ["02:00:00:00:0f:01"],
  addresses: [
    { address: "192.0.2.1", mac: "02:00:00:00:0f:02" },
    { address: "2001:db8::1", mac: null },
  ],
  vteps: [],
  interface: "eth*",
  vlans: [100],
  zone: 7,
  reply_mac: null,
  on_down: "peer:other",
  probe: {
    kind: "tcp",
    port: 443,
    address: null,
    interval_seconds: 0.5,
    timeout_seconds: 1,
    fall: 3,
    rise: 2,
  },
  vtep_macs: [],
  flows: 1234,
  request_packets: 5000,
  request_bytes: 1_048_576,
  reply_packets: 4000,
  reply_bytes: 999,
  relearns: 9,
};

describe("options become what is asked for, and nothing else", () => {
  test.each<[line: string, spec: DeviceSpec]>([
    ["--mac 02:00:00:00:0f:01", { macs: ["02:00:00:00:0f:01"] }],
    ["--mac 02:00:00:00:0f:01,02:00:00:00:0f:02", { macs: ["02:00:00:00:0f:01", "02:00:00:00:0f:02"] }],
    ["--address 192.0.2.1,2001:db8::1 --mac none", { addresses: ["192.0.2.1", "2001:db8::1"], macs: [] }],
    ["--interface eth* --vlan 100,7 --zone 3", { interface: "eth*", vlans: [100, 7], zone: 3 }],
    ["--interface none --vlan none --reply-mac none", { interface: null, vlans: [], reply_mac: null }],
    ["--reply-mac 00:00:5e:00:01:0a --on-down peer:b", { reply_mac: "00:00:5e:00:01:0a", on_down: "peer:b" }],
    ["--vtep 192.0.2.9,2001:db8::9", { vteps: ["192.0.2.9", "2001:db8::9"] }],
    ["--vtep 192.0.2.9 --vtep 2001:db8::9", { vteps: ["192.0.2.9", "2001:db8::9"] }],
    ["--vtep none", { vteps: [] }],
    ["--probe icmp", { probe: { kind: "icmp", port: null } }],
    ["--probe tcp:443 --fall 5", { probe: { kind: "tcp", port: 443, fall: 5 } }],
    ["--probe none", { probe: null }],
    [
      "--probe-address 192.0.2.9 --interval 0.5 --timeout 2 --rise 4",
      { probe: { address: "192.0.2.9", interval_seconds: 0.5, timeout_seconds: 2, rise: 4 } },
    ],
    ["--probe-address none", { probe: { address: null } }],
  ])("%s", async (line, spec) => {
    vi.mocked(addDevice).mockResolvedValue(CHANGE);
    vi.mocked(setDeviceByHand).mockResolvedValue(CHANGE);
    expect((await run(`devices add fw ${line}`)).status).toBe(0);
    expect(addDevice).toHaveBeenLastCalledWith(context, "fw", spec);
    expect((await run(`devices set fw ${line}`)).status).toBe(0);
    expect(setDeviceByHand).toHaveBeenLastCalledWith(context, "fw", spec);
  });

  test.each([
    ["devices set fw", /nothing is to be changed/],
    ["devices add fw --probe udp", /--probe: "udp" is not icmp, tcp:PORT or none/],
    ["devices add fw --probe none --fall 3", /--probe none excludes/],
    ["devices add fw --interval soon", /--interval: "soon" is not a number of seconds/],
    ["devices add fw --vlan 1,x", /--vlan: "x" is not a whole number/],
    ["devices add fw --macs 02:00:00:00:0f:01", /unknown option --macs[\s\S]*Did you mean "--mac"/],
    ["devices add fw --mac 02:00:00:00:0f:01 --mac 02:00:00:00:0f:02", /--mac is given more than once/],
    ["devices add", /the name is missing/],
    ["devices lst", /unknown command "devices lst"[\s\S]*Did you mean "devices list"/],
  ])("%s is refused before anything is done", async (line, message) => {
    const { status, stderr } = await run(line);
    expect({ status, stderr }).toEqual({ status: 2, stderr: expect.stringMatching(message) });
    expect(addDevice).not.toHaveBeenCalled();
    expect(setDeviceByHand).not.toHaveBeenCalled();
  });
});

test("down, up and remove name a device, and say what it is then", async () => {
  vi.mocked(downDevice).mockResolvedValue(CHANGE);
  vi.mocked(upDevice).mockResolvedValue({ ...CHANGE, state: "up", cause: null, actions: [] });
  vi.mocked(removeDeviceByHand).mockResolvedValue({
    ...CHANGE,
    state: null,
    cause: null,
    actions: ["device fw: removed"],
  });
  expect((await run("devices down fw")).stdout).toBe("device fw: taken down\nfw: down (operator)\n");
  expect((await run("devices up fw")).stdout).toBe("fw: up\n");
  expect((await run("devices remove fw")).stdout).toBe("device fw: removed\n");
  expect(JSON.parse((await run("--json devices down fw")).stdout)).toEqual(CHANGE);
  for (const operation of [downDevice, upDevice, removeDeviceByHand]) {
    expect(operation).toHaveBeenLastCalledWith(context, "fw");
  }
});

test("devices list is a table", async () => {
  vi.mocked(listDevices).mockReturnValue([DEVICE]);
  expect((await run("devices list")).stdout).toMatchInlineSnapshot(`
    "DEVICE  STATE         SINCE  MAC                                  ADDRESS                INTERFACE  ZONE  ON DOWN     ORIGIN  FLAPS  FLOWS  REQUESTS  REPLIES
    fw      down (probe)  4m12s  02:00:00:00:0f:01,02:00:00:00:0f:02  192.0.2.1,2001:db8::1  eth*          7  peer:other  config      3   1234      5000     4000
    "
  `);
  expect(JSON.parse((await run("devices list --json")).stdout)).toEqual({ devices: [DEVICE] });
  vi.mocked(listDevices).mockReturnValue([]);
  expect((await run("devices list")).stdout).toBe("there is no device\n");
});

test("devices show is all of it, with its last hops", async () => {
  const neighbours = [{ interface: "eth0", address: "192.0.2.1", mac: "02:00:00:00:0f:03", state: "stale" }];
  const details = { ...DEVICE, neighbours, last_hops: [{ ...LAST_HOP, device: "fw" }] };
  vi.mocked(showDevice).mockReturnValue(details);
  expect((await run("devices show fw")).stdout).toMatchInlineSnapshot(`
    "fw
      state      down (probe)
      since      4m12s ago
      origin     config
      zone       7
      interface  eth*
      MACs       02:00:00:00:0f:01
      VLANs      100
      on down    peer:other
      probe      tcp:443, every 0.5 s, 1 s to answer, down after 3, up after 2
      flaps      3
      flows      1234
      requests   5000 (1 MiB)
      replies    4000 (999 B)
      relearns   9
      address    192.0.2.1 at 02:00:00:00:0f:02 (eth0: 02:00:00:00:0f:03, stale)
      address    2001:db8::1 not resolved

    INDEX  MAC                INTERFACE  VLAN  STATE  ORIGIN   DEVICE  FLOWS  REQUESTS  BYTES  REPLIES  BYTES  RELEARNS   IDLE
        1  02:00:00:00:0a:01  eth0       10    up     learned  fw       1234      5000  1 MiB     4000  999 B         7  4m12s
    "
  `);
  expect(JSON.parse((await run("devices show fw --json")).stdout)).toEqual(details);
});
