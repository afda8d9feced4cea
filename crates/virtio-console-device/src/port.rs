// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM says about a port.

use std::io;
use std::os::fd::OwnedFd;

use crate::host::HostFd;

/// The size of a terminal in characters; 0 by 0 if it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        let [a, b, c, d] = bits.to_le_bytes();
        Self {
            cols: u16::from_le_bytes([a, b]),
            rows: u16::from_le_bytes([c, d]),
        }
    }

    /// Both in one word, so that nobody sees the columns of one size and the rows of another.
    pub(crate) const fn to_bits(self) -> u32 {
        let ([a, b], [c, d]) = (self.cols.to_le_bytes(), self.rows.to_le_bytes());
        u32::from_le_bytes([a, b, c, d])
    }
}

/// A port of the device, and the descriptors of the host behind it.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use virtio_console_device::Port;
///
/// // `/dev/virtio-ports/org.example.agent` in the guest, a socket on the host.
/// let (ours, _theirs) = UnixStream::pair()?;
/// let port = Port::new(ours.try_clone()?, ours)?.as_channel().named("org.example.agent");
/// # let _ = port;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Port {
    pub(crate) input: HostFd,
    pub(crate) output: HostFd,
    pub(crate) name: Option<String>,
    pub(crate) console: bool,
    pub(crate) size: Size,
}

/// Longest name of a port in bytes.
const MAX_NAME: usize = 256;

impl Port {
    /// A console: the guest reads what comes from `input`, and `output` is given what it writes.
    ///
    /// Each may be a terminal, a pipe, a stream socket, the master of a pseudo terminal or a file.
    /// They are used without waiting, and without setting `O_NONBLOCK` on what others share:
    ///
    /// | descriptor | how |
    /// |---|---|
    /// | socket | `MSG_DONTWAIT` |
    /// | terminal, pipe | opened once more through `/proc`, for a description of its own |
    /// | file | as it is: a disk may be slow |
    /// | anything else, or without `/proc`, that is non-blocking already | as it is, and it has to stay so |
    /// | the rest | polled before each call, and written in pieces that cannot block: one byte for a terminal, 4096 for a pipe |
    ///
    /// On the last path a read may wait if another process takes the input in between. The master of
    /// a pseudo terminal is on it unless it is made non-blocking, as it should be for its speed.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be examined, or is a socket of messages, which would be cut off.
    pub fn new(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            input: HostFd::new(input.into())?,
            output: HostFd::new(output.into())?,
            name: None,
            console: true,
            size: Size::default(),
        })
    }

    /// Makes the port a plain channel between guest and host instead of a console: input waits until
    /// a program in the guest opens it. Only for devices with several ports.
    #[must_use]
    pub const fn as_channel(mut self) -> Self {
        self.console = false;
        self
    }

    /// Names the port for programs in the guest (`org.example.agent.0`); what is beyond 256 bytes is
    /// cut off. Only for devices with several ports.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        while name.len() > MAX_NAME {
            name.pop();
        }
        self.name = Some(name);
        self
    }

    /// Sets the size that the console has at first.
    #[must_use]
    pub const fn with_size(mut self, size: Size) -> Self {
        self.size = size;
        self
    }
}
