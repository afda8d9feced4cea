// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks: what the user says of each, and the devices that are made of that.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Once};

use virtio_blk_device::{Block, BlockEvent, BlockHandle, BlockObserver, FileBackend, FileOptions};
use virtio_device_core::WorkerThread;

use super::given_once;
use crate::devices::{self, Slot};

/// How requests reach the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Engine {
    /// One after the other, by a thread for each queue.
    #[default]
    Sync,
    /// Many at a time, by `io_uring`.
    Uring,
}

/// What the user says of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskOptions {
    path: PathBuf,
    file: FileOptions,
    engine: Engine,
    id: Option<String>,
}

impl DiskOptions {
    /// Reads `PATH[,ro][,direct][,engine=sync|uring][,id=SERIAL]`.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty());
        let mut disk = Self {
            path: path.ok_or("--disk: the path is empty")?.into(),
            ..Self::default()
        };
        for part in given_once("--disk", parts)? {
            match part.split_once('=') {
                None if part == "ro" => disk.file.read_only = true,
                None if part == "direct" => disk.file.direct = true,
                Some(("engine", "sync")) => disk.engine = Engine::Sync,
                Some(("engine", "uring")) => disk.engine = Engine::Uring,
                Some(("id", id)) if !id.is_empty() => disk.id = Some(id.to_owned()),
                _ => {
                    return Err(format!(
                        "--disk: '{part}' is none of ro, direct, engine=sync, engine=uring and \
                         id=SERIAL"
                    ));
                }
            }
        }
        Ok(disk)
    }

    /// Opens the file and makes a device with `queues` queues of it, for slot `slot`.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with it.
    pub(crate) fn open(&self, slot: Slot, queues: u8) -> Result<Disk, String> {
        let wrong = |error: io::Error| format!("--disk {}: {error}", self.path.display());
        let file = FileBackend::open(&self.path, self.file).map_err(wrong)?;
        let threads = (0..queues).map(|_| slot.worker());
        let pool = threads.collect::<Result<_, _>>().map_err(wrong)?;
        let device = Block::new(Arc::new(file), pool).map_err(wrong)?;
        let mut device = device.with_queues(queues.into());
        if let Some(id) = &self.id {
            device = device.with_id(id).map_err(wrong)?;
        }
        if self.engine == Engine::Uring {
            device = device.with_io_uring().map_err(wrong)?;
        }
        Ok(Disk { slot, device })
    }
}

/// Opens all disks.
///
/// # Errors
///
/// What is wrong with the first that cannot be opened.
pub(crate) fn open_all(disks: &[DiskOptions], queues: u8) -> Result<Vec<Disk>, String> {
    let opened = disks.iter().zip(devices::DISKS);
    opened.map(|(disk, slot)| disk.open(slot, queues)).collect()
}

/// A disk that has not been put on the bus yet.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) slot: Slot,
    device: Block<Vec<WorkerThread>>,
}

impl Disk {
    /// The device, which has `tell` called with a line when the host fails for the first time, and a
    /// handle to it.
    pub(crate) fn watched(
        self,
        tell: impl Fn(String) + Send + Sync + 'static,
    ) -> (Block<Vec<WorkerThread>>, BlockHandle) {
        let observer = Complaint {
            name: self.slot.name(),
            told: Once::new(),
            tell,
        };
        let device = self.device.with_observer(observer);
        let handle = device.handle();
        (device, handle)
    }
}

/// Tells the user that the host fails.
struct Complaint<F> {
    name: &'static str,
    told: Once,
    tell: F,
}

impl<F: Fn(String) + Send + Sync> BlockObserver for Complaint<F> {
    fn event(&self, event: &BlockEvent<'_>) {
        if let BlockEvent::Failed(operation, range, error) = event {
            let (name, start) = (self.name, range.start);
            let line = format!("{name}: {operation:?} at byte {start}: {error}");
            // A guest could have it fail for ever; the first time says it all.
            self.told.call_once(|| (self.tell)(line));
        }
    }
}
