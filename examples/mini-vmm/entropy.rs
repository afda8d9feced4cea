// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where both devices take their randomness from.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use virtio_rng_device::KernelEntropy;

use crate::stdio::count;

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
    ///
    /// # Errors
    ///
    /// One line that names the source and says why that failed.
    pub(crate) fn open(&self) -> Result<Entropy, String> {
        let reader: Box<dyn Read + Send> = match self {
            Self::Kernel => Box::new(KernelEntropy),
            Self::File(path) => match File::open(path) {
                Ok(file) => Box::new(file),
                Err(error) => return Err(format!("{self}: {error}")),
            },
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
        match available(path, bytes) {
            Ok(given) if given < bytes => Err(self.too_short(given, bytes)),
            Ok(_) => Ok(()),
            Err(what) => Err(format!("{self}: {what}")),
        }
    }

    /// Describes the trouble with the source, of which `bytes` bytes were wanted.
    pub(crate) fn explain(&self, trouble: &Trouble, bytes: u64) -> String {
        match trouble {
            Trouble::Ended { given } => self.too_short(*given, bytes),
            Trouble::Failed(_) => self.describe(trouble),
        }
    }

    /// Describes the trouble with the source.
    pub(crate) fn describe(&self, trouble: &Trouble) -> String {
        match trouble {
            Trouble::Ended { given } => {
                format!("{self}: has run out after {}", count(*given, "byte"))
            }
            Trouble::Failed(error) => format!("{self}: {error}"),
        }
    }

    fn too_short(&self, given: u64, wanted: u64) -> String {
        let given = count(given, "byte");
        format!("{self}: has run out: {given}, {wanted} wanted")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("the kernel's random number generator"),
            Self::File(path) => write!(f, "--entropy: {}", path.display()),
        }
    }
}

/// How many bytes a file gives, as far as can be told without waiting and without reading more than
/// `wanted` of them.
fn available(path: &Path, wanted: u64) -> Result<u64, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err("is a directory".to_owned());
    }
    if kind.is_fifo() {
        return Err("is a pipe, which two devices cannot both read from its start".to_owned());
    }
    let non_blocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut file = File::options()
        .read(true)
        .custom_flags(non_blocking)
        .open(path)
        .map_err(|error| error.to_string())?;
    if kind.is_file() {
        if metadata.len() >= wanted {
            return Ok(wanted);
        }
        // The files of /proc do not say how long they are.
        return io::copy(&mut file.take(wanted), &mut io::sink())
            .map_err(|error| error.to_string());
    }
    match file.read(&mut [0]) {
        // A device that has a byte may have any number of them.
        Ok(1..) => Ok(wanted),
        Ok(0) => Ok(0),
        // One that has none now may get some.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(wanted)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Why a source gave no more.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It came to its end.
    Ended { given: u64 },
    /// It could not be read.
    Failed(io::Error),
}

/// A source that remembers what went wrong: a device can tell its guest only that something did.
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
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => self.note(Trouble::Failed(error)),
        }
        // Whatever it was is told where it can be understood.
        Ok(0)
    }
}
