// SPDX-License-Identifier: Apache-2.0
// `plan` and `apply` over operations that are not there: exit statuses, and what is written where.

import { afterEach, describe, expect, test, vi } from "vitest";
import { failure } from "../../src/controller/failure.ts";
import { UndoError } from "../../src/controller/steps.ts";
import { LasthopError } from "../../src/errors.ts";
import { BpfError } from "../../src/libbpf/index.ts";
import { applyConfig } from "../../src/ops/apply.ts";
import { plan } from "../../src/ops/plan.ts";
import type { ConfigFailure, PlanReport } from "../../src/ops/types.ts";
import { runCli } from "../support/cli.ts";

vi.mock("../../src/ops/plan.ts", () => ({ plan: vi.fn() }));
vi.mock("../../src/ops/apply.ts", () => ({ applyConfig: vi.fn() }));
afterEach(() => {
  vi.resetAllMocks();
});

const FILE = "/etc/lasthop/lasthop.yaml";
const NOTHING: PlanReport = { file: FILE, actions: [], failed: [], warnings: [] };
const ACTIONS: PlanReport["actions"] = [
  { kind: "attach", object: "eth0", text: "eth0: attach as uplink by tcx, zone 0", config: "uplinks[0]" },
  { kind: "gone", object: "vnet1", text: "vnet1 is gone: forgotten", config: null },
];
const FAILED: ConfigFailure = {
  object: "eth1",
  config: "uplinks[1]",
  code: "E_MODE",
  message: "cannot attach eth1 in mode native",
  hint: "Use --mode tc.",
};
const run = (line: string) => runCli(line.split(" "));
const context = expect.objectContaining({ pinRoot: "/sys/fs/bpf/lasthop" });

describe("plan", () => {
  test.each([
    ["plan", FILE],
    ["plan -c x.yaml", "x.yaml"],
    ["plan --config=x.yaml", "x.yaml"],
    ["-j plan -c x.yaml", "x.yaml"],
  ])("%s reads %s", async (line, file) => {
    vi.mocked(plan).mockResolvedValue(NOTHING);
    expect((await run(line)).status).toBe(0);
    expect(plan).toHaveBeenCalledWith(context, file);
  });

  const rows: [what: string, report: PlanReport, status: number, stdout: string, stderr: string][] = [
    ["nothing to do", NOTHING, 0, "nothing to do\n", ""],
    [
      "something",
      { ...NOTHING, actions: ACTIONS },
      3,
      "eth0: attach as uplink by tcx, zone 0 (uplinks[0])\nvnet1 is gone: forgotten\n",
      "",
    ],
    [
      "a warning",
      { ...NOTHING, warnings: ["look out"] },
      0,
      "nothing to do\n",
      "lasthop: warning: look out\n",
    ],
    [
      "what cannot be, which counts more than something to do",
      { ...NOTHING, actions: ACTIONS.slice(1), failed: [FAILED, { ...FAILED, config: null, hint: null }] },
      1,
      "vnet1 is gone: forgotten\n",
      "lasthop: uplinks[1]: cannot attach eth1 in mode native\n  Use --mode tc.\n" +
        "lasthop: cannot attach eth1 in mode native\n",
    ],
  ];
  test.each(rows)("shows %s", async (_, report, status, stdout, stderr) => {
    vi.mocked(plan).mockResolvedValue(report);
    expect(await run("plan")).toEqual({ status, stdout, stderr });
    const json = await run("plan --json");
    expect(json).toEqual({ status, stdout: `${JSON.stringify(report)}\n`, stderr: "" });
  });

  test.each([
    ["plan -c", /needs a value/],
    ["plan -c a -c b", /more than once/],
    ["plan x.yaml", /too much/],
    ["plan -x", /unknown option -x/],
    ["-c x.yaml", /unknown option -c/],
  ])("%s is wrong", async (line, message) => {
    const { status, stderr } = await run(line);
    expect(status).toBe(2);
    expect(stderr).toMatch(message);
  });
});

describe("apply", () => {
  test("says what was done", async () => {
    vi.mocked(applyConfig).mockResolvedValue({ ...NOTHING, actions: ACTIONS, done: ["one", "two"] });
    expect(await run("apply")).toEqual({ status: 0, stdout: "one\ntwo\n", stderr: "" });
    expect(applyConfig).toHaveBeenCalledWith(context, FILE);
  });

  test("says that there was nothing to do", async () => {
    vi.mocked(applyConfig).mockResolvedValue({ ...NOTHING, done: [] });
    expect(await run("apply -c x.yaml")).toEqual({ status: 0, stdout: "nothing to do\n", stderr: "" });
  });

  test("says what failed, and is 1 then", async () => {
    vi.mocked(applyConfig).mockResolvedValue({ ...NOTHING, failed: [FAILED], done: ["one"] });
    const { status, stdout, stderr } = await run("apply");
    expect([status, stdout]).toEqual([1, "one\n"]);
    expect(stderr).toContain("uplinks[1]: cannot attach eth1");
  });
});

describe("a failure", () => {
  test("of ours has its code and hint", () => {
    const error = new LasthopError("E_MODE", "no", { hint: "Do." });
    expect(failure("eth0", "uplinks[0]", error)).toEqual({
      object: "eth0",
      config: "uplinks[0]",
      code: "E_MODE",
      message: "no",
      hint: "Do.",
      cause: error,
    });
  });

  test("that could not be taken back says both", () => {
    const error = new UndoError(new BpfError("cannot pin", 30), [new Error("gone"), new Error("too")]);
    const told = failure("eth0", null, error);
    expect(told.code).toBe("E_BPF");
    expect(told.message).toMatch(/^cannot pin.*; taking it back failed too: .*gone.*; .*too$/);
  });

  test.each([[new TypeError("x is undefined")], ["a text"]])("that is a bug is told as one", (thrown) => {
    expect(failure("eth0", null, thrown)).toMatchObject({ code: "E_INTERNAL", hint: expect.any(String) });
  });
});
