// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a bus takes to find and call a device, against the limits and against its peers.
//!
//! `cargo bench -p vmm-devices-benches --bench bus_dispatch -- [--quick] [--write docs/bus-dispatch.md]`
//!
//! The devices are 4 KiB each, side by side, and each has cache lines of its own. An access is a
//! read of four bytes. *Chained* accesses depend on the value that was read before, as the exits of
//! a vCPU do; *independent* ones may overlap in the processor.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a program for the people who change it"
)]

#[path = "bus_dispatch/devices.rs"]
mod devices;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex, RwLock, Weak};

use alioth::hv::VmEntry;
use alioth::mem::emulated::Mmio;
use arc_swap::{ArcSwap, Cache};
use bus::{BusDevice, BusDeviceSync, MmioBus};
use dbs_device::device_manager::IoManager as DbsManager;
use devices::{MutRegister, NoVm, Register, Wanted};
use vm_device::bus::{MmioAddress, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vmm_devices_benches::{Case, Report, Results, Table, Work, interleave, pin, raise_priority};

const BASE: u64 = 0xd000_0000;
const SIZE: u64 = 0x1000;

/// A range as the key of a tree, in the order of the bases.
type Tree<D> = BTreeMap<u64, (u64, D)>;

fn tree_find<D>(tree: &Tree<D>, addr: u64) -> Option<(u64, &D)> {
    let (base, (size, device)) = tree.range(..=addr).next_back()?;
    (addr - base < *size).then_some((addr - base, device))
}

/// Which addresses are read, and how.
#[derive(Clone, Copy)]
enum Pattern {
    Same,
    Random,
    RandomIndependent,
}

/// The addresses of one sample; their number is a power of two.
fn addresses(pattern: Pattern, devices: u64, thread: u64) -> Arc<[u64]> {
    // xorshift64*, always the same sequence.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    };
    match pattern {
        // One for each sample, because some places in a tree are found sooner than others.
        Pattern::Same => (0..64)
            .map(|_| BASE + (random() + thread) % devices * SIZE)
            .collect(),
        _ => (0..65_536)
            .map(|_| BASE + random() % devices * SIZE + random() % 1023 * 4)
            .collect(),
    }
}

/// Turns one read into the work of a thread.
fn work<const SAME: bool, const CHAINED: bool>(
    list: &Arc<[u64]>,
    mut read: impl FnMut(u64) -> u32 + Send + 'static,
) -> Work {
    work_at::<SAME, CHAINED, ()>(list, |_| (), move |(), addr| read(addr))
}

/// The same with something that is prepared for the first address of each sample.
fn work_at<const SAME: bool, const CHAINED: bool, T>(
    list: &Arc<[u64]>,
    mut prepare: impl FnMut(u64) -> T + Send + 'static,
    mut read: impl FnMut(&T, u64) -> u32 + Send + 'static,
) -> Work {
    let list = Arc::clone(list);
    let mut sample = 0;
    Box::new(move |count| {
        let mask = list.len() - 1;
        let same = list[sample & mask];
        sample += 1;
        let prepared = prepare(same);
        let mut sum = 0;
        for i in 0..count as usize {
            // One address stays in a register, so that nothing but the access is timed.
            let addr = if SAME { same } else { list[i & mask] };
            sum = if CHAINED {
                u64::from(read(&prepared, addr + sum))
            } else {
                sum + u64::from(read(&prepared, addr))
            };
        }
        sum
    })
}

/// Four bytes for a device to write to.
macro_rules! read4 {
    (|$data:ident| $call:expr) => {{
        let mut bytes = [0; 4];
        let $data = &mut bytes;
        let _ = $call;
        u32::from_le_bytes(bytes)
    }};
}

const DYN: &str = "limit: `dyn` call, device known";
const MUTEX_DYN: &str = "limit: `Mutex<dyn>` call, device known";
const VIEW: &str = "**vmm-bus**, view";
const VIEW_ANSWER: &str = "**vmm-bus**, view, with an answer";
const VIEW_MUTEX: &str = "**vmm-bus**, view, `Mutex` device";
const VIEW_FENCED: &str = "**vmm-bus**, view, without `membarrier`";
const NEW_VIEW: &str = "**vmm-bus**, a new view for each access";
const VM_DEVICE: &str = "vm-device 0.1";
const VM_DEVICE_MUTEX: &str = "vm-device 0.1, `Mutex` device";
const VM_DEVICE_LOCKED: &str = "vm-device 0.1 in a `Mutex`, for hot-plug";
const DBS: &str = "dbs-device 0.2 bare";
const DBS_CACHE: &str = "dbs-device 0.2 + arc-swap `Cache`";
const DBS_CACHE_MUTEX: &str = "dbs-device 0.2 + arc-swap `Cache`, `Mutex` device";
const ALIOTH_BARE: &str = "alioth 0.12 `MmioBus` bare";
const ALIOTH: &str = "alioth 0.12 `Memory::handle_mmio`";
const MUTEX_TREE: &str = "stand-in: global mutex + tree + `Arc` clone";
const RWLOCK_TREE: &str = "stand-in: rwlock + tree + `Weak`";

/// All competitors with `count` devices, each with one reader for each list of addresses.
#[expect(clippy::too_many_lines, reason = "one paragraph for each competitor")]
fn cases<const SAME: bool, const CHAINED: bool>(count: u64, lists: &[Arc<[u64]>]) -> Vec<Case> {
    let mut cases = Vec::new();
    let places = || (0..count).map(|i| BASE + i * SIZE);
    let mut add = |name: &str, make: &dyn Fn(&Arc<[u64]>) -> Work| {
        cases.push(Case::threads(name, lists.iter().map(make).collect()));
    };

    let devices: Arc<[Arc<dyn BusDeviceSync>]> =
        places().map(|_| Arc::<Register>::default() as _).collect();
    add(DYN, &|list| {
        let devices = Arc::clone(&devices);
        if SAME {
            let device = move |addr| Arc::clone(&devices[((addr - BASE) / SIZE) as usize]);
            return work_at::<SAME, CHAINED, _>(list, device, |device, addr| {
                read4!(|data| black_box(&**device).read(addr & (SIZE - 1), data))
            });
        }
        work::<SAME, CHAINED>(list, move |addr| {
            let device = &devices[((addr - BASE) / SIZE) as usize];
            read4!(|data| device.read(addr & (SIZE - 1), data))
        })
    });

    let locked: Arc<[Arc<Mutex<dyn BusDevice>>]> = places()
        .map(|_| Arc::<Mutex<MutRegister>>::default() as _)
        .collect();
    add(MUTEX_DYN, &|list| {
        let locked = Arc::clone(&locked);
        if SAME {
            let device = move |addr| Arc::clone(&locked[((addr - BASE) / SIZE) as usize]);
            return work_at::<SAME, CHAINED, _>(list, device, |device, addr| {
                read4!(|data| black_box(&**device)
                    .lock()
                    .unwrap()
                    .read(addr & (SIZE - 1), data))
            });
        }
        work::<SAME, CHAINED>(list, move |addr| {
            let device = &locked[((addr - BASE) / SIZE) as usize];
            read4!(|data| device.lock().unwrap().read(addr & (SIZE - 1), data))
        })
    });

    let bus = MmioBus::new();
    let answering_bus = MmioBus::<Wanted>::default();
    let locked_bus = MmioBus::new();
    let fenced_bus = MmioBus::builder().fenced().build();
    for base in places() {
        bus.insert(Arc::<Register>::default(), base, SIZE).unwrap();
        answering_bus
            .insert(Arc::<Register>::default(), base, SIZE)
            .unwrap();
        fenced_bus
            .insert(Arc::<Register>::default(), base, SIZE)
            .unwrap();
        locked_bus
            .insert(Arc::<Mutex<MutRegister>>::default(), base, SIZE)
            .unwrap();
    }
    add(VIEW, &|list| {
        let mut view = bus.view();
        work::<SAME, CHAINED>(list, move |addr| read4!(|data| view.read(addr, data)))
    });
    add(VIEW_ANSWER, &|list| {
        let mut view = answering_bus.view();
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(
                |data| if let Ok(Wanted::Wake(value)) = view.read(addr, data) {
                    // The VMM looks at it.
                    black_box(value);
                }
            )
        })
    });
    add(VIEW_MUTEX, &|list| {
        let mut view = locked_bus.view();
        work::<SAME, CHAINED>(list, move |addr| read4!(|data| view.read(addr, data)))
    });
    add(VIEW_FENCED, &|list| {
        let mut view = fenced_bus.view();
        work::<SAME, CHAINED>(list, move |addr| read4!(|data| view.read(addr, data)))
    });
    add(NEW_VIEW, &|list| {
        let bus = bus.clone();
        work::<SAME, CHAINED>(list, move |addr| read4!(|data| bus.view().read(addr, data)))
    });

    let mut manager = IoManager::new();
    let mut mutex_manager = IoManager::new();
    for base in places() {
        let range = MmioRange::new(MmioAddress(base), SIZE).unwrap();
        manager
            .register_mmio(range, Arc::<Register>::default())
            .unwrap();
        mutex_manager
            .register_mmio(range, Arc::<Mutex<MutRegister>>::default())
            .unwrap();
    }
    let (manager, mutex_manager) = (Arc::new(manager), Arc::new(mutex_manager));
    add(VM_DEVICE, &|list| {
        let manager = Arc::clone(&manager);
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| manager.mmio_read(MmioAddress(addr), data))
        })
    });
    add(VM_DEVICE_MUTEX, &|list| {
        let manager = Arc::clone(&mutex_manager);
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| manager.mmio_read(MmioAddress(addr), data))
        })
    });

    let mut manager = IoManager::new();
    for base in places() {
        let range = MmioRange::new(MmioAddress(base), SIZE).unwrap();
        manager
            .register_mmio(range, Arc::<Register>::default())
            .unwrap();
    }
    let manager = Arc::new(Mutex::new(manager));
    add(VM_DEVICE_LOCKED, &|list| {
        let manager = Arc::clone(&manager);
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| manager.lock().unwrap().mmio_read(MmioAddress(addr), data))
        })
    });

    let mut manager = DbsManager::new();
    let mut mutex_manager = DbsManager::new();
    for base in places() {
        let range = [dbs_device::resources::Resource::MmioAddressRange { base, size: SIZE }];
        manager
            .register_device_io(Arc::<Register>::default(), &range)
            .unwrap();
        mutex_manager
            .register_device_io(Arc::<Mutex<MutRegister>>::default(), &range)
            .unwrap();
    }
    let bare = Arc::new(manager.clone());
    add(DBS, &|list| {
        let manager = Arc::clone(&bare);
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| manager.mmio_read(addr, data))
        })
    });
    let swap = Arc::new(ArcSwap::from_pointee(manager));
    add(DBS_CACHE, &|list| {
        let mut cache = Cache::new(Arc::clone(&swap));
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| cache.load().mmio_read(addr, data))
        })
    });
    let swap = Arc::new(ArcSwap::from_pointee(mutex_manager));
    add(DBS_CACHE_MUTEX, &|list| {
        let mut cache = Cache::new(Arc::clone(&swap));
        work::<SAME, CHAINED>(list, move |addr| {
            read4!(|data| cache.load().mmio_read(addr, data))
        })
    });

    let mut mmio = alioth::mem::emulated::MmioBus::<Arc<dyn Mmio>>::new();
    let memory = alioth::mem::Memory::new(Arc::new(NoVm));
    for base in places() {
        mmio.add(base, Arc::<Register>::default()).unwrap();
        memory
            .add_mmio_dev(base, Arc::<Register>::default())
            .unwrap();
    }
    let (mmio, memory) = (Arc::new(mmio), Arc::new(memory));
    add(ALIOTH_BARE, &|list| {
        let mmio = Arc::clone(&mmio);
        work::<SAME, CHAINED>(list, move |addr| {
            mmio.read(addr, 4).map_or(0, |value| value as u32)
        })
    });
    add(ALIOTH, &|list| {
        let memory = Arc::clone(&memory);
        work::<SAME, CHAINED>(list, move |addr| match memory.handle_mmio(addr, None, 4) {
            Ok(VmEntry::Mmio { data }) => data as u32,
            _ => 0,
        })
    });

    let tree: Tree<Arc<dyn BusDeviceSync>> = places()
        .map(|base| (base, (SIZE, Arc::<Register>::default() as _)))
        .collect();
    let tree = Arc::new(Mutex::new(tree));
    add(MUTEX_TREE, &|list| {
        let tree = Arc::clone(&tree);
        work::<SAME, CHAINED>(list, move |addr| {
            let found = tree_find(&tree.lock().unwrap(), addr).map(|(o, d)| (o, Arc::clone(d)));
            read4!(|data| found.map(|(offset, device)| device.read(offset, data)))
        })
    });
    let devices = Arc::clone(&devices);
    let tree: Tree<Weak<dyn BusDeviceSync>> = places()
        .zip(&*devices)
        .map(|(base, device)| (base, (SIZE, Arc::downgrade(device))))
        .collect();
    let tree = Arc::new(RwLock::new(tree));
    add(RWLOCK_TREE, &|list| {
        let (tree, _devices) = (Arc::clone(&tree), Arc::clone(&devices));
        work::<SAME, CHAINED>(list, move |addr| {
            let _owner = &_devices;
            let found = tree_find(&tree.read().unwrap(), addr)
                .and_then(|(offset, device)| Some((offset, device.upgrade()?)));
            read4!(|data| found.map(|(offset, device)| device.read(offset, data)))
        })
    });
    cases
}

const SIZES: [u64; 5] = [1, 8, 32, 128, 1024];

/// Ratios to the bare call, a column for each result.
fn table(results: &[(String, Results)]) -> Table {
    let mut columns = vec!["times a bare `dyn` call".to_owned()];
    columns.extend(results.iter().map(|(column, _)| column.clone()));
    let mut table = Table::new(&columns);
    for name in results[0].1.names() {
        let mut row = vec![name.clone()];
        row.extend(
            results
                .iter()
                .map(|(_, r)| format!("{:.1}", r.ratio(name, DYN))),
        );
        table.row(&row);
    }
    let mut row = vec!["*ns of the bare call, this run*".to_owned()];
    row.extend(
        results
            .iter()
            .map(|(_, r)| format!("*{:.1}*", r.median(DYN))),
    );
    table.row(&row);
    table
}

/// How to read the report.
const ABOUT: &str = "\
A number says how many times as long a read of four bytes took as a bare `dyn` call in the same
column; medians of rounds in which competitors take turns: first those whose devices have `&self`,
then those with a device in a `Mutex`, because a call that goes now here, now there takes a
processor longer than the look-up. Stand-ins are written for this benchmark, after the design of
VMMs whose bus is no crate.";

/// Measures competitors with the same kind of device together.
fn take_turns(cases: Vec<Case>, rounds: usize, count: u64) -> Results {
    let locked = [MUTEX_DYN, VIEW_MUTEX, VM_DEVICE_MUTEX, DBS_CACHE_MUTEX];
    let is_locked = |case: &Case| locked.contains(&case.name());
    let (locked, others) = cases.into_iter().partition(is_locked);
    interleave(others, rounds, count).and(interleave(locked, rounds, count))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut report = Report::new("Bus dispatch", "bus_dispatch", ABOUT);
    let rounds = report.rounds(61, 11);
    raise_priority();

    let run = |pattern, devices| {
        let list = addresses(pattern, devices, 0);
        let cases = match pattern {
            Pattern::Same => cases::<true, true>(devices, &[list]),
            Pattern::Random => cases::<false, true>(devices, &[list]),
            Pattern::RandomIndependent => cases::<false, false>(devices, &[list]),
        };
        take_turns(cases, rounds, 20_000)
    };
    let two = |threads: u64, apart: u64| {
        let list = |thread| addresses(Pattern::Same, 32, thread * apart);
        let lists: Vec<_> = (0..threads).map(list).collect();
        take_turns(cases::<true, true>(32, &lists), rounds, 100_000)
    };
    // Before this thread is bound to one processor: threads inherit that.
    let threads = [
        ("one thread".to_owned(), two(1, 0)),
        ("two, own device each".to_owned(), two(2, 1)),
        ("two, same device".to_owned(), two(2, 0)),
    ];
    pin(0);
    let same: Vec<_> = SIZES
        .map(|n| (format!("same, {n}"), run(Pattern::Same, n)))
        .into();
    let random: Vec<_> = SIZES
        .map(|n| (format!("random, {n}"), run(Pattern::Random, n)))
        .into();
    let independent: Vec<_> = SIZES
        .map(|n| (format!("random, {n}"), run(Pattern::RandomIndependent, n)))
        .into();

    report.say("## One thread, each access depends on the one before\n");
    report.say(table(&same));
    report.say(table(&random));
    report.say("## One thread, accesses may overlap\n");
    report.say(table(&independent));
    report.say("## Two threads, 32 devices, the same address again and again\n");
    let mut columns = vec!["ns for each access and thread, this run".to_owned()];
    columns.extend(threads.iter().map(|(column, _)| column.clone()));
    let mut scaling = Table::new(&columns);
    for name in threads[0].1.names() {
        let mut row = vec![name.clone()];
        row.extend(
            threads
                .iter()
                .map(|(_, r)| format!("{:.1}", r.median(name))),
        );
        scaling.row(&row);
    }
    report.say(scaling);

    let (s, r, r1024) = (&same[2].1, &random[2].1, &random[4].1);
    report.target("same, 32: view / `dyn` call", 2.5, s.ratio(VIEW, DYN));
    report.target(
        "same, 32: view / vm-device",
        1.0 / 3.0,
        s.ratio(VIEW, VM_DEVICE),
    );
    report.target(
        "same, 32: view / dbs-device + `Cache`",
        1.0 / 3.0,
        s.ratio(VIEW, DBS_CACHE),
    );
    report.target(
        "same, 32: view with an answer / `dyn` call",
        2.5,
        s.ratio(VIEW_ANSWER, DYN),
    );
    report.target(
        "same, 32, `Mutex` device: view / `Mutex<dyn>` call",
        1.2,
        s.ratio(VIEW_MUTEX, MUTEX_DYN),
    );
    report.target(
        "random, 32: view / vm-device",
        0.8,
        r.ratio(VIEW, VM_DEVICE),
    );
    report.target(
        "random, 1024: view / vm-device",
        0.8,
        r1024.ratio(VIEW, VM_DEVICE),
    );
    let [(_, one), two @ ..] = &threads;
    for (column, two) in two {
        let slower = two.median(VIEW) / one.median(VIEW);
        report.target(&format!("{column}: view / one thread"), 1.6, slower);
        report.target(
            &format!("{column}: view / mutex stand-in"),
            0.1,
            two.ratio(VIEW, MUTEX_TREE),
        );
        report.target(
            &format!("{column}: view / rwlock stand-in"),
            0.1,
            two.ratio(VIEW, RWLOCK_TREE),
        );
    }
    report.finish()
}
