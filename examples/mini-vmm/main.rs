// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small virtual machine monitor, and the case study that this family of crates grew from.
//!
//! It runs a built-in 64-bit guest that fills a buffer twice: word by word from the register of
//! `mmio-rng-legacy`, and by requests to `virtio-rng`. It prints what each took, in exits and in
//! time. The files, in the order of the story:
//!
//! * `layout.rs`: the memory map;
//! * `guest.rs`: the guest's program, a real driver for both devices;
//! * `boot.rs`: guest memory and the vCPU's first state;
//! * `machine.rs`: the wiring of virtual machine, buses, devices and vCPU;
//! * `entropy.rs` and `announce.rs`: the devices' source, and the guest's reports;
//! * `args.rs` and `output.rs`: the command line and the results.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mini-vmm runs on Linux on x86-64");

mod announce;
mod args;
mod boot;
mod entropy;
mod guest;
mod layout;
mod machine;
mod output;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::{Command, Options};
use guest::Device;
use kvm_ioctls::Kvm;
use output::Comparison;

/// Why the program ends without having done its work.
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// The command line makes no sense.
    const fn usage(message: String) -> Self {
        Self { status: 2, message }
    }

    /// The run failed.
    fn run(error: Box<dyn Error>) -> Self {
        Self {
            status: 1,
            message: error.to_string(),
        }
    }
}

fn main() -> ExitCode {
    let Err(Failure { status, message }) = start() else {
        return ExitCode::SUCCESS;
    };
    // One line, whatever the message is made of, and no more if nobody can read it.
    let _ = writeln!(io::stderr(), "mini-vmm: {}", message.replace('\n', " "));
    ExitCode::from(status)
}

fn start() -> Result<(), Failure> {
    let done = match args::parse(std::env::args_os().skip(1)).map_err(Failure::usage)? {
        Command::Help => print(args::HELP),
        Command::Version => print(concat!("mini-vmm ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Run(options) => {
            prepare(&options).map_err(Failure::usage)?;
            run(&options)
        }
    };
    done.map_err(Failure::run)
}

/// Looks at what the command line names before anything is started.
fn prepare(options: &Options) -> Result<(), String> {
    let most = options.bytes.iter().max().copied().unwrap_or_default();
    options.source.check(most)?;
    if let Some(dir) = &options.dump {
        std::fs::create_dir_all(dir)
            .map_err(|error| format!("--dump: {}: {error}", dir.display()))?;
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let kvm = open_kvm()?;
    let mut comparisons = Vec::new();
    for &bytes in &options.bytes {
        let (comparison, last) = compare(&kvm, bytes, options)?;
        comparisons.push(comparison);
        if let Some(dir) = &options.dump {
            for device in [Device::Legacy, Device::Virtio] {
                write_dump(dir, device, bytes, &last.buffer(device)?)?;
            }
        }
    }
    if options.json {
        print(&output::json(&comparisons)?)
    } else {
        print(&output::table(&comparisons))
    }
}

/// How often a size is run, to show what the devices cost and not what else the host was doing.
const RUNS: usize = 3;
/// A size that has taken this long is not run again.
const LONG: Duration = Duration::from_secs(1);

/// Runs one size a few times. Returns the fastest phase of each device, and the last run.
fn compare(
    kvm: &Kvm,
    bytes: u64,
    options: &Options,
) -> Result<(Comparison, machine::Run), Box<dyn Error>> {
    let once = || -> Result<_, Box<dyn Error>> {
        let mut run = machine::run(kvm, bytes, &options.source)?;
        let comparison = Comparison::new(bytes, std::mem::take(&mut run.phases))
            .ok_or("the guest did not announce one phase for each device")?;
        Ok((comparison, run))
    };
    let began = Instant::now();
    let (mut fastest, mut last) = once()?;
    for _ in 1..RUNS {
        if began.elapsed() > LONG {
            break;
        }
        let (comparison, run) = once()?;
        fastest = fastest.fastest(comparison);
        last = run;
    }
    Ok((fastest, last))
}

fn open_kvm() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|error| {
        let error = io::Error::from(error);
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no KVM on this machine; enable virtualization in its firmware, and load \
                 the kernel module kvm_intel or kvm_amd"
            }
            io::ErrorKind::PermissionDenied => {
                "you may not use KVM; join the group that owns the device, often kvm"
            }
            _ => "KVM does not work on this machine",
        };
        format!("/dev/kvm: {error}: {remedy}")
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(format!(
            "/dev/kvm: API version {other} where 12 is needed; is this KVM?"
        )),
    }
}

fn write_dump(dir: &Path, device: Device, bytes: u64, data: &[u8]) -> Result<(), String> {
    let path: PathBuf = dir.join(format!("{device}-{bytes}.bin"));
    std::fs::write(&path, data).map_err(|error| format!("{}: {error}", path.display()))
}

/// Prints to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("standard output: {error}").into())
        }
        _ => Ok(()),
    }
}
