// SPDX-License-Identifier: Apache-2.0
// What the tests of a file run in: one world for all of them, or one whose programs are attached to its devices.

import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import { createDevices, enterPrivateNamespace } from "./devices.ts";
import { Wire } from "./wire.ts";
import { World } from "./world.ts";

/** While the tests of a file run that has called `useWorld` or `useWire`. */
export let world: World;

/** While the tests of a file run that has called `useWire`. */
export let wire: Wire;

/** Registers what makes the world, in a network namespace of its own, and closes it. */
export function useWorld(): void {
  beforeAll(() => {
    enterPrivateNamespace();
    createDevices();
    world = new World();
  });
  afterAll(() => world?.close());
}

/** The same, with real frames: each test begins with an empty world, and with nothing attached. */
export function useWire(): void {
  useWorld();
  beforeAll(() => {
    wire = new Wire(world);
  });
  beforeEach(() => {
    world.reset();
    wire.capture(["uplink_a", "uplink_b", "tap_1", "tap_2"]);
  });
  afterEach(() => wire.detachAll());
  // Runs before that of the world.
  afterAll(() => wire?.close());
}
