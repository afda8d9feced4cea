// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control messages (VIRTIO 1.3, section 5.3.6.2), and what device and driver know of each port.

/// Kinds of messages. The published bindings do not have them.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_REMOVE: u16 = 2;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

use crate::port::Size;

/// Length of a message that has nothing behind its header.
pub(crate) const HEADER: usize = 8;

/// A message from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) port: u32,
    pub(crate) event: u16,
    pub(crate) value: u16,
}

impl Message {
    pub(crate) const fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    fn encode(self, behind: &[u8]) -> Vec<u8> {
        let header = [
            &self.port.to_le_bytes()[..],
            &self.event.to_le_bytes(),
            &self.value.to_le_bytes(),
            behind,
        ];
        header.concat()
    }
}

/// What the driver is still to be told about a port: at most one message of each kind, however often
/// there is news.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News(u8);

impl News {
    /// In the order in which they are sent.
    const REMOVE: Self = Self(1);
    pub(crate) const ADD: Self = Self(2);
    const CONSOLE: Self = Self(4);
    const NAME: Self = Self(8);
    pub(crate) const SIZE: Self = Self(16);
    pub(crate) const OPEN: Self = Self(32);
    const ALL: Self = Self(63);

    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    pub(crate) const fn to_bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    const fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether any of it is for a driver that has set the port up.
    pub(crate) const fn is_about_use(self) -> bool {
        self.0 & !(Self::REMOVE.0 | Self::ADD.0) != 0
    }

    /// What is to be sent first.
    pub(crate) const fn first(self) -> Option<Self> {
        match self.0 {
            0 => None,
            bits => Some(Self(bits & bits.wrapping_neg())),
        }
    }
}

/// What both sides have said about a port so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortState {
    /// The VMM has the port plugged in.
    pub(crate) plugged: bool,
    /// How often it was taken away since its queue of output was empty: what is in there is discarded,
    /// also if the port is back already.
    pub(crate) discards: u32,
    /// The driver wants to be told of ports.
    pub(crate) asked: bool,
    /// The driver was told that there is the port.
    pub(crate) known: bool,
    /// The driver has set the port up.
    pub(crate) ready: bool,
    /// A program in the guest has opened it.
    pub(crate) guest_open: bool,
    /// The host's side is open.
    pub(crate) host_open: bool,
    pub(crate) news: News,
}

impl Default for PortState {
    fn default() -> Self {
        Self {
            plugged: true,
            discards: 0,
            asked: false,
            known: false,
            ready: false,
            guest_open: false,
            host_open: true,
            news: News::default(),
        }
    }
}

/// What does not change about a port, or only by the VMM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) console: bool,
    pub(crate) name: Option<&'a str>,
    pub(crate) size: Size,
}

/// What follows from a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The port may be given input now.
    Listens,
    Opened(bool),
    Failed,
}

impl PortState {
    /// The message that tells `news`, which is one kind.
    pub(crate) fn message(self, port: u32, news: News, facts: Facts<'_>) -> Vec<u8> {
        let (event, value) = match news {
            News::REMOVE => (PORT_REMOVE, 1),
            News::ADD => (PORT_ADD, 1),
            News::CONSOLE => (CONSOLE_PORT, 1),
            News::NAME => (PORT_NAME, 1),
            News::SIZE => (RESIZE, 0),
            _ => (PORT_OPEN, self.host_open.into()),
        };
        let Size { cols, rows } = facts.size;
        let size = [cols.to_le_bytes(), rows.to_le_bytes()].concat();
        let behind = match news {
            News::NAME => facts.name.unwrap_or_default().as_bytes(),
            News::SIZE => &size,
            _ => &[],
        };
        let message = Message { port, event, value };
        message.encode(behind)
    }

    /// The driver has been told `news`, which is one kind.
    pub(crate) fn told(&mut self, news: News) {
        self.news.remove(news);
        match news {
            News::REMOVE => self.known = false,
            News::ADD => self.known = true,
            _ => {}
        }
    }

    /// The VMM takes the port away, or puts it back. What the driver has said about it before does not
    /// count any more.
    pub(crate) fn plug(&mut self, plugged: bool) {
        if self.plugged == plugged {
            return;
        }
        self.plugged = plugged;
        if !plugged {
            self.discards = self.discards.saturating_add(1);
        }
        (self.ready, self.guest_open) = (false, false);
        self.news = match self.known {
            true => News::REMOVE,
            false => News::default(),
        };
        if plugged && self.asked {
            self.news.add(News::ADD);
        }
    }

    /// A driver has started, and knows of no port yet.
    fn greet(&mut self) {
        let Self {
            plugged,
            discards,
            host_open,
            ..
        } = *self;
        *self = Self {
            plugged,
            discards,
            asked: true,
            host_open,
            ..Self::default()
        };
        if plugged {
            self.news.add(News::ADD);
        }
    }

    /// Whether input may be given to the guest.
    pub(crate) const fn listens(&self, console: bool) -> bool {
        self.ready && (console || self.guest_open)
    }

    /// The host's side was opened or closed.
    pub(crate) const fn set_host_open(&mut self, open: bool) {
        if self.host_open != open {
            self.host_open = open;
            if self.ready {
                self.news.add(News::OPEN);
            }
        }
    }

    /// Handles a message about this port; `None` if it is unknown.
    fn obey(&mut self, message: Message, facts: Facts<'_>) -> Option<Effect> {
        // Outdated: sent before the driver heard that the port is gone, or was replaced. A driver that
        // was suspended during a reset does not announce itself again, and still knows its ports.
        let slept = !self.asked;
        let outdated = !self.plugged || self.news.has(News::REMOVE) || !(self.known || slept);
        match (message.event, message.value) {
            (PORT_READY, 1..) if slept && !self.plugged => {
                (self.asked, self.known) = (true, true);
                self.news.add(News::REMOVE);
                Some(Effect::Nothing)
            }
            (PORT_READY | PORT_OPEN, _) if outdated => Some(Effect::Nothing),
            (PORT_READY, 0) => {
                (self.ready, self.news) = (false, News::default());
                Some(Effect::Failed)
            }
            (PORT_READY, _) => {
                (self.asked, self.known, self.ready) = (true, true, true);
                self.news.add(News::OPEN);
                if facts.console {
                    self.news.add(News::CONSOLE);
                    if facts.size != Size::default() {
                        self.news.add(News::SIZE);
                    }
                }
                if facts.name.is_some() {
                    self.news.add(News::NAME);
                }
                Some(Effect::Listens)
            }
            (PORT_OPEN, value) => {
                self.guest_open = value != 0;
                Some(Effect::Opened(self.guest_open))
            }
            _ => None,
        }
    }
}

/// Handles a message from the driver; `None` if it makes no sense.
pub(crate) fn obey<'a>(
    ports: &mut [PortState],
    facts: impl Fn(usize) -> Option<Facts<'a>>,
    message: Message,
) -> Option<Effect> {
    if message.event == DEVICE_READY {
        // The value 0 says that the driver has failed, so it is told nothing.
        if message.value != 0 {
            ports.iter_mut().for_each(PortState::greet);
        }
        return Some(Effect::Nothing);
    }
    let index = usize::try_from(message.port).ok()?;
    ports.get_mut(index)?.obey(message, facts(index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        console: true,
        name: Some("tty"),
        size: Size { cols: 80, rows: 25 },
    };

    fn say(ports: &mut [PortState], port: u32, event: u16, value: u16) -> Option<Effect> {
        let message = Message { port, event, value };
        obey(ports, |_| Some(FACTS), message)
    }

    /// Everything that the driver is told, in order.
    fn news(ports: &mut [PortState]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for (number, port) in (0..).zip(ports) {
            while let Some(first) = port.news.first() {
                messages.push(port.message(number, first, FACTS));
                port.told(first);
            }
        }
        messages
    }

    #[test]
    fn a_driver_is_told_of_each_port_and_then_all_about_it() {
        let mut ports = [PortState::default(); 2];
        assert_eq!(news(&mut ports).len(), 0);
        assert_eq!(say(&mut ports, 7, DEVICE_READY, 1), Some(Effect::Nothing));
        let added = [[0, 0, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1, 0]];
        assert_eq!(news(&mut ports), added);
        assert_eq!(say(&mut ports, 1, PORT_READY, 1), Some(Effect::Listens));
        let about = [
            &[1, 0, 0, 0, 4, 0, 1, 0][..],
            &[1, 0, 0, 0, 7, 0, 1, 0, b't', b't', b'y'],
            &[1, 0, 0, 0, 5, 0, 0, 0, 80, 0, 25, 0],
            &[1, 0, 0, 0, 6, 0, 1, 0],
        ];
        assert_eq!(news(&mut ports), about);
    }

    #[test]
    fn a_driver_that_floods_is_told_no_more_for_that() {
        let mut ports = [PortState::default()];
        for _ in 0..1000 {
            say(&mut ports, 0, DEVICE_READY, 1);
        }
        assert_eq!(news(&mut ports).len(), 1);
        for _ in 0..1000 {
            say(&mut ports, 0, PORT_READY, 1);
        }
        assert_eq!(news(&mut ports).len(), 4);
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut ports = [PortState::default()];
        say(&mut ports, 0, DEVICE_READY, 1);
        news(&mut ports);
        let before = ports;
        for (port, event) in [(1, PORT_READY), (u32::MAX, PORT_OPEN), (0, 2), (0, 99)] {
            assert_eq!(say(&mut ports, port, event, 1), None);
        }
        assert_eq!(say(&mut ports, 0, DEVICE_READY, 0), Some(Effect::Nothing));
        assert_eq!(ports, before);
    }

    /// What a driver knows after it was told everything: whether there is the port.
    fn kinds(ports: &mut [PortState]) -> Vec<u8> {
        news(ports).iter().map(|message| message[4]).collect()
    }

    #[test]
    fn a_port_that_goes_and_comes_is_a_new_one_to_the_driver() {
        let mut ports = [PortState::default()];
        // No driver has said DEVICE_READY yet.
        ports[0].plug(false);
        ports[0].plug(true);
        assert_eq!(kinds(&mut ports), [0_u8; 0]);
        say(&mut ports, 0, DEVICE_READY, 1);
        // A port that comes and goes before the driver is told is never mentioned.
        ports[0].plug(false);
        assert_eq!(kinds(&mut ports), [0_u8; 0]);
        ports[0].plug(true);
        assert_eq!(kinds(&mut ports), [1]);
        say(&mut ports, 0, PORT_READY, 1);
        assert_eq!(kinds(&mut ports), [4, 7, 5, 6]);
        assert!(ports[0].listens(true));
        ports[0].plug(false);
        assert!(!ports[0].listens(true));
        assert_eq!(kinds(&mut ports), [2]);
        ports[0].plug(true);
        ports[0].plug(false);
        assert_eq!(kinds(&mut ports), [0_u8; 0]);
        ports[0].plug(true);
        assert_eq!(kinds(&mut ports), [1]);
        ports[0].plug(false);
        ports[0].plug(true);
        assert_eq!(kinds(&mut ports), [2, 1]);
    }

    #[test]
    fn what_a_driver_says_of_a_port_that_was_taken_away_changes_nothing() {
        let mut ports = [PortState::default()];
        say(&mut ports, 0, DEVICE_READY, 1);
        assert_eq!(kinds(&mut ports), [1]);
        ports[0].plug(false);
        ports[0].plug(true);
        for _ in 0..2 {
            let before = ports;
            for event in [PORT_READY, PORT_OPEN] {
                assert_eq!(say(&mut ports, 0, event, 1), Some(Effect::Nothing));
            }
            assert_eq!(ports, before);
            // Told that it is gone, but not yet that it is there again.
            ports[0].told(News::REMOVE);
        }
        assert_eq!(kinds(&mut ports), [1]);
        assert_eq!(say(&mut ports, 0, PORT_READY, 1), Some(Effect::Listens));
    }

    #[test]
    fn a_driver_that_has_slept_goes_on_with_the_ports_that_it_knows() {
        // As after a reset: the driver does not say that it is ready, but that each port is.
        let mut ports = [PortState::default(); 2];
        ports[1].plug(false);
        assert_eq!(say(&mut ports, 0, PORT_READY, 1), Some(Effect::Listens));
        let opened = say(&mut ports, 0, PORT_OPEN, 1);
        assert_eq!(opened, Some(Effect::Opened(true)));
        assert!(ports[0].listens(false));
        assert_eq!(kinds(&mut ports), [4, 7, 5, 6]);
        // It is told of the port that went away meanwhile, and from then on of every change.
        assert_eq!(say(&mut ports, 1, PORT_READY, 1), Some(Effect::Nothing));
        assert_eq!(kinds(&mut ports), [2]);
        ports[1].plug(true);
        assert_eq!(kinds(&mut ports), [1]);
        ports[0].plug(false);
        assert_eq!(kinds(&mut ports), [2]);
    }

    #[test]
    fn a_port_without_a_driver_hears_of_no_hang_up() {
        let mut port = PortState::default();
        port.set_host_open(false);
        assert_eq!(port.news.first(), None);
        port.ready = true;
        port.set_host_open(true);
        assert_eq!(port.news.first(), Some(News::OPEN));
    }
}
