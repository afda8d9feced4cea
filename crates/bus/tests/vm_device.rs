// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that cross over to vm-device, devices that cross over from it, and both in turn.

#![cfg(all(feature = "vm-device", not(loom)))]
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected should stop there"
)]

use std::sync::{Arc, Mutex};

use bus::vm_device::{FromMmio, FromPio, IntoVmDevice};
use bus::{AccessError, BusDevice, MmioBus, PioBus};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, MutDeviceMmio, MutDevicePio};

/// What a device saw: offset and, for a write, the data.
type Log = Arc<Mutex<Vec<(u64, Option<Vec<u8>>)>>>;

/// A device of ours, which answers with the offset and refuses offset 8.
struct Ours(Log);

impl BusDevice for Ours {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.lock().unwrap().push((offset, None));
        data.fill(u8::try_from(offset).unwrap());
        if offset == 8 {
            Err(AccessError::Offset)
        } else {
            Ok(())
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.0.lock().unwrap().push((offset, Some(data.to_vec())));
        Ok(())
    }
}

/// A device of theirs, which answers with its base and the offset.
struct Theirs(Log);

impl MutDeviceMmio for Theirs {
    fn mmio_read(&mut self, base: MmioAddress, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap().push((offset, None));
        data.fill(u8::try_from(base.0 / 0x1000 + offset).unwrap());
    }

    fn mmio_write(&mut self, base: MmioAddress, offset: u64, data: &[u8]) {
        assert_eq!(base, MmioAddress(0x3000));
        self.0.lock().unwrap().push((offset, Some(data.to_vec())));
    }
}

impl MutDevicePio for Theirs {
    fn pio_read(&mut self, base: PioAddress, offset: u16, data: &mut [u8]) {
        self.mmio_read(MmioAddress(base.0.into()), offset.into(), data);
    }

    fn pio_write(&mut self, base: PioAddress, offset: u16, data: &[u8]) {
        self.mmio_write(MmioAddress(base.0.into()), offset.into(), data);
    }
}

fn expected_log() -> Vec<(u64, Option<Vec<u8>>)> {
    vec![(5, None), (6, Some(vec![1, 2]))]
}

#[test]
fn our_device_gets_pieces_of_the_lengths_that_it_was_promised() {
    let log = Log::default();
    let device = IntoVmDevice::new(Ours(log.clone()));
    let mut manager = IoManager::new();
    let range = MmioRange::new(MmioAddress(0x1000), 0x100).unwrap();
    let device = Arc::new(Mutex::new(device));
    manager.register_mmio(range, device.clone()).unwrap();
    let taken = || std::mem::take(&mut *log.lock().unwrap());

    // What crosses a page comes in two parts, of 3 and 5 or of 7 and 1 bytes.
    manager.mmio_write(MmioAddress(0x10fd), &[1, 2, 3]).unwrap();
    assert_eq!(
        taken(),
        [(0xfd, Some(vec![1])), (0xfe, Some(vec![2, 3]))],
        "naturally aligned pieces"
    );
    let mut data = [0; 7];
    manager.mmio_read(MmioAddress(0x1000), &mut data).unwrap();
    assert_eq!(data, [0, 0, 0, 0, 4, 4, 6]);
    assert_eq!(taken(), [(0, None), (4, None), (6, None)]);

    // A piece that is refused is the end of the access, and nothing of it counts.
    let mut data = [0; 6];
    manager.mmio_read(MmioAddress(0x1004), &mut data).unwrap();
    assert_eq!(data, [0xff; 6]);
    assert_eq!(taken(), [(4, None), (8, None)]);

    for length in [0, 9, 16] {
        let mut data = vec![0; length];
        device.mmio_read(MmioAddress(0x1000), 0, &mut data);
        assert!(data.iter().all(|&byte| byte == 0xff));
        device.mmio_write(MmioAddress(0x1000), 0, &data);
    }
    assert_eq!(taken(), []);
}

#[test]
fn their_memory_mapped_device_on_our_bus() {
    let log = Log::default();
    let bus = MmioBus::new();
    // Locked by us, and locked by them.
    let ours: Arc<Mutex<FromMmio<Theirs>>> =
        Arc::new(Mutex::new(FromMmio::new(Theirs(log.clone()), 0x3000)));
    let theirs: Arc<FromMmio<Mutex<Theirs>>> =
        Arc::new(FromMmio::new(Mutex::new(Theirs(log.clone())), 0x3000));
    let ours = bus.insert(ours, 0x3000, 0x10).unwrap();
    for round in 0..2 {
        let mut data = [0; 4];
        assert_eq!((bus.view().read(0x3005, &mut data), data), (Ok(()), [8; 4]));
        assert_eq!(bus.view().write(0x3006, &[1, 2]), Ok(()));
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), expected_log());
        if round == 0 {
            bus.remove(ours).unwrap();
            bus.insert(theirs.clone(), 0x3000, 0x10).unwrap();
        }
    }
}

#[test]
fn their_port_device_on_our_bus() {
    let log = Log::default();
    let bus = PioBus::new();
    let device = FromPio::new(Theirs(log.clone()), 0x3000);
    let id = bus
        .insert(Arc::new(Mutex::new(device)), 0x3000, 0x10)
        .unwrap();
    let mut data = [0; 2];
    assert_eq!((bus.view().read(0x3005, &mut data), data), (Ok(()), [8; 2]));
    assert_eq!(bus.view().write(0x3006, &[1, 2]), Ok(()));
    assert_eq!(*log.lock().unwrap(), expected_log());
    bus.remove(id).unwrap();

    let device = FromPio::new(Mutex::new(Theirs(log.clone())), 0);
    bus.insert(Arc::new(device), 0, 0x10).unwrap();
    assert_eq!((bus.view().read(5, &mut data), data), (Ok(()), [5; 2]));

    // A port device has no place beyond the last port.
    let memory = MmioBus::new();
    let device = FromPio::new(Theirs(log), 0);
    memory
        .insert(Arc::new(Mutex::new(device)), 0, 0x2_0000)
        .unwrap();
    assert_eq!(
        memory.view().read(0x1_0000, &mut data),
        Err(AccessError::Offset)
    );
}

#[test]
fn our_device_in_their_manager() {
    let log = Log::default();
    let device = Arc::new(Mutex::new(IntoVmDevice::new(Ours(log.clone()))));
    let sync = Arc::new(IntoVmDevice::new(Mutex::new(Ours(log.clone()))));
    let mut manager = IoManager::new();
    for base in [0x3000, 0x4000] {
        let memory = MmioRange::new(MmioAddress(base), 0x10).unwrap();
        let ports = PioRange::new(PioAddress(u16::try_from(base).unwrap()), 0x10).unwrap();
        if base == 0x3000 {
            manager.register_mmio(memory, device.clone()).unwrap();
            manager.register_pio(ports, device.clone()).unwrap();
        } else {
            manager.register_mmio(memory, sync.clone()).unwrap();
            manager.register_pio(ports, sync.clone()).unwrap();
        }
    }
    for base in [0x3000_u16, 0x4000] {
        let mut data = [0xaa; 4];
        manager
            .mmio_read(MmioAddress(u64::from(base) + 5), &mut data)
            .unwrap();
        assert_eq!(data, [5; 4]);
        manager
            .mmio_write(MmioAddress(u64::from(base) + 6), &[1, 2])
            .unwrap();
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), expected_log());
        manager.pio_read(PioAddress(base + 5), &mut data).unwrap();
        manager.pio_write(PioAddress(base + 6), &[1, 2]).unwrap();
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), expected_log());
        // What the device refuses reads as all ones.
        manager
            .mmio_read(MmioAddress(u64::from(base) + 8), &mut data)
            .unwrap();
        assert_eq!(data, [0xff; 4]);
        log.lock().unwrap().clear();
    }
}

#[test]
fn device_that_crosses_over_and_back_is_the_same() {
    let log = Log::default();
    let bus = MmioBus::new();
    let there_and_back = FromMmio::new(IntoVmDevice::new(Ours(log.clone())), 0x3000);
    let device = Arc::new(Mutex::new(there_and_back));
    bus.insert(device.clone(), 0x3000, 0x10).unwrap();
    let mut data = [0; 4];
    assert_eq!((bus.view().read(0x3005, &mut data), data), (Ok(()), [5; 4]));
    assert_eq!(bus.view().write(0x3006, &[1, 2]), Ok(()));
    assert_eq!(*log.lock().unwrap(), expected_log());
    drop(bus);

    // From the bus into a manager: the whole bus is not a device, but each of its devices is.
    let device = Arc::into_inner(device).unwrap().into_inner().unwrap();
    let mut manager = IoManager::new();
    let range = MmioRange::new(MmioAddress(0x3000), 0x10).unwrap();
    let device = Mutex::new(IntoVmDevice::new(device));
    manager.register_mmio(range, Arc::new(device)).unwrap();
    manager.mmio_read(MmioAddress(0x3007), &mut data).unwrap();
    assert_eq!(data, [7; 4]);
}

#[test]
fn a_wrapped_device_can_be_had_back() {
    assert_eq!(FromMmio::new(7, 0x1000).into_inner(), 7);
    assert_eq!(FromPio::new(7, 0x60).into_inner(), 7);
    assert_eq!(IntoVmDevice::new(7).into_inner(), 7);
}
