// SPDX-License-Identifier: Apache-2.0
// A virtual machine as a host has it: QEMU with a tap of its own and a virtio-net card, in which Linux serves. No
// hardware virtualisation is used: machines that have /dev/kvm may yet not boot a guest by it.

import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { checkPrograms, QEMU, sweepLeftovers } from "../vm/guest.ts";
import { CACHE, fetchKernel, type KernelImage } from "../vm/image.ts";
import { buildInitramfs, type Contents } from "../vm/initramfs.ts";
import { KERNELS } from "../vm/kernels.ts";
import { type Addresses, FAMILIES, prefixLength } from "./addresses.ts";
import { bracket } from "./fixture.ts";
import type { Namespace } from "./lab.ts";
import { type Background, until } from "./run.ts";

const SERIES = "6.12";
const MEMORY_MIB = 128;
/** Emulated, a guest takes three to six seconds, and much longer beside others. */
const BOOT_MS = 120_000;

const SERVING: Contents = { modules: ["virtio_pci", "virtio_net"], init: "test/guests/init.sh" };

/** What guests start from, until it is closed. */
export class GuestImage {
  readonly kernel: KernelImage;
  readonly directory: string;

  private constructor(kernel: KernelImage, directory: string) {
    this.kernel = kernel;
    this.directory = directory;
  }

  /** Throws Unavailable where there are no guests. */
  static async prepare(): Promise<GuestImage> {
    const busybox = await checkPrograms();
    mkdirSync(CACHE, { recursive: true });
    sweepLeftovers();
    const kernel = await fetchKernel(KERNELS.find(({ series }) => series === SERIES)!);
    const image = new GuestImage(kernel, join(CACHE, `guests-${process.pid}`));
    mkdirSync(image.directory, { recursive: true });
    await buildInitramfs(kernel, busybox, SERVING, image.initramfs, join(image.directory, "scratch"));
    return image;
  }

  get initramfs(): string {
    return join(this.directory, "initramfs");
  }

  close(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export interface GuestOptions {
  name: string;
  mac: string;
  tap: string;
  address: Addresses;
  gateway: Addresses;
  /** Beside its own address: on its loopback interface. */
  services?: readonly Addresses[];
  /** Does its card leave checksums and segmentation to the host, and take frames that are so left to it? Or neither. */
  offloads?: boolean;
  /** What the tap becomes a port of. */
  bridge?: string;
  /** Instead: what QEMU calls when it has made the tap, and before it ends. */
  scripts?: { up: string; down: string; environment: Record<string, string> };
}

const WITHOUT_OFFLOADS = ["csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"]
  .map((feature) => `,${feature}=off`)
  .join("");

export class QemuGuest {
  readonly options: GuestOptions;
  readonly #host: Namespace;
  readonly #image: GuestImage;
  readonly #console: string;
  #process: Background;

  private constructor(host: Namespace, image: GuestImage, options: GuestOptions) {
    this.options = options;
    this.#host = host;
    this.#image = image;
    this.#console = join(image.directory, `${options.name}.console`);
    this.#process = host.start(this.#argv());
  }

  /** Returns when its tap is up; `answers` waits for the guest. It ends with the lab of `host`. */
  static async start(host: Namespace, image: GuestImage, options: GuestOptions): Promise<QemuGuest> {
    const guest = new QemuGuest(host, image, options);
    await guest.#plug();
    return guest;
  }

  get name(): string {
    return this.options.name;
  }

  get mac(): string {
    return this.options.mac;
  }

  get tap(): string {
    return this.options.tap;
  }

  get address(): Addresses {
    return this.options.address;
  }

  /** Of QEMU. */
  get pid(): number {
    return this.#process.child.pid!;
  }

  get rssBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
  }

  /** Waits until it has booted and serves; asked from `from`, by every address of its. */
  async answers(from: Namespace, addresses: readonly Addresses[] = [this.address]): Promise<void> {
    for (const address of addresses) {
      for (const family of FAMILIES) {
        const url = `http://${bracket(address[family])}/`;
        const curl = ["curl", "-sS", "--noproxy", "*", "--max-time", "2", url];
        await this.#until(async () => (await from.run(curl)).stdout === `${this.name}\n`, `answer at ${url}`);
      }
    }
  }

  /** As when its host runs out of memory: QEMU is gone, and with it the tap. */
  async kill(): Promise<void> {
    await this.#process.stop("SIGKILL");
    await until(() => this.#tapIsGone(), `${this.tap} to go`);
  }

  /** As `virsh destroy` does: QEMU may call its script, then ends. */
  async stop(): Promise<void> {
    this.#monitor("quit");
    await this.#process.exited;
    await until(() => this.#tapIsGone(), `${this.tap} to go`);
  }

  /** Its processor stands still, as of a guest that hangs; its tap stays. */
  freeze(): void {
    this.#monitor("stop");
  }

  /** As `virsh reset`, also of one that is frozen: the guest begins anew, QEMU and the tap stay. */
  reset(): void {
    this.#monitor("system_reset");
    this.#monitor("cont");
  }

  /** Starts it once more, on a new tap of the same name. */
  async startAgain(): Promise<void> {
    if (this.#process.running) throw new Error(`${this.name} is running`);
    this.#process = this.#host.start(this.#argv());
    await this.#plug();
  }

  #monitor(command: string): void {
    this.#process.child.stdin.write(`${command}\n`);
  }

  async #tapIsGone(): Promise<boolean> {
    return (await this.#host.run(["ip", "link", "show", "dev", this.tap])).status !== 0;
  }

  async #plug(): Promise<void> {
    const { bridge, scripts, tap } = this.options;
    await this.#until(async () => !(await this.#tapIsGone()), `${tap} to appear`);
    if (scripts !== undefined) return;
    const port = bridge === undefined ? [] : [`link set dev ${tap} master ${bridge}`];
    await this.#host.ip(...port, `link set dev ${tap} up`);
  }

  /** As `until`, and fails at once when QEMU has ended; an error shows what the guest wrote. */
  async #until(ask: () => Promise<boolean>, what: string): Promise<void> {
    try {
      await until(
        async () => {
          if (await ask()) return true;
          if (!this.#process.running) throw new Error(`QEMU ended: ${this.#process.stderr}`);
          return false;
        },
        what,
        BOOT_MS,
      );
    } catch (error) {
      const written = existsSync(this.#console) ? readFileSync(this.#console, "utf8").trimEnd() : "";
      const last = written.split("\n").slice(-20).join("\n");
      throw new Error(`${this.name}: ${(error as Error).message}\n--- its console\n${last}`);
    }
  }

  #argv(): string[] {
    const { name, mac, tap, address, gateway, services = [], offloads = true, scripts } = this.options;
    const list = (given: readonly Addresses[], wide: boolean | undefined) =>
      given
        .flatMap((item) =>
          FAMILIES.map((family) =>
            wide === undefined ? item[family] : `${item[family]}/${prefixLength(family, wide)}`,
          ),
        )
        .join(",");
    const settings = {
      name,
      address: list([address], true),
      gateway: list([gateway], undefined),
      service: list(services, false),
    };
    const told = Object.entries(settings).map(([key, value]) => `lasthop.${key}=${value}`);
    const { up, down, environment } = scripts ?? { up: "no", down: "no", environment: {} };
    return [
      "env",
      ...Object.entries(environment).map(([key, value]) => `${key}=${value}`),
      QEMU,
      ...["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", `${MEMORY_MIB}`],
      ...["-nodefaults", "-display", "none", "-monitor", "stdio", "-serial", `file:${this.#console}`],
      ...["-kernel", this.#image.kernel.vmlinux, "-initrd", this.#image.initramfs],
      ...["-append", `console=ttyS0 quiet mitigations=off ${told.join(" ")}`],
      ...["-netdev", `tap,id=n0,ifname=${tap},script=${up},downscript=${down}`],
      ...["-device", `virtio-net-pci,netdev=n0,mac=${mac},romfile=${offloads ? "" : WITHOUT_OFFLOADS}`],
    ];
  }
}
