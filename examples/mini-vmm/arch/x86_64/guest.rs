// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program of the case study's guest.
//!
//! It is written in assembly, because it runs without an operating system on processors whose
//! instructions the hypervisor may have to emulate one by one: plain integer instructions, no
//! stack protector, no SSE, nothing that a compiler might add. The assembler makes it part of this
//! program, and the machine copies it into guest memory.
#![expect(
    unsafe_code,
    reason = "the guest's program is assembly, and has no other name"
)]

use std::arch::global_asm;

use super::layout::{CODE_SELECTOR, IDT, PORT_START, STACK_TOP};
use crate::case_study::announce::{CHECK, END, START};
use crate::case_study::guest::{AVAIL, CAUSES, Device, MAX_REQUEST, QUEUE_SIZE, USED, check};
use crate::layout::{
    BUFFER_LEGACY, BUFFER_VIRTIO, IMAGE_SIZE, QUEUE, RNG0, VIRTIO_GSI, VIRTIO_RNG,
};

/// Interrupt vector of the virtio device.
const VECTOR: u64 = 0x30;

// The program. On entry: 64-bit mode, all of the first 4 GiB mapped one to one, interrupts off,
// and the number of bytes to fetch, a multiple of 4, in rdi.
//
//   r15  bytes to fetch        r12  bytes still missing    rbx  base of the device in use
//   r14  requests made         r13  where the next go      r11  available index
global_asm!(
    r#"
    // Stops with the number of a check that does not hold.
    .macro require condition, number
        j\condition .Lheld\@
        mov eax, \number
        jmp .Lreport
    .Lheld\@:
    .endm

    // Tells the VMM something.
    .macro tell port, value
        mov eax, \value
        mov edx, \port
        out dx, eax
    .endm

    .pushsection .rodata.mini_vmm_guest, "a", @progbits
    .p2align 12
    .globl mini_vmm_guest
    mini_vmm_guest:
        mov     rsp, {STACK_TOP}
        mov     r15, rdi

    // --- Interrupts: one vector, from the I/O APIC to the local APIC to the handler below.
        mov     al, 0xff                    // the old controller keeps quiet
        out     0x21, al
        out     0xa1, al

        mov     rbx, {IDT} + 16 * {VECTOR}
        lea     rax, [rip + .Linterrupt]
        mov     word ptr [rbx], ax
        mov     word ptr [rbx + 2], {CODE_SELECTOR}
        mov     word ptr [rbx + 4], 0x8e00  // present, interrupt gate
        shr     rax, 16
        mov     word ptr [rbx + 6], ax
        shr     rax, 16
        mov     dword ptr [rbx + 8], eax
        lidt    [rip + .Lidt]

        mov     ebx, 0xfee00000             // local APIC: on, spurious vector 0xff
        mov     dword ptr [rbx + 0xf0], 0x1ff
        mov     ebx, 0xfec00000             // I/O APIC: edge-triggered, to processor 0
        mov     dword ptr [rbx], 0x11 + 2 * {VIRTIO_GSI}
        mov     dword ptr [rbx + 0x10], 0
        mov     dword ptr [rbx], 0x10 + 2 * {VIRTIO_GSI}
        mov     dword ptr [rbx + 0x10], {VECTOR}

    // --- The register: read rng0 until there are enough bytes.
        mov     ebx, {RNG0}
        mov     edi, {BUFFER_LEGACY}
        mov     rcx, r15
        shr     rcx, 2
        tell    {PORT} + {START}, {LEGACY}
    .Lregister:
        mov     eax, [rbx]
        stosd
        dec     ecx
        jnz     .Lregister
        mov     rax, r15
        shr     rax, 2                      // requests: one for each read
        mov     edx, {PORT} + {END}
        out     dx, eax

    // --- The virtio device: start-up (VIRTIO 1.3, section 3.1.1) over MMIO (section 4.2.2).
        mov     ebx, {VIRTIO_RNG}
        cmp     dword ptr [rbx], 0x74726976
        require e, {MAGIC}
        cmp     dword ptr [rbx + 0x004], 2
        require e, {VERSION}
        cmp     dword ptr [rbx + 0x008], 4
        require e, {DEVICE_ID}

        mov     dword ptr [rbx + 0x070], 0
        cmp     dword ptr [rbx + 0x070], 0
        require e, {RESET}
        mov     dword ptr [rbx + 0x070], 1  // ACKNOWLEDGE
        mov     dword ptr [rbx + 0x070], 3  // and DRIVER

        mov     dword ptr [rbx + 0x014], 1  // features 32 to 63
        mov     eax, [rbx + 0x010]
        test    eax, 1                      // VIRTIO_F_VERSION_1
        require nz, {VERSION_1}
        mov     dword ptr [rbx + 0x024], 1
        mov     dword ptr [rbx + 0x020], 1
        mov     dword ptr [rbx + 0x024], 0
        mov     dword ptr [rbx + 0x020], 0
        mov     dword ptr [rbx + 0x070], 11 // and FEATURES_OK
        mov     eax, [rbx + 0x070]
        test    eax, 8
        require nz, {FEATURES_OK}

        mov     dword ptr [rbx + 0x030], 0  // queue 0
        cmp     dword ptr [rbx + 0x044], 0
        require e, {QUEUE_FREE}
        cmp     dword ptr [rbx + 0x034], {QUEUE_SIZE}
        require ae, {QUEUE_SIZE_MAX}
        mov     dword ptr [rbx + 0x038], {QUEUE_SIZE}
        mov     dword ptr [rbx + 0x080], {QUEUE}
        mov     dword ptr [rbx + 0x084], 0
        mov     dword ptr [rbx + 0x090], {QUEUE} + {AVAIL}
        mov     dword ptr [rbx + 0x094], 0
        mov     dword ptr [rbx + 0x0a0], {QUEUE} + {USED}
        mov     dword ptr [rbx + 0x0a4], 0
        mov     dword ptr [rbx + 0x044], 1
        cmp     dword ptr [rbx + 0x044], 1
        require e, {QUEUE_READY}
        mov     dword ptr [rbx + 0x070], 15 // and DRIVER_OK
        cmp     dword ptr [rbx + 0x070], 15
        require e, {DRIVER_OK}

    // --- The queue: one request at a time, until there are enough bytes.
        mov     r12, r15
        mov     r13d, {BUFFER_VIRTIO}
        xor     r14d, r14d
        xor     r11d, r11d
        mov     esi, {QUEUE}
        tell    {PORT} + {START}, {VIRTIO}
    .Lrequest:
        mov     ebp, {MAX_REQUEST}          // ebp: length of this request
        cmp     r12, rbp
        cmovb   rbp, r12
        mov     [rsi], r13                  // descriptor 0: address,
        mov     [rsi + 8], ebp              // length,
        mov     dword ptr [rsi + 12], 2     // WRITE, no next
        mov     eax, r11d
        and     eax, {QUEUE_SIZE} - 1
        mov     word ptr [rsi + {AVAIL} + 4 + 2 * rax], 0
        inc     r11d
        mov     word ptr [rsi + {AVAIL} + 2], r11w
        inc     r14d
        mov     dword ptr [rbx + 0x050], 0  // QueueNotify: queue 0

    .Lwait:
        cli                                 // no interrupt between the look and the halt
        mov     eax, [rsi + {CAUSES} - {QUEUE}]
        test    eax, eax
        jnz     .Linterrupted
        sti
        hlt
        jmp     .Lwait
    .Linterrupted:
        mov     dword ptr [rsi + {CAUSES} - {QUEUE}], 0
        sti
        cmp     eax, 1                      // a used buffer, and nothing else
        require e, {CAUSE}

        mov     ax, [rsi + {USED} + 2]
        cmp     ax, r11w
        require e, {USED_INDEX}
        lea     eax, [r11d - 1]
        and     eax, {QUEUE_SIZE} - 1
        cmp     dword ptr [rsi + {USED} + 4 + 8 * rax], 0
        require e, {USED_ID}
        mov     eax, [rsi + {USED} + 8 + 8 * rax]
        lea     ecx, [rax - 1]              // 0 becomes the largest number
        cmp     ecx, ebp
        require b, {USED_LENGTH}

        add     r13, rax
        sub     r12, rax
        jnz     .Lrequest
        mov     eax, r14d
        mov     edx, {PORT} + {END}
        out     dx, eax

        mov     dword ptr [rbx + 0x070], 0  // give the device back
        xor     eax, eax                    // all checks held

    // --- The end: eax is the number of the check that failed, or 0.
    .Lreport:
        mov     edx, {PORT} + {CHECK}
        out     dx, eax
    .Lend:
        cli
        hlt
        jmp     .Lend

    // --- The interrupt handler: find out why, acknowledge, remember.
    .Linterrupt:
        push    rax
        push    rbx
        mov     ebx, {VIRTIO_RNG}
        mov     eax, [rbx + 0x060]          // InterruptStatus
        mov     [rbx + 0x064], eax          // InterruptACK
        mov     ebx, {CAUSES}
        or      [rbx], eax
        mov     ebx, 0xfee00000
        mov     dword ptr [rbx + 0xb0], 0   // end of interrupt
        pop     rbx
        pop     rax
        iretq

        .p2align 3
    .Lidt:
        .word   16 * ({VECTOR} + 1) - 1
        .quad   {IDT}

        .org    mini_vmm_guest + {IMAGE_SIZE}
    .popsection
    "#,
    STACK_TOP = const STACK_TOP,
    IDT = const IDT,
    VECTOR = const VECTOR,
    CODE_SELECTOR = const CODE_SELECTOR,
    VIRTIO_GSI = const VIRTIO_GSI,
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
    PORT = const PORT_START,
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
