// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bus that changes while several vCPUs access it, against a list that is searched from end to
//! end.

mod model;
mod program;

use std::mem;
use std::sync::{Arc, Weak};

use bus::{
    AccessError, Address, Bus, BusBuilder, BusDeviceSync, BusError, BusView, Region, RegionId,
    Width,
};

use model::{Call, Calls, Device, Interval, content, fails, pieces};
pub use program::Program;
use program::{Change, Len, Place, Rules, Step};

const WIDTHS: [Width; 4] = [Width::U8, Width::U16, Width::U32, Width::U64];
/// How many vCPUs there are. All but the first say who they are.
const VIEWS: usize = 3;
/// How many devices the VMM holds at a time.
const SLOTS: usize = 4;
/// Enough for every path, and few enough to compare after each step.
const MOST_REGIONS: usize = 32;
const FILL: u8 = 0xe7;

/// What all of a bus's changes return, compared by kind.
fn kind<T, K>(result: &Result<T, BusError<K>>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(BusError::InvalidRange { .. }) => "no range",
        Err(BusError::Overlap { .. }) => "overlap",
        Err(BusError::NoSuchRegion(_)) => "no region",
        Err(BusError::NoRegionAt(_)) => "nothing there",
        Err(_) => "other",
    }
}

type Strong = Arc<dyn BusDeviceSync<u64>>;

struct Rig<K: Address> {
    bus: Bus<K, u64>,
    views: [BusView<K, u64>; VIEWS],
    /// The devices that the VMM holds, with their numbers.
    slots: [(usize, Strong); SLOTS],
    /// All devices there ever were.
    devices: Vec<Weak<dyn BusDeviceSync<u64>>>,
    calls: Calls,
    list: Vec<Interval>,
    /// A region that was removed.
    gone: Option<RegionId>,
    last: (u8, u64, usize, Option<u64>),
    max: u64,
    reached: usize,
}

fn view<K: Address>(bus: &Bus<K, u64>, of: usize) -> BusView<K, u64> {
    match of {
        0 => bus.view(),
        _ => bus.view().initiated_by(of as u32),
    }
}

fn device(calls: &Calls, devices: &mut Vec<Weak<dyn BusDeviceSync<u64>>>) -> (usize, Strong) {
    let (number, calls) = (devices.len(), Arc::clone(calls));
    let device: Strong = Arc::new(Device { number, calls });
    devices.push(Arc::downgrade(&device));
    (number, device)
}

impl<K: Address + TryFrom<u64>> Rig<K> {
    fn new() -> Self {
        let bus = BusBuilder::default().fill(FILL).build();
        let (calls, mut devices) = (Calls::default(), Vec::new());
        Self {
            views: std::array::from_fn(|of| view(&bus, of)),
            slots: std::array::from_fn(|_| device(&calls, &mut devices)),
            bus,
            devices,
            calls,
            list: Vec::new(),
            gone: None,
            last: (0, 0, 4, None),
            max: u64::MAX >> (64 - 8 * size_of::<K>()),
            reached: 0,
        }
    }

    fn key(&self, value: u64) -> K {
        K::try_from(value).ok().unwrap()
    }

    fn place(&self, place: Place) -> u64 {
        match place {
            Place::Low(addr) => (addr % 64).into(),
            Place::Page(page, addr) => (u64::from(page) << 12 | u64::from(addr)) & self.max,
            Place::High(back) => self.max - u64::from(back % 64),
            Place::Any(addr) => addr & self.max,
        }
    }

    fn len(len: Len) -> u64 {
        match len {
            Len::Short(len) => (len % 40).into(),
            Len::Any(len) => len,
        }
    }

    fn is_range(&self, base: u64, len: u64) -> bool {
        len != 0 && u128::from(base) + u128::from(len) <= u128::from(self.max) + 1
    }

    fn access(&mut self, by: u8, addr: u64, width: usize, write: Option<u64>) {
        let by = usize::from(by) % VIEWS;
        let initiator = (by != 0).then_some(by as u32);
        let sent: Vec<u8> = write.map_or(0, u64::to_le).to_le_bytes().repeat(2);
        let start = u128::from(addr);
        let hit = |it: &&mut Interval| it.base <= start && start < it.end();
        let mut expected = Vec::new();
        let mut outcome = Err(AccessError::Unclaimed);
        self.let_go();
        let mut read = vec![FILL; width];
        if let Some(region) = self.list.iter_mut().find(hit) {
            let number = region.device;
            let lives = self.devices[number].strong_count() != 0;
            outcome = region.route(start, width);
            if let (Ok(offset), true) = (outcome, lives) {
                for (at, len) in pieces(offset, width) {
                    let from = usize::try_from(at - offset).unwrap();
                    expected.push(Call {
                        device: number,
                        initiator,
                        offset: at,
                        data: write.map(|_| sent[from..from + len].to_vec()).ok_or(len),
                    });
                    if fails(at) {
                        outcome = Err(AccessError::Failed);
                        break;
                    }
                    outcome = Ok(at);
                }
                if outcome.is_ok() {
                    for (byte, at) in read.iter_mut().zip(offset..) {
                        *byte = content(number, at);
                    }
                }
            } else if outcome.is_ok() {
                assert!(region.rules.weak, "a device that the bus holds was dropped");
                outcome = Err(AccessError::Unclaimed);
            }
            if region.rules.counted {
                region.counts[usize::from(write.is_some())] += 1;
                region.counts[2] += u64::from(outcome.is_err());
            }
        }
        let key = self.key(addr);
        let mut data = vec![0x5a; width];
        let actual = match write {
            Some(_) => self.views[by].write(key, &sent[..width]),
            None => self.views[by].read(key, &mut data),
        };
        assert_eq!(actual, outcome);
        assert!(write.is_some() || data == read, "{data:x?} for {read:x?}");
        let calls = mem::take(&mut *self.calls.lock().unwrap());
        assert_eq!(calls, expected);
        self.reached += calls.len();
        self.last = (by as u8, addr, width, write);
    }

    /// What neither the VMM nor the bus holds is held by views that have not looked since.
    fn let_go(&mut self) {
        let stays = |number: usize| {
            let held = |it: &Interval| it.device == number && !it.rules.weak;
            self.slots.iter().any(|slot| slot.0 == number) || self.list.iter().any(held)
        };
        let gone: Vec<_> = (0..self.devices.len()).filter(|it| !stays(*it)).collect();
        if gone.iter().any(|it| self.devices[*it].strong_count() != 0) {
            self.views.iter_mut().for_each(BusView::refresh);
            assert!(gone.iter().all(|it| self.devices[*it].strong_count() == 0));
        }
    }

    /// The region that a number means: one that exists, or one that does not any more.
    fn chosen(list: &[Interval], gone: Option<RegionId>, nth: u8) -> Option<RegionId> {
        list.get(usize::from(nth) % (list.len() + 1))
            .map(|it| it.id)
            .or(gone)
    }

    /// Carries out changes that become visible together.
    fn change(&mut self, changes: &[&Change]) {
        let mut list = self.list.clone();
        let mut removed = Vec::new();
        let mut outcome = "done";
        let mut transaction = self.bus.transaction();
        for change in changes {
            match **change {
                Change::Insert(place, len, slot, rules) => {
                    let (base, len) = (self.place(place), Self::len(len));
                    let (number, device) = &self.slots[usize::from(slot) % SLOTS];
                    let at = region(self.key(base), len, rules);
                    let inserted = match rules.weak {
                        true => transaction.insert_weak(Arc::downgrade(device), at),
                        false => transaction.insert(Arc::clone(device), at),
                    };
                    let Ok(id) = inserted else {
                        assert_eq!(kind(&inserted), "no range");
                        assert!(!self.is_range(base, len));
                        return;
                    };
                    assert!(self.is_range(base, len));
                    let interval = Interval {
                        id,
                        base: base.into(),
                        len,
                        device: *number,
                        rules,
                        counts: [0; 3],
                    };
                    if outcome == "done" {
                        outcome = put(&mut list, interval);
                    }
                }
                Change::Remove(nth) => {
                    let Some(id) = Self::chosen(&list, self.gone, nth) else {
                        continue;
                    };
                    transaction.remove(id);
                    let index = list.iter().position(|it| it.id == id);
                    match index {
                        _ if outcome != "done" => {}
                        None => outcome = "no region",
                        Some(index) => removed.push(list.swap_remove(index)),
                    }
                }
                Change::Relocate(nth, place) => {
                    let Some(id) = Self::chosen(&list, self.gone, nth) else {
                        continue;
                    };
                    let base = self.place(place);
                    transaction.relocate(id, self.key(base));
                    let index = list.iter().position(|it| it.id == id);
                    match index {
                        _ if outcome != "done" => {}
                        None => outcome = "no region",
                        Some(index) if !self.is_range(base, list[index].len) => {
                            outcome = "no range";
                        }
                        Some(index) => {
                            let base = base.into();
                            let moved = Interval {
                                base,
                                ..list.swap_remove(index)
                            };
                            outcome = put(&mut list, moved);
                        }
                    }
                }
            }
        }
        if list.len() > MOST_REGIONS {
            return;
        }
        let result = transaction.commit();
        assert_eq!(kind(&result), outcome);
        if let Ok(devices) = result {
            assert_eq!(devices.len(), removed.len());
            for (device, interval) in devices.iter().zip(&removed) {
                self.expect(interval, device);
            }
            self.list = list;
            self.gone = removed.pop().map(|it| it.id).or(self.gone);
        }
    }

    /// What a removal returns is what was inserted.
    fn expect(&self, interval: &Interval, device: &Strong) {
        match self.devices[interval.device].upgrade() {
            Some(inserted) => assert!(Arc::ptr_eq(&inserted, device)),
            None => assert!(interval.rules.weak),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Access(by, place, width, write) => {
                self.access(*by, self.place(*place), usize::from(width % 11), *write);
            }
            Step::Touch(by, nth, offset, width, write) => {
                let nth = usize::from(*nth) % self.list.len().max(1);
                if let Some(region) = self.list.get(nth) {
                    let base = u64::try_from(region.base).unwrap();
                    let addr = base.saturating_add((offset % 40).into()).min(self.max);
                    self.access(*by, addr, usize::from(width % 11), *write);
                }
            }
            Step::Again => {
                let (by, addr, width, write) = self.last;
                self.access(by, addr, width, write);
            }
            Step::Change(changes, true) => {
                let changes: Vec<_> = changes.iter().flatten().collect();
                self.change(&changes);
            }
            Step::Change(changes, false) => {
                for change in changes.iter().flatten() {
                    self.change(&[change]);
                }
            }
            Step::RemoveAt(place) => {
                let addr = self.place(*place);
                let start = u128::from(addr);
                let hit = |it: &Interval| it.base <= start && start < it.end();
                let result = self.bus.remove_at(self.key(addr));
                match self.list.iter().position(hit) {
                    None => assert_eq!(kind(&result), "nothing there"),
                    Some(index) => {
                        let interval = self.list.swap_remove(index);
                        self.expect(&interval, &result.unwrap());
                        self.gone = Some(interval.id);
                    }
                }
            }
            Step::RemoveDevice(slot) => {
                let (number, device) = &self.slots[usize::from(*slot) % SLOTS];
                let removed = self.bus.remove_device(device).unwrap();
                let mut removed: Vec<_> = removed.iter().map(|it| it.id).collect();
                let is_of = |it: &Interval| it.device == *number;
                let mut expected: Vec<_> = self
                    .list
                    .iter()
                    .filter(|it| is_of(it))
                    .map(|it| it.id)
                    .collect();
                removed.sort();
                expected.sort();
                assert_eq!(removed, expected);
                self.list.retain(|it| !is_of(it));
            }
            Step::Drop(slot) => {
                let slot = &mut self.slots[usize::from(*slot) % SLOTS];
                *slot = device(&self.calls, &mut self.devices);
            }
            Step::NewView(of) => {
                let of = usize::from(*of) % VIEWS;
                self.views[of] = view(&self.bus, of);
            }
            Step::Refresh(of) => self.views[usize::from(*of) % VIEWS].refresh(),
        }
        let mut expected: Vec<_> = (self.list.iter())
            .map(|it| (it.base, u128::from(it.len), it.id, it.counts))
            .collect();
        expected.sort_unstable();
        let regions = self.bus.regions();
        let actual = regions.iter().map(|it| {
            let base: u64 = it.range.first().into();
            let counts = it.counts();
            let counts = [counts.reads, counts.writes, counts.refused];
            (u128::from(base), u128::from(it.range.size()), it.id, counts)
        });
        assert!(actual.eq(expected));
    }
}

/// Puts a region into the list, if it is in nobody's way.
fn put(list: &mut Vec<Interval>, new: Interval) -> &'static str {
    let overlaps = |it: &Interval| it.base < new.end() && new.base < it.end();
    if list.iter().any(overlaps) {
        return "overlap";
    }
    list.push(new);
    "done"
}

fn region<K: Address>(base: K, len: u64, rules: Rules) -> Region<K> {
    let mut region = Region::new(base, len);
    if let Some(mask) = rules.widths {
        let widths: Vec<_> = (0..4)
            .filter(|log| mask & 1 << log != 0)
            .map(|log| WIDTHS[log])
            .collect();
        region = region.widths(&widths);
    }
    if rules.aligned {
        region = region.aligned();
    }
    if rules.counted {
        region = region.counted();
    }
    region
}

fn run_on<K: Address + TryFrom<u64>>(steps: &[Step]) -> usize {
    let mut rig = Rig::<K>::new();
    for step in steps {
        rig.step(step);
    }
    // Nothing keeps a device once it is off the bus and every vCPU has looked.
    for region in rig.bus.regions() {
        rig.bus.remove(region.id).unwrap();
    }
    rig.views.iter_mut().for_each(BusView::refresh);
    for (number, device) in rig.devices.iter().enumerate() {
        let held = rig.slots.iter().any(|slot| slot.0 == number);
        assert_eq!(device.strong_count(), usize::from(held));
    }
    rig.reached
}

/// Runs a program, and returns how often a device was called.
pub fn run(program: &Program) -> usize {
    match program.ports {
        true => run_on::<u16>(&program.steps),
        false => run_on::<u64>(&program.steps),
    }
}
