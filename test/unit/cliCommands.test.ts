// SPDX-License-Identifier: Apache-2.0
// Each command over operations that are not there: what it hands to them, and what it makes of their result.

import { afterEach, describe, expect, test, vi } from "vitest";
import { OutputClosed } from "../../src/cli/output.ts";
import { LasthopError } from "../../src/errors.ts";
import { attach } from "../../src/ops/attach.ts";
import { setBypass } from "../../src/ops/bypass.ts";
import { detach } from "../../src/ops/detach.ts";
import { doctor } from "../../src/ops/doctor.ts";
import { explain } from "../../src/ops/explain.ts";
import { flushFlows, listFlowLines, listFlows, showFlow } from "../../src/ops/flows.ts";
import { listLastHops } from "../../src/ops/lastHops.ts";
import { stats } from "../../src/ops/stats.ts";
import { status } from "../../src/ops/status.ts";
import { sweep } from "../../src/ops/sweep.ts";
import { trace } from "../../src/ops/trace.ts";
import type { OpContext, TraceEvent } from "../../src/ops/types.ts";
import { runCli } from "../support/cli.ts";
import {
  DOCTOR,
  EXPLANATION,
  flowEntry,
  LAST_HOP,
  STATUS,
  SWEEP,
  TUPLE,
  traceEvent,
  VERDICTS,
} from "../support/entries.ts";

vi.mock("../../src/ops/attach.ts", () => ({ attach: vi.fn() }));
vi.mock("../../src/ops/bypass.ts", () => ({ setBypass: vi.fn() }));
vi.mock("../../src/ops/detach.ts", () => ({ detach: vi.fn() }));
vi.mock("../../src/ops/doctor.ts", () => ({ doctor: vi.fn() }));
vi.mock("../../src/ops/explain.ts", () => ({ explain: vi.fn() }));
vi.mock("../../src/ops/flows.ts", () => ({
  flushFlows: vi.fn(),
  listFlowLines: vi.fn(),
  listFlows: vi.fn(),
  showFlow: vi.fn(),
}));
vi.mock("../../src/ops/lastHops.ts", () => ({ listLastHops: vi.fn() }));
vi.mock("../../src/ops/stats.ts", () => ({ stats: vi.fn() }));
vi.mock("../../src/ops/status.ts", () => ({ status: vi.fn() }));
vi.mock("../../src/ops/sweep.ts", () => ({ sweep: vi.fn() }));
vi.mock("../../src/ops/trace.ts", () => ({ trace: vi.fn() }));

afterEach(() => {
  vi.resetAllMocks();
});

const run = (line: string, options = {}) => runCli(line.split(" "), options);
const context = expect.objectContaining({ pinRoot: "/sys/fs/bpf/lasthop" });

describe("attach", () => {
  const result = {
    interface: "eth0",
    ifindex: 2,
    role: "uplink",
    hook: "tcx",
    zone: 7,
    policy: "enforce",
    program_id: 40,
    actions: ["attached learn_tc to eth0 by TCX"],
  } as const;

  test("hands on what was asked for and nothing else", async () => {
    vi.mocked(attach).mockResolvedValue({ ...result, actions: [] });
    await run("attach eth0 --role uplink");
    expect(attach).toHaveBeenLastCalledWith(context, { interface: "eth0", role: "uplink" });
    await run("attach --role=tap eth0 --mode tc --zone 65535 --policy observe");
    expect(attach).toHaveBeenLastCalledWith(context, {
      interface: "eth0",
      role: "tap",
      mode: "tc",
      zone: 65_535,
      policy: "observe",
    });
    await run("attach gre1 --role uplink --mtu 1400 --no-clamp-mss --via stack --mark 0x10");
    expect(attach).toHaveBeenLastCalledWith(context, {
      interface: "gre1",
      role: "uplink",
      mtu: 1400,
      clamp_mss: false,
      via: "stack",
      mark: 16,
    });
    await run("attach gre1 --role uplink --mtu auto --clamp-mss --mark 4294967295");
    expect(attach).toHaveBeenLastCalledWith(context, {
      interface: "gre1",
      role: "uplink",
      mtu: "auto",
      clamp_mss: true,
      mark: 4_294_967_295,
    });
  });

  test.each([
    ["--mtu 67", "--mtu"],
    ["--mtu 65536", "--mtu"],
    ["--mtu auto1", "--mtu"],
    ["--mark 0x100000000", "--mark"],
    ["--mark -1", "--mark"],
    ["--mark 1.5", "--mark"],
    ["--via road", "--via"],
    ["--clamp-mss --no-clamp-mss", "--no-clamp-mss"],
  ])("refuses %s", async (flags, named) => {
    const { status, stderr } = await run(`attach gre1 --role uplink ${flags}`);
    expect(status).toBe(2);
    expect(stderr).toContain(named);
  });

  test("says how replies leave, where that is not as by default", async () => {
    const way = { mtu: 1400, clamp_mss: false, via: "stack", mark: 16 } as const;
    vi.mocked(attach).mockResolvedValue({ ...result, ...way, actions: [] });
    expect((await run("attach eth0 --role uplink")).stdout).toBe(
      "nothing to change\neth0: uplink by tcx, zone 7, MTU 1400, MSS left alone, replies by the host's routing, mark 0x10\n",
    );
  });

  test("says what was done", async () => {
    vi.mocked(attach).mockResolvedValue({ ...result, actions: [...result.actions] });
    expect(await run("attach eth0 --role uplink")).toEqual({
      status: 0,
      stdout: "attached learn_tc to eth0 by TCX\neth0: uplink by tcx, zone 7\n",
      stderr: "",
    });
    const json = await run("attach eth0 --role uplink --json");
    expect(json.stdout).toBe(`${JSON.stringify(result)}\n`);
  });

  test("says that there was nothing to do", async () => {
    vi.mocked(attach).mockResolvedValue({ ...result, role: "tap", actions: [] });
    const { stdout } = await run("attach eth0 --role tap");
    expect(stdout).toBe("nothing to change\neth0: tap by tcx, zone 7, policy enforce\n");
  });

  test("passes warnings to stderr while it goes on", async () => {
    vi.mocked(attach).mockImplementation(async (op: OpContext) => {
      op.warn("the link of eth0 may reset");
      return { ...result, actions: [] };
    });
    const text = await run("attach eth0 --role uplink");
    expect([text.status, text.stderr]).toEqual([0, "lasthop: warning: the link of eth0 may reset\n"]);
    const json = await run("-j attach eth0 --role uplink");
    expect(json.stderr).toBe('{"level":"warning","message":"the link of eth0 may reset"}\n');
  });
});

describe("errors of operations", () => {
  const failure = new LasthopError("E_NO_INTERFACE", 'no interface is called "eht0"', {
    hint: "Did you mean eth0?",
    details: "what the kernel said",
    cause: new Error("the cause"),
  });

  test("are two lines, status 1", async () => {
    vi.mocked(attach).mockRejectedValue(failure);
    expect(await run("attach eht0 --role tap")).toEqual({
      status: 1,
      stdout: "",
      stderr: 'lasthop: no interface is called "eht0"\n  Did you mean eth0?\n',
    });
  });

  test("are one object with --json", async () => {
    vi.mocked(attach).mockRejectedValue(failure);
    const { stderr } = await run("attach eht0 --role tap --json");
    expect(JSON.parse(stderr)).toEqual({ code: failure.code, message: failure.message, hint: failure.hint });
  });

  test("have stack, causes and details with --debug", async () => {
    vi.mocked(attach).mockRejectedValue(failure);
    const { stderr } = await run("attach eht0 --role tap --debug");
    for (const part of ["what the kernel said", "Error: the cause", "    at "])
      expect(stderr).toContain(part);
    const json = JSON.parse(
      (await run("attach eht0 --role tap --debug --json")).stderr.trim().split("\n").at(-1)!,
    );
    expect(json.details).toContain("what the kernel said");
  });

  test("that are bugs say so", async () => {
    vi.mocked(status).mockImplementation(() => {
      throw new TypeError("x is not a function");
    });
    const text = await run("status");
    expect(text.status).toBe(1);
    expect(text.stderr).toBe(
      "lasthop: this is a bug in lasthop: TypeError: x is not a function\n" +
        "  Please report it with the output of the same command with --debug.\n",
    );
    expect(JSON.parse((await run("status -j")).stderr).code).toBe("E_INTERNAL");
  });

  test("cannot drive a terminal", async () => {
    vi.mocked(attach).mockRejectedValue(new LasthopError("E_INTERFACE", "no \x1b[2J here"));
    expect((await run("attach x --role tap")).stderr).toBe("lasthop: no \\x1b[2J here\n");
  });
});

describe("detach", () => {
  test("of some", async () => {
    vi.mocked(detach).mockResolvedValue({ detached: [{ interface: "a", ifindex: 1 }], purged: false });
    expect((await run("detach a b")).stdout).toBe("a: detached\n");
    expect(detach).toHaveBeenLastCalledWith(context, { interfaces: ["a", "b"] });
  });

  test("of all", async () => {
    vi.mocked(detach).mockResolvedValue({ detached: [], purged: true });
    expect((await run("detach --all --purge")).stdout).toBe("tables removed\n");
    expect(detach).toHaveBeenLastCalledWith(context, { all: true, purge: true });
    vi.mocked(detach).mockResolvedValue({ detached: [], purged: false });
    expect((await run("detach --all")).stdout).toBe("nothing was attached\n");
    expect(detach).toHaveBeenLastCalledWith(context, { all: true, purge: false });
  });
});

describe("status", () => {
  test("is three tables", async () => {
    vi.mocked(status).mockResolvedValue(STATUS);
    expect((await run("status")).stdout).toMatchInlineSnapshot(`
      "tables in /sys/fs/bpf/lasthop/v1-01234567, ABI v1-01234567

      INTERFACE  ROLE    HOOK        ZONE  POLICY    MTU  PROGRAM  OTHERS  STATE
      eth0       uplink  xdp_native     0  -        1500       40  -       ok
      vnet3      tap     tcx         1000  observe     -        -  7,9     program gone

      PROGRAM    ID  MEMORY  RUNS
      learn_xdp  40  16 KiB   123
      reply_tc   41       -     -

      TABLE   ENTRIES      MAX  USED   MEMORY
      flows4   524288  1048576   50%  100 MiB
      flows6        3  1048576   <1%        -

      established flows: 25% full, 0 evicted
      embryonic flows: <1% full, 12 evicted
      last expiry pass: ended 12s ago, took 4.21 s, expired 104 of 524400 flows
      "
    `);
    expect((await run("status --json")).stdout).toBe(`${JSON.stringify(STATUS)}\n`);
  });

  test.each([
    [{ services: { total: 1, empty: 0 }, vms: { total: 1, up: 1 } }, "1 service; 1 VM: 1 up"],
    [
      { services: { total: 3, empty: 2 }, vms: { total: 9, up: 4, drain: 2, down: 2, unknown: 1 } },
      "3 services, 2 without a VM that is up; 9 VMs: 4 up, 2 drain, 2 down, 1 unknown",
    ],
  ])("counts services and VMs where there are some", async ({ services, vms }, line) => {
    vi.mocked(status).mockResolvedValue({ ...STATUS, services, vms: { ...STATUS.vms, ...vms } });
    expect((await run("status")).stdout).toContain(`\n\n${line}\n\n`);
  });

  test("puts a bypass first", async () => {
    vi.mocked(status).mockResolvedValue({ ...STATUS, bypass: true, interfaces: [] });
    const { stdout } = await run("status --pin-root /sys/fs/bpf/other");
    expect(stdout).toContain("BYPASS IS ON");
    expect(stdout).toContain("no interface is attached");
    expect(status).toHaveBeenLastCalledWith(expect.objectContaining({ pinRoot: "/sys/fs/bpf/other" }));
  });
});

describe("flows", () => {
  const two = [flowEntry(), flowEntry({ protocol: "udp", state: "replied", stale: true })];

  test("list hands every filter on", async () => {
    vi.mocked(listFlows).mockReturnValue([][Symbol.iterator]() as never);
    const filters = "--zone 3 --device-mac 02:00:00:00:0a:01 --interface eth0 --state established";
    await run(`flows list ${filters} --address 2001:db8::/32 --limit 5`);
    expect(listFlows).toHaveBeenLastCalledWith(context, {
      zone: 3,
      device_mac: "02:00:00:00:0a:01",
      interface: "eth0",
      state: "established",
      address: "2001:db8::/32",
      limit: 5,
    });
  });

  test("list is a table", async () => {
    vi.mocked(listFlows).mockImplementation(() => two.values() as never);
    expect((await run("flows list")).stdout).toMatchInlineSnapshot(`
      "PROTO  ZONE  REMOTE              LOCAL         STATE        TIER         LAST HOP                        VM                 IDLE  FLAGS
      tcp       0  198.51.100.7:40000  10.0.0.5:443  established  established  02:00:00:00:0a:01 eth0          02:00:00:00:00:05    3s  -
      udp       0  198.51.100.7:40000  10.0.0.5:443  replied      established  02:00:00:00:0a:01 eth0 (stale)  02:00:00:00:00:05    3s  -
      "
    `);
  });

  test("list of nothing is nothing, and says so beside it", async () => {
    vi.mocked(listFlows).mockImplementation(() => [].values() as never);
    expect(await run("flows list")).toEqual({ status: 0, stdout: "", stderr: "no flow\n" });
  });

  test("list of many flows streams", async () => {
    let taken = 0;
    vi.mocked(listFlows).mockImplementation(function* () {
      for (; taken < 20_000; taken++) yield flowEntry({ local_port: taken });
    } as never);
    let first: number | undefined;
    const { stdout } = await run("flows list", { onStdout: () => (first ??= taken) });
    expect(stdout.split("\n").length).toBe(20_002);
    expect(first).toBeLessThan(2_000);
  });

  test("list with --json writes the lines it is given", async () => {
    vi.mocked(listFlowLines).mockImplementation(function* () {
      yield { lines: Buffer.from('{"a":1}\n{"a":2}\n'), flows: 2 };
      yield { lines: Buffer.from('{"a":3}\n'), flows: 1 };
    } as never);
    expect((await run("flows list -j")).stdout).toBe('{"a":1}\n{"a":2}\n{"a":3}\n');
  });

  test("list ends quietly, and stops reading, when its reader has gone", async () => {
    let ended = false;
    vi.mocked(listFlowLines).mockImplementation(function* () {
      try {
        for (;;) yield { lines: Buffer.from("{}\n"), flows: 1 };
      } finally {
        ended = true;
      }
    } as never);
    const onStdout = () => {
      throw new OutputClosed("EPIPE");
    };
    expect(await run("flows list --json", { onStdout })).toMatchObject({ status: 0, stderr: "" });
    expect(ended).toBe(true);
  });

  test.each([
    ["a terminal, output elsewhere", { stderr: true }, true],
    ["a terminal, output there too", { stderr: true, stdout: true }, false],
    ["no terminal", {}, false],
  ])("list shows progress if stderr is %s", async (_, terminals, shown) => {
    vi.mocked(listFlowLines).mockImplementation(function* () {
      const end = performance.now() + 500;
      while (performance.now() < end) yield { lines: Buffer.from("{}\n"), flows: 1000 };
    } as never);
    const { stderr } = await run("flows list --json", { terminals });
    if (shown) expect(stderr.replace("\x1b", "ESC")).toMatch(/^(\r\d+ flows)+\rESC\[K$/);
    else expect(stderr).toBe("");
  });

  test("show takes a tuple in any form", async () => {
    vi.mocked(showFlow).mockReturnValue(flowEntry());
    for (const argv of [
      ["tcp", "198.51.100.7:40000", "10.0.0.5:443"],
      ["tcp", "198.51.100.7:40000", "->", "10.0.0.5:443"],
      ["tcp 198.51.100.7:40000 -> 10.0.0.5:443"],
      ["tcp", "198.51.100.7:40000->10.0.0.5:443", "--zone", "0"],
    ]) {
      const { status: code, stdout } = await runCli(["flows", "show", ...argv]);
      expect(code).toBe(0);
      expect(stdout.split("\n")[1]).toMatch(/^tcp +0 +198\.51\.100\.7:40000 +10\.0\.0\.5:443 /);
      expect(showFlow).toHaveBeenLastCalledWith(context, TUPLE, 0);
    }
    expect(JSON.parse((await run("-j flows show tcp 198.51.100.7:1 10.0.0.5:2")).stdout)).toEqual(
      flowEntry(),
    );
  });

  test("flush says how many", async () => {
    vi.mocked(flushFlows).mockResolvedValue({ removed: 1 });
    expect((await run("flows flush --state syn")).stdout).toBe("removed 1 flow\n");
    expect(flushFlows).toHaveBeenLastCalledWith(context, { state: "syn" });
    expect((await run("flows flush --all --json")).stdout).toBe('{"removed":1}\n');
    expect(flushFlows).toHaveBeenLastCalledWith(context, {});
  });
});

test("last-hops list is a table", async () => {
  vi.mocked(listLastHops).mockReturnValue([LAST_HOP]);
  expect((await run("last-hops list")).stdout).toMatchInlineSnapshot(`
    "INDEX  MAC                INTERFACE  VLAN  STATE  ORIGIN   DEVICE  FLOWS  REQUESTS  BYTES  REPLIES  BYTES  RELEARNS   IDLE
        1  02:00:00:00:0a:01  eth0       10    up     learned  -        1234      5000  1 MiB     4000  999 B         7  4m12s
    "
  `);
  expect(JSON.parse((await run("last-hops list -j")).stdout)).toEqual({ last_hops: [LAST_HOP] });
  vi.mocked(listLastHops).mockReturnValue([]);
  expect((await run("last-hops list")).stdout).toBe("no last hop was learned\n");
});

describe("explain", () => {
  test("is facts and a conclusion", async () => {
    vi.mocked(explain).mockResolvedValue(EXPLANATION);
    const { stdout } = await run("explain tcp 198.51.100.7:40000 10.0.0.5:443 --zone 4");
    expect(stdout).toMatchInlineSnapshot(`
      "flow:         tcp 198.51.100.7:40000 -> 10.0.0.5:443, zone 4
      learned:      02:00:00:00:0a:01 eth0; state established, established tier, idle 3s
      host:         routed
      route lookup: via 203.0.113.1 (02:00:00:00:0b:01) on eth1 from 203.0.113.9
      reply:        redirect, reason redirect

      A reply goes to 02:00:00:00:0a:01 on eth0; the route lookup would have sent it to eth1.
      note: eth1 is not attached
      "
    `);
    expect(explain).toHaveBeenLastCalledWith(context, TUPLE, 4);
  });

  test("has the service, the VM by its name, and what becomes of a request", async () => {
    vi.mocked(explain).mockResolvedValue({
      ...EXPLANATION,
      flow: flowEntry({ vm: "web1", flags: ["service"] }),
      service: { name: "www", policy: "maglev", on_vm_down: "reset", vms_up: 1, vms_total: 2 },
      delivery: "Requests are handed to web1.",
    });
    const { stdout } = await run("explain tcp 198.51.100.7:40000 10.0.0.5:443");
    expect(stdout).toMatch(/^learned: .*, idle 3s, VM web1 \(02:00:00:00:00:05\)$/m);
    expect(stdout).toMatch(/^service: +www, maglev, 1 of 2 VMs up, on VM down reset$/m);
    expect(stdout).toContain("\n\nRequests are handed to web1.\nA reply goes to");
  });

  test("says that a guest behind a bridge decides", async () => {
    vi.mocked(explain).mockResolvedValue({ ...EXPLANATION, flow: null, route: null, host: "bridged" });
    const { stdout } = await run("explain icmp 2001:db8::7 2001:db8:1::5 4711");
    expect(stdout).toMatch(/^learned: +nothing$/m);
    expect(stdout).toMatch(/^route lookup: +the guest decides$/m);
  });
});

test("last-hops list has columns for what is more than a MAC only if there is such a last hop", async () => {
  const more = { mac: null, tunnel: { remote: "192.0.2.2", local: "192.0.2.1", id: 7 }, tags: [] };
  vi.mocked(listLastHops).mockReturnValue([LAST_HOP, { ...LAST_HOP, ...more, interface: "gre0" }]);
  const [head, first, second] = (await run("last-hops list")).stdout.split("\n");
  expect(head).toMatch(/^INDEX {2}MAC +INTERFACE {2}VLAN {2}TUNNEL +STATE/);
  expect(first).toMatch(/ eth0 +10 +- +up/);
  expect(second).toMatch(/^ +1 {2}- +gre0 +- +192\.0\.2\.2 id 7 +up/);
});

describe("trace", () => {
  const events = async function* (): AsyncGenerator<TraceEvent> {
    yield traceEvent();
    yield traceEvent({
      direction: "reply",
      verdict: "redirect",
      reason: "redirect",
      interface_after: "eth0",
    });
  };

  test("is a line and its explanation for each packet", async () => {
    vi.mocked(trace).mockImplementation(events);
    expect(
      (await run("trace tcp 198.51.100.7:40000 10.0.0.5:443 --seconds 9")).stdout,
    ).toMatchInlineSnapshot(`
      "SECONDS  DIRECTION  INTERFACE        HOOK         VERDICT   REASON          STATE        FLAGS  BYTES  TO MAC AND INTERFACE
        0.123  request    eth0             tcx          pass      learn           syn          S         74  02:00:00:00:00:05
               a new flow was learned
        0.123  reply      eth0             tcx          redirect  redirect        syn          S         74  02:00:00:00:00:05 -> 02:00:00:00:00:05 eth0
               a new flow was learned
      "
    `);
    expect(trace).toHaveBeenLastCalledWith(context, TUPLE, {
      zone: 0,
      seconds: 9,
      signal: expect.any(AbortSignal),
    });
  });

  test("or one object", async () => {
    vi.mocked(trace).mockImplementation(events);
    const { stdout } = await run("trace -j tcp 198.51.100.7:40000 10.0.0.5:443");
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines[0]).toEqual(traceEvent());
    expect(lines).toHaveLength(2);
  });
});

describe("stats", () => {
  test("is a table", async () => {
    vi.mocked(stats).mockReturnValue(VERDICTS);
    expect((await run("stats")).stdout).toMatchInlineSnapshot(`
      "INTERFACE  ROLE    VERDICT   REASON    PACKETS    BYTES
      eth0       uplink  pass      refresh   1234567  942 MiB
      vnet3      tap     redirect  redirect       10    640 B
      "
    `);
    expect(JSON.parse((await run("stats -j")).stdout)).toEqual({ counters: VERDICTS });
  });

  test("--watch shows rates, and ends with status 0 when told to", async () => {
    let round = 0;
    vi.mocked(stats).mockImplementation(() =>
      VERDICTS.map((row) => ({ ...row, packets: row.packets + 500 * round++ })),
    );
    const stop = new AbortController();
    let shown = 0;
    const onStdout = () => {
      if (++shown === 2) stop.abort();
    };
    const { status: code, stdout, stderr } = await run("stats --watch", { signal: stop.signal, onStdout });
    expect([code, stderr, shown]).toEqual([0, "", 2]);
    expect(stdout.match(/PACKETS\/S/g)).toHaveLength(1);
    expect(stdout).not.toContain("\x1b");
  });

  test("--watch clears a terminal", async () => {
    vi.mocked(stats).mockReturnValue(VERDICTS);
    const stop = new AbortController();
    const { stdout } = await run("stats --watch", {
      signal: stop.signal,
      onStdout: () => stop.abort(),
      terminals: { stdout: true },
    });
    expect(stdout.startsWith("\x1b[H\x1b[2J")).toBe(true);
  });
});

test("sweep sums up", async () => {
  vi.mocked(sweep).mockResolvedValue(SWEEP);
  expect((await run("sweep")).stdout).toMatchInlineSnapshot(`
    "expired 1000 of 1000000 flows in 215 ms (60 kernel calls, the longest 4.1 ms)
    released 1 last hop

    TABLE   ENTRIES  EXPIRED  LOCAL ORIGIN  STATES                           EVICTED
    flows4  1000000     1000            12  established 998000, closed 1000  established 7
    flows6        0        0             0  -                                -

      ZONE  TABLE   STATES
         0  flows4  established 997000, closed 1000
    others  flows4  established 1000
    "
  `);
  expect(sweep).toHaveBeenLastCalledWith(context, {});
  await run("sweep --idle 300");
  expect(sweep).toHaveBeenLastCalledWith(context, { idle_seconds: 300 });
});

test("bypass says what is so now", async () => {
  vi.mocked(setBypass).mockImplementation(async (_op, on) => ({ bypass: on }));
  expect((await run("bypass on")).stdout).toBe("bypass is on: every packet passes\n");
  expect(setBypass).toHaveBeenLastCalledWith(context, true);
  expect((await run("bypass off --json")).stdout).toBe('{"bypass":false}\n');
  expect(setBypass).toHaveBeenLastCalledWith(context, false);
});

describe("doctor", () => {
  test("is findings, then advice", async () => {
    vi.mocked(doctor).mockResolvedValue(DOCTOR);
    const { status: code, stdout } = await run("doctor");
    expect(code).toBe(0);
    expect(stdout).toMatchInlineSnapshot(`
      "CHECK      LEVEL  FOUND
      kernel     ok     6.18
      netfilter  warn   filter rules on the host

      INTERFACE  DRIVER  AUTO MODE  BECAUSE
      eth0       ixgbe   tcx        it strips VLAN tags

      netfilter: redirected replies pass them by
      eth0: ethtool -K eth0 rx-vlan-offload off
      "
    `);
  });

  test("fails if lasthop cannot work", async () => {
    const checks = [{ name: "kernel", level: "fail", found: "5.10", hint: "boot 6.1" } as const];
    vi.mocked(doctor).mockResolvedValue({ checks: [...checks], interfaces: [] });
    const { status: code, stdout, stderr } = await run("doctor");
    expect([code, stderr]).toEqual([1, ""]);
    expect(stdout).toContain("kernel: boot 6.1");
    expect((await run("doctor -j")).status).toBe(1);
  });
});
