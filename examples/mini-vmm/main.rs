// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small virtual machine monitor, and the case study that this family of crates grew from.
//!
//! Without a kernel it runs a built-in 64-bit guest that fills a buffer twice: word by word from
//! the register of `mmio-rng-legacy`, and by requests to `virtio-rng`. It prints what each took,
//! in exits and in time. With `--kernel` it boots Linux, which drives the same two devices.
//!
//! How a machine is made is told below, in [`boot`]; each step names the file to open next. The
//! case study makes a smaller one in the same way: `case_study/machine.rs`.
//!
//! * `layout.rs`: the memory map;
//! * `arch/`: what depends on the processor's architecture;
//! * `entropy.rs`: the source of both random number generators;
//! * `args.rs`: the command line;
//! * `stdio.rs`, `failure.rs`: what the program says, and how it fails.

mod arch;
mod args;
mod case_study;
mod devices;
mod entropy;
mod failure;
mod kvm;
mod layout;
mod linux;
mod memory;
mod stdio;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use args::Command;
use failure::{Failure, with_causes};
use linux::disk::Disk;
use linux::loader::Kernel;
use linux::net::{NetOptions, Network};
use linux::{Machine, Terminal};
use memory::Memory;
use stdio::{complain, print};

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
        Command::Linux(options) => return prepare(&options),
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes guest memory and fills it: what is wrong with the files that the user names shows before
/// anything else is begun.
fn prepare(options: &linux::Options) -> Result<ExitCode, Failure> {
    options.source.check(1).map_err(Failure::usage)?;

    // Guest memory takes no more of the host's than the guest touches: `memory.rs`.
    let memory = linux::allocate(options.memory).map_err(Failure::usage)?;
    // Where the guest's packets go to: `linux/net.rs`. Before any file is open: what it can name by
    // number are those that the program began with.
    let net = options.net.as_ref().map(NetOptions::open).transpose();
    let net = net.map_err(Failure::usage)?;
    // The files that are the guest's disks: `linux/disk.rs`.
    let disks = linux::disk::open_all(&options.disks, options.cpus).map_err(Failure::usage)?;
    let Some(path) = &options.kernel else {
        return linux::show_map(options, disks, net, Arc::new(memory)).map_err(Failure::run);
    };

    // The kernel, its initial RAM disk, its command line, and the tables that tell it of the machine:
    // `linux/loader/` and `arch/*/linux.rs`.
    let kernel = linux::load(path, options, &memory).map_err(Failure::usage)?;

    let memory = Arc::new(memory);
    boot(options, path, memory, &kernel, disks, net).map_err(Failure::run)
}

/// How a machine is made, run, and ended.
fn boot(
    options: &linux::Options,
    path: &Path,
    memory: Arc<Memory>,
    kernel: &Kernel,
    disks: Vec<Disk>,
    net: Option<Network>,
) -> Result<ExitCode, Box<dyn Error>> {
    // The host's KVM: `kvm.rs`.
    let kvm = kvm::open()?;
    if let Some(doubt) = arch::vm::doubt() {
        complain(doubt);
    }

    // A virtual machine of it, with guest memory, which outlives it as this function's argument:
    // `devices.rs` and `arch/*/vm.rs`.
    let vm = Arc::new(devices::create_vm(&kvm, &memory)?);

    // Its processors, the first of which begins at the kernel's entry point; on arm64 the interrupt
    // controller comes with them: `arch/*/cpu.rs`.
    let vcpus = arch::linux::create_vcpus(&kvm, &vm, options.cpus, kernel)?;
    let first = linux::first_state(options.reboot, &kvm, &vm, &vcpus)?;

    // Two buses, for memory-mapped I/O and for ports, and devices on them: `linux/machine.rs` and
    // `devices.rs`.
    let machine = Machine::new(options, disks, net, memory.clone())?;
    if options.map {
        print(&linux::map(&machine, options))?;
    }

    // Interrupts go from devices to the virtual machine, notifications of queues come from it.
    let _connections = machine.connect(&vm)?;

    // A loop for each processor: run the guest, take its access to the bus, go on.
    let loops = machine.loops(vcpus, options)?;

    // The user's side: a terminal, and signals. From here on a signal ends the machine, and so
    // nothing below waits without an end to it: `linux/terminal.rs`, `linux/signals.rs`.
    let terminal = Terminal::find().map_err(kvm::call("the terminal"))?;
    linux::watch_signals(&machine, terminal.as_ref()).map_err(kvm::call("signals"))?;

    // The guest runs, until it switches the machine off, crashes, or the user has enough. If it
    // reboots, everything above is put back to where it began, and it runs again: `linux.rs`.
    let again = |loops: &_| {
        let load = |memory: &_| linux::load(path, options, memory);
        machine.reset(&vm, first.as_ref(), loops, load)
    };
    let began = Instant::now();
    let ending = linux::play(&machine, loops, options.reboot, again, terminal);
    let status = linux::report(&machine, options, &ending, began.elapsed());

    // A worker may wait for its source for ever, and nobody is to wait for the worker.
    std::process::exit(status.into())
}
