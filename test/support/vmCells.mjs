// SPDX-License-Identifier: Apache-2.0
// What the hot path finds of the VMs that have a name: the states of their cells, by name. Plain JavaScript, because it
// runs by itself on Node 20.

export default async function vmCells(dist, pinRoot) {
  const { openInstance } = await import(`${dist}/kernel/instance.js`);
  const { Tables } = await import(`${dist}/tables/index.js`);
  const { VM_STATE_NAMES } = await import(`${dist}/abi/codec.js`);
  const instance = openInstance(pinRoot);
  try {
    const { guests } = new Tables(instance);
    const states = [...guests.specs.entries()].map(([{ name }, { id }]) => {
      const found = guests.cellOf(id);
      return [name, found ? VM_STATE_NAMES[found.vm.state] : "none"];
    });
    return Object.fromEntries(states.sort());
  } finally {
    instance.close();
  }
}
