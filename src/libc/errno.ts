// SPDX-License-Identifier: Apache-2.0
import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";

/** Numbers that the kernel returns and Node does not know; the same on every architecture we run on. */
const EXTRA = {
  ENOTBLK: 15,
  ENOTUNIQ: 76,
  EBADFD: 77,
  ESOCKTNOSUPPORT: 94,
  EPFNOSUPPORT: 96,
  ESHUTDOWN: 108,
  EHOSTDOWN: 112,
  EUCLEAN: 117,
  EREMOTEIO: 121,
  ENOMEDIUM: 123,
  ENOKEY: 126,
  /** Kernel-internal, but bpf and tc let it out. */
  ENOTSUPP: 524,
} as const;

/** Numbers by name: `ERRNO.ENOENT` is 2. */
export const ERRNO = { ...EXTRA, ...constants.errno };
export type ErrnoName = keyof typeof ERRNO;

// Several names share a number (EAGAIN and EWOULDBLOCK, EOPNOTSUPP and ENOTSUP): these are the ones to print.
const PREFERRED: ErrnoName[] = ["EAGAIN", "EOPNOTSUPP"];

const NAMES = new Map<number, string>(Object.entries(ERRNO).map(([name, number]) => [number, name]));
for (const name of PREFERRED) NAMES.set(ERRNO[name], name);

/** "ENOENT" for 2 or -2; "errno 9999" for a number without a name. */
export function errnoName(errno: number): string {
  return NAMES.get(Math.abs(errno)) ?? `errno ${Math.abs(errno)}`;
}

/** "no such file or directory (ENOENT)" for 2 or -2. */
export function errnoText(errno: number): string {
  const text = getSystemErrorMap().get(-Math.abs(errno))?.[1];
  const name = errnoName(errno);
  return text === undefined ? name : `${text} (${name})`;
}
