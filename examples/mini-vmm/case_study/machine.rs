// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: a virtual machine with one vCPU, two buses and three devices.

use std::error::Error;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bus::{MmioBus, PioBus};
use kvm_ioctls::Kvm;
use vcpu_runner::{BusIo, ExitCounters, KvmVcpu, VcpuHandle, VcpuRunner};
use virtio_rng_device::EntropyDevice;
use vm_memory::{Bytes, GuestAddress};

use super::announce::{Announcements, Message, Phase};
use super::guest::{Device, check_name};
use crate::arch;
use crate::devices;
use crate::entropy::{Source, Trouble};
use crate::kvm::call;
use crate::layout::{RAM_SIZE, RAM_START};
use crate::memory::{self, Memory};
use crate::with_causes;

/// A guest that has not exited once in this time hangs; it may have lost an interrupt.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a silent guest is checked.
const GLANCE: Duration = Duration::from_millis(200);

/// The first trouble with an entropy source, if there was any.
type Noted = Arc<Mutex<Option<Trouble>>>;

/// The results of one run of the guest.
pub(crate) struct Run {
    /// What each device took, in the order of the guest's phases.
    pub(crate) phases: Vec<Phase>,
    memory: Arc<Memory>,
    bytes: u64,
}

impl Run {
    /// What the guest holds of a device's bytes.
    pub(crate) fn buffer(&self, device: Device) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut buffer = vec![0; usize::try_from(self.bytes)?];
        self.memory
            .read_slice(&mut buffer, GuestAddress(device.buffer()))?;
        Ok(buffer)
    }
}

/// Makes a machine, has its guest fetch `bytes` bytes from each device, and takes it apart.
///
/// A machine for every run: each device starts at the start of its source.
///
/// `watch` is called now and then with the exits so far.
pub(crate) fn run(
    kvm: &Kvm,
    bytes: u64,
    source: &Source,
    mut watch: impl FnMut(&ExitCounters),
) -> Result<Run, Box<dyn Error>> {
    // Made before the virtual machine, and so dropped after it.
    let memory = Arc::new(memory().map_err(|error| format!("guest memory: {error}"))?);
    let vm = Arc::new(devices::create_vm(kvm, &memory)?);

    let legacy = source.open()?;
    let virtio = source.open()?;
    let troubles = [legacy.trouble(), virtio.trouble()];

    let mmio = MmioBus::new();
    devices::insert_legacy_rng(&mmio, legacy)?;
    let worker = devices::RNG.worker().map_err(call(devices::RNG.name()))?;
    let virtio = EntropyDevice::new(virtio, worker);
    let (sender, messages) = channel();
    let failures = sender.clone();
    // If nobody listens any more, the run is over.
    let tell = move |failure| drop(failures.send(Message::LineFailed(failure)));
    let wires = devices::insert_virtio(&mmio, devices::RNG, virtio, memory.clone(), tell)?;

    let counters = Arc::new(ExitCounters::default());
    let pio = PioBus::new();
    let announcements = Announcements::new(counters.clone(), sender);
    arch::case_study::insert_announcements(&mmio, &pio, announcements)?;

    let vcpu = arch::case_study::create_vcpu(kvm, &vm, bytes)?;
    let _connections = wires.connect(&vm)?;
    let vcpu = KvmVcpu::new(vcpu).map_err(call("mmap of the vCPU's run record"))?;
    let runner =
        VcpuRunner::new(vcpu, BusIo::new(mmio.view(), pio.view())).with_observer(counters.clone());
    let mut vcpu = runner.spawn("vcpu0").map_err(call("thread"))?;

    let mut phases = Vec::new();
    let mut progress = Progress::new(&counters);
    let failed_check = loop {
        match messages.recv_timeout(GLANCE) {
            Ok(Message::Phase(phase)) => phases.push(phase),
            Ok(Message::Done(check)) => break check,
            Ok(Message::LineFailed(failure)) => return Err(failure.into()),
            Err(RecvTimeoutError::Timeout) => {
                watch(&counters);
                let silence = || silence(&mut vcpu, &mut progress, &counters);
                if let Some(error) = explain(source, &troubles, bytes).or_else(silence) {
                    return Err(error.into());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(ended(&mut vcpu).into()),
        }
    };
    vcpu.stop();
    vcpu.join(PATIENCE)?;

    if let Some(trouble) = explain(source, &troubles, bytes) {
        return Err(trouble.into());
    }
    if failed_check != 0 {
        return Err(format!("the guest's check failed: {}", check_name(failed_check)).into());
    }
    Ok(Run {
        phases,
        memory,
        bytes,
    })
}

/// Makes guest memory with the guest's program in it.
fn memory() -> Result<Memory, Box<dyn Error>> {
    let memory = memory::allocate([(RAM_START, RAM_SIZE)])?;
    arch::case_study::write_guest(&memory)?;
    Ok(memory)
}

/// Whether the guest still does something.
struct Progress {
    exits: u64,
    since: Instant,
}

impl Progress {
    fn new(counters: &ExitCounters) -> Self {
        Self {
            exits: counters.total(),
            since: Instant::now(),
        }
    }

    /// Whether there has been no exit for too long.
    fn stuck(&mut self, counters: &ExitCounters) -> bool {
        let exits = counters.total();
        if exits != self.exits {
            (self.exits, self.since) = (exits, Instant::now());
        }
        self.since.elapsed() > PATIENCE
    }
}

/// Checks a guest that has announced nothing for a while, and returns what is wrong with it.
fn silence(
    vcpu: &mut VcpuHandle,
    progress: &mut Progress,
    counters: &ExitCounters,
) -> Option<String> {
    if vcpu.is_finished() {
        return Some(ended(vcpu));
    }
    let seconds = PATIENCE.as_secs();
    progress
        .stuck(counters)
        .then(|| format!("the guest hangs: no exit for {seconds} seconds"))
}

/// How a vCPU ended that should not have.
fn ended(vcpu: &mut VcpuHandle) -> String {
    match vcpu.join(PATIENCE) {
        Ok(outcome) => format!("the guest ended early: {outcome}"),
        Err(error) => with_causes(&error),
    }
}

/// The trouble with an entropy source, if there was any: it explains whatever the guest reports.
fn explain(source: &Source, troubles: &[Noted], bytes: u64) -> Option<String> {
    troubles.iter().find_map(|noted| {
        let trouble = noted.lock().unwrap_or_else(PoisonError::into_inner);
        trouble
            .as_ref()
            .map(|trouble| source.explain(trouble, bytes))
    })
}
