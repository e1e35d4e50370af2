// SPDX-License-Identifier: Apache-2.0

/** Every code that lasthop can answer with. docs/errors.md explains each; a test holds it to this list. */
export const ERROR_CODES = [
  "E_USAGE", // the command line is wrong
  "E_INTERNAL", // a bug of ours
  "E_NOT_ROOT", // a capability is missing
  "E_KERNEL", // the kernel is too old or lacks a feature
  "E_LIBBPF_MISSING", // libbpf.so.1 cannot be loaded
  "E_FFI", // the chosen FFI backend cannot be loaded
  "E_BPF", // a bpf call failed
  "E_LOAD", // the kernel refused a program
  "E_NETLINK", // a netlink request failed
  "E_BPFFS", // no bpf file system, or the pin path cannot be written
  "E_ABI", // tables of another ABI version are pinned here
  "E_NETNS", // the tables belong to another network namespace
  "E_LOCKED", // another command is changing things
  "E_NO_TABLES", // nothing is attached, so there are no tables
  "E_NO_INTERFACE", // no such interface
  "E_INTERFACE", // an interface that cannot be attached
  "E_MODE", // this mode does not work here
  "E_FOREIGN", // somebody else's program is in the way
  "E_TUPLE", // a five-tuple that cannot be read
  "E_NOT_FOUND", // no such flow, device, …
  "E_CONFIG", // the configuration file is wrong, or cannot be read
  "E_HELD", // `lasthop run` holds the instance, and its configuration has the object
  "E_DEVICE", // a device that cannot be as was asked
  "E_TUNNEL", // a tunnel that cannot be as was asked
  "E_VM", // a VM that cannot be as was asked
  "E_SERVICE", // a service that cannot be as was asked
  "E_LISTEN", // an address that cannot be listened on
  "E_OUTPUT", // a file that cannot be written
  "E_UPGRADE", // programs or tables could not be exchanged
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export interface LasthopErrorOptions {
  /** What to do about it, one sentence. */
  hint?: string;
  cause?: unknown;
  /** Long text for `--debug`: a verifier log, what libbpf said. */
  details?: string;
}

/** An error for the user: what was tried on what, and what to do. Anything else thrown is a bug. */
export class LasthopError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: string | undefined;

  constructor(code: ErrorCode, message: string, options: LasthopErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "LasthopError";
    this.code = code;
    this.hint = options.hint;
    this.details = options.details;
  }
}
