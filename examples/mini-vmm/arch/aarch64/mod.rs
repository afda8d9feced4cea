// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! arm64.
//!
//! * `layout.rs`: what of the memory map only this architecture has;
//! * `vm.rs`: the virtual machine, its interrupt controller and its interrupt lines;
//! * `cpu.rs`: the processors' first state;
//! * `case_study.rs`, `mmu.rs`, `guest.rs`: the case study's machine and its guest;
//! * `linux.rs`: Linux' machine, with `fdt.rs`; `reset.rs`: why it does not reboot in place.

pub(crate) mod case_study;
mod cpu;
mod fdt;
mod guest;
pub(crate) mod layout;
pub(crate) mod linux;
mod mmu;
mod reset;
pub(crate) mod vm;
