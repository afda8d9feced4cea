// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The published `virtio-drivers` crate as a driver in the test's process: its `Transport` over
//! registers of virtio-mmio, and its `Hal` over guest memory.
//!
//! ```no_run
//! use virtio_conformance::MmioPort;
//! use virtio_conformance::virtio_drivers::{GuestHal, RegisterTransport};
//! use virtio_drivers::device::rng::VirtIORng;
//!
//! # struct Transport;
//! # impl Transport {
//! #     fn read(&mut self, offset: u64, data: &mut [u8]) {}
//! #     fn write(&mut self, offset: u64, data: &[u8]) {}
//! # }
//! # fn transport(memory: std::sync::Arc<vm_memory::GuestMemoryMmap<()>>) -> Transport { Transport }
//! // The device works in the driver's memory.
//! let transport = transport(GuestHal::memory());
//! let port = MmioPort::new(transport, Transport::read, Transport::write);
//! let mut driver = VirtIORng::<GuestHal, _>::new(RegisterTransport::new(port))?;
//! let mut bytes = [0; 64];
//! driver.request_entropy(&mut bytes)?;
//! # Ok::<(), virtio_drivers::Error>(())
//! ```
#![expect(
    unsafe_code,
    reason = "a `Hal` of virtio-drivers promises things about memory"
)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr, Result};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mmio::MmioPort;
use crate::reg;

/// Length of guest memory. The kernel finds a page of it when it is first touched.
const MEMORY_LEN: usize = 256 << 20;

static MEMORY: LazyLock<Arc<GuestMemoryMmap<()>>> = LazyLock::new(|| {
    let ranges = [(GuestAddress(0), MEMORY_LEN)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("guest memory can be mapped"))
});

/// The next page that was never given out. Page 0 is not: the driver takes 0 for a failure.
static NEXT_PAGE: AtomicU64 = AtomicU64::new(PAGE_SIZE as u64);

/// Guest memory as a driver in this process sees it: one for all drivers, because a `Hal` has no
/// state of its own. Shared buffers are copied, so that the device works on guest memory alone.
///
/// There are 256 MiB, and no page is allocated twice.
#[derive(Clone, Copy, Debug)]
pub struct GuestHal;

impl GuestHal {
    /// Guest memory, for the device.
    #[must_use]
    pub fn memory() -> Arc<GuestMemoryMmap<()>> {
        MEMORY.clone()
    }

    /// Allocates `len` bytes of guest memory, in whole pages, which are never freed.
    pub fn allocate(len: usize) -> GuestAddress {
        let len = len.next_multiple_of(PAGE_SIZE) as u64;
        GuestAddress(NEXT_PAGE.fetch_add(len, Ordering::SeqCst))
    }
}

// SAFETY: `dma_alloc` gives out every page of guest memory once, zeroed as it was mapped, by its
// address in this process, which is valid for as long as the process lives.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let len = pages * PAGE_SIZE;
        let address = Self::allocate(len);
        let slice = MEMORY
            .get_slice(address, len)
            .expect("guest memory is used up");
        let host = NonNull::new(slice.ptr_guard_mut().as_ptr());
        (address.0, host.expect("a mapping is not at 0"))
    }

    unsafe fn dma_dealloc(_address: PhysAddr, _host: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("registers are reached over the bus")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let address = Self::allocate(buffer.len());
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller vouches for the buffer until this returns.
            let bytes = unsafe { buffer.as_ref() };
            MEMORY
                .write_slice(bytes, address)
                .expect("guest memory is used up");
        }
        address.0
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller vouches for the buffer until this returns.
            let bytes = unsafe { buffer.as_mut() };
            MEMORY
                .read_slice(bytes, GuestAddress(address))
                .expect("it was shared");
        }
    }
}

/// A [`Transport`] over the registers of virtio-mmio.
#[derive(Debug)]
pub struct RegisterTransport<T> {
    port: RefCell<MmioPort<T>>,
}

impl<T> RegisterTransport<T> {
    /// The device behind `port`.
    pub const fn new(port: MmioPort<T>) -> Self {
        Self {
            port: RefCell::new(port),
        }
    }

    /// Reads the register at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        self.port.borrow_mut().get(offset)
    }

    /// Writes the register at `offset`.
    pub fn write(&self, offset: u64, value: u32) {
        self.port.borrow_mut().set(offset, value);
    }

    fn write_address(&self, offset: u64, address: PhysAddr) {
        self.port.borrow_mut().set_address(offset, address);
    }
}

/// The place of the configuration space's field of type `F` at `offset`.
fn field<F>(offset: usize) -> u64 {
    assert_eq!(
        offset % size_of::<F>().min(4),
        0,
        "the driver reads aligned fields"
    );
    reg::CONFIG + offset as u64
}

impl<R> Transport for RegisterTransport<R> {
    fn device_type(&self) -> DeviceType {
        assert_eq!(self.read(reg::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!(self.read(reg::VERSION), 2);
        DeviceType::try_from(self.read(reg::DEVICE_ID))
            .expect("a device type that the driver knows")
    }

    fn read_device_features(&mut self) -> u64 {
        self.write(reg::DEVICE_FEATURES_SEL, 0);
        let low = self.read(reg::DEVICE_FEATURES);
        self.write(reg::DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(reg::DEVICE_FEATURES)) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, word) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, u32::try_from(word).expect("32 bits"));
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(reg::QUEUE_SEL, queue.into());
        self.read(reg::QUEUE_SIZE_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.write(reg::QUEUE_NOTIFY, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.read(reg::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.write(reg::STATUS, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {
        // A register of version 1.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.write(reg::QUEUE_SEL, queue.into());
        self.write(reg::QUEUE_SIZE, size);
        self.write_address(reg::QUEUE_DESC_LOW, descriptors);
        self.write_address(reg::QUEUE_DRIVER_LOW, driver_area);
        self.write_address(reg::QUEUE_DEVICE_LOW, device_area);
        self.write(reg::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.write(reg::QUEUE_SEL, queue.into());
        self.write(reg::QUEUE_READY, 0);
        assert_eq!(self.read(reg::QUEUE_READY), 0, "the queue is not given up");
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(reg::QUEUE_SEL, queue.into());
        self.read(reg::QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let causes = self.read(reg::INTERRUPT_STATUS);
        self.write(reg::INTERRUPT_ACK, causes);
        InterruptStatus::from_bits_truncate(causes)
    }

    fn read_config_generation(&self) -> u32 {
        self.read(reg::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        let mut port = self.port.borrow_mut();
        port.read(field::<T>(offset), value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        let mut port = self.port.borrow_mut();
        port.write(field::<T>(offset), value.as_bytes());
        Ok(())
    }
}
