// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of operations against a list of intervals that is searched from end to end.

#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should stop there"
)]

mod support;

use std::sync::Arc;

use bus::{AccessError, Bus, BusDeviceSync, BusError, RegionId};
use proptest::prelude::*;
use support::Tag;

#[derive(Clone, Debug)]
enum Op {
    Insert {
        base: u64,
        len: u64,
    },
    Remove {
        nth: usize,
    },
    Relocate {
        nth: usize,
        base: u64,
    },
    Access {
        addr: u64,
        width: usize,
        write: bool,
    },
}

/// Addresses near each other and near both ends of the space, so that ranges meet.
fn address(max: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..64_u64,
        2 => (0..24_u64).prop_map(move |back| max - back),
        1 => 0..=max,
    ]
}

fn op(max: u64) -> impl Strategy<Value = Op> {
    let len = prop_oneof![8 => 0..24_u64, 1 => any::<u64>()];
    prop_oneof![
        3 => (address(max), len).prop_map(|(base, len)| Op::Insert { base, len }),
        1 => any::<usize>().prop_map(|nth| Op::Remove { nth }),
        1 => (any::<usize>(), address(max)).prop_map(|(nth, base)| Op::Relocate { nth, base }),
        6 => (address(max), 0..=9_usize, any::<bool>())
            .prop_map(|(addr, width, write)| Op::Access { addr, width, write }),
    ]
}

/// A region of the model. All its arithmetic has room to spare.
struct Interval {
    id: RegionId,
    base: u128,
    len: u128,
    device: Arc<Tag>,
}

impl Interval {
    fn end(&self) -> u128 {
        self.base + self.len
    }
}

/// In how many naturally aligned accesses a device gets an access.
fn pieces(offset: u128, width: usize) -> usize {
    if [0, 1, 2, 4, 8].contains(&width) {
        return 1;
    }
    let (mut count, mut at, mut left) = (0, offset, width);
    while left > 0 {
        let fits = |len: &usize| *len <= left && at % (*len as u128) == 0;
        let len = [4, 2, 1].into_iter().find(fits).unwrap();
        (count, at, left) = (count + 1, at + len as u128, left - len);
    }
    count
}

/// What the model says about a range that is to be claimed.
fn verdict(
    list: &[Interval],
    base: u64,
    len: u64,
    max: u64,
    except: Option<RegionId>,
) -> &'static str {
    let (base, end) = (u128::from(base), u128::from(base) + u128::from(len));
    let overlaps = |i: &Interval| Some(i.id) != except && i.base < end && base < i.end();
    match len {
        0 => "no range",
        _ if end > u128::from(max) + 1 => "no range",
        _ if list.iter().any(overlaps) => "overlap",
        _ => "ok",
    }
}

fn kind<T, K>(result: &Result<T, BusError<K>>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(BusError::InvalidRange { .. }) => "no range",
        Err(BusError::Overlap { .. }) => "overlap",
        Err(_) => "other",
    }
}

/// Runs the operations on a bus and on the model, and compares after each.
fn check<K: bus::Address + TryFrom<u64>>(ops: Vec<Op>) {
    let key = |value: u64| K::try_from(value).ok().unwrap();
    let max = u64::MAX >> (64 - 8 * size_of::<K>());
    let bus = Bus::<K>::new();
    let mut view = bus.view();
    let mut list: Vec<Interval> = Vec::new();
    let mut gone: Vec<RegionId> = Vec::new();
    let mut next = 0_u8;
    for op in ops {
        match op {
            Op::Insert { base, len } => {
                let expected = verdict(&list, base, len, max, None);
                next = next.wrapping_add(1) % 0xfe;
                let device = Tag::new(next);
                let result = bus.insert(device.clone(), key(base), len);
                assert_eq!(kind(&result), expected);
                if let Ok(id) = result {
                    let (base, len) = (base.into(), len.into());
                    list.push(Interval {
                        id,
                        base,
                        len,
                        device,
                    });
                }
            }
            Op::Remove { nth } => {
                if let Some(id) = gone.last() {
                    assert_eq!(kind(&bus.remove(*id)), "other");
                }
                if !list.is_empty() {
                    let interval = list.swap_remove(nth % list.len());
                    let device = bus.remove(interval.id).unwrap();
                    let expected = interval.device as Arc<dyn BusDeviceSync>;
                    assert!(Arc::ptr_eq(&device, &expected));
                    gone.push(interval.id);
                }
            }
            Op::Relocate { nth, base } => {
                if !list.is_empty() {
                    let nth = nth % list.len();
                    let (id, len) = (list[nth].id, u64::try_from(list[nth].len).unwrap());
                    let expected = verdict(&list, base, len, max, Some(id));
                    let result = bus.relocate(id, key(base));
                    assert_eq!(kind(&result), expected);
                    if result.is_ok() {
                        list[nth].base = base.into();
                    }
                }
            }
            Op::Access { addr, width, write } => {
                let start = u128::from(addr);
                let end = start + width as u128;
                let hit = list.iter().find(|i| i.base <= start && start < i.end());
                let expected = match hit {
                    None => Err(AccessError::Unclaimed),
                    Some(_) if !(1..=8).contains(&width) => Err(AccessError::Width),
                    Some(i) if end > i.end() => Err(AccessError::CrossesEnd),
                    Some(_) => Ok(()),
                };
                let calls = || list.iter().map(|i| i.device.calls()).collect::<Vec<_>>();
                let before = calls();
                let mut data = vec![0xaa; width];
                let mut fill = 0xff;
                if write {
                    assert_eq!(view.write(key(addr), &data), expected);
                    fill = 0xaa;
                } else {
                    assert_eq!(view.read(key(addr), &mut data), expected);
                }
                let reached = hit.filter(|_| expected.is_ok());
                if let (Some(interval), false) = (reached, write) {
                    fill = interval.device.tag;
                }
                assert!(data.iter().all(|byte| *byte == fill));
                for ((interval, before), after) in list.iter().zip(before).zip(calls()) {
                    let called = reached.is_some_and(|hit| hit.id == interval.id);
                    let calls = match called {
                        true => pieces(start - interval.base, width),
                        false => 0,
                    };
                    assert_eq!(after, before + calls);
                }
            }
        }
        let mut expected: Vec<_> = list.iter().map(|i| (i.base, i.len, i.id)).collect();
        expected.sort_unstable();
        let actual = bus.regions();
        let actual = actual.iter().map(|r| {
            let first: u64 = r.range.first().into();
            (u128::from(first), u128::from(r.range.size()), r.id)
        });
        assert!(actual.eq(expected));
    }
}

/// How many operations a sequence has, at most.
const LONGEST: usize = if cfg!(miri) { 12 } else { 60 };

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 1000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn memory_bus_agrees_with_a_list(ops in prop::collection::vec(op(u64::MAX), 1..LONGEST)) {
        check::<u64>(ops);
    }

    #[test]
    fn port_bus_agrees_with_a_list(ops in prop::collection::vec(op(u16::MAX.into()), 1..LONGEST)) {
        check::<u16>(ops);
    }
}
