// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset does to the part of the machine that is in KVM: the processors, and the interrupt
//! controllers and timers. Their state is kept when they are made, and put back.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_debugregs,
    kvm_fpu, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd, VmFd};

use crate::kvm::call;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The time stamp counter, which a reset sets to zero. KVM then keeps those of all vCPUs together.
const TSC: u32 = 0x10;

/// The state that a machine starts in.
pub(crate) struct FirstState {
    vcpus: Vec<Processor>,
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

/// The state of one vCPU.
struct Processor {
    nested: Option<KvmNestedStateBuffer>,
    mp_state: kvm_mp_state,
    sregs: kvm_sregs,
    regs: kvm_regs,
    fpu: kvm_fpu,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl FirstState {
    /// Keeps the state of a machine that has not run yet.
    pub(crate) fn keep<'a>(
        kvm: &Kvm,
        vm: &VmFd,
        vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    ) -> Result<Self> {
        let vcpus = vcpus.into_iter().map(|vcpu| Processor::keep(kvm, vcpu));
        let mut chips = Vec::new();
        for chip_id in [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).map_err(call("KVM_GET_IRQCHIP"))?;
            chips.push(chip);
        }
        Ok(Self {
            vcpus: vcpus.collect::<Result<_>>()?,
            chips,
            pit: vm.get_pit2().map_err(call("KVM_GET_PIT2"))?,
        })
    }

    /// Puts a machine that does not run into the state that it started in.
    pub(crate) fn restore<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    ) -> Result<()> {
        for (state, vcpu) in self.vcpus.iter().zip(vcpus) {
            state.restore(vcpu)?;
        }
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(call("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(call("KVM_SET_PIT2"))?;
        Ok(())
    }
}

impl Processor {
    fn keep(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self> {
        let nested = match kvm.check_extension(Cap::NestedState) {
            true => {
                let mut state = KvmNestedStateBuffer::empty();
                vcpu.nested_state(&mut state)
                    .map_err(call("KVM_GET_NESTED_STATE"))?;
                Some(state)
            }
            false => None,
        };
        let xcrs = match kvm.check_extension(Cap::Xcrs) {
            true => Some(vcpu.get_xcrs().map_err(call("KVM_GET_XCRS"))?),
            false => None,
        };
        Ok(Self {
            nested,
            mp_state: vcpu.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?,
            sregs: vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?,
            regs: vcpu.get_regs().map_err(call("KVM_GET_REGS"))?,
            fpu: vcpu.get_fpu().map_err(call("KVM_GET_FPU"))?,
            xcrs,
            debug: vcpu.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?,
            msrs: model_specific(kvm, vcpu)?,
            events: vcpu
                .get_vcpu_events()
                .map_err(call("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// The order matters: what runs a guest of its own stops that first, the local APIC's mode comes
    /// before its registers, and those before the deadline of its timer; events come last.
    fn restore(&self, vcpu: &VcpuFd) -> Result<()> {
        if let Some(nested) = &self.nested {
            vcpu.set_nested_state(nested)
                .map_err(call("KVM_SET_NESTED_STATE"))?;
        }
        vcpu.set_mp_state(self.mp_state)
            .map_err(call("KVM_SET_MP_STATE"))?;
        vcpu.set_sregs(&self.sregs).map_err(call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs).map_err(call("KVM_SET_REGS"))?;
        vcpu.set_fpu(&self.fpu).map_err(call("KVM_SET_FPU"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(call("KVM_SET_XCRS"))?;
        }
        vcpu.set_debug_regs(&self.debug)
            .map_err(call("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(call("KVM_SET_LAPIC"))?;
        let set = vcpu
            .set_msrs(&Msrs::from_entries(&self.msrs)?)
            .map_err(call("KVM_SET_MSRS"))?;
        if let Some(refused) = self.msrs.get(set) {
            return Err(format!("KVM_SET_MSRS: {:#x} is refused", refused.index).into());
        }
        vcpu.set_vcpu_events(&self.events)
            .map_err(call("KVM_SET_VCPU_EVENTS"))?;
        Ok(())
    }
}

/// The model-specific registers that KVM keeps for a guest, and lets be set to what they are: some
/// that it names exist on other processors only, and some are constant.
fn model_specific(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let names = kvm
        .get_msr_index_list()
        .map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
    let mut registers = Vec::new();
    for &index in names.as_slice() {
        let entry = kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        };
        let mut one = Msrs::from_entries(&[entry])?;
        if !matches!(vcpu.get_msrs(&mut one), Ok(1)) {
            continue;
        }
        if index == TSC {
            one.as_mut_slice().iter_mut().for_each(|tsc| tsc.data = 0);
        }
        if matches!(vcpu.set_msrs(&one), Ok(1)) {
            registers.extend_from_slice(one.as_slice());
        }
    }
    Ok(registers)
}
