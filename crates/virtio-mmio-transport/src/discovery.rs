// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Telling a guest where its devices are (VIRTIO 1.3, section 4.2.1).

use std::fmt;

use crate::register::REGION_SIZE;

/// Where a guest finds a transport: the base of its registers, and its interrupt.
///
/// MMIO has no way for a guest to find devices by itself, so a VMM passes each on by the kernel
/// command line, as an ACPI device (feature `acpi`), or in the device tree (feature `fdt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    base: u64,
    irq: u32,
}

/// Why there can be no transport at a place.
///
/// ```
/// use virtio_mmio_transport::{Location, LocationError};
///
/// assert_eq!(Location::new(0xd000_0001, 5).unwrap_err(), LocationError::Misaligned(0xd000_0001));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocationError {
    /// The base is no multiple of 4, so that registers would not be aligned words.
    Misaligned(u64),
    /// The region does not fit into the address space.
    BeyondEnd(u64),
}

impl fmt::Display for LocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(base) => write!(f, "base {base:#x} is not a multiple of 4"),
            Self::BeyondEnd(base) => write!(f, "region at {base:#x} does not fit"),
        }
    }
}

impl std::error::Error for LocationError {}

impl Location {
    /// A transport with its registers at `base`, on [`REGION_SIZE`] bytes, and the interrupt `irq`,
    /// as the guest counts interrupts: a GSI with ACPI and on the command line, and with a device
    /// tree the number of a shared peripheral interrupt.
    ///
    /// # Errors
    ///
    /// If no transport can be there.
    pub const fn new(base: u64, irq: u32) -> Result<Self, LocationError> {
        if base % 4 != 0 {
            return Err(LocationError::Misaligned(base));
        }
        if base.checked_add(REGION_SIZE - 1).is_none() {
            return Err(LocationError::BeyondEnd(base));
        }
        Ok(Self { base, irq })
    }

    /// Base of the registers.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Number of the interrupt.
    #[must_use]
    pub const fn irq(&self) -> u32 {
        self.irq
    }

    /// The argument for the command line of a Linux kernel with `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`.
    ///
    /// ```
    /// let location = virtio_mmio_transport::Location::new(0x8000_2000, 5)?;
    /// assert_eq!(location.kernel_argument(), "virtio_mmio.device=4K@0x80002000:5");
    /// # Ok::<(), virtio_mmio_transport::LocationError>(())
    /// ```
    #[must_use]
    pub fn kernel_argument(&self) -> String {
        let (size, base, irq) = (REGION_SIZE / 1024, self.base, self.irq);
        format!("virtio_mmio.device={size}K@{base:#x}:{irq}")
    }
}

/// For each shared peripheral interrupt of an Arm generic interrupt controller.
#[cfg(feature = "fdt")]
const GIC_SPI: u32 = 0;

/// How an interrupt is triggered, in a device tree.
#[cfg(feature = "fdt")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// For an irqfd or a closure: each cause makes an edge.
    Edge,
    /// For a [`LevelLine`](virtio_device_core::level_line).
    Level,
}

#[cfg(feature = "fdt")]
impl Location {
    /// Writes the device tree's node, for a parent with two address and two size cells whose
    /// interrupts are those of an Arm generic interrupt controller.
    ///
    /// The trigger must be what the transport's interrupt line is: a guest that expects a level
    /// loses edges.
    ///
    /// # Errors
    ///
    /// Whatever keeps `fdt` from taking the node.
    pub fn write_fdt(
        &self,
        fdt: &mut vm_fdt::FdtWriter,
        trigger: Trigger,
    ) -> vm_fdt::FdtWriterResult<()> {
        let trigger = match trigger {
            Trigger::Edge => 1,
            Trigger::Level => 4,
        };
        let node = fdt.begin_node(&format!("virtio_mmio@{:x}", self.base))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[self.base, REGION_SIZE])?;
        fdt.property_array_u32("interrupts", &[GIC_SPI, self.irq, trigger])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)
    }
}

/// The ACPI device of a transport: `LNRO0005`, with its registers and its interrupt.
///
/// ```
/// use acpi_tables::Aml;
/// use virtio_mmio_transport::Location;
///
/// // The device VR03 of the DSDT; its interrupt is an edge.
/// let device = Location::new(0xd000_0000, 5)?.acpi_device(3, false).unwrap();
/// let mut bytes = Vec::new();
/// device.to_aml_bytes(&mut bytes);
/// assert!(bytes.windows(8).any(|bytes| bytes == b"LNRO0005"));
/// # Ok::<(), virtio_mmio_transport::LocationError>(())
/// ```
#[cfg(feature = "acpi")]
#[derive(Clone, Copy, Debug)]
pub struct AcpiDevice {
    location: Location,
    /// At most 32 bits: `Memory32Fixed` has no more.
    base: u32,
    number: u16,
    level: bool,
}

#[cfg(feature = "acpi")]
impl Location {
    /// Describes the device for the definition block of an ACPI table, as `VRxx` under the scope it
    /// is put into; `number` is its unique identifier. `level` says whether the interrupt is
    /// level-triggered rather than edge-triggered; it is active high and not shared.
    ///
    /// Returns `None` if `number` is above 0xff, or the registers are not below 4 GiB.
    #[must_use]
    pub fn acpi_device(&self, number: u16, level: bool) -> Option<AcpiDevice> {
        let base = u32::try_from(self.base).ok()?;
        // The last register as well; it was checked that there is one.
        u32::try_from(self.base + (REGION_SIZE - 1)).ok()?;
        (number <= 0xff).then_some(AcpiDevice {
            location: *self,
            base,
            number,
            level,
        })
    }
}

#[cfg(feature = "acpi")]
impl acpi_tables::Aml for AcpiDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        use acpi_tables::aml;

        // The length is a constant of this crate, and a page.
        let len = u32::try_from(REGION_SIZE).unwrap_or(u32::MAX);
        let memory = aml::Memory32Fixed::new(true, self.base, len);
        let interrupt = aml::Interrupt::new(true, !self.level, false, false, self.location.irq);
        let name = format!("VR{:02X}", self.number);
        aml::Device::new(
            name.as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &self.number),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&memory, &interrupt]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
