// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

use crate::entropy::Source;
use crate::layout::BUFFER_SIZE;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Measures in a running guest what random bytes cost: through a register that is
read word by word, and through a virtio queue. Each size is run up to three
times, and each device's fastest run is shown.

Usage: mini-vmm [OPTIONS]

Options:
      --bytes N[,N...]  Numbers of bytes to fetch from each device, multiples of
                        4 up to 16777216 (default: 64,2048,65536)
      --entropy FILE    Have each device read FILE from its start, instead of the
                        kernel's generator
      --dump DIR        Write what the guest's buffers hold after each run to
                        DIR/mmio-rng-legacy-N.bin and DIR/virtio-rng-N.bin
      --json            Print the results as JSON, and nothing else
  -h, --help            Print this help
  -V, --version         Print the version

Exit status: 0 if all went well, 1 if the run failed, 2 if the command line is
wrong.
";

/// The sizes of the case study.
const DEFAULT_BYTES: [u64; 3] = [64, 2048, 65536];

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the case study.
    Run(Options),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// How to run the case study.
#[derive(Debug)]
pub(crate) struct Options {
    /// The numbers of bytes, each once, in the order they were given.
    pub(crate) bytes: Vec<u64>,
    pub(crate) source: Source,
    pub(crate) dump: Option<PathBuf>,
    pub(crate) json: bool,
}

/// Reads the command line, without the program's name.
///
/// # Errors
///
/// One line that says what is wrong with it.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut options = Options {
        bytes: DEFAULT_BYTES.to_vec(),
        source: Source::Kernel,
        dump: None,
        json: false,
    };
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long("bytes") => options.bytes = sizes(&value(&mut parser)?)?,
            Arg::Long("entropy") => options.source = Source::File(path(&mut parser, "--entropy")?),
            Arg::Long("dump") => options.dump = Some(path(&mut parser, "--dump")?),
            Arg::Long("json") => options.json = true,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Command::Run(options))
}

fn value(parser: &mut Parser) -> Result<String, String> {
    let value = parser.value().and_then(|value| value.string());
    value.map_err(|error| error.to_string())
}

fn path(parser: &mut Parser, option: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(parser.value().map_err(|error| error.to_string())?);
    if path.as_os_str().is_empty() {
        return Err(format!("{option}: the path is empty"));
    }
    Ok(path)
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
