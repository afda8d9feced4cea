// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels of a few instructions, in each of the formats that mini-vmm boots.
//!
//! The instructions are plain enough to be emulated one by one. Where nothing else is said they
//! mean the same in 64-bit and in 32-bit mode, so that one code can be entered in both ways.

const SERIAL: u16 = 0x3f8;
const LINE_STATUS: u16 = SERIAL + 5;
const CONSOLE: u32 = 0x8000_3000;
const CONSOLE_CONFIG: u32 = CONSOLE + 0x100;
const I8042_COMMAND: u16 = 0x64;
const SLEEP_CONTROL: u16 = 0x600;
/// Sleep type 5, and the bit that makes it happen.
const POWER_OFF: u8 = 5 << 2 | 1 << 5;

/// Where the kernels are loaded.
const ADDRESS: u64 = 0x100_0000;
/// Where they pretend to be linked.
const LINKED: u64 = 0xffff_ffff_8100_0000;

/// A kernel's instructions.
#[derive(Clone)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn with(mut self, instructions: &[u8]) -> Self {
        self.0.extend(instructions);
        self
    }

    /// The same, and other code behind it.
    pub(crate) fn then(self, code: &Self) -> Self {
        self.with(&code.0)
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// `mov dx, port`
    pub(crate) fn port(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.with(&[0x66, 0xba, low, high])
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(crate) fn out(self, port: u16, value: u8) -> Self {
        self.port(port).with(&[0xb0, value, 0xee])
    }

    /// Writes a byte to the serial port.
    pub(crate) fn put(self, byte: u8) -> Self {
        self.out(SERIAL, byte)
    }

    pub(crate) fn power_off(self) -> Self {
        self.out(SLEEP_CONTROL, POWER_OFF).spin()
    }

    pub(crate) fn reset(self) -> Self {
        self.out(I8042_COMMAND, 0xfe).spin()
    }

    /// `mov eax, [0x1_0000_0000]`: a page that is not mapped, and no handler for that. 64-bit only.
    pub(crate) fn triple_fault(self) -> Self {
        self.with(&[0xa1, 0, 0, 0, 0, 1, 0, 0, 0])
    }

    /// Writes the low byte of the virtio console's columns through its configuration space whenever
    /// its size changes.
    pub(crate) fn show_columns(self) -> Self {
        // mov ebx, config; xor ecx, ecx
        // again: mov eax, [rbx]; cmp eax, ecx; je again
        // mov ecx, eax; mov [rbx + 8], eax; jmp again
        let [a, b, c, d] = CONSOLE_CONFIG.to_le_bytes();
        self.with(&[0xbb, a, b, c, d, 0x31, 0xc9])
            .with(&[0x8b, 0x03, 0x39, 0xc8, 0x74, 0xfa])
            .with(&[0x89, 0xc1, 0x89, 0x43, 8, 0xeb, 0xf3])
    }

    /// `jmp .`
    pub(crate) fn spin(self) -> Self {
        self.with(&[0xeb, 0xfe])
    }

    /// `hlt`, with interrupts off.
    pub(crate) fn halt(self) -> Self {
        self.with(&[0xf4, 0xeb, 0xfd])
    }

    /// Writes a byte again and again: `out dx, al; jmp .-1`
    pub(crate) fn flood(self, byte: u8) -> Self {
        self.out(SERIAL, byte).with(&[0xee, 0xeb, 0xfd])
    }

    /// Writes a byte so many times: `mov ecx, count; again: out dx, al; dec ecx; jnz again`
    pub(crate) fn put_many(self, byte: u8, count: u32) -> Self {
        let [a, b, c, d] = count.to_le_bytes();
        self.with(&[0xb9, a, b, c, d])
            .port(SERIAL)
            .with(&[0xb0, byte, 0xee, 0xff, 0xc9, 0x75, 0xfb])
    }

    /// Sends back what is received, up to and with a `q`.
    pub(crate) fn echo_until_q(self) -> Self {
        // again: in al, line status; test al, 1; jz again
        // in al, data; out data, al; cmp al, 'q'; jne again
        self.port(LINE_STATUS)
            .with(&[0xec, 0xa8, 1, 0x74, 0xf7])
            .port(SERIAL)
            .with(&[0xec, 0xee, 0x3c, b'q', 0x75, 0xed])
    }

    /// Writes the string at esi to the serial port.
    fn print(self) -> Self {
        // again: lodsb; test al, al; jz done; out dx, al; jmp again
        self.port(SERIAL)
            .with(&[0xac, 0x84, 0xc0, 0x74, 3, 0xee, 0xeb, 0xf8])
    }

    /// Prints the command line that the boot parameters at rsi name; keeps rsi in rbx. 64-bit only.
    pub(crate) fn print_command_line_64(self) -> Self {
        // mov rbx, rsi; mov esi, [rbx + 0x228]
        self.with(&[0x48, 0x89, 0xf3, 0x8b, 0xb3, 0x28, 2, 0, 0])
            .print()
    }

    /// Prints what the initial RAM disk begins with, after the command line. 64-bit only.
    pub(crate) fn print_initrd_64(self) -> Self {
        // mov esi, [rbx + 0x218]
        self.with(&[0x8b, 0xb3, 0x18, 2, 0, 0]).print()
    }

    /// Prints the command line that the start information at ebx names. 32-bit only.
    pub(crate) fn print_command_line_pvh(self) -> Self {
        // mov esi, [ebx + 24]
        self.with(&[0x8b, 0x73, 24]).print()
    }

    /// Prints what the first module begins with. 32-bit only.
    pub(crate) fn print_initrd_pvh(self) -> Self {
        // mov esi, [ebx + 16]; mov esi, [esi]
        self.with(&[0x8b, 0x73, 16, 0x8b, 0x36]).print()
    }

    /// Reads `rng0` and writes its four bytes to the serial port. 64-bit only.
    pub(crate) fn print_rng0(mut self) -> Self {
        // mov eax, [0x8000_1000]
        self = self
            .with(&[0xa1, 0, 0x10, 0, 0x80, 0, 0, 0, 0])
            .port(SERIAL);
        for _ in 0..4 {
            // out dx, al; shr eax, 8
            self = self.with(&[0xee, 0xc1, 0xe8, 8]);
        }
        self
    }

    /// Has the virtio console print the first 64 MiB of RAM 60 times, by one chain. 64-bit only.
    pub(crate) fn flood_hvc0(mut self) -> Self {
        const RINGS: u32 = 0x200_0000;
        let [a, b, c, d] = CONSOLE.to_le_bytes();
        let [e, f, g, h] = RINGS.to_le_bytes();
        // mov edi, CONSOLE; mov esi, RINGS
        self = self.with(&[0xbf, a, b, c, d, 0xbe, e, f, g, h]);
        // mov dword [rsi + offset], value
        let ram = |code: Self, offset: u32, value: u32| {
            let code = code.with(&[0xc7, 0x86]).with(&offset.to_le_bytes());
            code.with(&value.to_le_bytes())
        };
        for n in 0..60 {
            let next = if n == 59 { 0 } else { (n + 1) << 16 | 1 };
            self = ram(self, 16 * n + 8, 64 << 20);
            self = ram(self, 16 * n + 12, next);
        }
        self = ram(self, 0x1000, 1 << 16);
        // Status, features, the queue that transmits, status, notification.
        for (offset, value) in [
            (0x70, 0),
            (0x70, 1),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 0xb),
            (0x30, 1),
            (0x38, 64),
            (0x80, RINGS),
            (0x90, RINGS + 0x1000),
            (0xa0, RINGS + 0x2000),
            (0x44, 1),
            (0x70, 0xf),
            (0x50, 1),
        ] {
            // mov dword [rdi + offset], value
            self = self.with(&[0xc7, 0x87]).with(&u32::to_le_bytes(offset));
            self = self.with(&u32::to_le_bytes(value));
        }
        self
    }

    /// Says `y` if the 32-bit word at `address` keeps what is written to it, and `n` if it reads
    /// all ones. 64-bit only.
    pub(crate) fn probe_memory(self, address: u32) -> Self {
        let [a, b, c, d] = address.to_le_bytes();
        // mov esi, address; mov dword [rsi], 1; mov ecx, [rsi]; mov al, 'n'; cmp ecx, 1;
        // jne done; mov al, 'y'; done: out dx, al
        self.port(SERIAL)
            .with(&[0xbe, a, b, c, d, 0xc7, 0x06, 1, 0, 0, 0, 0x8b, 0x0e])
            .with(&[0xb0, b'n', 0x83, 0xf9, 1, 0x75, 2, 0xb0, b'y', 0xee])
    }
}

fn put<const N: usize>(image: &mut [u8], at: usize, bytes: [u8; N]) {
    image[at..at + N].copy_from_slice(&bytes);
}

/// A bzImage whose 64-bit entry point is the code.
pub(crate) fn bzimage(code: &Code) -> Vec<u8> {
    const SETUP: usize = 1024;
    const ENTRY: usize = 0x200;
    let mut image = vec![0; (SETUP + ENTRY + code.0.len()).next_multiple_of(16)];
    let paragraphs = u32::try_from((image.len() - SETUP) / 16).unwrap();
    put(&mut image, 0x1f1, [1]);
    put(&mut image, 0x1f4, paragraphs.to_le_bytes());
    put(&mut image, 0x1fe, [0x55, 0xaa]);
    put(&mut image, 0x202, *b"HdrS");
    put(&mut image, 0x206, 0x020f_u16.to_le_bytes());
    put(&mut image, 0x211, [1]);
    put(&mut image, 0x214, 0x10_0000_u32.to_le_bytes());
    put(&mut image, 0x22c, 0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x236, 1_u16.to_le_bytes());
    put(&mut image, 0x238, 255_u32.to_le_bytes());
    put(&mut image, 0x258, ADDRESS.to_le_bytes());
    put(&mut image, 0x260, 0x10_0000_u32.to_le_bytes());
    image[SETUP + ENTRY..][..code.0.len()].copy_from_slice(&code.0);
    image
}

/// A vmlinux that is entered by the 64-bit boot protocol.
pub(crate) fn elf(code: &Code) -> Vec<u8> {
    elf_with(code, &[])
}

/// A vmlinux that is entered by the PVH boot protocol, as its note says.
pub(crate) fn elf_pvh(code: &Code) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, 18] {
        note.extend(u32::to_le_bytes(word));
    }
    note.extend(b"Xen\0");
    note.extend(u32::try_from(ADDRESS).unwrap().to_le_bytes());
    elf_with(code, &note)
}

fn elf_with(code: &Code, note: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const CODE: usize = 0x1000;
    let count: u16 = if note.is_empty() { 1 } else { 2 };
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let mut image = vec![0; CODE + code.0.len()];
    put(&mut image, 0, *b"\x7fELF\x02\x01\x01");
    // An executable for x86-64.
    put(&mut image, 16, [2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 24, ADDRESS.to_le_bytes());
    put(&mut image, 32, (HEADER as u64).to_le_bytes());
    put(&mut image, 52, 64_u16.to_le_bytes());
    put(&mut image, 54, 56_u16.to_le_bytes());
    put(&mut image, 56, count.to_le_bytes());
    let mut segment = |at: usize, kind: u32, offset: usize, len: usize| {
        put(&mut image, at, kind.to_le_bytes());
        put(&mut image, at + 8, (offset as u64).to_le_bytes());
        put(&mut image, at + 16, LINKED.to_le_bytes());
        put(&mut image, at + 24, ADDRESS.to_le_bytes());
        put(&mut image, at + 32, (len as u64).to_le_bytes());
        put(&mut image, at + 40, (len as u64).to_le_bytes());
    };
    segment(HEADER, 1, CODE, code.0.len());
    if !note.is_empty() {
        segment(HEADER + PROGRAM_HEADER, 4, note_at, note.len());
    }
    image[note_at..note_at + note.len()].copy_from_slice(note);
    image[CODE..].copy_from_slice(&code.0);
    image
}
