// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of a file.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// The bytes of a file, wherever they are kept.
#[derive(Debug)]
pub(crate) struct Image<F> {
    source: F,
    len: u64,
}

impl<F: Read + Seek> Image<F> {
    /// Measures `source`.
    pub(crate) fn new(mut source: F) -> io::Result<Self> {
        let len = source.seek(SeekFrom::End(0))?;
        Ok(Self { source, len })
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The source itself, at whatever position it was left.
    pub(super) const fn source(&mut self) -> &mut F {
        &mut self.source
    }

    /// `len` bytes at `offset`.
    pub(super) fn at(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        const TRUNCATED: &str = "is truncated";

        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(TRUNCATED.to_owned());
        }
        let mut bytes = vec![0; len];
        let read = self
            .source
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.source.read_exact(&mut bytes));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => TRUNCATED.to_owned(),
            _ => error.to_string(),
        })?;
        Ok(bytes)
    }
}
