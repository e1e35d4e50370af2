// SPDX-License-Identifier: Apache-2.0
// `lasthop services` and `lasthop vms`: what their options hand to the operations, and how both are shown.

import { afterEach, describe, expect, test, vi } from "vitest";
import { addService, listServices, removeService, showService } from "../../src/ops/services.ts";
import type { ServiceEntry, ServiceSpecInput, VmDetails, VmEntry, VmSpecInput } from "../../src/ops/types.ts";
import { addVm, downVm, drainVm, listVms, removeVm, showVm, upVm } from "../../src/ops/vms.ts";
import { runCli } from "../support/cli.ts";

vi.mock("../../src/ops/services.ts", () => ({
  addService: vi.fn(),
  listServices: vi.fn(),
  removeService: vi.fn(),
  showService: vi.fn(),
}));
vi.mock("../../src/ops/vms.ts", () => ({
  addVm: vi.fn(),
  downVm: vi.fn(),
  drainVm: vi.fn(),
  listVms: vi.fn(),
  removeVm: vi.fn(),
  showVm: vi.fn(),
  upVm: vi.fn(),
}));

afterEach(() => {
  vi.resetAllMocks();
});

const run = (line: string) => runCli(line.split(" "));
const context = expect.objectContaining({ pinRoot: "/sys/fs/bpf/lasthop" });
const VM_CHANGE = { name: "web1", state: "up" as const, cause: null, actions: ["VM web1: entered"] };
const SERVICE_CHANGE = { name: "www", vms_up: 1, vms_total: 2, actions: ["service www: entered"] };

describe("options of a VM become what is asked for, and nothing else", () => {
  test.each<[line: string, spec: VmSpecInput]>([
    ["--tap vnet3", { tap: "vnet3" }],
    ["--mac 52:54:00:00:00:01 --zone 7", { mac: "52:54:00:00:00:01", zone: 7 }],
    ["--address 10.0.0.11 --responses fw2", { address: "10.0.0.11", responses: "fw2" }],
    ["--tap a --label web,linux --label prod", { tap: "a", labels: ["web", "linux", "prod"] }],
    ["--tap a --check icmp", { tap: "a", check: { kind: "icmp" } }],
    ["--tap a --check neighbour", { tap: "a", check: { kind: "neighbour" } }],
    ["--tap a --check tcp:443", { tap: "a", check: { kind: "tcp", port: 443 } }],
    ["--tap a --check https", { tap: "a", check: { kind: "https" } }],
    ["--tap a --check http/health", { tap: "a", check: { kind: "http", path: "/health" } }],
    [
      "--tap a --check http:8080/a:b?c=d",
      { tap: "a", check: { kind: "http", port: 8080, path: "/a:b?c=d" } },
    ],
    [
      "--tap a --check https:8443/ --check-host a.example --check-status 200-299 --check-verify",
      {
        tap: "a",
        check: { kind: "https", port: 8443, path: "/", host: "a.example", status: "200-299", verify: true },
      },
    ],
    [
      "--tap a --check icmp --check-address 10.0.0.9 --check-interval 0.5 --check-timeout 2 --check-fall 5 --check-rise 1",
      {
        tap: "a",
        check: {
          kind: "icmp",
          address: "10.0.0.9",
          interval_seconds: 0.5,
          timeout_seconds: 2,
          fall: 5,
          rise: 1,
        },
      },
    ],
  ])("%s", async (line, spec) => {
    vi.mocked(addVm).mockResolvedValue(VM_CHANGE);
    expect(await run(`vms add web1 ${line}`)).toEqual({
      status: 0,
      stdout: "VM web1: entered\nweb1: up\n",
      stderr: "",
    });
    expect(addVm).toHaveBeenLastCalledWith(context, "web1", spec);
  });
});

describe("options of a service become what is asked for, and nothing else", () => {
  const BASE = { address: "192.0.2.80", pool: [{ vm: "a" }] };

  test.each<[line: string, spec: Partial<ServiceSpecInput>]>([
    ["--vm a", {}],
    ["--vm a --port 443 --protocol udp --zone 7", { port: 443, protocol: "udp", zone: 7 }],
    ["--vm a=2,b --vm c=256", { pool: [{ vm: "a", weight: 2 }, { vm: "b" }, { vm: "c", weight: 256 }] }],
    ["--label web=3 --vm a", { pool: [{ vm: "a" }, { label: "web", weight: 3 }] }],
    ["--vm a --policy least-flows --on-vm-down hold", { policy: "least-flows", on_vm_down: "hold" }],
    ["--vm a --affinity 0.5 --answer none", { affinity_seconds: 0.5, answer: "none" }],
    ["--vm a --answer vm:a", { answer: "vm:a" }],
    [
      "--vm a --associate 10.1.0.0/16=a,2001:db8::/32=label:v6 --associate 10.2.0.1=b",
      {
        associations: [
          { client: "10.1.0.0/16", vm: "a" },
          { client: "2001:db8::/32", label: "v6" },
          { client: "10.2.0.1", vm: "b" },
        ],
      },
    ],
  ])("%s", async (line, spec) => {
    vi.mocked(addService).mockResolvedValue(SERVICE_CHANGE);
    expect(await run(`services add www --address 192.0.2.80 ${line}`)).toEqual({
      status: 0,
      stdout: "service www: entered\nwww: 1 of 2 VMs up\n",
      stderr: "",
    });
    expect(addService).toHaveBeenLastCalledWith(context, "www", { ...BASE, ...spec });
  });
});

describe("is refused before anything is done:", () => {
  test.each<[line: string, message: RegExp]>([
    ["vms add", /the name is missing/],
    ["vms add web1 --check ping", /--check: "ping" is no check/],
    ["vms add web1 --check tcp:http", /--check: "tcp:http" is no check/],
    ["vms add web1 --check-fall 3", /there is no check/],
    ["vms add web1 --tap a --check icmp --check-fall 0", /--check-fall: "0" is not a whole number/],
    ["vms add web1 --tap a --check icmp --check-interval soon", /is not a number of seconds/],
    ["vms add web1 --tap a --tap b", /--tap is given more than once/],
    ["vms add web1 --zone 65536 --tap a", /--zone: "65536"/],
    ["vms add web1 --labels web", /unknown option --labels[\s\S]*Did you mean "--label"/],
    ["vms drian web1", /unknown command "vms drian"[\s\S]*Did you mean "vms drain"/],
    ["services add www", /--address is missing/],
    ["services add www --address 192.0.2.80", /a service needs at least one VM in its pool/],
    ["services add www --address 192.0.2.80 --vm a=0", /--vm: "0" is not a whole number from 1 to 256/],
    ["services add www --address 192.0.2.80 --vm a=257", /--vm: "257"/],
    ["services add www --address 192.0.2.80 --vm =1", /--vm: "=1" is not NAME or NAME=WEIGHT/],
    ["services add www --address 192.0.2.80 --vm a,", /--vm: "" is not NAME/],
    ["services add www --address 192.0.2.80 --vm a --port 0", /--port: "0"/],
    [
      "services add www --address 192.0.2.80 --vm a --protocol tpc",
      /--protocol: "tpc" .*[\s\S]*Did you mean "tcp"/,
    ],
    ["services add www --address 192.0.2.80 --vm a --policy random", /--policy: "random" is not maglev/],
    ["services add www --address 192.0.2.80 --vm a --on-vm-down drop", /--on-vm-down: "drop"/],
    ["services add www --address 192.0.2.80 --vm a --answer vm:", /--answer: "vm:" is not host/],
    [
      "services add www --address 192.0.2.80 --vm a --associate 10.0.0.0/8",
      /--associate: "10.0.0.0\/8" is not PREFIX/,
    ],
    ["services add www --address 192.0.2.80 --vm a --associate 10.0.0.0/8=label:", /is not PREFIX=VM/],
    ["services add www --address 192.0.2.80 --vm a --affinity -1", /--affinity/],
    ["services set www", /unknown command "services set"/],
  ])("%s", async (line, message) => {
    const { status, stderr } = await run(line);
    expect({ status, stderr }).toEqual({ status: 2, stderr: expect.stringMatching(message) });
    expect(addVm).not.toHaveBeenCalled();
    expect(addService).not.toHaveBeenCalled();
  });
});

test("what is done to a VM or a service by its name says what it is then", async () => {
  const gone = { ...VM_CHANGE, state: null, actions: ["VM web1: removed"] };
  vi.mocked(drainVm).mockResolvedValue({ ...VM_CHANGE, state: "drain", cause: "operator", actions: [] });
  vi.mocked(downVm).mockResolvedValue({
    ...VM_CHANGE,
    state: "down",
    cause: "operator",
    actions: ["pool: …"],
  });
  vi.mocked(upVm).mockResolvedValue({ ...VM_CHANGE, actions: [] });
  vi.mocked(removeVm).mockResolvedValue(gone);
  vi.mocked(removeService).mockResolvedValue({
    ...SERVICE_CHANGE,
    vms_up: null,
    vms_total: null,
    actions: ["service www: removed"],
  });
  expect((await run("vms drain web1")).stdout).toBe("web1: drain (operator)\n");
  expect((await run("vms down web1")).stdout).toBe("pool: …\nweb1: down (operator)\n");
  expect((await run("vms up web1")).stdout).toBe("web1: up\n");
  expect((await run("vms remove web1")).stdout).toBe("VM web1: removed\n");
  expect((await run("services remove www")).stdout).toBe("service www: removed\n");
  expect(JSON.parse((await run("--json vms remove web1")).stdout)).toEqual(gone);
  for (const operation of [drainVm, downVm, upVm, removeVm]) {
    expect(operation).toHaveBeenLastCalledWith(context, "web1");
  }
  expect(removeService).toHaveBeenLastCalledWith(context, "www");
});

const VM: VmEntry = {
  name: "web1",
  origin: "config",
  zone: 7,
  tap: "vnet3",
  mac: "52:54:00:00:00:01",
  address: "10.0.0.11",
  labels: ["web", "linux"],
  responses: null,
  state: "down",
  cause: "probe",
  why: "its check fails: http:80/health of 10.0.0.11",
  operator: null,
  health: "down",
  changed_seconds_ago: 252,
  services: ["dns", "www"],
  flows: 12,
  flows_started: 1234,
  request_packets: 5000,
  request_bytes: 1_048_576,
  response_packets: 7,
  response_bytes: 999,
};

test("vms list is a table; columns that say nothing are left out", async () => {
  vi.mocked(listVms).mockReturnValue([VM]);
  expect((await run("vms list")).stdout).toMatchInlineSnapshot(`
    "VM    STATE         SINCE  TAP    MAC                ADDRESS    ZONE  LABELS     HEALTH  ORIGIN  SERVICES  FLOWS  STARTED  REQUESTS  RESPONSES
    web1  down (probe)  4m12s  vnet3  52:54:00:00:00:01  10.0.0.11     7  web,linux  down    config         2     12     1234      5000          7
    "
  `);
  expect(JSON.parse((await run("vms list --json")).stdout)).toEqual({ vms: [VM] });
  const bare = { ...VM, tap: null, mac: null, address: null, labels: [], changed_seconds_ago: null };
  vi.mocked(listVms).mockReturnValue([{ ...bare, state: "unknown", cause: null, health: "unknown" }]);
  expect((await run("vms list")).stdout).toMatchInlineSnapshot(`
    "VM    STATE    SINCE  TAP  MAC  ADDRESS  ZONE  HEALTH  ORIGIN  SERVICES  FLOWS  STARTED  REQUESTS  RESPONSES
    web1  unknown      -  -    -    -           7  -       config         2     12     1234      5000          7
    "
  `);
  vi.mocked(listVms).mockReturnValue([]);
  expect((await run("vms list")).stdout).toBe("no VM has a name\n");
});

test("vms show is all of it", async () => {
  const details: VmDetails = {
    ...VM,
    responses: "fw2",
    id: 3_000_000_000,
    given: { tap: null, mac: "52:54:00:00:00:01" },
    attached: false,
    check: {
      kind: "http",
      port: 80,
      path: "/health",
      host: "www.example",
      status: "200-399",
      interval_seconds: 5,
      timeout_seconds: 2,
      fall: 3,
      rise: 2,
    },
    last_frame_seconds_ago: 3,
  };
  vi.mocked(showVm).mockReturnValue(details);
  expect((await run("vms show web1")).stdout).toMatchInlineSnapshot(`
    "web1
      state         down (probe)
      why           its check fails: http:80/health of 10.0.0.11
      since         4m12s ago
      origin        config
      zone          7
      tap           vnet3 (found out), which is not attached
      MAC           52:54:00:00:00:01
      address       10.0.0.11
      id            3000000000
      labels        web, linux
      responses to  fw2
      check         http:80/health of 10.0.0.11, host www.example, status 200-399, every 5 s, 2 s to answer, down after 3, up after 2
      health        down
      services      dns, www
      flows         12 of services, 1234 started
      requests      5000 (1 MiB)
      responses     7 (999 B)
      last frame    3s ago
    "
  `);
  expect(JSON.parse((await run("vms show web1 --json")).stdout)).toEqual(details);
  vi.mocked(showVm).mockReturnValue({
    ...details,
    state: "down",
    cause: "interface",
    why: "its MAC address is not known on any tap of zone 7",
    tap: null,
    mac: null,
    id: null,
    given: { tap: null, mac: null },
    check: null,
    responses: null,
    services: [],
    last_frame_seconds_ago: null,
  });
  expect((await run("vms show web1")).stdout).toMatchInlineSnapshot(`
    "web1
      state      down (interface)
      why        its MAC address is not known on any tap of zone 7
      since      4m12s ago
      origin     config
      zone       7
      tap        not known
      MAC        not known
      address    10.0.0.11
      labels     web, linux
      services   none
      flows      12 of services, 1234 started
      requests   5000 (1 MiB)
      responses  7 (999 B)
    "
  `);
});

const SERVICE: ServiceEntry = {
  name: "www",
  origin: "manual",
  index: 3,
  zone: 0,
  address: "192.0.2.80",
  port: 443,
  protocol: "tcp",
  policy: "maglev",
  on_vm_down: "rebalance",
  answer: "host",
  affinity_seconds: 0,
  vms_up: 1,
  vms_total: 2,
  flows_started: 1234,
  flows_associated: 12,
  flows_affine: 0,
  flows_rebalanced: 4,
  requests_empty: 5,
  requests_reset: 6,
  requests_held: 7,
  addresses_answered: 8,
};

test("services list is a table", async () => {
  vi.mocked(listServices).mockReturnValue([
    SERVICE,
    { ...SERVICE, name: "any", port: null, protocol: "any", affinity_seconds: 300, zone: 7 },
  ]);
  expect((await run("services list")).stdout).toMatchInlineSnapshot(`
    "SERVICE  ZONE  ADDRESS     PORT  PROTO  POLICY  VMS UP  ON VM DOWN  ANSWER  AFFINITY  ORIGIN  STARTED  REBALANCED  EMPTY  RESET  HELD
    www         0  192.0.2.80   443  tcp    maglev     1/2  rebalance   host           -  manual     1234           4      5      6     7
    any         7  192.0.2.80     -  any    maglev     1/2  rebalance   host       300 s  manual     1234           4      5      6     7
    "
  `);
  vi.mocked(listServices).mockReturnValue([SERVICE]);
  expect(JSON.parse((await run("services list --json")).stdout)).toEqual({ services: [SERVICE] });
  vi.mocked(listServices).mockReturnValue([]);
  expect((await run("services list")).stdout).toBe("there is no service\n");
});

test("services show has its pool and its associations", async () => {
  const details = {
    ...SERVICE,
    pool: [
      { vm: "web1", label: null, weight: 2, share: 1, state: "up", cause: null, flows: 12 },
      { vm: "web2", label: "web", weight: 1, share: 0, state: "drain", cause: "operator", flows: 3 },
    ],
    associations: [
      { client: "10.1.0.0/16", vm: "web1", label: null, vms_up: 1, vms_total: 1 },
      { client: "2001:db8::/32", vm: null, label: "web", vms_up: 0, vms_total: 1 },
    ],
  } as const;
  const copy = () => ({ ...details, pool: [...details.pool], associations: [...details.associations] });
  vi.mocked(showService).mockReturnValue(copy());
  expect((await run("services show www")).stdout).toMatchInlineSnapshot(`
    "www
      origin         manual
      index          3
      zone           0
      address        192.0.2.80
      port           443
      protocol       tcp
      policy         maglev
      on VM down     rebalance
      answer         host
      VMs            1 of 2 up
      flows started  1234, 12 by association, 0 by affinity
      rebalanced     4
      without a VM   5
      reset          6
      held           7
      ARP and ND     8 answered

    VM    LABEL  STATE             WEIGHT   SHARE  FLOWS
    web1  -      up                     2  100.0%     12
    web2  web    drain (operator)       1    0.0%      3

    CLIENTS        VM    LABEL  VMS UP
    10.1.0.0/16    web1  -         1/1
    2001:db8::/32  -     web       0/1
    "
  `);
  expect(JSON.parse((await run("services show www --json")).stdout)).toEqual(details);
  // Least flows has no shares, ICMP no ports, and nobody is associated.
  vi.mocked(showService).mockReturnValue({
    ...copy(),
    protocol: "icmp",
    port: null,
    policy: "least-flows",
    pool: [{ ...details.pool[0], share: null }],
    associations: [],
  });
  expect((await run("services show www")).stdout).toMatchInlineSnapshot(`
    "www
      origin         manual
      index          3
      zone           0
      address        192.0.2.80
      protocol       icmp
      policy         least-flows
      on VM down     rebalance
      answer         host
      VMs            1 of 2 up
      flows started  1234, 12 by association, 0 by affinity
      rebalanced     4
      without a VM   5
      reset          6
      held           7
      ARP and ND     8 answered

    VM    STATE  WEIGHT  FLOWS
    web1  up          2     12
    "
  `);
});
