// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The case study: a built-in guest fills a buffer through either device, and is measured.
//!
//! * `guest.rs`: the guest, a real driver for both devices;
//! * `machine.rs`: the wiring of virtual machine, buses, devices and vCPU;
//! * `announce.rs`: what the guest reports;
//! * `output.rs`, `chart.rs`: the results, as text and as a picture;
//! * `progress.rs`: how far a long run is, for whoever watches.

pub(crate) mod announce;
mod chart;
pub(crate) mod guest;
mod machine;
mod output;
mod progress;

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use crate::entropy::Source;
use crate::stdio::{print, write_all};
use crate::{Failure, kvm};
use guest::Device;
use output::Comparison;
use progress::Progress;

/// How often a size is run, to show what the devices cost and not what else the host was doing.
const RUNS: usize = 3;
/// A size that has taken this long is not run again.
const LONG: Duration = Duration::from_secs(1);

/// The devices that are compared.
const DEVICES: [Device; 2] = [Device::Legacy, Device::Virtio];

/// How to run the case study.
#[derive(Debug)]
pub(crate) struct Options {
    /// The numbers of bytes, each once, in the order they were given.
    pub(crate) bytes: Vec<u64>,
    pub(crate) source: Source,
    pub(crate) dump: Option<PathBuf>,
    /// Where the results go as a picture.
    pub(crate) svg: Option<PathBuf>,
    pub(crate) json: bool,
}

/// Runs the case study and prints its results.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let svg = prepare(options).map_err(Failure::usage)?;
    measure(options, svg).map_err(Failure::run)
}

/// Checks the files that the command line names before the guest runs: a wrong one is reported at once.
/// Returns the file for the picture.
fn prepare(options: &Options) -> Result<Option<File>, String> {
    let most = options.bytes.iter().max().copied().unwrap_or_default();
    options.source.check(most)?;
    if let Some(dir) = &options.dump {
        std::fs::create_dir_all(dir).map_err(|error| dump_failed(dir, &error))?;
        let dumps = (options.bytes.iter()).flat_map(|bytes| DEVICES.map(|device| (device, *bytes)));
        for (device, bytes) in dumps {
            let path = dump_path(dir, device, bytes);
            spare_source(options, "--dump", &path)?;
            let opened = File::options().append(true).create(true).open(&path);
            opened.map_err(|error| dump_failed(&path, &error))?;
        }
    }
    if let Some(svg) = &options.svg {
        spare_source(options, "--svg", svg)?;
    }
    // It stays open: the reader of a pipe would take a close for the end of the picture.
    let open = |path: &PathBuf| File::create(path).map_err(|error| svg_failed(path, &error));
    options.svg.as_ref().map(open).transpose()
}

fn measure(options: &Options, svg: Option<File>) -> Result<(), Box<dyn Error>> {
    let kvm = kvm::open()?;
    let mut comparisons = Vec::new();
    for &bytes in &options.bytes {
        let (comparison, last) = compare(&kvm, bytes, options)?;
        if let Some(dir) = &options.dump {
            for device in DEVICES {
                let path = dump_path(dir, device, bytes);
                std::fs::write(&path, last.buffer(device)?)
                    .map_err(|error| dump_failed(&path, &error))?;
            }
        }
        if !options.json {
            // Each size as soon as it is measured: whoever interrupts the rest keeps it.
            if comparisons.is_empty() {
                print(&output::head())?;
            }
            print(&output::rows(&comparison))?;
        }
        comparisons.push(comparison);
    }
    if let Some((path, file)) = options.svg.as_ref().zip(svg) {
        let svg = chart::svg(&comparisons)?;
        write_all(file, svg.as_bytes()).map_err(|error| svg_failed(path, &error))?;
    }
    let end = match options.json {
        true => output::json(&comparisons)?,
        false => output::summary(&comparisons),
    };
    Ok(print(&end)?)
}

/// Runs one size a few times. Returns the fastest phase of each device, and the last run.
fn compare(
    kvm: &Kvm,
    bytes: u64,
    options: &Options,
) -> Result<(Comparison, machine::Run), Box<dyn Error>> {
    let once = || -> Result<_, Box<dyn Error>> {
        let mut progress = Progress::new(bytes);
        let mut run = machine::run(kvm, bytes, &options.source, |exits| progress.show(exits))?;
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

/// Refuses to write to the file that random bytes are read from.
fn spare_source(options: &Options, name: &str, path: &Path) -> Result<(), String> {
    match &options.source {
        Source::File(source) if same_file(source, path) => {
            let path = path.display();
            Err(format!(
                "{name}: {path}: the file of --entropy would be lost"
            ))
        }
        _ => Ok(()),
    }
}

/// Whether two paths lead to the same file. They do not if one cannot be looked at: opening it fails
/// later, and says why.
fn same_file(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
    matches!((number(one), number(other)), (Ok(one), Ok(other)) if one == other)
}

fn svg_failed(path: &Path, error: &io::Error) -> String {
    format!("--svg: {}: {error}", path.display())
}

fn dump_path(dir: &Path, device: Device, bytes: u64) -> PathBuf {
    dir.join(format!("{device}-{bytes}.bin"))
}

fn dump_failed(path: &Path, error: &io::Error) -> String {
    format!("--dump: {}: {error}", path.display())
}
