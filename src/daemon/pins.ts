// SPDX-License-Identifier: Apache-2.0
// Our pins, seen from a daemon that has a descriptor of everything pinned: what others take away beneath it goes
// on working, and is pinned again. Nobody could find it otherwise when the daemon has ended.

import { accessSync, constants, statSync } from "node:fs";
import { join } from "node:path";
import { LasthopError } from "../errors.ts";
import type { Holder } from "../kernel/holder.ts";
import type { Instance } from "../kernel/instance.ts";
import { makeDirectories, pinPathError, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { BpfLink, type BpfMap, type BpfProgram, isErrno } from "../libbpf/index.ts";
import type { Logger } from "../log.ts";

const CHECK_MS = 2_000;

type Kind = "maps" | "programs" | "links";

interface Pinned {
  kind: Kind;
  name: string;
  /** Of the pin; a rename keeps it, another object has another. */
  inode: number;
  handle: BpfMap | BpfProgram | BpfLink;
}

export interface PinKeeperOptions {
  instance: Instance;
  holder: Pick<Holder, "renew">;
  log: Logger;
  /** Maps or programs are others than before: this keeper, and whatever reads them, is to be made anew. */
  onExchanged(): void;
}

export class PinKeeper {
  readonly #options: PinKeeperOptions;
  readonly #instance: Instance;
  /** By "kind/name". */
  readonly #held = new Map<string, Pinned>();
  #timer: NodeJS.Timeout | undefined;
  #checking: Promise<boolean> | undefined;
  #trouble: string | undefined;
  #exchanged = false;

  /** Opens everything that is pinned. Throws E_BPF, E_BPFFS. */
  constructor(options: PinKeeperOptions) {
    this.#options = options;
    this.#instance = options.instance;
    try {
      for (const { kind, name, inode } of this.#present()) this.#hold(kind, name, inode);
    } catch (error) {
      this.#letGo();
      throw error;
    }
  }

  start(): void {
    this.#timer = setInterval(() => void this.check(), CHECK_MS);
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#checking;
    this.#letGo();
  }

  /**
   * Pins again what is missing. False, and told once, where that cannot be: nothing else can be pinned there either.
   * Two at once are one.
   */
  check(): Promise<boolean> {
    this.#checking ??= this.#tell().finally(() => {
      this.#checking = undefined;
    });
    return this.#checking;
  }

  async #tell(): Promise<boolean> {
    const { log } = this.#options;
    const error = await this.#check().then(() => undefined, asError);
    // A change is going on, and what is missing may be part of it.
    if (error instanceof LasthopError && error.code === "E_LOCKED") return this.#trouble === undefined;
    const trouble = error && troubleOf(error);
    if (trouble?.message !== this.#trouble) {
      if (trouble) log.error(trouble.message, trouble.hint === undefined ? {} : { hint: trouble.hint });
      else log.info("the pins are in order again");
    }
    this.#trouble = trouble?.message;
    return trouble === undefined;
  }

  async #check(): Promise<void> {
    if (this.#exchanged) return;
    const { pinRoot } = this.#instance;
    requireBpffs(pinRoot);
    this.#requireWritable();
    if (this.#missing().length === 0) {
      this.#follow();
      return;
    }
    makeDirectories(pinRoot);
    this.#options.holder.renew();
    // Whoever changes something has the lock: what is missing in the middle of a change is not missing.
    await withLock(pinRoot, () => {
      this.#follow();
      if (!this.#exchanged) this.#restore(this.#missing());
    });
  }

  #requireWritable(): void {
    const { path, pinRoot } = this.#instance;
    if (!statSync(path, { throwIfNoEntry: false })) return;
    try {
      accessSync(path, constants.W_OK);
    } catch (error) {
      throw pinPathError(`nothing can be pinned in ${pinRoot}`, error);
    }
  }

  /** Those without a pin, under whatever name. */
  #missing(): Pinned[] {
    const present = new Set(this.#present().map((pin) => pin.inode));
    return [...this.#held.values()].filter((pin) => !present.has(pin.inode) && !isEmptyShell(pin));
  }

  /** Takes note of what others pinned, renamed or exchanged. */
  #follow(): void {
    const present = this.#present();
    const others = present.filter(
      ({ kind, name, inode }) => this.#held.get(`${kind}/${name}`)?.inode !== inode,
    );
    if (others.some(({ kind, name }) => kind !== "links" && this.#held.has(`${kind}/${name}`))) {
      this.#exchanged = true;
      this.#options.onExchanged();
      return;
    }
    for (const { kind, name, inode } of others) {
      this.#held.get(`${kind}/${name}`)?.handle.close();
      this.#hold(kind, name, inode);
    }
    const names = new Set(present.map(({ kind, name }) => `${kind}/${name}`));
    const inodes = new Set(present.map((pin) => pin.inode));
    for (const [key, pin] of this.#held) {
      // Under another name by now, or a link that was detached before it was unpinned.
      if (names.has(key) || !(inodes.has(pin.inode) || isEmptyShell(pin))) continue;
      pin.handle.close();
      this.#held.delete(key);
    }
  }

  #restore(missing: readonly Pinned[]): void {
    const { path } = this.#instance;
    for (const pin of missing) {
      const directory = join(path, pin.kind);
      const to = join(directory, pin.name);
      makeDirectories(directory);
      pin.handle.pin(to);
      pin.inode = statSync(to).ino;
    }
    if (missing.length === 0) return;
    const names = missing.map((pin) => `${pin.kind}/${pin.name}`);
    this.#options.log.warning("pins had been removed: pinned again", {
      count: names.length,
      names: names.length > 5 ? `${names.slice(0, 5).join(" ")} …` : names.join(" "),
    });
  }

  #hold(kind: Kind, name: string, inode: number): void {
    const path = join(this.#instance.path, kind, name);
    const handle =
      kind === "links"
        ? BpfLink.openPinned(path)
        : kind === "maps"
          ? this.#instance.map(name)
          : this.#instance.program(name);
    this.#held.set(`${kind}/${name}`, { kind, name, inode, handle });
  }

  #present(): { kind: Kind; name: string; inode: number }[] {
    const instance = this.#instance;
    const names = {
      maps: instance.mapNames(),
      programs: instance.programNames(),
      links: instance.linkNames(),
    };
    return (Object.keys(names) as Kind[]).flatMap((kind) =>
      names[kind].flatMap((name) => {
        // It may have gone since the directory was read.
        const found = statSync(join(instance.path, kind, name), { throwIfNoEntry: false });
        return found ? [{ kind, name, inode: found.ino }] : [];
      }),
    );
  }

  /** Maps and programs are the instance's own. */
  #letGo(): void {
    for (const { kind, handle } of this.#held.values()) if (kind === "links") handle.close();
    this.#held.clear();
  }
}

/** A link whose interface has gone, or that was detached: nothing that anybody would miss. */
function isEmptyShell({ kind, handle }: Pinned): boolean {
  return kind === "links" && (handle as BpfLink).info().ifindex === 0;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

function troubleOf(error: Error): { message: string; hint: string | undefined } {
  const { message } = error;
  if (isErrno(error, "EROFS")) {
    return {
      message: `${message}: the file system is read-only`,
      hint: "Remount it: `mount -o remount,rw /sys/fs/bpf`.",
    };
  }
  if (!(error instanceof LasthopError)) return { message, hint: undefined };
  if (error.code !== "E_BPFFS") return { message, hint: error.hint };
  return {
    message: `${message}; forwarding goes on, but nothing more can be attached, and a restart would forget every flow`,
    hint: error.hint,
  };
}
