// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: buses with devices on them, and a virtual machine that is connected with them.

use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bus::{BusDevice, BusError, MmioBus, PioBus, Region};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use vcpu_runner::{BusIo, ExitCounters, IoEvent, IrqFd, KvmVcpu, VcpuGroup, VcpuRunner};
use virtio_rng_device::{EntropyDevice, RngCounters};
use vm_superio::I8042Device;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Options;
use super::bell::Bell;
use super::cpu;
use super::kernel::Kernel;
use super::power::{KeyboardController, Reset, SleepRegisters};
use super::serial::SerialPort;
use super::trace::{Io, OtherExits, Trace};
use crate::boot::Memory;
use crate::devices::{self, Wires};
use crate::entropy::{Source, Trouble};
use crate::layout::{I8042, I8042_SIZE, SERIAL, SERIAL_GSI, SERIAL_SIZE, SLEEP, SLEEP_SIZE};

/// What has befallen an entropy source, if anything.
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
    wires: Option<Wires>,
    troubles: Vec<Noted>,
    bell: Bell,
    serial: SerialPort,
    serial_irq: Arc<EventFd>,
}

/// The virtual machine, and its connections with devices.
pub(crate) struct Parts {
    _serial_irq: IrqFd,
    _doorbells: Vec<IoEvent>,
    _vm: Arc<VmFd>,
    /// Guest memory outlives the virtual machine.
    _memory: Arc<Memory>,
}

impl Machine {
    /// Puts the devices on their buses.
    pub(crate) fn new(options: &Options, memory: Arc<Memory>) -> Result<Self, Box<dyn Error>> {
        let bell = Bell::new()?;
        let serial_irq = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let serial = SerialPort::new(serial_irq.clone(), &bell);
        let pio = PioBus::new();
        put(&pio, serial.clone(), SERIAL, SERIAL_SIZE, "serial")?;
        let keyboard = KeyboardController(I8042Device::new(Reset(bell.clone())));
        put(&pio, keyboard, I8042, I8042_SIZE, "i8042")?;
        if options.acpi {
            put(
                &pio,
                SleepRegisters(bell.clone()),
                SLEEP,
                SLEEP_SIZE,
                "acpi-sleep",
            )?;
        }

        let mmio = MmioBus::new();
        let mut troubles = Vec::new();
        if options.legacy_rng {
            let entropy = options.source.open()?;
            troubles.push(entropy.trouble());
            devices::insert_legacy_rng(&mmio, entropy)?;
        }
        let (mut rng, mut wires) = (None, None);
        if options.virtio_rng {
            let entropy = options.source.open()?;
            troubles.push(entropy.trouble());
            let counters = Arc::new(RngCounters::default());
            let device =
                EntropyDevice::with_observer(entropy, devices::worker()?, counters.clone());
            device.limits().set(options.rate_limit, None);
            wires = Some(devices::insert_virtio_rng(&mmio, device, memory.clone())?);
            rng = Some(counters);
        }
        Ok(Self {
            memory,
            mmio,
            pio,
            exits: (0..options.cpus).map(|_| Arc::default()).collect(),
            rng,
            wires,
            troubles,
            bell,
            serial,
            serial_irq,
        })
    }

    /// Makes the virtual machine and its vCPUs, ready to start.
    pub(crate) fn assemble(
        &self,
        kvm: &Kvm,
        kernel: &Kernel,
        options: &Options,
    ) -> Result<(Parts, VcpuGroup), Box<dyn Error>> {
        let vm = Arc::new(devices::create_vm(kvm, &self.memory)?);
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        })?;
        let serial_irq = IrqFd::new(&vm, SERIAL_GSI, self.serial_irq.try_clone()?)?;
        let doorbells = match &self.wires {
            Some(wires) => wires.connect(&vm)?,
            None => Vec::new(),
        };

        let trace = options
            .trace
            .map(|lines| Trace::new(lines, &self.mmio, &self.pio));
        let vcpus = cpu::create(kvm, &vm, options.cpus, &kernel.entry)?;
        let mut group = VcpuGroup::new();
        for (id, (vcpu, exits)) in vcpus.into_iter().zip(&self.exits).enumerate() {
            let buses = BusIo::new(self.mmio.view(), self.pio.view());
            let io = Io::new(id, buses, trace.clone(), self.bell.clone());
            let observer = (exits.clone(), OtherExits::new(id, trace.clone()));
            group.add(VcpuRunner::new(KvmVcpu::new(vcpu)?, io).with_observer(observer));
        }
        let parts = Parts {
            _serial_irq: serial_irq,
            _doorbells: doorbells,
            _vm: vm,
            _memory: self.memory.clone(),
        };
        Ok((parts, group))
    }

    /// What ends the machine.
    pub(crate) const fn bell(&self) -> &Bell {
        &self.bell
    }

    /// The first serial port.
    pub(crate) fn serial(&self) -> SerialPort {
        self.serial.clone()
    }

    /// Ends the guest's last line of output, so that ours begins on a new one.
    pub(crate) fn finish_line(&self) {
        if self.serial.line_is_open() {
            let _ = writeln!(std::io::stdout());
        }
    }

    /// What has befallen the entropy sources, each thing once.
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

/// Puts a device on the port bus whose registers are bytes.
fn put(
    pio: &PioBus,
    device: impl BusDevice + 'static,
    base: u16,
    len: u64,
    name: &'static str,
) -> Result<(), BusError<u16>> {
    let region = Region::new(base, len).named(name).widths(&[1]);
    pio.insert_region(Arc::new(Mutex::new(device)), region.counted())?;
    Ok(())
}
