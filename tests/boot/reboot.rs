// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--reboot in-place`: the guest starts again in the same process, and finds everything as it was.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::Folder;
use crate::kernels::{Code, bzimage, elf, elf_pvh};
use crate::kvm::kvm;
use crate::program::{await_full, end_of, program, run_with, stderr};
use crate::text;

const SERIAL: u16 = 0x3f8;
const SCRATCH: u16 = SERIAL + 7;
const PIC_MASK: u16 = 0x21;
const RNG0: u32 = 0x8000_1000;
const VIRTIO_STATUS: u32 = 0x8000_2070;
const IO_APIC: u32 = 0xfec0_0000;
const SPURIOUS_VECTOR: u32 = 0xfee0_00f0;
const INTERRUPT_COMMAND: u32 = 0xfee0_0300;
const LSTAR: u32 = 0xc000_0082;
/// Where the other processors count themselves.
const STARTED: u32 = 0x6000;
/// Where they begin, and that as they are told it.
const TRAMPOLINE: u32 = 0x7_0000;
const TRAMPOLINE_PAGE: u32 = 0x70;

impl Code {
    /// `mov ebx, address`
    fn at(self, address: u32) -> Self {
        let [a, b, c, d] = address.to_le_bytes();
        self.with(&[0xbb, a, b, c, d])
    }

    /// Writes a word: `mov dword [rbx], value`
    fn store(self, address: u32, value: u32) -> Self {
        let [a, b, c, d] = value.to_le_bytes();
        self.at(address).with(&[0xc7, 0x03, a, b, c, d])
    }

    /// Prints the low byte of a word: `mov eax, [rbx]; out dx, al`
    fn show(self, address: u32) -> Self {
        self.at(address)
            .with(&[0x8b, 0x03])
            .port(SERIAL)
            .with(&[0xee])
    }

    /// Prints the byte at a port, and changes it.
    fn show_port(self, port: u16) -> Self {
        self.port(port)
            .with(&[0xec])
            .port(SERIAL)
            .with(&[0xee])
            .out(port, 0x5a)
    }

    /// Prints what a reset should have put back, and changes all of it.
    fn show_state(self) -> Self {
        let [a, b, c, d] = LSTAR.to_le_bytes();
        self.show(0x30_0000)
            .store(0x30_0000, 0x5a)
            .show_port(SCRATCH)
            .show_port(PIC_MASK)
            .show(VIRTIO_STATUS)
            .store(VIRTIO_STATUS, 1)
            .show(SPURIOUS_VECTOR)
            .store(SPURIOUS_VECTOR, 0x15a)
            .store(IO_APIC, 0x10)
            .show(IO_APIC + 0x10)
            .store(IO_APIC + 0x10, 0x1_005a)
            // mov ecx, LSTAR; rdmsr; out dx, al; mov al, 0x5a; wrmsr
            .with(&[0xb9, a, b, c, d, 0x0f, 0x32])
            .port(SERIAL)
            .with(&[0xee, 0xb0, 0x5a, 0x0f, 0x30])
            // mov rax, r15; out dx, al; mov r15b, 0x5a
            .with(&[0x4c, 0x89, 0xf8, 0xee, 0x41, 0xb7, 0x5a])
            // mov rax, dr0; out dx, al; mov al, 0x5a; mov dr0, rax
            .with(&[0x0f, 0x21, 0xc0, 0xee, 0xb0, 0x5a, 0x0f, 0x23, 0xc0])
    }

    /// Starts the other processors, each of which prints an `a`, and waits for them.
    fn start_others(mut self, count: u8) -> Self {
        // mov al, 'a'; mov dx, SERIAL; out dx, al; lock inc byte [STARTED]; hlt; jmp .-1
        let trampoline = [
            0xb0, b'a', 0xba, 0xf8, 0x03, 0xee, 0xf0, 0xfe, 0x06, 0x00, 0x60, 0xf4, 0xeb, 0xfd,
        ];
        for (at, byte) in (TRAMPOLINE..).zip(trampoline) {
            self = self.store(at, byte.into());
        }
        let to_all_others = 0xc_4000;
        self.show(STARTED)
            .store(INTERRUPT_COMMAND, to_all_others | 0x500)
            .store(INTERRUPT_COMMAND, to_all_others | 0x600 | TRAMPOLINE_PAGE)
            .at(STARTED)
            // again: cmp byte [rbx], count; jb again
            .with(&[0x80, 0x3b, count, 0x72, 0xfb])
    }

    /// Reads a byte from `rng0`, and does what it says: `r` resets, `t` is a triple fault, and
    /// everything else switches off.
    fn obey(self) -> Self {
        let reset = Self::new().reset();
        let fault = Self::new().triple_fault();
        // mov eax, [rbx]; cmp al, 'r'; jne over; ...
        self.at(RNG0)
            .with(&[0x8b, 0x03])
            .if_equal(b'r', &reset)
            .if_equal(b't', &fault)
            .power_off()
    }

    /// `cmp al, value; jne over; code; over:`
    fn if_equal(self, value: u8, code: &Self) -> Self {
        let len = u8::try_from(code.len()).unwrap();
        self.with(&[0x3c, value, 0x75, len]).then(code)
    }
}

/// What the guest is to do in each of its lives, as an entropy file.
fn lives(what: &[u8]) -> Vec<u8> {
    what.iter().flat_map(|&byte| [byte, 0, 0, 0]).collect()
}

#[test]
fn a_guest_that_reboots_in_place_finds_everything_as_it_was() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("in-place");
    let entropy = folder.file("lives", &lives(b"rtrrtp"));
    let fresh = [0, 0, 0, 0, 0xff, 0, 0, 0, 0];
    for cpus in 1..=3u8 {
        let others = cpus - 1;
        let (mut code, mut life) = (Code::new().show_state(), fresh.to_vec());
        if others > 0 {
            code = code.start_others(others);
            life.push(0);
            life.extend(std::iter::repeat_n(b'a', others.into()));
        }
        life.push(b'\n');
        let kernel = folder.file("kernel", &elf(&code.put(b'\n').obey()));
        let output = run_with(
            b"",
            &[
                "--kernel",
                text(&kernel),
                "--entropy",
                text(&entropy),
                "--cpus",
                &cpus.to_string(),
                "--reboot",
                "in-place",
                "--json",
            ],
        );
        assert_eq!(output.status.code(), Some(0), "{cpus}: {output:?}");
        assert_eq!(stderr(&output), "", "{cpus}");
        let (printed, json) = output.stdout.split_at(6 * life.len());
        assert_eq!(printed, life.repeat(6), "{cpus}");
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outcome"], "power-off");
        assert_eq!(json["reboots"], 5);
        assert_eq!(json["devices"]["mmio-rng-legacy"]["reads"], 6);
        assert_eq!(json["vcpus"].as_array().unwrap().len(), usize::from(cpus));
    }
}

#[test]
fn each_kind_of_kernel_is_told_the_same_again() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("in-place-kinds");
    let entropy = folder.file("lives", &lives(b"rp"));
    let long = Code::new().print_command_line_64().put(b'\n').obey();
    let pvh = Code::new().print_command_line_pvh().put(b'\n').obey();
    for (name, image) in [
        ("bzImage", bzimage(&long)),
        ("vmlinux", elf(&long)),
        ("vmlinux-pvh", elf_pvh(&pvh)),
    ] {
        let kernel = folder.file(name, &image);
        let args = ["--kernel", text(&kernel), "--entropy", text(&entropy)];
        let more = ["--cmdline", "pci=", "--reboot", "in-place"];
        let output = run_with(b"", &[&args[..], &more].concat());
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert_eq!(output.stdout, b"pci=\npci=\n", "{name}");
    }
}

#[test]
fn input_outlives_the_guest_that_did_not_take_it() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("in-place-input");
    let off = Code::new().power_off();
    // again: in al, line status; test al, 1; jz again; in al, data; out data, al
    let code = Code::new()
        .port(SERIAL + 5)
        .with(&[0xec, 0xa8, 1, 0x74, 0xfb])
        .port(SERIAL)
        .with(&[0xec, 0xee])
        .if_equal(b'q', &off)
        .reset();
    let kernel = folder.file("kernel", &elf(&code));
    let args = ["--kernel", text(&kernel), "--reboot", "in-place"];
    let output = run_with(b"abcdefq", &args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"abcdefq\n");
}

#[test]
fn a_signal_ends_a_guest_that_reboots_without_end() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("in-place-signal");
    let quiet = folder.file("quiet", &elf(&Code::new().put(b'r').reset()));
    let flood = Code::new().put(b'r').put_many(b'x', 200_000).reset();
    let flood = folder.file("flood", &elf(&flood));
    for (kernel, floods) in [(&quiet, false), (&flood, true)] {
        let mut child = program()
            .args(["--kernel", text(kernel), "--reboot", "in-place"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lives = [0; 3];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut lives).unwrap();
        if floods {
            await_full(&stdout);
        } else {
            assert_eq!(&lives, b"rrr");
        }
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(end_of(&mut child).code(), Some(143), "{kernel:?}");
    }
}

#[test]
fn a_kernel_that_is_gone_ends_the_program() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("in-place-gone");
    let code = Code::new().put(b'r').echo_until_q().reset();
    let kernel = folder.file("kernel", &elf(&code));
    let mut child = program()
        .args(["--kernel", text(&kernel), "--reboot", "in-place"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    fs::remove_file(&kernel).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let wanted = format!(
        "mini-vmm: --kernel: {}: No such file or directory (os error 2)\n",
        kernel.display()
    );
    assert_eq!(stderr(&output), wanted);
}

#[test]
fn a_mode_that_is_none_is_refused() {
    for (args, complaint) in [
        (
            vec!["--kernel", "x", "--reboot", "maybe"],
            "--reboot: 'maybe' is neither 'exit' nor 'in-place'",
        ),
        (
            vec!["--reboot", "in-place"],
            "--reboot only makes sense with --kernel",
        ),
    ] {
        let output = run_with(b"", &args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(stderr(&output), format!("mini-vmm: {complaint}\n"));
    }
}
