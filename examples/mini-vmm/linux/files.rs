// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that the command line names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A regular file with something in it, and the option that names it.
#[derive(Debug)]
pub(crate) struct Input {
    option: &'static str,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Input {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// One line that says why this is no file to start from.
    pub(crate) fn open(option: &'static str, path: &Path) -> Result<Self, String> {
        let wrong = |what: &str| format!("{option}: {}: {what}", path.display());
        // A look at the kind comes first: to open a pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(|error| wrong(&error.to_string()))?;
        if metadata.is_dir() {
            return Err(wrong("is a directory"));
        }
        if !metadata.is_file() {
            return Err(wrong("is no regular file"));
        }
        let file = File::open(path).map_err(|error| wrong(&error.to_string()))?;
        if metadata.len() == 0 {
            return Err(wrong("is empty"));
        }
        Ok(Self {
            option,
            path: path.to_owned(),
            file,
            len: metadata.len(),
        })
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The file itself, at whatever position it was left.
    pub(crate) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// `len` bytes at `offset`.
    pub(crate) fn at(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err("is truncated".to_owned());
        }
        let mut bytes = vec![0; len];
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// The line that says what is wrong with the file.
    pub(crate) fn wrong(&self, what: &str) -> String {
        format!("{}: {}: {what}", self.option, self.path.display())
    }
}
