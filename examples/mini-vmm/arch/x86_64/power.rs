// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What switches the machine off, and what resets it.

use bus::{AccessError, BusDevice};
use vm_superio::{I8042Device, Trigger};

use super::layout::{I8042_RESET, SLEEP_TYPE_OFF};
use crate::linux::bell::{Bell, End};

/// `mov al, 0xfe; out 0x64, al; hlt; jmp .-1`: all that is left of a BIOS.
///
/// A kernel on reduced ACPI hardware believes that there is EFI to restart the machine (Linux does).
/// When it finds none, it jumps into the BIOS like in the old days, and not to the registers that
/// ACPI names.
pub(crate) const RESET_CODE: [u8; 7] = [0xb0, I8042_RESET, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Ends the machine when the keyboard controller is told to reset it.
pub(crate) struct Reset(pub(crate) Bell);

impl Trigger for Reset {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.end(End::Reset);
        Ok(())
    }
}

/// The keyboard controller, without a keyboard.
pub(crate) struct KeyboardController(pub(crate) I8042Device<Reset>);

impl BusDevice for KeyboardController {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = self.0.read(offset);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        let &[value] = data else {
            return Err(AccessError::Width);
        };
        let Ok(()) = self.0.write(offset, value);
        Ok(())
    }
}

/// The sleep control and sleep status registers of ACPI (ACPI 6.5, section 4.8.3.7).
pub(crate) struct SleepRegisters(pub(crate) Bell);

/// In the control register: the sleep type, and the bit that makes it happen.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

impl BusDevice for SleepRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        // Nothing has woken the machine.
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[value] = data else {
            return Err(AccessError::Width);
        };
        let off = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF;
        if offset == 0 && value & SLEEP_ENABLE != 0 && off {
            self.0.end(End::PowerOff);
        }
        Ok(())
    }
}
