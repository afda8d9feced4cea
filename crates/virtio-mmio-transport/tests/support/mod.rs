// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device behind a transport, and the hands of a driver.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "each test uses a part of it, and stops at the unexpected"
)]

pub(crate) mod programs;

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use virtio_conformance::{DriverQueue, EventCounters, EventCounts, MmioPort, reg};
use virtio_device_core::{
    Activation, ActiveQueue, ConfigNotifier, DeviceFault, DeviceState, Features, InterruptHandle,
    InterruptLine, Lease, Observer, VIRTIO_F_RING_RESET, VirtioDevice, edge_line,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

pub(crate) const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];

type Happens = Box<dyn FnOnce() + Send>;

/// What the test sees of the device inside the transport.
#[derive(Clone, Default)]
pub(crate) struct Probe {
    pub(crate) activation: Arc<Mutex<Option<Activation<Memory>>>>,
    pub(crate) notifier: Arc<Mutex<Option<ConfigNotifier>>>,
    pub(crate) resets: Arc<AtomicU32>,
    pub(crate) pauses: Arc<AtomicU32>,
    /// Of the device's own.
    pub(crate) features: Features,
    pub(crate) fail: bool,
    pub(crate) state: Arc<Mutex<DeviceState>>,
    /// What happens while the device is saved.
    pub(crate) saving: Arc<Mutex<Option<Happens>>>,
    /// What happens while its state is put back.
    pub(crate) restoring: Arc<Mutex<Option<Happens>>>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct TestDevice {
    pub(crate) probe: Probe,
    pub(crate) config: [u8; 6],
}

impl VirtioDevice<Memory> for TestDevice {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn features(&self) -> Features {
        self.probe.features
    }

    fn config_size(&self) -> u32 {
        6
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.copy_from_slice(&self.config[offset as usize..][..data.len()]);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.config[offset as usize..][..data.len()].copy_from_slice(data);
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        if self.probe.fail {
            return Err(DeviceFault::device("no worker today"));
        }
        let before = self.probe.activation.lock().unwrap().replace(activation);
        assert!(before.is_none(), "activated twice");
        Ok(())
    }

    fn connect(&mut self, config: ConfigNotifier) {
        *self.probe.notifier.lock().unwrap() = Some(config);
    }

    fn pause(&mut self) {
        self.probe.pauses.fetch_add(1, Ordering::SeqCst);
    }

    fn resume(&mut self) {
        self.probe.pauses.fetch_sub(1, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        if let Some(happens) = self.probe.saving.lock().unwrap().take() {
            happens();
        }
        self.probe.state.lock().unwrap().clone()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        if state.version() > 1 {
            return Err(DeviceFault::StateVersion(state.version()));
        }
        *self.probe.state.lock().unwrap() = state.clone();
        if let Some(happens) = self.probe.restoring.lock().unwrap().take() {
            happens();
        }
        Ok(())
    }

    fn shared_memory(&self, id: u8) -> Option<(GuestAddress, u64)> {
        match id {
            3 => Some((GuestAddress(0x1_2345_6789), 0x2_3456_789a)),
            0 => Some((GuestAddress(0x8000_0000), 0x1000)),
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.probe.resets.fetch_add(1, Ordering::SeqCst);
        *self.probe.activation.lock().unwrap() = None;
    }
}

/// An error that panics when it is dropped.
#[derive(Debug)]
pub(crate) struct Bomb;

impl Drop for Bomb {
    #[expect(clippy::panic, reason = "what is tested is what follows from a panic")]
    fn drop(&mut self) {
        panic!("dropped");
    }
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a bug in the device")
    }
}

impl Error for Bomb {}

/// A driver's hands on the registers of `transport`.
pub(crate) fn port<M, D>(transport: MmioTransport<M, D>) -> MmioPort<MmioTransport<M, D>>
where
    M: GuestAddressSpace + Send,
    D: VirtioDevice<M>,
{
    MmioPort::new(
        transport,
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
}

/// A transport, and what is around it.
pub(crate) struct Fixture {
    pub(crate) transport: MmioTransport<Memory, TestDevice>,
    pub(crate) probe: Probe,
    pub(crate) memory: Memory,
    /// How often the interrupt line was raised.
    pub(crate) raised: Arc<AtomicU32>,
    pub(crate) counters: Arc<EventCounters>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Probe::default())
    }

    pub(crate) fn with(probe: Probe) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        Self::in_memory(probe, Arc::new(memory))
    }

    pub(crate) fn in_memory(probe: Probe, memory: Memory) -> Self {
        let raised = Arc::new(AtomicU32::new(0));
        let counter = raised.clone();
        let line = edge_line(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        Self {
            raised,
            ..Self::behind(probe, memory, line)
        }
    }

    /// A device behind a line that nobody counts.
    pub(crate) fn behind_line(line: impl InterruptLine + 'static) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        Self::behind(Probe::default(), Arc::new(memory), line)
    }

    /// As [`Self::behind_line`], and watched by `observer`, which need not count.
    pub(crate) fn behind_observed_line(
        line: impl InterruptLine + 'static,
        observer: impl Observer + 'static,
    ) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        Self::observed(Probe::default(), Arc::new(memory), line, observer)
    }

    fn behind(probe: Probe, memory: Memory, line: impl InterruptLine + 'static) -> Self {
        let counters = Arc::new(EventCounters::default());
        Self {
            counters: counters.clone(),
            ..Self::observed(probe, memory, line, counters)
        }
    }

    fn observed(
        probe: Probe,
        memory: Memory,
        line: impl InterruptLine + 'static,
        observer: impl Observer + 'static,
    ) -> Self {
        let device = TestDevice {
            probe: probe.clone(),
            config: CONFIG,
        };
        let transport = MmioTransport::new(device, memory.clone(), line)
            .unwrap()
            .with_observer(observer);
        Self {
            counters: Arc::default(),
            transport,
            probe,
            memory,
            raised: Arc::default(),
        }
    }

    /// A transport that offers `features` of queues and transport as well.
    pub(crate) fn offering(mut self, features: Features) -> Self {
        let usual = Features::QUEUE | Features::of(&[VIRTIO_F_RING_RESET]);
        self.transport = self.transport.with_features(usual | features);
        self
    }

    /// What the device was given at activation, with what has come back since.
    pub(crate) fn queue(&self, index: u16) -> ActiveQueue {
        let activation = self.probe.activation.lock().unwrap();
        let mut queue = activation.as_ref().unwrap().queue(index).unwrap().clone();
        queue.refresh();
        queue
    }

    pub(crate) fn lease(&self, index: u16) -> Lease {
        self.queue(index).lease
    }

    pub(crate) fn interrupt(&self) -> InterruptHandle {
        let activation = self.probe.activation.lock().unwrap();
        activation.as_ref().unwrap().interrupt.clone()
    }

    /// The device's own announcement of a change.
    pub(crate) fn notifier(&self) -> ConfigNotifier {
        self.probe.notifier.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0xa5; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.get(reg::STATUS)
    }

    /// Up to `FEATURES_OK`, with `VIRTIO_F_VERSION_1` alone.
    pub(crate) fn negotiate(&mut self) {
        for status in [0, 1, 3] {
            self.set(reg::STATUS, status);
        }
        self.set(reg::DRIVER_FEATURES_SEL, 1);
        self.set(reg::DRIVER_FEATURES, 1);
        self.set(reg::STATUS, 11);
        assert_eq!(self.status(), 11);
    }

    pub(crate) fn set_up_queue(&mut self, queue: u32, base: u64, size: u16) {
        let setup = *DriverQueue::new(&*self.memory, base, size).setup();
        self.set(reg::QUEUE_SEL, queue);
        self.set(reg::QUEUE_SIZE, setup.size);
        for (offset, addr) in [
            (reg::QUEUE_DESC_LOW, setup.desc_table),
            (reg::QUEUE_DRIVER_LOW, setup.avail_ring),
            (reg::QUEUE_DEVICE_LOW, setup.used_ring),
        ] {
            self.set(offset, (addr & 0xffff_ffff) as u32);
            self.set(offset + 4, (addr >> 32) as u32);
        }
    }

    pub(crate) fn enable_queue(&mut self, queue: u32, base: u64, size: u16) {
        self.set_up_queue(queue, base, size);
        self.set(reg::QUEUE_READY, 1);
    }

    /// A live device with queue 0 enabled.
    pub(crate) fn live() -> Self {
        let mut fixture = Self::new();
        fixture.negotiate();
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        assert_eq!(fixture.status(), 15);
        fixture
    }

    pub(crate) fn kicks(&self, queue: u16) -> u64 {
        let (_, kick) = self
            .transport
            .kicks()
            .find(|(index, _)| *index == queue)
            .unwrap();
        kick.read().unwrap_or(0)
    }

    pub(crate) fn raised(&self) -> u32 {
        self.raised.load(Ordering::SeqCst)
    }

    /// What the observer has counted.
    pub(crate) fn events(&self) -> EventCounts {
        self.counters.snapshot()
    }

    /// Up to `FEATURES_OK`, with `VIRTIO_F_VERSION_1` and `features`.
    pub(crate) fn negotiate_with(&mut self, features: Features) {
        for status in [0, 1, 3] {
            self.set(reg::STATUS, status);
        }
        for (select, word) in [(0, features.word(0)), (1, features.word(1) | 1)] {
            self.set(reg::DRIVER_FEATURES_SEL, select);
            self.set(reg::DRIVER_FEATURES, word);
        }
        self.set(reg::STATUS, 11);
        assert_eq!(self.status(), 11);
    }

    /// A live device behind a transport that offers `features`, and whose driver has accepted them;
    /// queue 0 enabled.
    pub(crate) fn live_with(features: Features) -> Self {
        let mut fixture = Self::new().offering(features);
        fixture.negotiate_with(features);
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        assert_eq!(fixture.status(), 15);
        fixture
    }
}
