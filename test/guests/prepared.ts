// SPDX-License-Identifier: Apache-2.0
// What the tests with guests share: an image, or the reason why there is none; and how one asks a guest.

import { afterAll, describe, test } from "vitest";
import { type Family, mac, vmAddress } from "../support/addresses.ts";
import { bracket } from "../support/fixture.ts";
import type { Namespace } from "../support/lab.ts";
import { GuestImage, type GuestOptions } from "../support/qemuGuest.ts";
import { type Output, TIMEOUT_FACTOR } from "../support/run.ts";
import type { Site } from "../support/site.ts";
import { Unavailable } from "../vm/image.ts";

/** Of one test, and of what is done before the first: emulated guests boot, and move megabytes. */
export const LIMIT = { timeout: 240_000 * TIMEOUT_FACTOR };

/** The tests, or one that is skipped where guests cannot be had. Asked while tests are collected. */
export async function describeGuests(name: string, define: (image: GuestImage) => void): Promise<void> {
  let image: GuestImage;
  try {
    image = await GuestImage.prepare();
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    test(name, ({ skip }) => skip(error.message));
    return;
  }
  afterAll(() => image.close());
  describe(name, () => define(image));
}

/** Behind the site's bridge, with firewall b as its gateway. */
export function guestOptions(site: Site, number: number, more: Partial<GuestOptions> = {}): GuestOptions {
  return {
    name: `guest${number}`,
    mac: mac(0x0e, 0x20 + number),
    tap: `vnet${number}`,
    address: vmAddress(20 + number),
    gateway: site.b.address,
    bridge: "br",
    ...more,
  };
}

/** GET; its body is the guest's name, if the path is `/`. */
export function get(from: Namespace, host: string, path = "/", seconds = 10): Promise<Output> {
  return from.run([
    ...["curl", "-sS", "--noproxy", "*", "--max-time", `${seconds}`],
    `http://${bracket(host)}${path}`,
  ]);
}

/** What guest answers in `family` at `address`, whole. */
export async function named(from: Namespace, address: Record<Family, string>, family: Family) {
  const { status, stdout, stderr } = await get(from, address[family]);
  if (status !== 0) throw new Error(`no page of ${address[family]}: ${stderr}`);
  return stdout.trim();
}
