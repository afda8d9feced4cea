// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guests are told, read back as a guest reads it.
#![cfg_attr(
    feature = "fdt",
    expect(clippy::unwrap_used, reason = "a test stops at the unexpected")
)]
#![cfg_attr(
    any(feature = "fdt", feature = "acpi"),
    expect(clippy::indexing_slicing, reason = "a test stops at the unexpected")
)]

use virtio_mmio_transport::{Location, LocationError, REGION_SIZE};

#[test]
fn a_location_holds_a_whole_region_of_aligned_words() {
    for base in [0, 4, 0x8000_2000, u64::MAX - REGION_SIZE + 1] {
        let location = Location::new(base, 7).unwrap();
        assert_eq!((location.base(), location.irq()), (base, 7));
    }
    for base in [1, 2, 3, 0x8000_2002] {
        let misaligned = LocationError::Misaligned(base);
        assert_eq!(Location::new(base, 7), Err(misaligned));
    }
    let base = u64::MAX - REGION_SIZE + 5;
    assert_eq!(Location::new(base, 7), Err(LocationError::BeyondEnd(base)));
}

#[test]
fn the_kernel_argument_reads_as_size_base_and_interrupt() {
    for (base, irq) in [(0, 0), (0x1_2345_6780, 5), (0xd000_0000, u32::MAX)] {
        let argument = Location::new(base, irq).unwrap().kernel_argument();
        // As the kernel's `%i` conversions and its size suffixes have it.
        let value = argument.strip_prefix("virtio_mmio.device=").unwrap();
        let (size, rest) = value.split_once('@').unwrap();
        let size = size.strip_suffix('K').unwrap().parse::<u64>().unwrap() << 10;
        assert_eq!(size, REGION_SIZE);
        let (address, number) = rest.split_once(':').unwrap();
        let address = address.strip_prefix("0x").unwrap();
        assert_eq!(u64::from_str_radix(address, 16).unwrap(), base);
        assert_eq!(number.parse::<u32>().unwrap(), irq);
    }
}

#[cfg(feature = "fdt")]
mod fdt {
    use virtio_mmio_transport::{Location, REGION_SIZE, Trigger};
    use vm_fdt::FdtWriter;

    /// A blob in the format of the devicetree specification, walked token by token.
    struct Blob<'a> {
        bytes: &'a [u8],
        at: usize,
        strings: usize,
    }

    impl<'a> Blob<'a> {
        fn new(bytes: &'a [u8]) -> Self {
            let mut blob = Self {
                bytes,
                at: 0,
                strings: 0,
            };
            assert_eq!(blob.word(), 0xd00d_feed);
            blob.at = 8;
            let structure = blob.word() as usize;
            blob.strings = blob.word() as usize;
            blob.at = structure;
            blob
        }

        fn word(&mut self) -> u32 {
            self.at += 4;
            u32::from_be_bytes(self.bytes[self.at - 4..self.at].try_into().unwrap())
        }

        fn string(&self, at: usize) -> &'a str {
            let len = self.bytes[at..].iter().position(|&byte| byte == 0).unwrap();
            std::str::from_utf8(&self.bytes[at..at + len]).unwrap()
        }

        /// The properties of the node `name`, which has no children.
        fn node(mut self, name: &str) -> Vec<(&'a str, &'a [u8])> {
            let mut inside = false;
            let mut properties = Vec::new();
            loop {
                match self.word() {
                    1 => {
                        let node = self.string(self.at);
                        inside = node == name;
                        self.at += (node.len() + 1).next_multiple_of(4);
                    }
                    2 if inside => return properties,
                    2 | 4 => {}
                    3 => {
                        let (len, key) = (self.word() as usize, self.word() as usize);
                        let key = self.string(self.strings + key);
                        if inside {
                            properties.push((key, &self.bytes[self.at..self.at + len]));
                        }
                        self.at += len.next_multiple_of(4);
                    }
                    token => unreachable!("token {token} and no {name}"),
                }
            }
        }
    }

    #[test]
    fn the_node_says_where_and_how() {
        for (trigger, cell) in [(Trigger::Edge, 1u8), (Trigger::Level, 4)] {
            let mut writer = FdtWriter::new().unwrap();
            let root = writer.begin_node("").unwrap();
            writer.property_u32("#address-cells", 2).unwrap();
            let location = Location::new(0x1_0a00_2000, 0x2a).unwrap();
            location.write_fdt(&mut writer, trigger).unwrap();
            writer.end_node(root).unwrap();
            let blob = writer.finish().unwrap();
            let node = Blob::new(&blob).node("virtio_mmio@10a002000");
            let get = |key| node.iter().find(|(k, _)| *k == key).unwrap().1;
            assert_eq!(get("compatible"), b"virtio,mmio\0");
            let reg = [0x1_0a00_2000u64.to_be_bytes(), REGION_SIZE.to_be_bytes()];
            assert_eq!(get("reg"), reg.concat());
            assert_eq!(
                get("interrupts"),
                [0, 0, 0, 0, 0, 0, 0, 0x2a, 0, 0, 0, cell]
            );
            assert_eq!(get("dma-coherent"), b"");
            assert_eq!(node.len(), 4);
        }
    }
}

#[cfg(feature = "acpi")]
mod acpi {
    use acpi_tables::Aml;
    use virtio_mmio_transport::{Location, REGION_SIZE};

    /// Takes `expected` off the front of `aml`.
    fn expect<'a>(aml: &'a [u8], expected: &[u8]) -> &'a [u8] {
        assert_eq!(&aml[..expected.len()], expected);
        &aml[expected.len()..]
    }

    /// The contents of an object that starts with a package length, and what follows it (ACPI
    /// section 20.2.4).
    fn package(aml: &[u8]) -> (&[u8], &[u8]) {
        let more = usize::from(aml[0] >> 6);
        let len = if more == 0 {
            usize::from(aml[0])
        } else {
            let high = aml[1..=more].iter().rev();
            high.fold(0, |len, &byte| len << 8 | usize::from(byte)) << 4 | usize::from(aml[0] & 15)
        };
        (&aml[1 + more..len], &aml[len..])
    }

    /// An integer constant, and what follows it (section 20.2.3).
    fn integer(aml: &[u8]) -> (u32, &[u8]) {
        match aml[0] {
            small @ (0 | 1) => (small.into(), &aml[1..]),
            0x0a => (aml[1].into(), &aml[2..]),
            0x0b => (u16::from_le_bytes([aml[1], aml[2]]).into(), &aml[3..]),
            other => unreachable!("no integer: {other:#x}"),
        }
    }

    #[test]
    fn the_device_has_its_identifier_its_registers_and_its_interrupt() {
        for (number, name, level) in [(0u16, b"VR00", false), (0x2b, b"VR2B", true)] {
            let location = Location::new(0xd000_1000, 0x1_0005).unwrap();
            let mut aml = Vec::new();
            let device = location.acpi_device(number, level).unwrap();
            device.to_aml_bytes(&mut aml);

            let (body, after) = package(expect(&aml, &[0x5b, 0x82]));
            assert!(after.is_empty());
            let body = expect(body, name);
            let body = expect(body, b"\x08_HID\x0dLNRO0005\0");
            let (uid, body) = integer(expect(body, b"\x08_UID"));
            assert_eq!(uid, u32::from(number));
            let (coherent, body) = integer(expect(body, b"\x08_CCA"));
            assert_eq!(coherent, 1);
            let (buffer, after) = package(expect(body, b"\x08_CRS\x11"));
            assert!(after.is_empty());
            let (len, resources) = integer(buffer);
            assert_eq!(len as usize, resources.len());
            // Memory32Fixed, read and write (section 6.4.3.4).
            let resources = expect(resources, &[0x86, 9, 0, 1]);
            let resources = expect(resources, &0xd000_1000u32.to_le_bytes());
            let region = u32::try_from(REGION_SIZE).unwrap();
            let resources = expect(resources, &region.to_le_bytes());
            // An extended interrupt, for a consumer, active high, exclusive (section 6.4.3.6).
            let flags = if level { 1 } else { 3 };
            let resources = expect(resources, &[0x89, 6, 0, flags, 1]);
            let resources = expect(resources, &0x1_0005u32.to_le_bytes());
            assert_eq!(resources, [0x79, 0]);
        }
    }

    #[test]
    fn what_acpi_cannot_say_is_refused() {
        let low = Location::new(0xd000_1000, 5).unwrap();
        assert!(low.acpi_device(0xff, false).is_some());
        assert!(low.acpi_device(0x100, false).is_none());
        let high = Location::new(0x1_0000_0000, 5).unwrap();
        assert!(high.acpi_device(0, false).is_none());
        // Its last registers are not.
        let astride = Location::new(0xffff_f004, 5).unwrap();
        assert!(astride.acpi_device(0, false).is_none());
        let last = Location::new(0xffff_f000, 5).unwrap();
        assert!(last.acpi_device(0, false).is_some());
    }
}
