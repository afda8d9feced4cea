// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program on a host that refuses what a machine is made of.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::mini_vmm;
use crate::kvm::kvm;
use crate::refuse::{Refused, refused};

const SOON: Duration = Duration::from_secs(120);

#[test]
fn a_call_that_fails_while_a_machine_is_made_ends_the_program_in_one_line() {
    if !kvm() {
        return;
    }
    let shared = u64::try_from(libc::MAP_SHARED).unwrap();
    let private = u64::try_from(libc::MAP_PRIVATE).unwrap();
    let guest_memory = u64::try_from(libc::MAP_NORESERVE).unwrap();
    for (name, calls) in [
        (
            "epoll_create1",
            Refused::always(libc::SYS_epoll_create1, libc::EMFILE),
        ),
        (
            "eventfd2",
            Refused::always(libc::SYS_eventfd2, libc::EMFILE),
        ),
        (
            "timerfd_create",
            Refused::always(libc::SYS_timerfd_create, libc::EMFILE),
        ),
        ("clone", Refused::threads()),
        (
            "mmap of a vCPU's run area",
            Refused::only_if(libc::SYS_mmap, libc::ENOMEM, 3, shared | private, shared),
        ),
        (
            "mmap of guest memory",
            Refused::only_if(libc::SYS_mmap, libc::ENOMEM, 3, guest_memory, guest_memory),
        ),
        // KVM_CREATE_VCPU, as any other request of KVM's.
        (
            "ioctl",
            Refused::only_if(
                libc::SYS_ioctl,
                libc::EPROTO,
                1,
                u64::from(u32::MAX),
                0xae41,
            ),
        ),
    ] {
        let mut child = refused(&calls, || {
            let mut program = mini_vmm();
            program.args(["--bytes", "4"]);
            let program = program.stdin(Stdio::null()).stdout(Stdio::piped());
            program.stderr(Stdio::piped()).spawn().unwrap()
        });
        let deadline = Instant::now() + SOON;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() >= deadline {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{name}: {complaint}");
        assert!(complaint.contains("os error"), "{name}: {complaint}");
        // What it was that failed comes before the host's word for it.
        assert!(complaint.matches(": ").count() > 1, "{name}: {complaint}");
    }
}
