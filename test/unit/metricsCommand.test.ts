// SPDX-License-Identifier: Apache-2.0
// `lasthop metrics`, and the file that it replaces.

import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { metricsData, metricsText, replaceFile } from "../../src/ops/metrics.ts";
import { runCli } from "../support/cli.ts";

vi.mock("../../src/ops/metrics.ts", async (actual) => ({
  ...(await actual<typeof import("../../src/ops/metrics.ts")>()),
  metricsText: vi.fn(),
  metricsData: vi.fn(),
}));

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "lasthop-metrics-"));
});
afterEach(() => {
  vi.resetAllMocks();
  rmSync(directory, { recursive: true });
});

const TEXT = "# HELP a A.\n# TYPE a gauge\na 1\n";

describe("lasthop metrics", () => {
  test("prints the text", async () => {
    vi.mocked(metricsText).mockResolvedValue(TEXT);
    expect(await runCli(["metrics"])).toMatchObject({ status: 0, stdout: TEXT, stderr: "" });
    expect(metricsText).toHaveBeenCalledWith(expect.objectContaining({ pinRoot: "/sys/fs/bpf/lasthop" }));
  });

  test("prints data", async () => {
    const families = [
      { name: "a", type: "gauge" as const, help: "A.", series: [{ labels: { b: 1 }, value: 2 }] },
    ];
    vi.mocked(metricsData).mockResolvedValue(families);
    expect(JSON.parse((await runCli(["metrics", "--json"])).stdout)).toEqual({ metrics: families });
  });

  test("writes a file and prints nothing", async () => {
    vi.mocked(metricsText).mockResolvedValue(TEXT);
    const path = join(directory, "lasthop.prom");
    expect(await runCli(["metrics", "--output", path])).toMatchObject({ status: 0, stdout: "", stderr: "" });
    expect(readFileSync(path, "utf8")).toBe(TEXT);
    const { stdout } = await runCli(["metrics", "--output", path, "--json"]);
    expect(JSON.parse(stdout)).toEqual({ output: path, bytes: TEXT.length });
    expect(readdirSync(directory)).toEqual(["lasthop.prom"]);
  });

  test("leaves the file as it was when the tables cannot be read", async () => {
    vi.mocked(metricsText).mockRejectedValue(new Error("no tables"));
    const path = join(directory, "lasthop.prom");
    writeFileSync(path, "before");
    expect((await runCli(["metrics", "--output", path])).status).toBe(1);
    expect(readFileSync(path, "utf8")).toBe("before");
  });
});

describe("the file", () => {
  test("is another one afterwards, readable by all whatever the umask: who has it open reads the old one", () => {
    const path = join(directory, "x.prom");
    writeFileSync(path, "before");
    chmodSync(path, 0o600);
    const before = statSync(path).ino;
    const umask = process.umask(0o077);
    try {
      replaceFile(path, TEXT);
    } finally {
      process.umask(umask);
    }
    expect(readFileSync(path, "utf8")).toBe(TEXT);
    expect(statSync(path).ino).not.toBe(before);
    expect(statSync(path).mode & 0o777).toBe(0o644);
    expect(readdirSync(directory)).toEqual(["x.prom"]);
  });

  test.each([
    ["a directory that is not there", "none/x.prom"],
    ["a directory of that name", "directory"],
    ["a file in the place of the directory", "file/x.prom"],
  ])("cannot be written: %s", (_, name) => {
    mkdirSync(join(directory, "directory"));
    writeFileSync(join(directory, "file"), "");
    const path = join(directory, name);
    const before = readdirSync(directory);
    expect(() => replaceFile(path, TEXT)).toThrow(
      expect.objectContaining({
        code: "E_OUTPUT",
        message: expect.stringContaining(`cannot write ${path}: `),
      }),
    );
    expect(readdirSync(directory)).toEqual(before);
  });
});
