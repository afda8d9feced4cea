// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small virtual machine monitor, and the case study that this family of crates grew from.
//!
//! Without a kernel it runs a built-in 64-bit guest that fills a buffer twice: word by word from
//! the register of `mmio-rng-legacy`, and by requests to `virtio-rng`. It prints what each took,
//! in exits and in time. With `--kernel` it boots Linux, which drives the same two devices.
//!
//! * `layout.rs`: the memory map;
//! * `kvm.rs`: the way to KVM;
//! * `memory.rs`: guest memory;
//! * `arch/`: what depends on the processor's architecture;
//! * `devices.rs`: the virtual machine, and the two devices on its bus;
//! * `entropy.rs`: the devices' source;
//! * `case_study.rs` and its folder: the built-in guest and its results;
//! * `linux.rs` and its folder: everything that Linux needs beyond that;
//! * `args.rs`: the command line;
//! * `stdio.rs`: standard output and standard error.

mod arch;
mod args;
mod case_study;
mod devices;
mod entropy;
mod kvm;
mod layout;
mod linux;
mod memory;
mod stdio;

use std::error::Error;
use std::process::ExitCode;

use args::Command;
use stdio::{complain, print};

/// Why the program ends without having done its work.
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// What the command line says makes no sense.
    const fn usage(message: String) -> Self {
        Self { status: 2, message }
    }

    /// The run failed.
    fn run(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            status: 1,
            message: with_causes(&*error.into()),
        }
    }
}

/// An error with what caused it, and what caused that.
fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some errors say themselves what caused them.
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        next = cause.source();
    }
    message
}

fn main() -> ExitCode {
    let failure = match start() {
        Ok(status) => return status,
        Err(failure) => failure,
    };
    complain(&failure.message);
    ExitCode::from(failure.status)
}

fn start() -> Result<ExitCode, Failure> {
    let command = args::parse(std::env::args_os().skip(1)).map_err(Failure::usage)?;
    stdio::check_stdout().map_err(Failure::run)?;
    match command {
        Command::Help => print(args::HELP).map_err(Failure::run)?,
        Command::Version => {
            let version = concat!("mini-vmm ", env!("CARGO_PKG_VERSION"), "\n");
            print(version).map_err(Failure::run)?;
        }
        Command::CaseStudy(options) => case_study::run(&options)?,
        Command::Linux(options) => return linux::run(&options),
    }
    Ok(ExitCode::SUCCESS)
}
