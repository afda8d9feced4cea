// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots Linux: the same two devices, and everything that Linux needs beyond them.
//!
//! * `files.rs`, `loader/`: what is loaded into guest memory;
//! * `command_line.rs`: what the kernel is told by the user;
//! * `machine.rs`: the wiring of virtual machine, buses, devices and vCPUs;
//! * `serial.rs`, `hvc.rs`: the consoles;
//! * `disk.rs`, `net.rs`: the disks and the network;
//! * `input.rs`, `output.rs`, `terminal.rs`, `signals.rs`: the user's side;
//! * `bell.rs`, `ending.rs`: the end;
//! * `trace.rs`, `report.rs`: what can be seen of it all.

pub(crate) mod bell;
pub(crate) mod command_line;
pub(crate) mod disk;
mod ending;
mod files;
mod hvc;
mod input;
pub(crate) mod loader;
mod machine;
pub(crate) mod net;
mod output;
mod report;
pub(crate) mod serial;
mod signals;
mod terminal;
mod trace;

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::{GroupError, JoinError, Outcome, RunningGroup, VcpuGroup};
use virtio_rng_device::RateLimit;

use crate::arch;
use crate::arch::layout::KERNEL;
use crate::arch::linux::FirstState;
use crate::devices;
use crate::entropy::Source;
use crate::kvm;
use crate::layout::{RAM_START, WINDOW, ram};
use crate::memory::{self, Memory};
use crate::stdio::print;
use crate::with_causes;
use bell::End;
use disk::{Disk, DiskOptions};
use ending::Ending;
use loader::{Kernel, Room, load_initrd, load_kernel};
pub(crate) use machine::Machine;
use net::{NetOptions, Network};
pub(crate) use report::map;
pub(crate) use terminal::Terminal;

/// How long the vCPUs may take to start, on however busy a host.
const START: Duration = Duration::from_secs(60);
/// How long they may take to stop. A vCPU that takes longer is waiting for a device, and is
/// abandoned.
const STOP: Duration = Duration::from_secs(5);
/// How often a vCPU that waits for a device is checked.
const GLANCE: Duration = Duration::from_millis(100);
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

/// What becomes of a guest that asks for a reset, or resets its processor by a triple fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reboot {
    /// It ends, and so does the program.
    #[default]
    Exit,
    /// It starts again, with the same devices.
    InPlace,
}

/// The parts `NAME` or `NAME=VALUE` of what is given to `option`, unless a name is there twice.
fn given_once<'a>(
    option: &str,
    parts: impl Iterator<Item = &'a str>,
) -> Result<Vec<&'a str>, String> {
    let (mut names, parts) = (BTreeSet::new(), parts.collect::<Vec<_>>());
    for part in &parts {
        let name = part.split_once('=').map_or(*part, |(name, _)| name);
        if !names.insert(name) {
            return Err(format!("{option}: {name} is given twice"));
        }
    }
    Ok(parts)
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
    pub(crate) disks: Vec<DiskOptions>,
    pub(crate) net: Option<NetOptions>,
    pub(crate) acpi: bool,
    pub(crate) reboot: Reboot,
    /// How many lines to trace, if any.
    pub(crate) trace: Option<u32>,
    pub(crate) map: bool,
    pub(crate) json: bool,
}

/// Prints the maps of memory and ports of the machine that would be made.
pub(crate) fn show_map(
    options: &Options,
    disks: Vec<Disk>,
    net: Option<Network>,
    memory: Arc<Memory>,
) -> Result<ExitCode, Box<dyn Error>> {
    let machine = Machine::new(options, disks, net, memory)?;
    print(&map(&machine, options))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes guest memory, which takes no more of the host's than the guest touches.
pub(crate) fn allocate(size: u64) -> Result<Memory, String> {
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
pub(crate) fn load(path: &Path, options: &Options, memory: &Memory) -> Result<Kernel, String> {
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
    for (slot, _) in devices::DISKS.into_iter().zip(&options.disks) {
        virtio.push(slot.location().map_err(|error| error.to_string())?);
    }
    if options.net.is_some() {
        let slot = devices::NET;
        virtio.push(slot.location().map_err(|error| error.to_string())?);
    }
    let needed = arch::linux::needed(&options.command_line, &virtio, options.acpi);
    let line = command_line::complete(&options.command_line, &needed, &kernel)?;
    arch::linux::write(memory, options, &kernel, initrd, &line, &virtio)
        .map_err(|error| error.to_string())?;
    Ok(kernel)
}

/// Keeps the state that a reboot in place puts back, if there can be one.
pub(crate) fn first_state(
    reboot: Reboot,
    kvm: &Kvm,
    vm: &VmFd,
    vcpus: &[VcpuFd],
) -> Result<Option<FirstState>, Box<dyn Error>> {
    match reboot {
        Reboot::Exit => Ok(None),
        Reboot::InPlace => FirstState::keep(kvm, vm, vcpus).map(Some),
    }
}

/// Has signals end the machine, and leave the terminal as it was.
pub(crate) fn watch_signals(machine: &Machine, terminal: Option<&Terminal>) -> io::Result<()> {
    let modes = terminal.map(Terminal::modes);
    let (bell, hvc) = (machine.bell().clone(), machine.hvc().cloned());
    signals::watch(bell, modes, hvc, machine.disks.clone(), machine.net.clone())
}

/// Runs the vCPUs until the machine comes to its end, and says what that was.
pub(crate) fn play(
    machine: &Machine,
    group: VcpuGroup,
    reboot: Reboot,
    again: impl Fn(&VcpuGroup) -> Result<(), Box<dyn Error>>,
    terminal: Option<Terminal>,
) -> Ending {
    play_on(machine, group, reboot, again, terminal)
        .unwrap_or_else(|error| Ending::failed(with_causes(&*error)))
}

/// The same, with the terminal in the guest's hands meanwhile.
fn play_on(
    machine: &Machine,
    group: VcpuGroup,
    reboot: Reboot,
    again: impl Fn(&VcpuGroup) -> Result<(), Box<dyn Error>>,
    terminal: Option<Terminal>,
) -> Result<Ending, Box<dyn Error>> {
    if let Some(terminal) = &terminal {
        terminal.modes().take().map_err(kvm::call("the terminal"))?;
    }
    let running = group.start(START)?;
    // Threads of the host's side, for all of the guest's lives.
    if let Some(hvc) = machine.hvc() {
        hvc.start().map_err(kvm::call("thread"))?;
    }
    input::start(
        machine.keyboard(),
        machine.bell().clone(),
        terminal.is_some(),
    )
    .map_err(kvm::call("thread"))?;
    let stopped = live(machine, running, reboot, again);
    machine.output.release();
    machine.errors.release();
    if let Some(hvc) = machine.hvc() {
        hvc.flush();
    }
    machine.output.finish_line();
    machine.output.drain();
    // Whatever is printed from now on is printed on a terminal as it was.
    drop(terminal);
    let stopped = stopped?;
    Ok(Ending::new(&verdict(machine)?, &stopped))
}

/// Runs the vCPUs until the guest does not start again.
fn live(
    machine: &Machine,
    mut running: RunningGroup,
    reboot: Reboot,
    again: impl Fn(&VcpuGroup) -> Result<(), Box<dyn Error>>,
) -> Result<Result<Outcome, GroupError>, Box<dyn Error>> {
    loop {
        await_end(machine);
        // A vCPU that waits to write something is to stop, too.
        machine.output.release();
        machine.errors.release();
        running.stop();
        let mut stopped = running.join(STOP);
        // It begins again with all of its vCPUs, so with one that waits for a device as well.
        while reboot == Reboot::InPlace
            && is_busy(&stopped)
            && matches!(verdict(machine)?, End::Reset | End::Vcpu)
        {
            stopped = running.join(GLANCE);
        }
        if reboot == Reboot::Exit || !ending::is_reboot(&verdict(machine)?, &stopped) {
            return Ok(stopped);
        }
        let group = running.into_group()?;
        again(&group)?;
        if !machine.begin_again() {
            return Ok(stopped);
        }
        running = group.start(START)?;
    }
}

/// Whether a vCPU has not come to its end.
const fn is_busy(stopped: &Result<Outcome, GroupError>) -> bool {
    matches!(
        stopped,
        Err(GroupError::Vcpu {
            error: JoinError::Timeout,
            ..
        })
    )
}

/// Why the machine came to its end.
fn verdict(machine: &Machine) -> Result<End, &'static str> {
    machine
        .bell()
        .verdict()
        .ok_or("nobody has ended the machine")
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
pub(crate) fn report(
    machine: &Machine,
    options: &Options,
    ending: &Ending,
    elapsed: Duration,
) -> u8 {
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
