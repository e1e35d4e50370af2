// SPDX-License-Identifier: Apache-2.0
// What is known without booting a guest: which tests run on which kernel, and what is made of a guest's results.

import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { repositoryPath } from "../support/paths.ts";
import type { GuestRun } from "../vm/guest.ts";
import { modulesInOrder } from "../vm/initramfs.ts";
import { KERNELS } from "../vm/kernels.ts";
import { type GuestEvent, type GuestTest, selectTests } from "../vm/results.ts";
import { incompleteness } from "../vm/suite.ts";

describe.each(KERNELS)("the table for Linux $series", ({ series, packages, tests }) => {
  it("names files that exist, and a part of them for `make test`", () => {
    const files = Object.keys(tests);
    expect(files.filter((file) => !existsSync(repositoryPath(file)))).toEqual([]);
    expect(existsSync(repositoryPath(`test/vm/linux-${series}.test.ts`))).toBe(true);
    const selected = Object.keys(selectTests(tests, "default"));
    expect(selected.length).toBeGreaterThan(0);
    expect(selected.length).toBeLessThan(files.length);
    expect(Object.keys(selectTests(tests, "full"))).toEqual(files);
  });

  it("takes that series' generic kernel and no other", () => {
    const all = [
      "linux-image-6.1.0-56-amd64",
      "linux-image-6.1.0-9-cloud-amd64",
      "linux-image-6.1.0-56-rt-amd64",
      "linux-image-6.1.0-56-amd64-dbg",
      "linux-image-6.1.0-56-amd64-unsigned",
      "linux-image-6.12.117+deb12-amd64",
      "linux-image-6.12.117+deb12-cloud-amd64",
      "linux-image-6.16.3+deb13-amd64",
    ];
    expect(all.filter((name) => packages.test(name))).toEqual([
      series === "6.1" ? "linux-image-6.1.0-56-amd64" : "linux-image-6.12.117+deb12-amd64",
    ]);
  });
});

it("a file's tests are for the default lane or the full one; a pattern chooses some", () => {
  const tests = {
    "a.test.ts": "default",
    "b.test.ts": "full",
    "c.test.ts": { default: /first/ },
    "d.test.ts": { default: /first/, full: /second/ },
    "e.test.ts": { full: /second/ },
  } as const;
  expect(selectTests(tests, "default")).toEqual({
    "a.test.ts": null,
    "c.test.ts": "first",
    "d.test.ts": "first",
  });
  expect(selectTests(tests, "full")).toEqual({
    "a.test.ts": null,
    "b.test.ts": null,
    "c.test.ts": null,
    "d.test.ts": "first|second",
    "e.test.ts": "second",
  });
});

it("modules are loaded after those that they need, once", () => {
  const dependencies = [
    "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz",
    "kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz",
    "kernel/fs/netfs/netfs.ko.xz:",
    "kernel/drivers/virtio/virtio-pci.ko:",
    "",
  ].join("\n");
  expect(modulesInOrder(dependencies, ["virtio_pci", "9p", "9pnet", "built_in"])).toEqual([
    "kernel/drivers/virtio/virtio-pci.ko",
    "kernel/fs/netfs/netfs.ko.xz",
    "kernel/net/9p/9pnet.ko.xz",
    "kernel/fs/9p/9p.ko.xz",
  ]);
});

describe("what is missing from a guest's run", () => {
  const passed: GuestTest = {
    event: "test",
    file: "a",
    name: "one",
    state: "passed",
    duration_ms: 1,
    errors: [],
  };
  const begin: GuestEvent = { event: "begin", file: "a" };
  const end: GuestEvent = { event: "end", file: "a", errors: [] };
  const done: GuestEvent = { event: "done", errors: [] };
  const failed: GuestTest = { ...passed, state: "failed", errors: ["no"] };
  const guest = (events: GuestEvent[], status?: number): GuestRun => ({
    release: "6.1.0",
    events,
    status,
    ending: "it was stopped after 5 minutes",
    seconds: 1,
    directory: "/nowhere",
  });

  it.each<[string, GuestRun, string[]]>([
    ["all done", guest([begin, passed, end, done], 0), []],
    ["a test that failed is told by that test", guest([begin, failed, end, done], 1), []],
    ["a file that was not found", guest([done], 1), ["a did not begin"]],
    ["a file without a chosen test", guest([begin, end, done], 0), ["a ran no test"]],
    [
      "a file that cannot be loaded",
      guest([begin, { ...end, errors: ["SyntaxError"] }, done], 1),
      ["SyntaxError"],
    ],
    [
      "an error outside any test",
      guest([begin, passed, end, { event: "done", errors: ["unhandled"] }], 1),
      ["unhandled"],
    ],
    [
      "a guest that hangs",
      guest([begin, passed]),
      [
        "a did not end",
        "the tests' run did not end",
        "the guest did not finish: it was stopped after 5 minutes",
      ],
    ],
    [
      "a command that fails for no known reason",
      guest([begin, passed, end, done], 7),
      ["the command ended with 7"],
    ],
  ])("%s", (_, run, problems) => {
    expect(incompleteness(run, ["a"])).toEqual(problems);
  });
});
