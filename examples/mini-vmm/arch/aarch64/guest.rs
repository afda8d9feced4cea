// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program of the case study's guest.
//!
//! It is written in assembly, because it runs without an operating system: no stack, no vector
//! registers, nothing that a compiler might add. The assembler makes it part of this program, and
//! the machine copies it into guest memory.
#![expect(
    unsafe_code,
    reason = "the guest's program is assembly, and has no other name"
)]

use std::arch::global_asm;

use super::layout::{ANNOUNCEMENTS, GIC_DISTRIBUTOR};
use crate::case_study::announce::{CHECK, END, START};
use crate::case_study::guest::{AVAIL, CAUSES, Device, MAX_REQUEST, QUEUE_SIZE, USED, check};
use crate::layout::{
    BUFFER_LEGACY, BUFFER_VIRTIO, IMAGE_SIZE, QUEUE, RNG0, VIRTIO_GSI, VIRTIO_RNG,
};

/// Number of the virtio device's interrupt at the interrupt controller.
const INTID: u32 = 32 + VIRTIO_GSI;

// The program. On entry: exception level 1, all of the first 4 GiB mapped one to one with caches on,
// interrupts off, and the number of bytes to fetch, a multiple of 4, in x0.
//
//   x19  bytes to fetch        x20  bytes still missing    x21  base of the device in use
//   w22  requests made         x23  where the next go      w24  available index
//   x25  announcements         x26  the queue              w27  length of this request
global_asm!(
    r#"
    // A number of 32 bits; literals would be shared with other programs.
    .macro number register, value
        movz \register, #((\value) & 0xffff)
        movk \register, #((\value) >> 16), lsl 16
    .endm

    // Stops with the number of a check that does not hold.
    .macro require condition, number
        b.\condition .Lheld\@
        mov     w0, \number
        b       .Lreport
    .Lheld\@:
    .endm

    // Writes a register of the device.
    .macro set offset, value
        number  w0, \value
        str     w0, [x21, \offset]
    .endm

    // Reads a register of the device, to be compared with a value.
    .macro look offset, value
        ldr     w0, [x21, \offset]
        number  w1, \value
        cmp     w0, w1
    .endm

    .pushsection .rodata.mini_vmm_guest, "a", @progbits
    .p2align 12
    .globl mini_vmm_guest
    mini_vmm_guest:
        mov     x19, x0
        number  x25, {ANNOUNCEMENTS}
        number  x26, {QUEUE}
        adr     x0, mini_vmm_guest + 0x800
        msr     vbar_el1, x0

    // --- Interrupts: one, from the distributor to the processor's interface to the handler below.
        mov     x0, 7                       // ICC_SRE_EL1: the interface is made of registers
        msr     S3_0_C12_C12_5, x0
        isb
        number  x21, {GIC_DISTRIBUTOR}
        set     0x0, 0x12                   // CTLR: by affinity, group 1 is on
        set     0x084, 1 << ({INTID} - 32)  // IGROUPR1
        set     0xc08, 2 << (2 * ({INTID} - 32)) // ICFGR2: edge-triggered
        number  x0, {GIC_DISTRIBUTOR} + 0x6000 + 8 * {INTID}
        str     xzr, [x0]                   // IROUTER: to processor 0
        number  x0, {GIC_DISTRIBUTOR} + 0x400 + {INTID}
        mov     w1, 0x80
        strb    w1, [x0]                    // IPRIORITYR
        set     0x104, 1 << ({INTID} - 32)  // ISENABLER1
        mov     x0, 0xff
        msr     S3_0_C4_C6_0, x0            // ICC_PMR_EL1: every priority
        mov     x0, 1
        msr     S3_0_C12_C12_7, x0          // ICC_IGRPEN1_EL1
        isb

    // --- The register: read rng0 until there are enough bytes.
        number  x21, {RNG0}
        number  x23, {BUFFER_LEGACY}
        lsr     x1, x19, 2
        mov     w22, w1                     // requests: one for each read
        mov     w0, {LEGACY}
        str     w0, [x25, {START}]
    .Lregister:
        ldr     w0, [x21]
        str     w0, [x23], 4
        subs    w1, w1, 1
        b.ne    .Lregister
        str     w22, [x25, {END}]

    // --- The virtio device: start-up (VIRTIO 1.3, section 3.1.1) over MMIO (section 4.2.2).
        number  x21, {VIRTIO_RNG}
        look    0x000, 0x74726976
        require eq, {MAGIC}
        look    0x004, 2
        require eq, {VERSION}
        look    0x008, 4
        require eq, {DEVICE_ID}

        set     0x070, 0
        look    0x070, 0
        require eq, {RESET}
        set     0x070, 1                    // ACKNOWLEDGE
        set     0x070, 3                    // and DRIVER

        set     0x014, 1                    // features 32 to 63
        ldr     w0, [x21, 0x010]
        tst     w0, 1                       // VIRTIO_F_VERSION_1
        require ne, {VERSION_1}
        set     0x024, 1
        set     0x020, 1
        set     0x024, 0
        set     0x020, 0
        set     0x070, 11                   // and FEATURES_OK
        ldr     w0, [x21, 0x070]
        tst     w0, 8
        require ne, {FEATURES_OK}

        set     0x030, 0                    // queue 0
        look    0x044, 0
        require eq, {QUEUE_FREE}
        look    0x034, {QUEUE_SIZE}
        require hs, {QUEUE_SIZE_MAX}
        set     0x038, {QUEUE_SIZE}
        set     0x080, {QUEUE}
        set     0x084, 0
        set     0x090, {QUEUE} + {AVAIL}
        set     0x094, 0
        set     0x0a0, {QUEUE} + {USED}
        set     0x0a4, 0
        set     0x044, 1
        look    0x044, 1
        require eq, {QUEUE_READY}
        set     0x070, 15                   // and DRIVER_OK
        look    0x070, 15
        require eq, {DRIVER_OK}

    // --- The queue: one request at a time, until there are enough bytes.
        mov     x20, x19
        number  x23, {BUFFER_VIRTIO}
        mov     w22, 0
        mov     w24, 0
        mov     w0, {VIRTIO}
        str     w0, [x25, {START}]
    .Lrequest:
        number  w27, {MAX_REQUEST}
        cmp     x20, x27
        csel    x27, x20, x27, lo
        str     x23, [x26]                  // descriptor 0: address,
        str     w27, [x26, 8]               // length,
        mov     w0, 2
        str     w0, [x26, 12]               // WRITE, no next
        and     w0, w24, {QUEUE_SIZE} - 1
        add     x0, x26, x0, lsl 1
        strh    wzr, [x0, {AVAIL} + 4]
        add     w24, w24, 1
        dmb     ish                         // the entry before the index
        strh    w24, [x26, {AVAIL} + 2]
        add     w22, w22, 1
        dmb     sy                          // the index before the notification
        set     0x050, 0                    // QueueNotify: queue 0

    .Lwait:
        msr     daifset, 2                  // no interrupt between the look and the wait
        ldr     w0, [x26, {CAUSES} - {QUEUE}]
        cbnz    w0, .Linterrupted
        wfi                                 // ends with an interrupt, though it is masked
        msr     daifclr, 2
        isb
        b       .Lwait
    .Linterrupted:
        str     wzr, [x26, {CAUSES} - {QUEUE}]
        msr     daifclr, 2
        cmp     w0, 1                       // a used buffer, and nothing else
        require eq, {CAUSE}

        ldrh    w0, [x26, {USED} + 2]
        dmb     ish                         // the index before the element
        and     w1, w24, 0xffff
        cmp     w0, w1
        require eq, {USED_INDEX}
        sub     w0, w24, 1
        and     w0, w0, {QUEUE_SIZE} - 1
        add     x1, x26, x0, lsl 3
        ldr     w0, [x1, {USED} + 4]
        cmp     w0, 0
        require eq, {USED_ID}
        ldr     w0, [x1, {USED} + 8]
        sub     w1, w0, 1                   // 0 becomes the largest number
        cmp     w1, w27
        require lo, {USED_LENGTH}

        add     x23, x23, x0
        subs    x20, x20, x0
        b.ne    .Lrequest
        str     w22, [x25, {END}]

        set     0x070, 0                    // give the device back
        mov     w0, 0                       // all checks held

    // --- The end: w0 is the number of the check that failed, or 0.
    .Lreport:
        str     w0, [x25, {CHECK}]
        msr     daifset, 2
    .Lend:
        wfi
        b       .Lend

    // --- The interrupt handler: find out why, acknowledge, remember. It comes while the program
    // waits, which then needs x0 to x3 no more.
    .Linterrupt:
        mrs     x0, S3_0_C12_C12_0          // ICC_IAR1_EL1
        number  x1, {VIRTIO_RNG}
        ldr     w2, [x1, 0x060]             // InterruptStatus
        str     w2, [x1, 0x064]             // InterruptACK
        ldr     w3, [x26, {CAUSES} - {QUEUE}]
        orr     w3, w3, w2
        str     w3, [x26, {CAUSES} - {QUEUE}]
        msr     S3_0_C12_C12_1, x0          // ICC_EOIR1_EL1
        eret

    // --- The vectors: an interrupt, and faults of the program's own, which end it.
        .org    mini_vmm_guest + 0x800 + 0x200
        number  x0, 0x84000009              // SYSTEM_RESET of PSCI
        hvc     0
        .org    mini_vmm_guest + 0x800 + 0x280
        b       .Linterrupt

        .org    mini_vmm_guest + {IMAGE_SIZE}
    .popsection
    "#,
    ANNOUNCEMENTS = const ANNOUNCEMENTS,
    GIC_DISTRIBUTOR = const GIC_DISTRIBUTOR,
    INTID = const INTID,
    RNG0 = const RNG0,
    VIRTIO_RNG = const VIRTIO_RNG,
    BUFFER_LEGACY = const BUFFER_LEGACY,
    BUFFER_VIRTIO = const BUFFER_VIRTIO,
    QUEUE = const QUEUE,
    AVAIL = const AVAIL,
    USED = const USED,
    CAUSES = const CAUSES,
    QUEUE_SIZE = const QUEUE_SIZE,
    MAX_REQUEST = const MAX_REQUEST,
    START = const START,
    END = const END,
    CHECK = const CHECK,
    LEGACY = const Device::Legacy as u32,
    VIRTIO = const Device::Virtio as u32,
    IMAGE_SIZE = const IMAGE_SIZE,
    MAGIC = const check::MAGIC,
    VERSION = const check::VERSION,
    DEVICE_ID = const check::DEVICE_ID,
    RESET = const check::RESET,
    VERSION_1 = const check::VERSION_1,
    FEATURES_OK = const check::FEATURES_OK,
    QUEUE_FREE = const check::QUEUE_FREE,
    QUEUE_SIZE_MAX = const check::QUEUE_SIZE_MAX,
    QUEUE_READY = const check::QUEUE_READY,
    DRIVER_OK = const check::DRIVER_OK,
    CAUSE = const check::CAUSE,
    USED_INDEX = const check::USED_INDEX,
    USED_ID = const check::USED_ID,
    USED_LENGTH = const check::USED_LENGTH,
);

// SAFETY: the assembler makes exactly `IMAGE_SIZE` bytes at this symbol, in a read-only section;
// it refuses to assemble a longer program.
unsafe extern "C" {
    #[link_name = "mini_vmm_guest"]
    safe static PROGRAM: [u8; IMAGE_SIZE];
}

/// The program, to be copied to `IMAGE`, where it is also entered.
pub(super) fn program() -> &'static [u8] {
    &PROGRAM
}
