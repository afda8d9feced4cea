// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in a qcow2 image, used by a published driver.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

use bus::BusDevice;
use virtio_blk_device::{Backend as _, Block};
use virtio_conformance::MmioPort;
use virtio_conformance::virtio_drivers::{GuestHal, RegisterTransport};
use virtio_device_core::{WorkerThread, edge_line};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_mmio_transport::MmioTransport;
use vm_memory::GuestMemoryMmap;
use vmm_devices_guides::qcow2::Qcow2Disk;

const SIZE: u64 = 64 << 20;

type Device = MmioTransport<Arc<GuestMemoryMmap<()>>, Block<WorkerThread>>;
type Driver = VirtIOBlk<GuestHal, RegisterTransport<Device>>;

/// Has a driver of its own use the image.
fn with_driver<T>(image: &Path, work: impl FnOnce(&mut Driver) -> T) -> T {
    let disk = Arc::new(Qcow2Disk::open(image).unwrap());
    let device = Block::new(disk, WorkerThread::named("disk").unwrap()).unwrap();
    let transport = MmioTransport::new(device, GuestHal::memory(), edge_line(|| Ok(()))).unwrap();
    let port = MmioPort::new(
        transport,
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    );
    work(&mut VirtIOBlk::new(RegisterTransport::new(port)).unwrap())
}

#[test]
fn what_a_driver_has_flushed_is_in_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    Qcow2Disk::create(&image, SIZE).unwrap();
    let data: Vec<u8> = (0..=250).cycle().take(12 * 512).collect();
    // At the beginning, across clusters of 64 KiB, and at the end.
    let places = [0, 122, usize::try_from(SIZE / 512).unwrap() - 12];
    with_driver(&image, |driver| {
        assert_eq!(driver.capacity(), SIZE / 512);
        for place in places {
            driver.write_blocks(place, &data).unwrap();
        }
        driver.flush().unwrap();
    });
    assert!(std::fs::metadata(&image).unwrap().len() < SIZE / 8);
    with_driver(&image, |driver| {
        let mut found = vec![0; data.len()];
        for place in places {
            driver.read_blocks(place, &mut found).unwrap();
            assert_eq!(found, data);
        }
        driver.read_blocks(5000, &mut found).unwrap();
        assert_eq!(found, vec![0; data.len()]);
    });
}

#[test]
fn an_image_that_names_another_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [image, other] = ["image", "other"].map(|name| folder.path().join(name));
    std::fs::write(&other, b"what only the host may know").unwrap();
    Qcow2Disk::create(&image, SIZE).unwrap();
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let mut magic = [0; 4];
    file.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
    assert_eq!(Qcow2Disk::open(&image).unwrap().capacity().unwrap(), SIZE);
    // The name lies behind the header and its extensions, still in the first cluster.
    let name = other.to_str().unwrap().as_bytes();
    let place = 4096_u64;
    file.seek(SeekFrom::Start(place)).unwrap();
    file.write_all(name).unwrap();
    file.seek(SeekFrom::Start(8)).unwrap();
    file.write_all(&place.to_be_bytes()).unwrap();
    file.write_all(&u32::try_from(name.len()).unwrap().to_be_bytes())
        .unwrap();
    Qcow2Disk::open(&image).unwrap_err();
}
