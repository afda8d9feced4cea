// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus that a VMM has already: an access gives an action, or an error.

/// What a device asks its VMM to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Nothing,
    Reset,
    PowerOff,
}

/// Why the VMM gives up.
#[derive(Debug, thiserror::Error)]
#[error("no device at {0:#x}")]
pub(crate) struct BusError(u64);

/// One register: it counts the boots, and the guest writes what it wants.
#[derive(Default)]
pub(crate) struct Bus {
    pub(crate) boots: u8,
}

impl Bus {
    pub(crate) fn read(&mut self, addr: u64, data: &mut [u8]) -> Result<Action, BusError> {
        if addr != 0x8_0000 {
            return Err(BusError(addr));
        }
        data.fill(self.boots);
        Ok(Action::Nothing)
    }

    pub(crate) fn write(&mut self, addr: u64, data: &[u8]) -> Result<Action, BusError> {
        match (addr, data) {
            (0x8_0000, [1]) => {
                self.boots += 1;
                Ok(Action::Reset)
            }
            (0x8_0000, _) => Ok(Action::PowerOff),
            _ => Err(BusError(addr)),
        }
    }
}
