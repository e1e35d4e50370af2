// SPDX-License-Identifier: Apache-2.0

/** To the list that a map has under a key; it has one then. */
export function append<K, V>(lists: Map<K, V[]>, key: K, item: V): void {
  const list = lists.get(key);
  if (list) list.push(item);
  else lists.set(key, [item]);
}
