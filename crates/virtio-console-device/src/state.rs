// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device saves: 14 bytes for each port, in little-endian order.
//!
//! Columns and rows (16 bits each), what both sides have said, what the driver is still to be told (8
//! bits each), and how many bytes of the first chain of output the host has taken (64 bits).

use virtio_device_core::{DeviceFault, DeviceState};

use crate::control::{News, PortState};
use crate::port::Size;
use crate::shared::{Progress, Shared};

const VERSION: u32 = 1;
const PORT_LEN: usize = 14;

const READY: u8 = 1;
const GUEST_OPEN: u8 = 2;
const HOST_OPEN: u8 = 4;
const UNPLUGGED: u8 = 8;
const ASKED: u8 = 16;
const KNOWN: u8 = 32;
const DISCARDS: u8 = 64;

pub(crate) fn save(shared: &Shared) -> DeviceState {
    let progress = shared.progress();
    let mut data = Vec::with_capacity(PORT_LEN * shared.ports.len());
    for (index, port) in progress.ports.iter().enumerate() {
        let size = shared.size(index).to_bits();
        data.extend(size.to_le_bytes());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        data.push(
            flag(port.ready, READY)
                | flag(port.guest_open, GUEST_OPEN)
                | flag(port.host_open, HOST_OPEN)
                | flag(!port.plugged, UNPLUGGED)
                | flag(port.asked, ASKED)
                | flag(port.known, KNOWN)
                | flag(port.discards != 0, DISCARDS),
        );
        data.push(port.news.to_bits());
        data.extend(progress.sent(index).to_le_bytes());
    }
    // Far less than the most that is allowed, because there are not that many ports.
    DeviceState::new(VERSION, data).unwrap_or_default()
}

pub(crate) fn restore(shared: &Shared, state: &DeviceState) -> Result<(), DeviceFault> {
    let data = state.data(VERSION)?;
    if data.len() != PORT_LEN * shared.ports.len() {
        return Err(DeviceFault::State("its length"));
    }
    let mut progress = Progress::new(shared.ports.len());
    let mut sizes = Vec::with_capacity(shared.ports.len());
    for (index, saved) in data.chunks_exact(PORT_LEN).enumerate() {
        let Ok([a, b, c, d, flags, news, sent @ ..]) = <[u8; PORT_LEN]>::try_from(saved) else {
            continue;
        };
        sizes.push(Size::from_bits(u32::from_le_bytes([a, b, c, d])));
        let news = News::from_bits(news);
        let news = news.ok_or(DeviceFault::State("messages that do not exist"))?;
        if flags & !(READY | GUEST_OPEN | HOST_OPEN | UNPLUGGED | ASKED | KNOWN | DISCARDS) != 0 {
            return Err(DeviceFault::State("flags that do not exist"));
        }
        if flags & UNPLUGGED != 0 && flags & (READY | GUEST_OPEN) != 0 {
            return Err(DeviceFault::State("a port in use that is not there"));
        }
        if flags & UNPLUGGED != 0 && news.has(News::ADD)
            || flags & READY == 0 && news.is_about_use()
        {
            return Err(DeviceFault::State("messages about a port as it is not"));
        }
        if let Some(port) = progress.ports.get_mut(index) {
            *port = PortState {
                plugged: flags & UNPLUGGED == 0,
                discards: (flags & DISCARDS != 0).into(),
                asked: flags & ASKED != 0,
                known: flags & KNOWN != 0,
                ready: flags & READY != 0,
                guest_open: flags & GUEST_OPEN != 0,
                host_open: flags & HOST_OPEN != 0,
                news,
            };
            // Restored over another descriptor, which is open.
            port.set_host_open(true);
        }
        progress.set_sent(index, u64::from_le_bytes(sent), None);
    }
    for (index, size) in sizes.into_iter().enumerate() {
        shared.store_size(index, size);
    }
    *shared.progress() = progress;
    Ok(())
}
