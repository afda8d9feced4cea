// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: buses with devices on them, and a virtual machine that is connected with them.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bus::{MmioBus, PioBus};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::stdio::{stderr, stdout};
use vcpu_runner::{BusIo, ExitCounters, IoEvent, IrqFd, KvmVcpu, Outcome, VcpuGroup, VcpuRunner};
use virtio_blk_device::BlockHandle;
use virtio_net_device::NetHandle;
use virtio_rng_device::{EntropyDevice, RngCounters};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bell::{Bell, End};
use super::disk::Disk;
use super::hvc::Hvc;
use super::input::Keyboard;
use super::loader::Kernel;
use super::net::{Complaint, Network};
use super::output::Output;
use super::serial::SerialPort;
use super::trace::{Io, OtherExits, Trace};
use super::{Console, Options, Reboot};
use crate::arch;
use crate::arch::linux::FirstState;
use crate::devices::{self, Wires};
use crate::entropy::{Source, Trouble};
use crate::kvm::call;
use crate::layout::SERIAL_GSI;
use crate::memory::{self, Memory};
use crate::stdio::{complaint, failed_stdout};

/// The first trouble with an entropy source, if there was any.
type Noted = Arc<Mutex<Option<Trouble>>>;

/// Everything but the virtual machine itself.
pub(crate) struct Machine {
    memory: Arc<Memory>,
    pub(crate) mmio: MmioBus,
    pub(crate) pio: PioBus,
    /// The exits of each vCPU.
    pub(crate) exits: Vec<Arc<ExitCounters>>,
    /// What virtio-rng has done.
    pub(crate) rng: Option<Arc<RngCounters>>,
    wires: Vec<Wires>,
    /// The disks, to be told of another size.
    pub(crate) disks: Vec<BlockHandle>,
    /// The network's cable.
    pub(crate) net: Option<NetHandle>,
    /// The virtio console, if it is wanted.
    hvc: Option<Hvc>,
    troubles: Vec<Noted>,
    bell: Bell,
    /// Standard output and standard error.
    pub(crate) output: Output,
    pub(crate) errors: Output,
    serial: SerialPort,
    serial_irq: Arc<EventFd>,
    /// How often the guest has started again, if it can.
    reboots: Option<Cell<u64>>,
}

/// How often a device is asked whether its reset is complete.
const GLANCE: Duration = Duration::from_millis(10);

/// What connects devices with a virtual machine.
pub(crate) struct Connections {
    _serial_irq: IrqFd,
    _doorbells: Vec<IoEvent>,
}

impl Machine {
    /// Puts the devices on their buses.
    pub(crate) fn new(
        options: &Options,
        disks: Vec<Disk>,
        net: Option<Network>,
        memory: Arc<Memory>,
    ) -> Result<Self, Box<dyn Error>> {
        let bell = Bell::default();
        let fail = {
            let bell = bell.clone();
            // Nobody can follow what the guest does any more.
            move |error: &io::Error| bell.end(End::Console(failed_stdout(error)))
        };
        let output = Output::start("stdout", stdout(), &bell, fail).map_err(call("thread"))?;
        // Messages that nobody can read are not worth ending the guest for.
        let errors = Output::start("stderr", stderr(), &bell, |_| {}).map_err(call("thread"))?;
        let serial_irq = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(call("eventfd"))?);
        let serial = SerialPort::new(serial_irq.clone(), output.clone(), errors.clone());
        let (mmio, pio) = (MmioBus::new(), PioBus::new());
        arch::linux::insert_devices(&mmio, &pio, serial.clone(), &bell, options)?;
        let mut troubles = Vec::new();
        if options.legacy_rng {
            let entropy = options.source.open()?;
            troubles.push(entropy.trouble());
            devices::insert_legacy_rng(&mmio, entropy)?;
        }
        let (mut rng, mut wires) = (None, Vec::new());
        let tell = || {
            let errors = errors.clone();
            move |failure: String| errors.push(complaint(&failure).as_bytes())
        };
        if options.virtio_rng {
            let entropy = options.source.open()?;
            troubles.push(entropy.trouble());
            let counters = Arc::new(RngCounters::default());
            let slot = devices::RNG;
            let worker = slot.worker().map_err(call(slot.name()))?;
            let device = EntropyDevice::with_observer(entropy, worker, counters.clone());
            device.limits().set(options.rate_limit, None);
            wires.push(devices::insert_virtio(
                &mmio,
                slot,
                device,
                memory.clone(),
                tell(),
            )?);
            rng = Some(counters);
        }
        let mut hvc = None;
        if options.console == Console::Virtio {
            let slot = devices::CONSOLE;
            let (device, user) = Hvc::new(output.clone()).map_err(call(slot.name()))?;
            wires.push(devices::insert_virtio(
                &mmio,
                slot,
                device,
                memory.clone(),
                tell(),
            )?);
            hvc = Some(user);
        }
        let cable = net.as_ref().map(Network::handle);
        let mut handles = Vec::new();
        for disk in disks {
            let slot = disk.slot;
            let (device, handle) = disk.watched(tell());
            wires.push(devices::insert_virtio(
                &mmio,
                slot,
                device,
                memory.clone(),
                tell(),
            )?);
            handles.push(handle);
        }
        if let Some(device) = net {
            let device = device.with_observer(Complaint::new(tell()));
            let (slot, memory) = (devices::NET, memory.clone());
            wires.push(devices::insert_virtio(&mmio, slot, device, memory, tell())?);
        }
        Ok(Self {
            memory,
            mmio,
            pio,
            exits: (0..options.cpus).map(|_| Arc::default()).collect(),
            rng,
            wires,
            disks: handles,
            net: cable,
            hvc,
            troubles,
            bell,
            output,
            errors,
            serial,
            serial_irq,
            reboots: (options.reboot == Reboot::InPlace).then(Cell::default),
        })
    }

    /// Connects the devices with the virtual machine, until what is returned is dropped.
    pub(crate) fn connect(&self, vm: &Arc<VmFd>) -> Result<Connections, Box<dyn Error>> {
        let event = self.serial_irq.try_clone().map_err(call("dup"))?;
        let serial_irq = IrqFd::new(vm, SERIAL_GSI, event).map_err(call("KVM_IRQFD"))?;
        let mut doorbells = Vec::new();
        for wires in &self.wires {
            doorbells.extend(wires.connect(vm)?);
        }
        Ok(Connections {
            _serial_irq: serial_irq,
            _doorbells: doorbells,
        })
    }

    /// Makes a loop for each vCPU, whose accesses go to the buses.
    pub(crate) fn loops(
        &self,
        vcpus: Vec<VcpuFd>,
        options: &Options,
    ) -> Result<VcpuGroup, Box<dyn Error>> {
        let trace = options
            .trace
            .map(|lines| Trace::new(lines, self.errors.clone(), &self.mmio, &self.pio));
        let bell = self.bell.clone();
        let mut group = VcpuGroup::new().on_end(move |_, ended| {
            bell.end(match ended {
                Ok(Outcome::Shutdown) => End::PowerOff,
                Ok(Outcome::Reset) => End::Reset,
                _ => End::Vcpu,
            });
        });
        for (id, (vcpu, exits)) in vcpus.into_iter().zip(&self.exits).enumerate() {
            let buses = BusIo::new(self.mmio.view(), self.pio.view());
            let io = Io::new(id, buses, trace.clone());
            let observer = (exits.clone(), OtherExits::new(id, trace.clone()));
            let vcpu = KvmVcpu::new(vcpu).map_err(call("mmap of a vCPU's run record"))?;
            group.add(VcpuRunner::new(vcpu, io).with_observer(observer));
        }
        Ok(group)
    }

    /// Puts everything back to where it began, while no vCPU runs, and has `load` fill guest memory.
    ///
    /// Devices come first, because they may be at work in guest memory. If one does not let go of
    /// it and the user wants the program to end, the rest is left alone.
    pub(crate) fn reset(
        &self,
        vm: &VmFd,
        first: Option<&FirstState>,
        group: &VcpuGroup,
        load: impl FnOnce(&Memory) -> Result<Kernel, String>,
    ) -> Result<(), Box<dyn Error>> {
        self.serial.reset();
        for wires in &self.wires {
            while !wires.reset() {
                if self.bell.is_urgent() {
                    return Ok(());
                }
                thread::sleep(GLANCE);
            }
        }
        memory::clear(&self.memory)?;
        let kernel = load(&self.memory)?;
        let first = first.ok_or("this machine cannot reboot")?;
        first.restore(vm, group.vcpus().map(KvmVcpu::fd))?;
        let boots = group.vcpus().next().ok_or("a machine has a vCPU")?;
        arch::linux::enter(boots.fd(), &kernel)
    }

    /// Lets the machine begin again; says whether it may.
    pub(crate) fn begin_again(&self) -> bool {
        self.output.hold();
        self.errors.hold();
        let begins = self.bell.begin_again();
        if let Some(reboots) = self.reboots.as_ref().filter(|_| begins) {
            reboots.set(reboots.get() + 1);
        }
        begins
    }

    /// How often the guest has started again, if it can.
    pub(crate) fn reboots(&self) -> Option<u64> {
        self.reboots.as_ref().map(Cell::get)
    }

    /// What ends the machine.
    pub(crate) const fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What the user types into.
    pub(crate) fn keyboard(&self) -> Keyboard {
        match &self.hvc {
            Some(hvc) => Keyboard::Hvc(hvc.clone()),
            None => Keyboard::Serial(self.serial.clone()),
        }
    }

    /// The virtio console, if there is one.
    pub(crate) const fn hvc(&self) -> Option<&Hvc> {
        self.hvc.as_ref()
    }

    /// How often the guest has exited, on all vCPUs.
    pub(crate) fn total_exits(&self) -> u64 {
        self.exits.iter().map(|exits| exits.total()).sum()
    }

    /// Leaves a message for the user, without waiting for anybody to read it.
    pub(crate) fn complain(&self, message: &str) {
        self.errors.push(complaint(message).as_bytes());
    }

    /// The troubles with the entropy sources, each one once.
    pub(crate) fn troubles(&self, source: &Source) -> Vec<String> {
        let mut troubles = Vec::new();
        for noted in &self.troubles {
            let noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            troubles.extend(noted.as_ref().map(|trouble| source.describe(trouble)));
        }
        troubles.dedup();
        troubles
    }
}
