// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a split virtqueue lives in guest memory (VIRTIO 1.3, section 2.7).

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::fault::SetupError;

/// Largest queue size that the specification knows (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// What a driver has written about one queue so far, unchecked.
///
/// A transport collects its registers here, at full width: a size of 65,536 + 8 is not 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u32,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring, the specification's driver area.
    pub avail_ring: u64,
    /// Guest address of the used ring, the specification's device area.
    pub used_ring: u64,
}

impl QueueSetup {
    /// Sets up a queue of `size` descriptors, all of its parts at guest address 0.
    ///
    /// ```
    /// use virtio_device_core::transport::QueueSetup;
    ///
    /// let setup = QueueSetup::new(16)
    ///     .with_desc_table(0x1000)
    ///     .with_avail_ring(0x2000)
    ///     .with_used_ring(0x3000);
    /// assert_eq!((setup.size, setup.avail_ring), (16, 0x2000));
    /// ```
    #[must_use]
    pub const fn new(size: u32) -> Self {
        Self {
            size,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        }
    }

    /// Replaces the number of descriptors.
    #[must_use]
    pub const fn with_size(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Replaces the guest address of the descriptor table.
    #[must_use]
    pub const fn with_desc_table(self, desc_table: u64) -> Self {
        Self { desc_table, ..self }
    }

    /// Replaces the guest address of the available ring.
    #[must_use]
    pub const fn with_avail_ring(self, avail_ring: u64) -> Self {
        Self { avail_ring, ..self }
    }

    /// Replaces the guest address of the used ring.
    #[must_use]
    pub const fn with_used_ring(self, used_ring: u64) -> Self {
        Self { used_ring, ..self }
    }
}

/// One of the three parts of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePart {
    /// The descriptor table.
    DescTable,
    /// The available ring.
    AvailRing,
    /// The used ring.
    UsedRing,
}

impl QueuePart {
    const fn name(self) -> &'static str {
        match self {
            Self::DescTable => "descriptor table",
            Self::AvailRing => "available ring",
            Self::UsedRing => "used ring",
        }
    }
}

/// A queue's place in guest memory, known to be well-formed.
///
/// Made by [`QueueLayout::check`] alone, and out of reach of the registers from then on.
///
/// ```
/// use virtio_device_core::transport::{QueueLayout, QueueSetup};
/// use virtio_device_core::vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
/// let setup = QueueSetup::new(8).with_desc_table(0x0).with_avail_ring(0x80).with_used_ring(0x100);
/// let layout = QueueLayout::check(&setup, 256, &memory).unwrap();
/// assert_eq!((layout.size(), layout.used_ring()), (8, GuestAddress(0x100)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    size: u16,
    desc_table: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
}

impl QueueLayout {
    /// Checks what the driver has set up, as a whole: the size is a power of two up to `max_size`,
    /// every part is aligned, and every byte of every part lies in `memory`.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check<M: GuestMemory>(
        setup: &QueueSetup,
        max_size: u16,
        memory: &M,
    ) -> Result<Self, SetupError> {
        let wrong_size = SetupError::QueueSize {
            size: setup.size,
            max: max_size,
        };
        let size = u16::try_from(setup.size).map_err(|_| wrong_size)?;
        if !size.is_power_of_two() || size > max_size.min(MAX_QUEUE_SIZE) {
            return Err(wrong_size);
        }
        let entries = usize::from(size);
        // Lengths with the trailing event index: two bytes that a driver reserves in any case.
        let parts = [
            (
                QueuePart::DescTable,
                setup.desc_table,
                16,
                16 * entries,
                Permissions::Read,
            ),
            (
                QueuePart::AvailRing,
                setup.avail_ring,
                2,
                6 + 2 * entries,
                Permissions::Read,
            ),
            (
                QueuePart::UsedRing,
                setup.used_ring,
                4,
                6 + 8 * entries,
                Permissions::ReadWrite,
            ),
        ];
        for (part, addr, align, len, access) in parts {
            if addr % align != 0 {
                return Err(SetupError::Alignment(part.name(), addr));
            }
            if !memory.check_range(GuestAddress(addr), len, access) {
                return Err(SetupError::Memory(part.name(), addr));
            }
        }
        Ok(Self {
            size,
            desc_table: GuestAddress(setup.desc_table),
            avail_ring: GuestAddress(setup.avail_ring),
            used_ring: GuestAddress(setup.used_ring),
        })
    }

    /// Number of descriptors, a power of two.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Guest address of the descriptor table.
    #[must_use]
    pub const fn desc_table(&self) -> GuestAddress {
        self.desc_table
    }

    /// Guest address of the available ring.
    #[must_use]
    pub const fn avail_ring(&self) -> GuestAddress {
        self.avail_ring
    }

    /// Guest address of the used ring.
    #[must_use]
    pub const fn used_ring(&self) -> GuestAddress {
        self.used_ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    const GOOD: QueueSetup = QueueSetup {
        size: 16,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
    };

    /// RAM at `0..0x1_0000` and `0x2_0000..0x3_0000`, with a hole between.
    fn memory() -> GuestMemoryMmap<()> {
        let ranges = [
            (GuestAddress(0), 0x1_0000),
            (GuestAddress(0x2_0000), 0x1_0000),
        ];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn check(setup: QueueSetup) -> Result<QueueLayout, SetupError> {
        QueueLayout::check(&setup, 256, &memory())
    }

    #[test]
    fn a_good_setup_is_kept_as_written() {
        let layout = check(GOOD).unwrap();
        assert_eq!(layout.size(), 16);
        assert_eq!(layout.desc_table(), GuestAddress(0x1000));
        assert_eq!(layout.avail_ring(), GuestAddress(0x2000));
        assert_eq!(layout.used_ring(), GuestAddress(0x3000));
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_the_maximum_at_full_width() {
        for size in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let layout = check(QueueSetup { size, ..GOOD }).unwrap();
            assert_eq!(u32::from(layout.size()), size);
        }
        for size in [
            0,
            3,
            5,
            255,
            257,
            512,
            1 << 15,
            1 << 16,
            0x1_0001,
            0x1_0008,
            u32::MAX,
        ] {
            let error = SetupError::QueueSize { size, max: 256 };
            assert_eq!(check(QueueSetup { size, ..GOOD }), Err(error));
        }
    }

    #[test]
    fn every_misalignment_is_refused() {
        for off in 1..16 {
            let desc_table = 0x1000 + off;
            let error = SetupError::Alignment("descriptor table", desc_table);
            assert_eq!(check(QueueSetup { desc_table, ..GOOD }), Err(error));
        }
        for off in [1, 3] {
            let used_ring = 0x3000 + off;
            let error = SetupError::Alignment("used ring", used_ring);
            assert_eq!(check(QueueSetup { used_ring, ..GOOD }), Err(error));
        }
        let error = SetupError::Alignment("available ring", 0x2001);
        assert_eq!(
            check(QueueSetup {
                avail_ring: 0x2001,
                ..GOOD
            }),
            Err(error)
        );
        check(QueueSetup {
            avail_ring: 0x2002,
            used_ring: 0x3004,
            ..GOOD
        })
        .unwrap();
    }

    #[test]
    fn the_last_byte_of_memory_may_be_used_and_none_beyond() {
        // 16 descriptors are 256 bytes; the used ring of 16 entries is 134 bytes.
        check(QueueSetup {
            desc_table: 0x1_0000 - 256,
            ..GOOD
        })
        .unwrap();
        check(QueueSetup {
            desc_table: 0x3_0000 - 256,
            ..GOOD
        })
        .unwrap();
        for desc_table in [0x1_0000 - 240, 0x1_0000, 0x1_fff0, 0x3_0000, u64::MAX - 15] {
            let error = SetupError::Memory("descriptor table", desc_table);
            assert_eq!(check(QueueSetup { desc_table, ..GOOD }), Err(error));
        }
        check(QueueSetup {
            used_ring: 0x1_0000 - 136,
            ..GOOD
        })
        .unwrap();
        let error = SetupError::Memory("used ring", 0x1_0000 - 132);
        assert_eq!(
            check(QueueSetup {
                used_ring: 0x1_0000 - 132,
                ..GOOD
            }),
            Err(error)
        );
        // The available ring of 16 entries is 38 bytes.
        check(QueueSetup {
            avail_ring: 0x1_0000 - 38,
            ..GOOD
        })
        .unwrap();
        let error = SetupError::Memory("available ring", 0x1_0000 - 36);
        assert_eq!(
            check(QueueSetup {
                avail_ring: 0x1_0000 - 36,
                ..GOOD
            }),
            Err(error)
        );
    }

    #[test]
    fn messages_say_which_part_and_what() {
        let cases = [
            (
                SetupError::QueueSize { size: 77, max: 16 },
                "queue size 77 is not a power of two up to 16",
            ),
            (
                SetupError::Alignment("descriptor table", 0x1001),
                "descriptor table at 0x1001 is not aligned",
            ),
            (
                SetupError::Memory("available ring", 0x2000),
                "available ring at 0x2000 is not all in memory",
            ),
            (
                SetupError::Memory("used ring", 0x3000),
                "used ring at 0x3000 is not all in memory",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
