// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots Linux: the same two devices, and everything that Linux needs beyond them.
//!
//! * `files.rs`, `kernel.rs`, `initrd.rs`: what is loaded into guest memory;
//! * `parameters.rs`, `acpi.rs`: what the kernel is told;
//! * `cpu.rs`: the processors' first state;
//! * `machine.rs`: the wiring of virtual machine, buses, devices and vCPUs;
//! * `serial.rs`, `power.rs`: the devices that are no random number generators;
//! * `console.rs`, `terminal.rs`, `signals.rs`, `bell.rs`, `ending.rs`: the user's side, and the end;
//! * `trace.rs`, `report.rs`: what can be seen of it all.

mod acpi;
mod bell;
mod console;
mod cpu;
mod ending;
mod files;
mod initrd;
mod kernel;
mod machine;
mod parameters;
mod power;
mod report;
mod serial;
mod signals;
mod terminal;
mod trace;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vcpu_runner::{GroupError, JoinError};
use virtio_rng_device::RateLimit;

use crate::boot::{self, Memory};
use crate::devices::virtio_rng_location;
use crate::entropy::Source;
use crate::layout::WINDOW;
use crate::{Failure, complain, open_kvm, print};
use console::Console;
use ending::Ending;
use machine::Machine;
use terminal::Terminal;

/// How long the vCPUs may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(2);

/// How to boot Linux.
#[derive(Debug)]
pub(crate) struct Options {
    /// None if only the map is wanted.
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: String,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) cpus: u8,
    pub(crate) source: Source,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) legacy_rng: bool,
    pub(crate) virtio_rng: bool,
    pub(crate) acpi: bool,
    /// How many lines to trace, if any.
    pub(crate) trace: Option<u32>,
    pub(crate) map: bool,
    pub(crate) json: bool,
}

/// Boots Linux, and returns when the guest has come to its end.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    options.source.check(1).map_err(Failure::usage)?;
    let memory = allocate(options.memory).map_err(Failure::usage)?;
    let guest = match &options.kernel {
        Some(path) => Some(load(path, options, &memory).map_err(Failure::usage)?),
        None => None,
    };
    let machine = Machine::new(options, Arc::new(memory)).map_err(Failure::run)?;
    if options.map {
        print(&report::map(&machine, options)).map_err(Failure::run)?;
    }
    let Some(kernel) = guest else {
        return Ok(ExitCode::SUCCESS);
    };
    boot(&machine, &kernel, options).map_err(Failure::run)
}

/// Makes guest memory, which takes no more of the host's than the guest touches.
fn allocate(size: u64) -> Result<Memory, String> {
    let mut ranges = Vec::new();
    for (start, len) in parameters::ram(size) {
        ranges.push((
            start,
            usize::try_from(len).map_err(|error| error.to_string())?,
        ));
    }
    boot::allocate(ranges)
        .and_then(|memory| boot::advise_huge_pages(&memory).map(|()| memory))
        .map_err(|error| format!("--memory: {} MiB: {error}", size >> 20))
}

/// Loads everything into guest memory that the kernel finds there.
fn load(
    path: &std::path::Path,
    options: &Options,
    memory: &Memory,
) -> Result<kernel::Kernel, String> {
    let low_end = options.memory.min(WINDOW);
    let kernel = kernel::load(path, memory, low_end)?;
    let initrd = match &options.initrd {
        Some(path) => Some(initrd::load(path, &kernel, memory, low_end)?),
        None => None,
    };
    let virtio = match options.virtio_rng {
        true => Some(virtio_rng_location().map_err(|error| error.to_string())?),
        false => None,
    };
    let mut additions = Vec::new();
    if !options.acpi {
        // A kernel that looks for tables in vain may wait for interrupts it cannot get.
        additions.push("acpi=off".to_owned());
        additions.extend(virtio.map(|location| location.kernel_argument()));
    }
    let line = parameters::command_line(&options.command_line, &additions, &kernel)?;
    let written = boot::write_tables(memory)
        .and_then(|()| {
            let (size, acpi) = (options.memory, options.acpi);
            parameters::write(memory, size, &kernel, initrd, &line, acpi)
        })
        .and_then(|()| match options.acpi {
            true => acpi::write(memory, options.cpus, virtio),
            false => Ok(()),
        });
    written.map_err(|error| error.to_string())?;
    Ok(kernel)
}

/// Runs the machine until it comes to its end.
fn boot(
    machine: &Machine,
    kernel: &kernel::Kernel,
    options: &Options,
) -> Result<ExitCode, Box<dyn Error>> {
    let kvm = open_kvm()?;
    let (parts, group) = machine.assemble(&kvm, kernel, options)?;
    let bell = machine.bell();
    let terminal = Terminal::take()?;
    signals::watch(bell.clone(), terminal.as_ref().map(Terminal::modes))?;

    let began = Instant::now();
    let mut group = group.start(PATIENCE)?;
    let mut console = Console::new(machine.serial(), bell.clone(), terminal.is_some());
    let end = console.serve();
    // Whatever is printed from now on is printed on a terminal as it was.
    drop(terminal);
    group.stop();
    let stopped = group.join(PATIENCE);
    let elapsed = began.elapsed();

    let ending = Ending::new(&end?, &stopped);
    machine.finish_line();
    for trouble in machine.troubles(&options.source) {
        complain(&trouble);
    }
    if let Some(message) = &ending.message {
        complain(message);
    }
    if matches!(
        stopped,
        Err(GroupError::Vcpu {
            error: JoinError::Timeout,
            ..
        })
    ) {
        // A vCPU waits for whoever reads standard output. It still uses guest memory.
        std::process::exit(ending.status.into());
    }
    if options.json {
        print(&report::json(machine, &ending, elapsed)?)?;
    }
    drop((group, parts));
    Ok(ExitCode::from(ending.status))
}
