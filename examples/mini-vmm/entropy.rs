// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where both devices take their randomness from.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_rng_device::KernelEntropy;

/// What `--entropy` says.
#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    /// The kernel's generator.
    #[default]
    Kernel,
    /// A file, which each device reads from its start.
    File(PathBuf),
}

impl Source {
    /// Opens the source for one device.
    pub(crate) fn open(&self) -> io::Result<Entropy> {
        let reader: Box<dyn Read + Send> = match self {
            Self::Kernel => Box::new(KernelEntropy),
            Self::File(path) => Box::new(File::open(path)?),
        };
        Ok(Entropy {
            reader,
            given: 0,
            trouble: Arc::default(),
        })
    }

    /// Says what is wrong with the source if it can be seen to give less than `bytes`.
    pub(crate) fn check(&self, bytes: u64) -> Result<(), String> {
        let Self::File(path) = self else {
            return Ok(());
        };
        let wrong = |what: &str| Err(format!("--entropy: {}: {what}", path.display()));
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return wrong(&error.to_string()),
        };
        if metadata.is_dir() {
            return wrong("is a directory");
        }
        if metadata.file_type().is_fifo() {
            return wrong("is a pipe, which two devices cannot both read from its start");
        }
        if let Err(error) = File::open(path) {
            return wrong(&error.to_string());
        }
        if metadata.is_file() && metadata.len() < bytes {
            return Err(too_short(path, metadata.len(), bytes));
        }
        Ok(())
    }

    /// Puts what has befallen the source into words, when `bytes` bytes were wanted of it.
    pub(crate) fn explain(&self, trouble: &Trouble, bytes: u64) -> String {
        match (self, trouble) {
            (Self::File(path), Trouble::Ended { given }) => too_short(path, *given, bytes),
            _ => self.describe(trouble),
        }
    }

    /// Puts what has befallen the source into words.
    pub(crate) fn describe(&self, trouble: &Trouble) -> String {
        match (self, trouble) {
            (Self::File(path), Trouble::Ended { given }) => {
                let path = path.display();
                format!("entropy file {path} has run out after {given} bytes")
            }
            (Self::File(path), Trouble::Failed(error)) => {
                format!("entropy file {}: {error}", path.display())
            }
            (Self::Kernel, Trouble::Failed(error)) => format!("kernel entropy: {error}"),
            (Self::Kernel, Trouble::Ended { .. }) => "kernel entropy has ended".to_owned(),
        }
    }
}

fn too_short(path: &Path, given: u64, wanted: u64) -> String {
    format!(
        "entropy file {} has run out: {given} bytes, {wanted} wanted",
        path.display()
    )
}

/// Why a source gave no more.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It came to its end.
    Ended { given: u64 },
    /// It could not be read.
    Failed(io::Error),
}

/// A source that remembers what went wrong, because a device can only tell its guest that something
/// did.
pub(crate) struct Entropy {
    reader: Box<dyn Read + Send>,
    given: u64,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl Entropy {
    /// Where the first trouble will be found.
    pub(crate) fn trouble(&self) -> Arc<Mutex<Option<Trouble>>> {
        self.trouble.clone()
    }

    fn note(&self, trouble: Trouble) {
        let mut noted = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get_or_insert(trouble);
    }
}

impl Read for Entropy {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(data) {
            Ok(0) if !data.is_empty() => self.note(Trouble::Ended { given: self.given }),
            Ok(count) => {
                self.given += count as u64;
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => self.note(Trouble::Failed(error)),
        }
        // Whatever it was is told where it can be understood.
        Ok(0)
    }
}
