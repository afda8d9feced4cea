// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};
use virtio_rng_device::RateLimit;

use crate::arch::linux::{HAS_ACPI, REBOOTS_IN_PLACE};
use crate::devices::DISKS;
use crate::entropy::Source;
use crate::layout::BUFFER_SIZE;
use crate::linux::disk::DiskOptions;
use crate::linux::net::NetOptions;
use crate::linux::{Console, Reboot};
use crate::{case_study, linux};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Measures in a running guest what random bytes cost: through a register that is
read word by word, and through a virtio queue. With a kernel, boots Linux with
both of these devices.

Usage: mini-vmm [--bytes N[,N...]] [--entropy FILE] [--dump DIR] [--svg FILE]
                [--json]
       mini-vmm --kernel FILE [OPTIONS]

Options:
      --entropy FILE    Have each device read FILE from its start, instead of the
                        kernel's generator
      --json            Print the results as JSON, and nothing else; with a kernel,
                        print exit statistics as one line of JSON at the end
  -h, --help            Print this help
  -V, --version         Print the version

Without a kernel, each size is run up to three times, and each device's fastest
run is shown:
      --bytes N[,N...]  Numbers of bytes to fetch from each device, multiples of
                        4 up to 16777216 (default: 64,2048,65536)
      --dump DIR        Write what the guest's buffers hold after each run to
                        DIR/mmio-rng-legacy-N.bin and DIR/virtio-rng-N.bin
      --svg FILE        Write the results to FILE as a picture, too: exits and time

With a kernel, the guest's console is standard input and output:
      --kernel FILE     Boot this bzImage or vmlinux (x86-64), or Image (arm64)
      --initrd FILE     Give the kernel this initramfs
      --cmdline STRING  The kernel's command line (default: console=ttyS0 panic=-1,
                        with hvc0 for a virtio console); on x86-64, PCI is switched
                        off in it unless it has a pci= of its own
      --console KIND    What the console is: serial (default), the first serial
                        port ttyS0; or virtio, hvc0, whose size is the terminal's
      --memory MIB      Size of guest memory, 64 to 1048576 (default: 512)
      --cpus N          Number of vCPUs, 1 to 8 (default: 1)
      --rate-limit N    Have virtio-rng serve at most N bytes a second
      --legacy-rng off  Leave out the register-style generator
      --virtio-rng off  Leave out virtio-rng
      --disk PATH[,ro][,direct][,engine=sync|uring][,id=SERIAL]
                        Give the guest this image or block device as the next disk,
                        /dev/vda first; up to eight. ro: it cannot write; direct:
                        past the host's page cache; engine=uring: by io_uring; id:
                        up to 20 characters. On SIGUSR1 the guest is told of the
                        sizes that disks have now
      --net tap=NAME|fd=N|socket=PATH[,mac=MAC][,mtu=N][,queues=N][,limit=N]
                        Give the guest a network: by the tap NAME, with N queues; by
                        descriptor N of this program, a tap or a socket; or by the
                        stream socket PATH, as of passt. Its address is made up,
                        unless mac says otherwise; limit: at most N bytes a second
                        in each direction. SIGUSR2 pulls the cable out, and the next
                        one plugs it in
      --reboot MODE     What a reset by the guest, or its triple fault, leads to:
                        exit (default), the end of the program; or in-place, where
                        the kernel is loaded again and the guest starts again
      --acpi off        Describe virtio-rng on the command line instead of by ACPI;
                        one vCPU only (x86-64)
      --trace[=LINES]   Write a line for each exit to standard error, at most LINES
                        (default: 1000)
      --map             Print the maps of memory and ports first; without a kernel,
                        print them and end

On a terminal, Ctrl-A x ends the program, and Ctrl-A Ctrl-A sends one Ctrl-A.

Exit status: 0 if all went well: the guest powered off, or Ctrl-A x was typed;
1 if the run failed, or standard output cannot be written; 2 if the command
line, or a file it names, is wrong; 3 if the guest asked for a reset, which
panic=-1 does after a panic; 4 if the guest crashed by a triple fault, neither
with --reboot in-place; 128 + N on signal N.
";

/// The sizes of the case study.
const DEFAULT_BYTES: [u64; 3] = [64, 2048, 65536];
/// Guest memory for Linux, in MiB: the default, and the limits.
const DEFAULT_MEMORY: u64 = 512;
const MIN_MEMORY: u64 = 64;
const MAX_MEMORY: u64 = 1 << 20;
/// The most vCPUs.
const MAX_CPUS: u8 = 8;
/// Lines of `--trace`, unless it says otherwise.
const DEFAULT_TRACE: u32 = 1000;
/// Boots to a shell or whatever an initramfs holds, and ends the program when the kernel panics.
const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 panic=-1";
/// The same with a virtio console.
const DEFAULT_HVC_COMMAND_LINE: &str = "console=hvc0 panic=-1";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the case study.
    CaseStudy(case_study::Options),
    /// Boot Linux.
    Linux(linux::Options),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// Everything that can be given, as it was given.
#[derive(Debug, Default)]
struct Given {
    source: Source,
    json: bool,
    bytes: Option<Vec<u64>>,
    dump: Option<PathBuf>,
    svg: Option<PathBuf>,
    kernel: Option<PathBuf>,
    map: bool,
    initrd: Option<PathBuf>,
    command_line: Option<String>,
    memory: Option<u64>,
    cpus: Option<u8>,
    console: Option<Console>,
    reboot: Option<Reboot>,
    rate_limit: Option<RateLimit>,
    legacy_rng: Option<bool>,
    virtio_rng: Option<bool>,
    acpi: Option<bool>,
    trace: Option<u32>,
    disks: Vec<DiskOptions>,
    net: Option<NetOptions>,
}

/// Reads the command line, without the program's name.
///
/// # Errors
///
/// One line that says what is wrong with it.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    let mut seen = BTreeSet::new();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long(option) if option != "disk" && !seen.insert(option.to_owned()) => {
                return Err(format!("--{option} is given twice"));
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Long("json") => given.json = true,
            Arg::Long("map") => given.map = true,
            Arg::Long("trace") => {
                given.trace = Some(match parser.optional_value() {
                    None => DEFAULT_TRACE,
                    Some(lines) => number("--trace", &lines, "lines", 1, u32::MAX.into())?,
                });
            }
            Arg::Long(option) => {
                let option = option.to_owned();
                let value = || parser.value().map_err(|error| error.to_string());
                given.set(&option, value)?;
            }
            other => return Err(other.unexpected().to_string()),
        }
    }
    given.check()
}

impl Given {
    /// Takes an option that has a value.
    fn set(
        &mut self,
        option: &str,
        mut value: impl FnMut() -> Result<OsString, String>,
    ) -> Result<(), String> {
        let name = format!("--{option}");
        match option {
            "entropy" => self.source = Source::File(path(&name, value()?)?),
            "bytes" => self.bytes = Some(sizes(&text(&name, value()?)?)?),
            "dump" => self.dump = Some(path(&name, value()?)?),
            "svg" => self.svg = Some(path(&name, value()?)?),
            "kernel" => self.kernel = Some(path(&name, value()?)?),
            "initrd" => self.initrd = Some(path(&name, value()?)?),
            "cmdline" => self.command_line = Some(text(&name, value()?)?),
            "memory" => {
                self.memory = Some(number(&name, &value()?, "MiB", MIN_MEMORY, MAX_MEMORY)?);
            }
            "cpus" => self.cpus = Some(number(&name, &value()?, "vCPUs", 1, MAX_CPUS.into())?),
            "reboot" => self.reboot = Some(reboot(&name, &value()?)?),
            "console" => self.console = Some(console(&name, &value()?)?),
            "rate-limit" => {
                let bytes = number(&name, &value()?, "bytes a second", 1, u64::MAX)?;
                self.rate_limit = Some(rate_limit(bytes)?);
            }
            "disk" => {
                self.disks
                    .push(DiskOptions::parse(&text(&name, value()?)?)?);
                if self.disks.len() > DISKS.len() {
                    return Err(format!("--disk: {} disks are the most", DISKS.len()));
                }
            }
            "net" => self.net = Some(NetOptions::parse(&text(&name, value()?)?)?),
            "legacy-rng" => self.legacy_rng = Some(switch(&name, &value()?)?),
            "virtio-rng" => self.virtio_rng = Some(switch(&name, &value()?)?),
            "acpi" => self.acpi = Some(switch(&name, &value()?)?),
            _ => return Err(format!("invalid option '{name}'")),
        }
        Ok(())
    }

    /// Refuses what makes no sense beside the other options.
    fn refuse_misfits(&self) -> Result<(), String> {
        let case_study = [
            ("--bytes", self.bytes.is_some()),
            ("--dump", self.dump.is_some()),
            ("--svg", self.svg.is_some()),
        ];
        let machine = [
            ("--memory", self.memory.is_some()),
            ("--cpus", self.cpus.is_some()),
            ("--console", self.console.is_some()),
            ("--disk", !self.disks.is_empty()),
            ("--net", self.net.is_some()),
            ("--rate-limit", self.rate_limit.is_some()),
            ("--legacy-rng", self.legacy_rng.is_some()),
            ("--virtio-rng", self.virtio_rng.is_some()),
            ("--acpi", self.acpi.is_some()),
        ];
        let kernel = [
            ("--initrd", self.initrd.is_some()),
            ("--cmdline", self.command_line.is_some()),
            ("--trace", self.trace.is_some()),
            ("--reboot", self.reboot.is_some()),
            ("--json", self.json && self.map),
        ];
        let (foreign, condition): (Vec<_>, _) = match (&self.kernel, self.map) {
            (Some(_), _) => (case_study.into(), "without --kernel"),
            (None, true) if case_study.iter().any(|(_, given)| *given) => {
                (case_study.into(), "without --map")
            }
            (None, true) => (kernel.into(), "with --kernel"),
            (None, false) => ([&machine[..], &kernel].concat(), "with --kernel"),
        };
        match foreign.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(format!("{option} only makes sense {condition}")),
            None => Ok(()),
        }
    }

    /// Sorts out what is asked for, and whether everything given fits it.
    fn check(self) -> Result<Command, String> {
        self.refuse_misfits()?;
        let linux = self.kernel.is_some() || self.map;
        if !linux {
            return Ok(Command::CaseStudy(case_study::Options {
                bytes: self.bytes.unwrap_or_else(|| DEFAULT_BYTES.to_vec()),
                source: self.source,
                dump: self.dump,
                svg: self.svg,
                json: self.json,
            }));
        }
        if self.acpi.is_some() && !HAS_ACPI {
            return Err("--acpi makes no sense here: there is a device tree".to_owned());
        }
        if self.reboot == Some(Reboot::InPlace) && !REBOOTS_IN_PLACE {
            return Err("--reboot: in-place is for x86-64 only".to_owned());
        }
        let (cpus, acpi) = (self.cpus.unwrap_or(1), self.acpi.unwrap_or(HAS_ACPI));
        if cpus > 1 && HAS_ACPI && !acpi {
            return Err(format!(
                "--cpus {cpus} makes no sense with --acpi off: without ACPI, a kernel finds one vCPU"
            ));
        }
        let legacy_rng = self.legacy_rng.unwrap_or(true);
        let virtio_rng = self.virtio_rng.unwrap_or(true);
        if matches!(self.source, Source::File(_)) && !legacy_rng && !virtio_rng {
            return Err(
                "--entropy makes no sense with --legacy-rng off and --virtio-rng off".to_owned(),
            );
        }
        if self.rate_limit.is_some() && !virtio_rng {
            return Err("--rate-limit makes no sense with --virtio-rng off".to_owned());
        }
        let console = self.console.unwrap_or_default();
        let command_line = match console {
            Console::Serial => DEFAULT_COMMAND_LINE,
            Console::Virtio => DEFAULT_HVC_COMMAND_LINE,
        };
        Ok(Command::Linux(linux::Options {
            kernel: self.kernel,
            initrd: self.initrd,
            command_line: self.command_line.unwrap_or_else(|| command_line.to_owned()),
            console,
            memory: self.memory.unwrap_or(DEFAULT_MEMORY) << 20,
            cpus,
            source: self.source,
            rate_limit: self.rate_limit,
            legacy_rng,
            virtio_rng,
            disks: self.disks,
            net: self.net,
            acpi,
            reboot: self.reboot.unwrap_or_default(),
            trace: self.trace,
            map: self.map,
            json: self.json,
        }))
    }
}

fn text(option: &str, value: OsString) -> Result<String, String> {
    value
        .into_string()
        .map_err(|value| format!("{option}: '{}' is no text", value.to_string_lossy()))
}

fn path(option: &str, value: OsString) -> Result<PathBuf, String> {
    if value.is_empty() {
        return Err(format!("{option}: the path is empty"));
    }
    Ok(value.into())
}

/// Reads a number from `min` to `max`; `what` says of what.
fn number<T: TryFrom<u64>>(
    option: &str,
    value: &OsString,
    what: &str,
    min: u64,
    max: u64,
) -> Result<T, String> {
    let wrong = || {
        let value = value.to_string_lossy();
        let range = if max == u64::MAX {
            format!("{min} or more")
        } else {
            format!("{min} to {max}")
        };
        format!("{option}: '{value}' is not a number of {what}, {range}")
    };
    let number: u64 = value.clone().parse().map_err(|_| wrong())?;
    if !(min..=max).contains(&number) {
        return Err(wrong());
    }
    T::try_from(number).map_err(|_| wrong())
}

fn console(option: &str, value: &OsString) -> Result<Console, String> {
    match value.to_str() {
        Some("serial") => Ok(Console::Serial),
        Some("virtio") => Ok(Console::Virtio),
        _ => {
            let value = value.to_string_lossy();
            Err(format!(
                "{option}: '{value}' is neither 'serial' nor 'virtio'"
            ))
        }
    }
}

fn reboot(option: &str, value: &OsString) -> Result<Reboot, String> {
    match value.to_str() {
        Some("exit") => Ok(Reboot::Exit),
        Some("in-place") => Ok(Reboot::InPlace),
        _ => {
            let value = value.to_string_lossy();
            Err(format!(
                "{option}: '{value}' is neither 'exit' nor 'in-place'"
            ))
        }
    }
}

fn switch(option: &str, value: &OsString) -> Result<bool, String> {
    match value.to_str() {
        Some("on") => Ok(true),
        Some("off") => Ok(false),
        _ => {
            let value = value.to_string_lossy();
            Err(format!("{option}: '{value}' is neither 'on' nor 'off'"))
        }
    }
}

/// The limit of so many bytes a second; what one second gives can be had at once.
fn rate_limit(bytes: u64) -> Result<RateLimit, String> {
    RateLimit::new(bytes, bytes)
        .ok_or_else(|| format!("--rate-limit: {bytes} bytes a second cannot be kept count of"))
}

/// Reads the list of `--bytes`.
fn sizes(list: &str) -> Result<Vec<u64>, String> {
    let mut seen = BTreeSet::new();
    let mut sizes = Vec::new();
    for item in list.split(',') {
        let size: u64 = item
            .parse()
            .map_err(|_| format!("--bytes: '{item}' is not a number of bytes"))?;
        if size == 0 || size % 4 != 0 || size > BUFFER_SIZE {
            let wanted = format!("a multiple of 4 from 4 to {BUFFER_SIZE}");
            return Err(format!("--bytes: {size} is not {wanted}"));
        }
        if !seen.insert(size) {
            return Err(format!("--bytes: {size} is given twice"));
        }
        sizes.push(size);
    }
    Ok(sizes)
}
