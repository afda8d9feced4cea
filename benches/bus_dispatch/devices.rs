// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One register, as a device of each bus.

use alioth::hv::{MemMapOption, VmMemory};
use alioth::mem::emulated::{Action, Mmio};
use bus::{AccessError, BusDevice, BusDeviceSync};
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::SIZE;

/// The device: one register, always 0, although the compiler cannot know.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Register {
    pub(crate) value: u32,
}

impl Register {
    #[inline]
    fn answer(&self, data: &mut [u8]) {
        if let Some(data) = data.first_chunk_mut() {
            *data = self.value.to_le_bytes();
        }
    }
}

/// The same for buses whose mutable devices implement another trait.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct MutRegister(pub(crate) Register);

impl BusDeviceSync for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.answer(data);
        Ok(())
    }
}

/// What the VMM is to do after an access.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// At a value of the register.
    Wake(u32),
}

impl BusDeviceSync<Wanted> for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<Wanted, AccessError> {
        self.answer(data);
        Ok(Wanted::Wake(self.value))
    }
}

impl BusDevice for MutRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.answer(data);
        Ok(())
    }
}

impl vm_device::DeviceMmio for Register {
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        self.answer(data);
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &[u8]) {}
}

impl vm_device::MutDeviceMmio for MutRegister {
    fn mmio_read(&mut self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.answer(data);
    }

    fn mmio_write(&mut self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &[u8]) {}
}

impl dbs_device::DeviceIo for Register {
    fn read(&self, _base: dbs_device::IoAddress, _offset: dbs_device::IoAddress, data: &mut [u8]) {
        self.answer(data);
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl dbs_device::DeviceIoMut for MutRegister {
    fn read(
        &mut self,
        _base: dbs_device::IoAddress,
        _offset: dbs_device::IoAddress,
        data: &mut [u8],
    ) {
        self.0.answer(data);
    }
}

impl Mmio for Register {
    fn read(&self, _offset: u64, _size: u8) -> alioth::mem::Result<u64> {
        Ok(self.value.into())
    }

    fn write(&self, _offset: u64, _size: u8, _val: u64) -> alioth::mem::Result<Action> {
        Ok(Action::None)
    }

    fn size(&self) -> u64 {
        SIZE
    }
}

/// What alioth's memory needs below it: nothing is ever mapped here.
#[derive(Debug)]
pub(crate) struct NoVm;

impl VmMemory for NoVm {
    fn mem_map(&self, _: u64, _: u64, _: usize, _: MemMapOption) -> alioth::hv::Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> alioth::hv::Result<()> {
        Ok(())
    }

    fn reset(&self) -> alioth::hv::Result<()> {
        Ok(())
    }

    fn mark_private_memory(&self, _: u64, _: u64, _: bool) -> alioth::hv::Result<()> {
        Ok(())
    }
}
