// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! x86-64.
//!
//! * `layout.rs`: what of the memory map only this architecture has;
//! * `vm.rs`: the virtual machine and its interrupt lines;
//! * `mode.rs`: the mode in which a program is entered;
//! * `case_study.rs`, `guest.rs`: the case study's machine and its guest;
//! * `linux.rs`: Linux' machine, with `cpu.rs`, `reset.rs`, `power.rs`, `boot_params.rs` and
//!   `acpi.rs`.

mod acpi;
mod boot_params;
pub(crate) mod case_study;
mod cpu;
mod guest;
pub(crate) mod layout;
pub(crate) mod linux;
mod mode;
mod power;
mod reset;
pub(crate) mod vm;
