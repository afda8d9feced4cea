// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots Linux: the same two devices, and everything that Linux needs beyond them.
//!
//! * `files.rs`, `loader/`: what is loaded into guest memory;
//! * `command_line.rs`: what the kernel is told by the user;
//! * `machine.rs`: the wiring of virtual machine, buses, devices and vCPUs;
//! * `serial.rs`, `hvc.rs`: the consoles;
//! * `input.rs`, `output.rs`, `terminal.rs`, `signals.rs`: the user's side;
//! * `bell.rs`, `ending.rs`: the end;
//! * `trace.rs`, `report.rs`: what can be seen of it all.

pub(crate) mod bell;
pub(crate) mod command_line;
mod ending;
mod files;
mod hvc;
mod input;
pub(crate) mod loader;
mod machine;
mod output;
mod report;
pub(crate) mod serial;
mod signals;
mod terminal;
mod trace;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vcpu_runner::VcpuGroup;
use virtio_rng_device::RateLimit;

use crate::arch;
use crate::arch::layout::KERNEL;
use crate::devices;
use crate::entropy::Source;
use crate::layout::{RAM_START, WINDOW, ram};
use crate::memory::{self, Memory};
use crate::stdio::{complain, print};
use crate::{Failure, kvm};
use bell::End;
use ending::Ending;
use loader::{Kernel, Room, load_initrd, load_kernel};
use machine::Machine;
use terminal::Terminal;

/// How long the vCPUs may take to start, on however busy a host.
const START: Duration = Duration::from_secs(60);
/// How long they may take to stop. One that takes longer waits for a device, and is left alone.
const STOP: Duration = Duration::from_secs(5);
/// A guest that has not exited once in this time may be one that KVM cannot run.
const SILENCE: Duration = Duration::from_secs(10);

/// What the user sees and types into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Console {
    /// The first serial port, `ttyS0`.
    #[default]
    Serial,
    /// The virtio console, `hvc0`.
    Virtio,
}

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
    pub(crate) console: Console,
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
    for (start, len) in ram(size) {
        ranges.push((
            start,
            usize::try_from(len).map_err(|error| error.to_string())?,
        ));
    }
    memory::allocate(ranges)
        .and_then(|memory| memory::advise_huge_pages(&memory).map(|()| memory))
        .map_err(|error| format!("--memory: {} MiB: {error}", size >> 20))
}

/// Loads everything into guest memory that the kernel finds there.
fn load(path: &Path, options: &Options, memory: &Memory) -> Result<Kernel, String> {
    let room = Room {
        ram: RAM_START,
        start: KERNEL,
        end: RAM_START + options.memory.min(WINDOW - RAM_START),
        limit: WINDOW,
    };
    let kernel = files::load("--kernel", path, |image| load_kernel(image, memory, room))?;
    let initrd = match &options.initrd {
        Some(path) => Some(files::load("--initrd", path, |image| {
            load_initrd(image, &kernel, memory, room)
        })?),
        None => None,
    };
    let mut virtio = Vec::new();
    for (slot, wanted) in [
        (devices::RNG, options.virtio_rng),
        (devices::CONSOLE, options.console == Console::Virtio),
    ] {
        if wanted {
            virtio.push(slot.location().map_err(|error| error.to_string())?);
        }
    }
    let needed = arch::linux::needed(&options.command_line, &virtio, options.acpi);
    let line = command_line::complete(&options.command_line, &needed, &kernel)?;
    arch::linux::write(memory, options, &kernel, initrd, &line, &virtio)
        .map_err(|error| error.to_string())?;
    Ok(kernel)
}

/// Runs the machine until it comes to its end.
fn boot(machine: &Machine, kernel: &Kernel, options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let kvm = kvm::open()?;
    if let Some(doubt) = arch::vm::doubt() {
        complain(doubt);
    }
    let (_parts, group) = machine.assemble(&kvm, kernel, options)?;
    let terminal = Terminal::find().map_err(kvm::call("the terminal"))?;
    signals::watch(
        machine.bell().clone(),
        terminal.as_ref().map(Terminal::modes),
        machine.hvc().cloned(),
    )?;
    // From here on a signal ends the machine, and so nothing below waits without an end to it.

    let began = Instant::now();
    let played = play(machine, group, terminal);
    let elapsed = began.elapsed();
    let ending = played.unwrap_or_else(|error| Ending::failed(error.to_string()));
    let status = report(machine, options, &ending, elapsed);
    // A worker may wait for its source for ever, and nobody is to wait for the worker.
    std::process::exit(status.into())
}

/// Runs the vCPUs until the machine comes to its end, with the terminal in the guest's hands.
fn play(
    machine: &Machine,
    group: VcpuGroup,
    terminal: Option<Terminal>,
) -> Result<Ending, Box<dyn Error>> {
    if let Some(terminal) = &terminal {
        terminal.modes().take().map_err(kvm::call("the terminal"))?;
    }
    let mut group = group.start(START)?;
    if let Some(hvc) = machine.hvc() {
        hvc.start().map_err(kvm::call("thread"))?;
    }
    input::start(
        machine.keyboard(),
        machine.bell().clone(),
        terminal.is_some(),
    )
    .map_err(kvm::call("thread"))?;
    await_end(machine);
    machine.output.release();
    machine.errors.release();
    group.stop();
    let stopped = group.join(STOP);
    if let Some(hvc) = machine.hvc() {
        hvc.flush();
    }
    machine.output.finish_line();
    machine.output.drain();
    // Whatever is printed from now on is printed on a terminal as it was.
    drop(terminal);
    let end = machine
        .bell()
        .verdict()
        .ok_or("nobody has ended the machine")?;
    Ok(Ending::new(&end, &stopped))
}

/// Waits for the end of the machine.
fn await_end(machine: &Machine) {
    let bell = machine.bell();
    let began = Instant::now();
    let mut watched = arch::vm::EXITS_EARLY;
    while !bell.is_end() {
        let time = watched.then(|| SILENCE.saturating_sub(began.elapsed()));
        if bell.wait(time) {
            continue;
        }
        watched = false;
        if machine.total_exits() == 0 {
            let seconds = SILENCE.as_secs();
            machine.complain(&format!(
                "the guest has not exited once in {seconds} seconds: this KVM may not be able to \
                 run it"
            ));
        }
    }
}

/// Says what has happened, and returns the exit status.
fn report(machine: &Machine, options: &Options, ending: &Ending, elapsed: Duration) -> u8 {
    for trouble in machine.troubles(&options.source) {
        machine.complain(&trouble);
    }
    if let Some(message) = &ending.message {
        machine.complain(message);
    }
    machine.errors.drain();
    if !options.json {
        return ending.status;
    }
    match report::json(machine, ending, elapsed) {
        Ok(json) => machine.output.push(json.as_bytes()),
        Err(error) => machine.complain(&error.to_string()),
    }
    if machine.output.drain() {
        return ending.status;
    }
    let lost = match machine.bell().verdict() {
        Some(End::Signal(signal)) => return signals::status(signal),
        Some(End::Console(message)) => message,
        _ => "standard output: nobody reads it".to_owned(),
    };
    if ending.message.as_ref() != Some(&lost) {
        machine.complain(&lost);
        machine.errors.drain();
    }
    1
}
