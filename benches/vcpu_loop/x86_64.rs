// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest, the competing loops, and the tables.

use std::arch::x86_64::_rdtsc;
use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bus::{AccessError, BusDeviceSync, MmioBus, PioBus};
use kvm_bindings::{KVM_EXIT_HLT, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vcpu_runner::{
    BusIo, Exit, ExitCounters, ExitLatencies, ExitObserver, Flow, GuestIo, Kick, KvmVcpu, Outcome,
    RunError, Vcpu, VcpuRunner,
};
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, pin, raise_priority};

const BASE: u64 = 0xd000_0000;
const SIZE: u64 = 0x1000;
const DEVICES: u64 = 32;

/// Where the guest finds how often to read.
const COUNT: GuestAddress = GuestAddress(0x5000);

/// Reads from the seventeenth device, because a search may find the first one sooner than others.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0x8b, 0x0d, 0x00, 0x50, 0x00, 0x00,           // mov ecx, [0x5000]
    0xa1, 0x00, 0x00, 0x01, 0xd0,                 // mov eax, [0xd0010000]
    0x49,                                         // dec ecx
    0x75, 0xf8,                                   // jnz back
    0xf4,                                         // hlt
    0xeb, 0xef,                                   // jmp to the start
];

/// A machine whose one vCPU is about to run the guest.
struct Machine {
    // Dropped last, after the vCPU that uses it.
    memory: GuestMemoryMmap,
    _vm: VmFd,
}

fn machine() -> (VcpuFd, Machine) {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let region = kvm_userspace_memory_region {
        memory_size: 64 << 20,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        ..Default::default()
    };
    // SAFETY: the memory is mapped, and the machine keeps it for longer than its vCPU runs.
    unsafe { vm.set_user_memory_region(region).unwrap() };
    memory.write_slice(GUEST, GuestAddress(0x1000)).unwrap();

    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs).unwrap();
    (vcpu, Machine { memory, _vm: vm })
}

impl Machine {
    /// Tells the guest how often to read this time.
    fn order(&self, count: u64) {
        let count = u32::try_from(count).unwrap();
        self.memory.write_obj(count, COUNT).unwrap();
    }
}

/// One register, always 0, although the compiler cannot know.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Register {
    value: u32,
}

impl Register {
    fn answer(&self, data: &mut [u8]) {
        if let Some(data) = data.first_chunk_mut() {
            *data = self.value.to_le_bytes();
        }
    }
}

impl BusDeviceSync for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.answer(data);
        Ok(())
    }
}

/// What a device tells the VMM at each access.
type Answer = ControlFlow<u32>;

/// The same register, with an answer.
#[derive(Debug, Default)]
struct Answering(Register);

impl BusDeviceSync<Answer> for Answering {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<Answer, AccessError> {
        self.0.answer(data);
        Ok(match self.0.value {
            0 => ControlFlow::Continue(()),
            end => ControlFlow::Break(end),
        })
    }
}

impl vm_device::DeviceMmio for Register {
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        self.answer(data);
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &[u8]) {}
}

fn places() -> impl Iterator<Item = u64> {
    (0..DEVICES).map(|n| BASE + n * SIZE)
}

fn bus_io() -> BusIo {
    let (mmio, pio) = (MmioBus::new(), PioBus::new());
    for base in places() {
        mmio.insert(Arc::<Register>::default(), base, SIZE).unwrap();
    }
    BusIo::new(mmio.view(), pio.view())
}

fn answering_io() -> BusIo<Answer> {
    let mmio = MmioBus::default();
    for base in places() {
        mmio.insert(Arc::<Answering>::default(), base, SIZE)
            .unwrap();
    }
    BusIo::without_ports(mmio.view())
}

fn io_manager() -> IoManager {
    let mut manager = IoManager::new();
    for base in places() {
        let range = MmioRange::new(MmioAddress(base), SIZE).unwrap();
        manager
            .register_mmio(range, Arc::<Register>::default())
            .unwrap();
    }
    manager
}

/// No devices, and no time spent on them.
struct Nothing;

impl GuestIo for Nothing {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

/// `KVM_RUN` and nothing else, to know what all loops have in common.
fn raw(name: &str) -> Case {
    let (mut vcpu, machine) = machine();
    Case::new(name, move |count| {
        machine.order(count);
        let fd = vcpu.as_raw_fd();
        loop {
            // SAFETY: this is a vCPU, for which the request is defined and takes no argument.
            let ret = unsafe { libc::ioctl(fd, 0xae80, 0) };
            assert_eq!(ret, 0, "{}", io::Error::last_os_error());
            if vcpu.get_kvm_run().exit_reason == KVM_EXIT_HLT {
                return count;
            }
        }
    })
}

/// The loop that one writes with kvm-ioctls, and what it does with a read.
fn plain(name: &str, mut read: impl FnMut(u64, &mut [u8]) + Send + 'static) -> Case {
    let (mut vcpu, machine) = machine();
    Case::new(name, move |count| {
        machine.order(count);
        loop {
            match vcpu.run().unwrap() {
                VcpuExit::MmioRead(addr, data) => read(addr, data),
                VcpuExit::Hlt => return count,
                other => panic!("unexpected {other:?}"),
            }
        }
    })
}

/// The loop of this family.
fn runner<I, O>(name: &str, io: I, observer: O) -> Case
where
    I: GuestIo<Answer: Flow<End: Debug + PartialEq>> + Send + 'static,
    O: ExitObserver + Send + 'static,
{
    let (vcpu, machine) = machine();
    let vcpu = KvmVcpu::new(vcpu).unwrap();
    let mut runner = VcpuRunner::new(vcpu, io).with_observer(observer);
    Case::new(name, move |count| {
        machine.order(count);
        assert_eq!(runner.run().unwrap(), Outcome::Halted);
        count
    })
}

const RAW: &str = "`KVM_RUN` in a loop, exits not looked at";
const BARE: &str = "kvm-ioctls, empty handler";
const IO_MANAGER: &str = "kvm-ioctls, vm-device `IoManager`, 32 devices";
const EMPTY: &str = "vcpu-runner, empty handler";
const BUS: &str = "vcpu-runner, vmm-bus, 32 devices";
const ANSWERS: &str = "vcpu-runner, vmm-bus, 32 devices, each access answered";
const COUNTED: &str = "vcpu-runner, vmm-bus, 32 devices, exits counted";
const TIMED: &str = "vcpu-runner, vmm-bus, 32 devices, latencies measured";

fn exits(rounds: usize) -> Results {
    let manager = io_manager();
    let latencies = Arc::new(ExitLatencies::default());
    let cases = vec![
        raw(RAW),
        plain(BARE, |_, _| ()),
        plain(IO_MANAGER, move |addr, data| {
            manager.mmio_read(MmioAddress(addr), data).unwrap();
        }),
        runner(EMPTY, Nothing, ()),
        runner(BUS, bus_io(), ()),
        runner(ANSWERS, answering_io(), ()),
        runner(COUNTED, bus_io(), Arc::<ExitCounters>::default()),
        runner(TIMED, bus_io(), latencies.observer()),
    ];
    interleave(cases, rounds, 1_000)
}

/// The processor's clock.
fn clock() -> u64 {
    // SAFETY: every x86-64 processor has this instruction.
    unsafe { _rdtsc() }
}

/// A vCPU that notes how long the loop around it takes from one run to the next.
struct InPlace {
    vcpu: KvmVcpu,
    left: u64,
    ticks: Arc<Mutex<Vec<u64>>>,
}

impl Vcpu for InPlace {
    type Error = std::convert::Infallible;

    // Inlined as `KvmVcpu::run` is: returning an exit would be a part of what is measured.
    #[inline(always)]
    fn run(&mut self) -> Result<Exit<'_>, RunError> {
        let now = clock();
        let spent = now.wrapping_sub(self.left);
        self.ticks.lock().unwrap().push(spent);
        let exit = self.vcpu.run();
        self.left = clock();
        exit
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.vcpu.kicker()
    }

    fn bind_thread(&mut self) -> io::Result<()> {
        self.vcpu.bind_thread()
    }

    fn unbind_thread(&mut self) {
        self.vcpu.unbind_thread();
    }
}

/// Ticks that a loop spends between two runs, one list for each loop.
fn in_place(rounds: usize) -> Vec<(&'static str, Vec<u64>)> {
    type Batch = Box<dyn FnMut(u64) -> Vec<u64>>;

    fn runner(io: impl GuestIo<Answer: Flow<End: Debug + PartialEq>> + 'static) -> Batch {
        let (vcpu, machine) = machine();
        let ticks = Arc::new(Mutex::new(Vec::new()));
        let vcpu = InPlace {
            vcpu: KvmVcpu::new(vcpu).unwrap(),
            left: 0,
            ticks: Arc::clone(&ticks),
        };
        let mut runner = VcpuRunner::new(vcpu, io);
        Box::new(move |count| {
            machine.order(count);
            assert_eq!(runner.run().unwrap(), Outcome::Halted);
            std::mem::take(&mut *ticks.lock().unwrap())
        })
    }

    fn plain(mut read: impl FnMut(u64, &mut [u8]) + 'static) -> Batch {
        let (mut vcpu, machine) = machine();
        Box::new(move |count| {
            machine.order(count);
            let mut ticks = Vec::new();
            let mut left = 0;
            loop {
                ticks.push(clock().wrapping_sub(left));
                let exit = vcpu.run().unwrap();
                left = clock();
                match exit {
                    VcpuExit::MmioRead(addr, data) => read(addr, data),
                    VcpuExit::Hlt => return ticks,
                    other => panic!("unexpected {other:?}"),
                }
            }
        })
    }

    let manager = io_manager();
    let mut loops: Vec<(&str, Batch, Vec<u64>)> = vec![
        (BARE, plain(|_, _| ()), Vec::new()),
        (
            IO_MANAGER,
            plain(move |addr, data| manager.mmio_read(MmioAddress(addr), data).unwrap()),
            Vec::new(),
        ),
        (EMPTY, runner(Nothing), Vec::new()),
        (BUS, runner(bus_io()), Vec::new()),
        (ANSWERS, runner(answering_io()), Vec::new()),
    ];
    for _ in 0..rounds {
        for (_, batch, ticks) in &mut loops {
            // The first entry has no exit before it.
            ticks.extend(batch(500).into_iter().skip(1));
        }
    }
    loops
        .into_iter()
        .map(|(name, _, ticks)| (name, ticks))
        .collect()
}

/// Mean of the middle half: finer than the clock's own steps, and blind to interruptions.
fn middle(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    let quarter = values.len() / 4;
    let half = values.get(quarter..values.len() - quarter).unwrap_or(&[]);
    half.iter().sum::<u64>() as f64 / half.len() as f64
}

/// Nanoseconds of one tick of the processor's clock.
fn tick() -> f64 {
    let (start, ticks) = (Instant::now(), clock());
    while start.elapsed().as_millis() < 50 {}
    start.elapsed().as_nanos() as f64 / clock().wrapping_sub(ticks) as f64
}

/// How to read the report.
const ABOUT: &str = "\
The guest reads four bytes from one address; medians of rounds in which all competitors take turns.";

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut report = Report::new("The run loop", "vcpu_loop", ABOUT);
    if let Err(error) = Kvm::new() {
        println!("skipped: no usable /dev/kvm: {error}");
        return Ok(());
    }
    raise_priority();
    pin(0);

    let results = exits(report.rounds(201, 41));
    let places = in_place(report.rounds(100, 20));

    report.say("## A whole exit\n");
    let mut table = Table::new(&["", "times kvm-ioctls", "*ns, this run*"]);
    for name in results.names() {
        table.row(&[
            name.clone(),
            format!("{:.3}", results.ratio(name, BARE)),
            format!("*{:.0}*", results.median(name)),
        ]);
    }
    report.say(table);
    report.say("## Between two runs of the vCPU, measured in place\n");
    let tick = tick();
    let overhead = middle(
        std::iter::repeat_with(|| {
            let start = clock();
            clock().wrapping_sub(start)
        })
        .take(10_000)
        .collect(),
    );
    let mut table = Table::new(&["", "ns, this run"]);
    let mut nanos = HashMap::new();
    for (name, ticks) in places {
        let spent = (middle(ticks) - overhead).max(0.0) * tick;
        table.row(&[name.to_owned(), format!("{spent:.1}")]);
        nanos.insert(name, spent);
    }
    report.say(table);
    for (what, name, at_most) in [
        ("empty handler to kvm-ioctls", EMPTY, 1.01),
        ("32 devices to kvm-ioctls", BUS, 1.02),
    ] {
        report.target(what, at_most, results.ratio(name, BARE));
    }
    let answers = results.ratio(ANSWERS, BARE) / results.ratio(BUS, BARE);
    report.target("an answer at each access to none", 1.05, answers);
    let in_place = nanos.get(BUS).zip(nanos.get(IO_MANAGER));
    let in_place = in_place.map_or(f64::NAN, |(bus, manager)| bus / manager);
    report.target("between two runs, vmm-bus to vm-device", 1.0, in_place);
    report.finish()
}
