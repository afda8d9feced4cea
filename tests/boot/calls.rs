// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every call of KVM is failed once, by a library that is loaded before the C library.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::Folder;
use crate::kernels::{Code, bzimage};
use crate::kvm::kvm;
use crate::program::{program, stderr};
use crate::text;

/// Builds the library, if there is a C compiler.
fn library(folder: &Folder) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/fail_ioctl.c");
    let library = folder.0.join("fail_ioctl.so");
    let built = Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-o",
            text(&library),
            text(&source),
            "-ldl",
        ])
        .status();
    match built {
        Ok(status) => {
            assert!(status.success());
            Some(library)
        }
        Err(error) => {
            eprintln!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// Runs the program with this call failing.
fn run(library: &Path, call: u16, args: &[&str]) -> Output {
    program()
        .args(args)
        .env("LD_PRELOAD", library)
        .env("FAIL_IOCTL", format!("{call:x}"))
        .output()
        .unwrap()
}

#[test]
fn a_call_of_kvm_that_fails_is_named() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("calls");
    let Some(library) = library(&folder) else {
        return;
    };
    let kernel = folder.file("kernel", &bzimage(&Code::new().power_off()));
    let linux = ["--kernel", text(&kernel)];
    let case_study = ["--bytes", "4"];
    for (call, name, by_both) in [
        (0xae00, "KVM_GET_API_VERSION", true),
        (0xae01, "KVM_CREATE_VM", true),
        (0xae04, "KVM_GET_VCPU_MMAP_SIZE", true),
        (0xae05, "KVM_GET_SUPPORTED_CPUID", true),
        (0xae41, "KVM_CREATE_VCPU", true),
        (0xae46, "KVM_SET_USER_MEMORY_REGION", true),
        (0xae47, "KVM_SET_TSS_ADDR", true),
        (0xae60, "KVM_CREATE_IRQCHIP", true),
        (0xae76, "KVM_IRQFD", false),
        (0xae77, "KVM_CREATE_PIT2", false),
        (0xae79, "KVM_IOEVENTFD", true),
        (0xae80, "KVM_RUN", true),
        (0xae82, "KVM_SET_REGS", true),
        (0xae83, "KVM_GET_SREGS", true),
        (0xae84, "KVM_SET_SREGS", true),
        (0xae89, "KVM_SET_MSRS", false),
        (0xae8d, "KVM_SET_FPU", false),
        (0xae8e, "KVM_GET_LAPIC", false),
        (0xae8f, "KVM_SET_LAPIC", false),
        (0xae90, "KVM_SET_CPUID2", true),
    ] {
        let programs = [&linux, &case_study];
        for args in programs.into_iter().take(1 + usize::from(by_both)) {
            let output = run(&library, call, args);
            let complaint = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{name}: {complaint}");
            assert_eq!(complaint.lines().count(), 1, "{name}: {complaint}");
            assert!(complaint.contains(name), "{name}: {complaint}");
            assert!(complaint.contains("(os error 71)"), "{name}: {complaint}");
        }
    }
}

#[test]
fn an_interrupt_line_that_fails_is_named() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("line");
    let Some(library) = library(&folder) else {
        return;
    };
    let output = run(&library, 0xae61, &["--bytes", "4"]);
    let complaint = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    for part in ["virtio-rng", "interrupt line 5", "KVM_IRQ_LINE"] {
        assert!(complaint.contains(part), "{complaint}");
    }
}
