// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite finds what is wrong with a device.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use bus::BusDevice;
use virtio_conformance::{HeapGrowth, Memory, MmioPort, Request, Suite};
use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, LoopHandle, Progress, QueueHandler,
    RingFault, VirtioDevice, Virtqueue,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory};

const SECRET: &[u8] = b"not for the guest";

/// What is wrong with a device that fills its buffers with the letter x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// The name of a register is no name of a secret.
    TellsItsSecret,
    WritesItsSecret,
    WritesBeyond,
    WritesUnchecked,
    ClaimsTooMuch,
    KeepsBadRequests,
    CompletesNothing,
    InterruptsTwice,
    NeverInterrupts,
    HidesFaults,
    NeverEnds,
    Stops,
    ReadsTwice,
    Leaks,
    LeaksAtStart,
    Panics,
    ChangesMemoryAfterReset,
}

struct Letters {
    flaw: Flaw,
    executor: LoopHandle,
    memory: Option<Memory>,
    hoard: Vec<Vec<u8>>,
}

impl VirtioDevice<Memory> for Letters {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        if self.flaw == Flaw::LeaksAtStart {
            self.hoard.push(vec![0; 16]);
        }
        self.memory = Some(activation.memory.clone());
        activation.queue(0)?;
        activation.serve(&mut self.executor, |memory| Handler {
            flaw: self.flaw,
            memory,
            chain: Chain::with_capacity(16),
            hoard: Vec::new(),
        })
    }

    fn reset(&mut self) {
        if let (Flaw::ChangesMemoryAfterReset, Some(memory)) = (self.flaw, &self.memory) {
            // Where the suite's queue is.
            memory.write_obj(0x55u8, GuestAddress(0x1000)).unwrap();
        }
    }
}

struct Handler {
    flaw: Flaw,
    memory: Memory,
    chain: Chain,
    hoard: Vec<Vec<u8>>,
}

impl QueueHandler for Handler {
    fn process(&mut self, index: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(index) else {
            return Ok(Progress::Idle);
        };
        let memory = self.memory.memory();
        let lease = &active.lease;
        match lease.with(|queue| self.batch(queue, &*memory, active)) {
            Ok(Err(_)) if self.flaw == Flaw::HidesFaults => Ok(Progress::Idle),
            Ok(result) => Ok(result?),
            Err(_) => Ok(Progress::Idle),
        }
    }
}

impl Handler {
    fn batch(
        &mut self,
        queue: &mut Virtqueue,
        memory: &impl GuestMemory,
        active: &ActiveQueue,
    ) -> Result<Progress, RingFault> {
        let most = match self.flaw {
            Flaw::NeverEnds => 1000,
            Flaw::Stops => 1,
            _ => 16,
        };
        for _ in 0..most {
            let Some(head) = queue.take(memory, &mut self.chain)? else {
                break;
            };
            let checked = self.flaw == Flaw::WritesUnchecked || self.chain.check(memory).is_ok();
            let secret = self.flaw == Flaw::WritesItsSecret;
            let letters = if secret { SECRET } else { &[b'x'; 64] };
            let len = if checked {
                self.chain.write(memory, letters).unwrap_or(0)
            } else {
                0
            };
            self.misbehave(memory, queue);
            match self.flaw {
                Flaw::KeepsBadRequests if len == 0 => continue,
                Flaw::ClaimsTooMuch => queue.complete(memory, head, len + 1)?,
                Flaw::CompletesNothing => queue.complete(memory, head, 0)?,
                _ => queue.complete(memory, head, len)?,
            }
        }
        let wanted = queue.needs_interrupt(memory)? && self.flaw != Flaw::NeverInterrupts;
        if wanted || self.flaw == Flaw::InterruptsTwice {
            active.signal_used();
        }
        let more = queue.enable_notification(memory)?;
        Ok(if more && self.flaw != Flaw::Stops {
            Progress::More
        } else {
            Progress::Idle
        })
    }

    fn misbehave(&mut self, memory: &impl GuestMemory, queue: &Virtqueue) {
        let first = self.chain.writable().next();
        match (self.flaw, first) {
            (Flaw::WritesBeyond, Some((addr, len))) if addr.0 < 0x3_0000 => {
                let end = addr.0.saturating_add(u64::from(len));
                let _ = memory.write_obj(0xffu8, GuestAddress(end));
            }
            (Flaw::ReadsTwice, _) => {
                let _: [u8; 16] = memory.read_obj(queue.layout().desc_table()).unwrap();
            }
            (Flaw::Leaks, _) => self.hoard.push(vec![0; 16]),
            (Flaw::Panics, Some((_, len))) => assert_ne!(len, 0, "a bug in the device"),
            _ => {}
        }
    }
}

/// Whether the suite finds nothing wrong.
fn conforms(flaw: Flaw) -> bool {
    let suite = Suite::new(Request::new(|bytes| !bytes.is_empty()).writable(64));
    let suite = suite.with_secret(SECRET).with_heap(|work| {
        let measured = allocation_counter::measure(work);
        HeapGrowth {
            peak: measured.bytes_max,
            left: measured.bytes_current,
        }
    });
    let check = || {
        suite.check(|parts| {
            let device = Letters {
                flaw,
                executor: parts.executor,
                memory: None,
                hoard: Vec::new(),
            };
            let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
            let port = MmioPort::new(
                transport.with_observer(parts.events),
                |it, offset, data| it.read(offset, data).unwrap(),
                |it, offset, data| it.write(offset, data).unwrap(),
            );
            port.showing(|transport| match transport.device().flaw {
                Flaw::TellsItsSecret => format!("letters of {SECRET:?}"),
                _ => String::new(),
            })
        });
    };
    catch_unwind(AssertUnwindSafe(check)).is_ok()
}

#[test]
#[cfg_attr(miri, ignore = "it is about the suite, and slow")]
fn each_flaw_is_found_and_its_absence_is_none() {
    assert!(conforms(Flaw::Nothing));
    for flaw in [
        Flaw::TellsItsSecret,
        Flaw::WritesItsSecret,
        Flaw::WritesBeyond,
        Flaw::ClaimsTooMuch,
        Flaw::KeepsBadRequests,
        Flaw::CompletesNothing,
        Flaw::InterruptsTwice,
        Flaw::NeverInterrupts,
        Flaw::HidesFaults,
        Flaw::NeverEnds,
        Flaw::Stops,
        Flaw::ReadsTwice,
        Flaw::Leaks,
        Flaw::LeaksAtStart,
        Flaw::Panics,
        Flaw::ChangesMemoryAfterReset,
        Flaw::WritesUnchecked,
    ] {
        assert!(!conforms(flaw), "{flaw:?} goes unnoticed");
    }
}
