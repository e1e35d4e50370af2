// SPDX-License-Identifier: Apache-2.0
// What others do to our pins beneath a daemon that runs: removed, unmounted, read-only.

import { existsSync, mkdtempSync, readdirSync, rmdirSync, rmSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { attachedOnce, cleanUpDaemons, Daemon, WHOLE_SITE } from "../support/daemon.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { must, run, sleep, until } from "../support/run.ts";

cleanUpDaemons();

let daemon: Daemon | undefined;
afterEach(async () => {
  await daemon?.stop();
  daemon = undefined;
});

async function openAll({ site }: Ground): Promise<void> {
  for (const family of FAMILIES) {
    await site.client.agent.call("open", { key: `pins${family}`, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("startEchoing", { key: `pins${family}` });
  }
}

/** Every connection went on, and no reply went the other way. */
async function expectUndisturbed({ site }: Ground): Promise<void> {
  for (const family of FAMILIES) {
    const key = `pins${family}`;
    expect((await site.client.agent.call("stopEchoing", { key })).error).toBeNull();
    await site.client.agent.call("close", { key });
  }
  expect((await site.b.counts()).packets("dropped")).toBe(0);
}

function instancePath({ lab }: Ground): string {
  return join(lab.pinRoot, readdirSync(lab.pinRoot).find((name) => /^v\d+-[0-9a-f]+$/.test(name))!);
}

function pins(path: string): string[] {
  return ["maps", "programs", "links"].flatMap((kind) =>
    readdirSync(join(path, kind)).map((name) => `${kind}/${name}`),
  );
}

function removeTree(path: string): void {
  for (const pin of pins(path)) unlinkSync(join(path, pin));
  for (const kind of ["maps", "programs", "links"]) rmdirSync(join(path, kind));
  rmdirSync(path);
}

describe("pins that are removed", () => {
  const ground = useSite({ vms: 1 });

  it("are pinned again, the same objects; nothing is attached twice, and no connection notices", async () => {
    const { site, lasthop } = ground;
    daemon = await Daemon.start(ground);
    await openAll(ground);
    const path = instancePath(ground);
    const names = pins(path);
    const before = await lasthop.status();
    await site.resetCounts();

    // Some.
    for (const name of [
      "maps/flows4",
      "programs/reply_tc",
      ...names.filter((one) => one.startsWith("links/")),
    ]) {
      unlinkSync(join(path, name));
    }
    await daemon.logs(/pins had been removed: pinned again count=5/);
    expect(pins(path)).toEqual(names);

    // All of them, and the directories.
    const since = daemon.mark();
    removeTree(path);
    await until(
      () => since().some((line) => line.includes(`pinned again count=${names.length}`)),
      "all pins",
    );
    expect(pins(path)).toEqual(names);
    await attachedOnce(ground, [...site.uplinks, ...site.taps]);
    const after = await lasthop.status();
    expect(after.interfaces).toEqual(before.interfaces);
    expect(after.programs.map(({ id }) => id)).toEqual(before.programs.map(({ id }) => id));
    await expectUndisturbed(ground);
  });

  it("together with their root: the daemon still holds the instance", async () => {
    daemon = await Daemon.start(ground);
    const { lab } = ground;
    removeTree(instancePath(ground));
    rmdirSync(join(lab.pinRoot, "daemon"));
    rmdirSync(lab.pinRoot);
    await daemon.logs(/pinned again/);
    const second = Daemon.launch(ground, WHOLE_SITE);
    expect(await second.process.exited).toBe(1);
    expect(second.process.stderr).toContain("another `lasthop run` holds");
  });

  it("of an interface that is detached by hand are not made again", async () => {
    const { site, lasthop } = ground;
    daemon = await Daemon.start(ground, "uplinks: [{ name: 'up*' }]\ntaps: []\n");
    await lasthop.attach(site.vm.tap, "tap");
    await sleep(2500);
    await lasthop.must("detach", site.vm.tap);
    const since = daemon.mark();
    await sleep(4500);
    expect(since().join("\n")).not.toContain("pinned again");
    expect((await lasthop.status()).interfaces.map((one) => one.interface)).toEqual(site.uplinks);
  });

  it("while no daemon runs: the next start makes new ones, and one program is on each interface", async () => {
    const { site } = ground;
    daemon = await Daemon.start(ground);
    await daemon.stop();
    removeTree(instancePath(ground));
    daemon = await Daemon.start(ground);
    await attachedOnce(ground, [...site.uplinks, ...site.taps]);
    await site.resetCounts();
    await openAll(ground);
    await expectUndisturbed(ground);
  });
});

describe("a bpf file system of the daemon's own", () => {
  const ground = useSite({ vms: 1 });

  /** In a mount namespace where nobody else notices what happens to it. */
  async function startApart(): Promise<{ inside(...argv: string[]): Promise<string>; mount: string }> {
    const mount = mkdtempSync(join(tmpdir(), `lasthop-bpffs-${process.pid}-`));
    const script = `mount -t bpf bpf ${mount} && exec "$@"`;
    daemon = await Daemon.start(ground, WHOLE_SITE, {
      prefix: ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"],
      pinRoot: join(mount, "lasthop"),
    });
    const inside = (...argv: string[]) => must(["nsenter", `--mount=/proc/${daemon?.pid}/ns/mnt`, ...argv]);
    return { inside, mount };
  }

  it("that is unmounted: forwarding goes on, one error says so, and it is repaired when it is mounted again", async () => {
    const { inside, mount } = await startApart();
    try {
      await openAll(ground);
      await ground.site.resetCounts();
      await inside("umount", "-l", mount);
      await daemon?.logs(/error: .*not on a bpf file system.*forwarding goes on/);
      const since = daemon!.mark();
      // A tap cannot be attached now, and is when it can.
      await ground.site.host.ip("link add tap5 type veth peer name peer5");
      await sleep(5000);
      expect(since()).toEqual([]);
      await inside("mount", "-t", "bpf", "bpf", mount);
      await daemon?.logs(/pins had been removed: pinned again/);
      await daemon?.logs(/the pins are in order again/);
      await daemon?.logs(/tap5: attached/, 15_000);
      const { site } = ground;
      await attachedOnce(ground, [...site.uplinks, ...site.taps, "tap5"]);
      await expectUndisturbed(ground);
      expect(await inside("ls", join(mount, "lasthop"))).toMatch(/^daemon\nv1-/);
    } finally {
      await daemon?.stop();
      await run(["umount", mount]);
      rmSync(mount, { recursive: true });
      await ground.site.host.run(["ip", "link", "del", "tap5"]);
    }
  });

  it("that becomes read-only: it is explained, and what waited is attached afterwards", async () => {
    const { inside, mount } = await startApart();
    try {
      await inside("mount", "-o", "remount,ro", mount);
      await ground.site.host.ip("link add tap4 type veth peer name peer4");
      await daemon?.logs(/error: .*read-only.* hint=".*remount,rw/);
      await inside("mount", "-o", "remount,rw", mount);
      await daemon?.logs(/tap4: attached/, 15_000);
    } finally {
      await daemon?.stop();
      rmSync(mount, { recursive: true });
      await ground.site.host.run(["ip", "link", "del", "tap4"]);
    }
    expect(existsSync(mount)).toBe(false);
  });
});
