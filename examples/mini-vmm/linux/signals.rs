// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals that end the program, stop it for a while, say that its terminal or a disk has another
//! size, or pull the network's cable.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use rustix::process::Signal;
use signal_hook::consts::{
    SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGWINCH, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use vcpu_runner::KickSignal;
use virtio_blk_device::BlockHandle;
use virtio_net_device::NetHandle;

use super::bell::{Bell, End};
use super::hvc::Hvc;
use super::terminal::Modes;

/// Everything that would end the program and leave the terminal as it is, but for faults of the
/// program's own; and what stops it. Real-time signals come in addition.
const WATCHED: [i32; 16] = [
    SIGABRT,
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGIO,
    SIGPROF,
    SIGQUIT,
    SIGTERM,
    SIGTSTP,
    SIGUSR1,
    SIGUSR2,
    SIGVTALRM,
    SIGXCPU,
    SIGXFSZ,
    Signal::POWER.as_raw(),
    Signal::STKFLT.as_raw(),
];

/// Has a thread end the machine on signals, give the terminal back while the program is stopped, keep
/// the virtio console's size that of the terminal, tell disks of their size on SIGUSR1, and pull the
/// network's cable out or plug it in on SIGUSR2, if there are any.
pub(crate) fn watch(
    bell: Bell,
    terminal: Option<Modes>,
    hvc: Option<Hvc>,
    disks: Vec<BlockHandle>,
    net: Option<NetHandle>,
) -> io::Result<()> {
    // Whoever started the program may want it to ignore some: nohup, for one.
    let ignored = ignored();
    // The first one kicks vCPUs.
    let realtime = (1..).map_while(KickSignal::realtime);
    let wanted = WATCHED
        .into_iter()
        .chain(realtime.map(KickSignal::number))
        .filter(|&signal| ignored >> (signal - 1) & 1 == 0);
    let wanted = wanted.chain(hvc.is_some().then_some(SIGWINCH));
    let mut signals = Signals::new(wanted)?;
    let refresh = match disks.is_empty() {
        true => None,
        false => Some(refresher(disks)?),
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut plugged = true;
            for signal in signals.forever() {
                if signal == SIGWINCH {
                    hvc.iter().for_each(Hvc::resize);
                    continue;
                }
                if let Some(refresh) = refresh.as_ref().filter(|_| signal == SIGUSR1) {
                    // One that is asked for already sees what this would see.
                    let _ = refresh.try_send(());
                    continue;
                }
                if let Some(net) = net.as_ref().filter(|_| signal == SIGUSR2) {
                    plugged = !plugged;
                    net.set_cable(plugged);
                    continue;
                }
                if signal != SIGTSTP {
                    bell.end(End::Signal(signal));
                    continue;
                }
                if let Some(terminal) = &terminal {
                    terminal.suspend();
                }
                // Comes back when the program is continued.
                let _ = emulate_default_handler(signal);
                if let Some(terminal) = &terminal {
                    terminal.resume();
                }
            }
        })?;
    Ok(())
}

/// Starts a thread that tells disks their size whenever it is asked to: finding the size can block
/// without bound, for instance on a network file system.
fn refresher(disks: Vec<BlockHandle>) -> io::Result<SyncSender<()>> {
    let (asks, asked) = mpsc::sync_channel(1);
    let refresh = move || {
        for () in asked {
            // One whose size cannot be found out has the one that it had.
            disks.iter().for_each(|disk| drop(disk.refresh()));
        }
    };
    let thread = thread::Builder::new().name("disks".to_owned());
    thread.spawn(refresh).map(|_| asks)
}

/// The exit status of a program that this signal has ended.
pub(crate) fn status(signal: i32) -> u8 {
    // Signals are numbered up to 64.
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The set of signals that are ignored, as the kernel tells it.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
