// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What devices answer the VMM.

#![cfg(not(loom))]
mod support;

use std::sync::{Arc, Mutex};

use bus::{AccessError, BusBuilder, BusDevice, BusDeviceSync, DefaultAnswer, MmioBus, RegionId};
use support::Tag;

/// What the VMM does after an access. Neither `Copy`, nor `Clone`, nor `Send`.
#[derive(Debug, Default, PartialEq)]
enum Action {
    #[default]
    Nothing,
    Say(std::rc::Rc<str>),
    Remove(RegionId),
}

/// Has itself removed by a write to offset 0, and answers at offset 4.
#[derive(Default)]
struct Unplug {
    id: Option<RegionId>,
}

impl BusDevice<Action> for Unplug {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<Action, AccessError> {
        data.fill(7);
        match offset {
            4 => Ok(Action::Say("read".into())),
            _ => Err(AccessError::WriteOnly),
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<Action, AccessError> {
        self.id.map(Action::Remove).ok_or(AccessError::Failed)
    }
}

#[test]
fn answer_arrives_when_the_access_is_complete_and_no_lock_is_held() {
    let bus = MmioBus::<Action>::default();
    let device = Arc::new(Mutex::new(Unplug::default()));
    let id = bus.insert(device.clone(), 0x1000, 8).unwrap();
    device.lock().unwrap().id = Some(id);
    let mut view = bus.view();
    // Often enough for the view to take its fast path.
    for _ in 0..4 {
        let mut data = [0; 4];
        let said = view.read(0x1004, &mut data);
        assert_eq!((said, data), (Ok(Action::Say("read".into())), [7; 4]));
        let refused = view.read(0x1000, &mut data);
        assert_eq!((refused, data), (Err(AccessError::WriteOnly), [0xff; 4]));
        assert_eq!(view.write(0x1000, &[0; 4]), Ok(Action::Remove(id)));
        drop(device.try_lock().unwrap());
    }
    // What the device itself could not do.
    let Ok(Action::Remove(id)) = view.write(0x1000, &[0; 4]) else {
        unreachable!();
    };
    bus.remove(id).unwrap();
    assert_eq!(view.write(0x1000, &[0]), Err(AccessError::Unclaimed));
}

#[test]
fn device_without_answers_gives_the_default_on_a_bus_with_answers() {
    struct Plain;
    impl BusDevice for Plain {
        fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(3);
            Ok(())
        }
    }

    let bus = BusBuilder::<u64, Action>::default().fill(0).build();
    let plain = Arc::new(Mutex::new(Plain));
    let tag = Tag::new(4);
    bus.insert(Arc::new(DefaultAnswer(plain.clone())), 0x1000, 4)
        .unwrap();
    bus.insert(Arc::new(Mutex::new(DefaultAnswer(Plain))), 0x2000, 4)
        .unwrap();
    bus.insert(Arc::new(DefaultAnswer(tag.clone())), 0x3000, 4)
        .unwrap();
    for (addr, value) in [(0x1000, 3), (0x2000, 3), (0x3000, 4)] {
        let mut data = [0; 2];
        let outcome = bus.view().read(addr, &mut data);
        assert_eq!((outcome, data), (Ok(Action::Nothing), [value; 2]));
    }
    assert_eq!(bus.view().write(0x1000, &[0]), Err(AccessError::Refused));
    assert_eq!(bus.view().write(0x3000, &[0]), Ok(Action::Nothing));
    assert_eq!(tag.calls(), 2);
}

#[test]
fn device_can_answer_on_buses_of_any_type() {
    struct Generic;
    impl<R: From<u8>> BusDeviceSync<R> for Generic {
        fn write(&self, _offset: u64, data: &[u8]) -> Result<R, AccessError> {
            Ok(data.first().copied().unwrap_or(0).into())
        }
    }

    let (small, large) = (MmioBus::<u8>::default(), MmioBus::<u128>::default());
    let device = Arc::new(Generic);
    small.insert(device.clone(), 0, 4).unwrap();
    large.insert(device, 0, 4).unwrap();
    assert_eq!(small.view().write(0, &[9]), Ok(9));
    assert_eq!(large.view().write(0, &[9]), Ok(9));
}
