// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in a qcow2 image, by the crate `imago`: a format that `virtio-blk-device` does not know is a back
//! end of a few lines.

use std::io;
use std::ops::Range;
use std::path::Path;

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _,
    Storage as _, StorageCreateOptions, StorageOpenOptions,
};
use virtio_blk_device::{Backend, Buffers, Geometry};

/// The disk that a qcow2 image holds. Data moves between the image and guest memory without a copy.
#[derive(Debug)]
pub struct Qcow2Disk(FormatAccess<File>);

impl Qcow2Disk {
    /// Makes an image of `size` zeroes, which takes next to no room.
    ///
    /// # Errors
    ///
    /// If there is a file at `path` already. Also if none can be written there.
    pub fn create(path: &Path, size: u64) -> io::Result<()> {
        let options = StorageCreateOptions::new().filename(path);
        let file = File::create_open(options.overwrite(false))?;
        Qcow2::<File>::create_builder(file).size(size).create()
    }

    /// Opens an image for reading and writing.
    ///
    /// # Errors
    ///
    /// If it is none, or needs another file: whoever has made the image could name any.
    pub fn open(path: &Path) -> io::Result<Self> {
        let options = StorageOpenOptions::new().filename(path).write(true);
        let image = Qcow2::<File>::builder(File::open(options)?).write(true);
        let image = image.open(DenyImplicitOpenGate::default())?;
        Ok(Self(FormatAccess::new(image)))
    }
}

impl Backend for Qcow2Disk {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn geometry(&self) -> Geometry {
        Geometry::Emulated512
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let slices: Vec<_> = buffers.slices().collect();
        let (vector, _guard) = IoVectorMut::from_volatile_slice(&slices);
        self.0.readv(vector, offset)
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let slices: Vec<_> = buffers.slices().collect();
        let (vector, _guard) = IoVector::from_volatile_slice(&slices);
        self.0.writev(vector, offset)
    }

    fn flush(&self) -> io::Result<()> {
        // The image's own tables first.
        self.0.flush()?;
        self.0.sync()
    }

    fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(range.start, range.end - range.start)
    }
}
