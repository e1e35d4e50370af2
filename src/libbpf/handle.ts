// SPDX-License-Identifier: Apache-2.0
import { closeSync, readlinkSync } from "node:fs";
import { basename } from "node:path";
import { LasthopError } from "../errors.ts";
import { ERRNO } from "../libc/index.ts";
import { bpfError, check } from "./error.ts";
import { native } from "./native.ts";

/** Where a descriptor came from. A borrowed one belongs to a BpfObject and is closed by it. */
export type Ownership = "owned" | "borrowed";

export type Kind = "map" | "program" | "link" | "iterator";

/** The anonymous inodes behind our descriptors. The kernel itself writes "bpf-link" and "bpf_link". */
const INODES: Record<Exclude<Kind, "iterator">, RegExp> = {
  map: /^anon_inode:\[?bpf.map\]?$/,
  program: /^anon_inode:\[?bpf.prog\]?$/,
  link: /^anon_inode:\[?bpf.link\]?$/,
};

/** A BPF object in the kernel, by its descriptor: one owner, closed exactly once. */
export abstract class Handle {
  readonly kind: Kind;
  /** For messages: a name from the object file, from the kernel or a pin path. */
  readonly label: string;
  #fd: number;
  readonly #ownership: Ownership;

  constructor(kind: Kind, fd: number, label: string, ownership: Ownership) {
    this.kind = kind;
    this.label = label;
    this.#fd = fd;
    this.#ownership = ownership;
  }

  /** The descriptor. Throws E_INTERNAL after close. */
  get fd(): number {
    if (this.#fd < 0)
      throw new LasthopError("E_INTERNAL", `the ${this.kind} ${this.label} was used after close`);
    return this.#fd;
  }

  get closed(): boolean {
    return this.#fd < 0;
  }

  /** Closes the descriptor; a borrowed one is only let go. A second close does nothing. */
  close(): void {
    const fd = this.#fd;
    this.#fd = -1;
    if (fd >= 0 && this.#ownership === "owned") closeSync(fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Pins it in a bpf file system, so that it outlives the process. Throws E_BPFFS; E_BPF with EEXIST if there is
   * a pin already. (bpf_obj_pin)
   */
  pin(path: string): void {
    const result = native.bpf_obj_pin(this.fd, path);
    if (result < 0) {
      const attempt = `cannot pin the ${this.kind} ${this.label} at ${path}`;
      if (result === -ERRNO.EEXIST) throw bpfError(attempt, result);
      const hint = basename(path).includes(".")
        ? "names on a bpf file system cannot contain a dot"
        : "the directory must exist on a bpf file system: `mount -t bpf bpf /sys/fs/bpf`";
      throw bpfError(attempt, result, { code: "E_BPFFS", hint });
    }
  }
}

/** The descriptor of a pin, which must be of this kind. Throws E_BPF. (bpf_obj_get) */
export function openPin(kind: keyof typeof INODES, path: string): number {
  const fd = check(native.bpf_obj_get(path), () => `cannot open the pinned ${kind} ${path}`);
  // The kernel would read another kind's info into our struct without complaint.
  const inode = readlinkSync(`/proc/self/fd/${fd}`);
  if (!INODES[kind].test(inode)) {
    closeSync(fd);
    throw new LasthopError("E_BPF", `cannot open the pinned ${kind} ${path}: it is not a ${kind} (${inode})`);
  }
  return fd;
}

/** Fills a struct with what the kernel knows of a descriptor; returns how many bytes it filled. */
export function readInfo(handle: Handle, info: Buffer): number {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  check(
    native.bpf_obj_get_info_by_fd(handle.fd, info, length),
    () => `cannot read the info of the ${handle.kind} ${handle.label}`,
  );
  return length.readUInt32LE();
}

/** The descriptor of an object by its id. Throws E_BPF; E_NOT_ROOT without CAP_SYS_ADMIN. */
export function openId(kind: Kind, id: number, open: (id: number) => number): number {
  const fd = open(id);
  if (fd >= 0) return fd;
  const attempt = `cannot open the ${kind} with id ${id}`;
  if (fd !== -ERRNO.EPERM) throw bpfError(attempt, fd);
  throw bpfError(attempt, fd, { code: "E_NOT_ROOT", hint: "ids need CAP_SYS_ADMIN; pins do not" });
}
