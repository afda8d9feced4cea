// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares alternatives inside one process.
//!
//! Each round runs every alternative once, so that whatever disturbs the machine disturbs all of
//! them; a ratio is the median over the rounds of the ratios inside of each round. Nanoseconds
//! depend on the machine and its mood, ratios hardly do: only ratios are worth writing down.

pub mod chart;

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What one thread does in one sample: `count` operations, then some value that depends on them.
pub type Work = Box<dyn FnMut(u64) -> u64 + Send>;

/// Something to compare: a name, and the work for each thread.
#[derive(Debug)]
pub struct Case {
    name: String,
    work: Vec<Opaque>,
}

struct Opaque(Work);

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

impl Case {
    /// A case for one thread.
    pub fn new(name: &str, work: impl FnMut(u64) -> u64 + Send + 'static) -> Self {
        Self::threads(name, vec![Box::new(work)])
    }

    /// A case with as many threads as there are parts of work.
    pub fn threads(name: &str, work: Vec<Work>) -> Self {
        Self {
            name: name.to_owned(),
            work: work.into_iter().map(Opaque).collect(),
        }
    }

    /// What the case is called in tables.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Nanoseconds for each operation of one thread, on average over the threads.
    fn sample(&mut self, count: u64) -> f64 {
        if let [work] = &mut self.work[..] {
            return time(&mut work.0, count);
        }
        let threads = self.work.len();
        let barrier = Barrier::new(threads);
        let total: f64 = std::thread::scope(|scope| {
            let start = |(cpu, work): (usize, &'_ mut Opaque)| {
                pin(cpu);
                barrier.wait();
                time(&mut work.0, count)
            };
            let spawned = self.work.iter_mut().enumerate();
            let handles: Vec<_> = spawned
                .map(|each| scope.spawn(move || start(each)))
                .collect();
            handles
                .into_iter()
                .map(|h| h.join().unwrap_or(f64::NAN))
                .sum()
        });
        #[expect(clippy::cast_precision_loss, reason = "a handful of threads")]
        let threads = threads as f64;
        total / threads
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn time(work: &mut Work, count: u64) -> f64 {
    let start = Instant::now();
    black_box(work(black_box(count)));
    start.elapsed().as_nanos() as f64 / count as f64
}

/// What came out for a list of cases: for each, a time for each round.
#[derive(Debug)]
pub struct Results {
    names: Vec<String>,
    rounds: Vec<Vec<f64>>,
}

/// Runs every case once in each round, after one round that is not counted.
#[must_use]
pub fn interleave(mut cases: Vec<Case>, rounds: usize, count: u64) -> Results {
    let mut samples = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..=rounds {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            let sample = case.sample(count);
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    Results {
        names: cases.into_iter().map(|case| case.name).collect(),
        rounds: samples,
    }
}

impl Results {
    /// These and others, of as many rounds.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.names.extend(others.names);
        self.rounds.extend(others.rounds);
        self
    }

    /// The names of the cases in their order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Median time of a case in nanoseconds.
    #[must_use]
    pub fn median(&self, name: &str) -> f64 {
        median(self.of(name).to_vec())
    }

    /// Median over the rounds of how many times as long `name` took as `base` did.
    #[must_use]
    pub fn ratio(&self, name: &str, base: &str) -> f64 {
        let pairs = self.of(name).iter().zip(self.of(base));
        median(pairs.map(|(time, base)| time / base).collect())
    }

    fn of(&self, name: &str) -> &[f64] {
        let index = self.names.iter().position(|other| other == name);
        let rounds = index.and_then(|index| self.rounds.get(index));
        rounds.map_or_else(|| unreachable!("no case is called {name}"), Vec::as_slice)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Binds the calling thread to the `nth` of the processors that it may run on, if it can.
pub fn pin(nth: usize) {
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    if let Some(cpu) = cpus.nth(nth) {
        let mut only = CpuSet::new();
        only.set(cpu);
        let _ = sched_setaffinity(None, &only);
    }
}

/// Asks for as much processor time as this process can get; it works without.
pub fn raise_priority() {
    let _ = rustix::process::setpriority_process(None, -20);
}

/// A table in Markdown.
#[derive(Debug, Default)]
pub struct Table(String);

impl Table {
    /// A table with these columns, the first of them for names.
    #[must_use]
    pub fn new<S: AsRef<str>>(columns: &[S]) -> Self {
        let mut table = Self::default();
        table.row(columns);
        let rules: Vec<_> = (0..columns.len())
            .map(|i| if i == 0 { "---" } else { "---:" })
            .collect();
        table.row(&rules);
        table
    }

    /// Adds a row.
    pub fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        for cell in cells {
            let _ = write!(self.0, "| {} ", cell.as_ref());
        }
        self.0.push_str("|\n");
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a benchmark has to say, and the command line that asked for it: `--quick` for fewer rounds,
/// `--write <file>` to keep the report, and a picture of it beside it. The file is named as from the
/// workspace's folder: Cargo runs a benchmark in that of its package.
#[derive(Debug)]
pub struct Report {
    quick: bool,
    file: Option<PathBuf>,
    picture: Option<&'static str>,
    text: String,
    targets: Table,
}

impl Report {
    /// A report with this title, of the benchmark that is called `bench`.
    #[must_use]
    pub fn new(title: &str, bench: &str, about: &str) -> Self {
        let args: Vec<String> = std::env::args().collect();
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let file = args.iter().skip_while(|arg| *arg != "--write").nth(1);
        let mut report = Self {
            quick: args.iter().any(|arg| arg == "--quick"),
            file: file.map(|file| workspace.join(file)),
            picture: chart::pages().find(|page| *page == bench.replace('_', "-")),
            text: String::new(),
            targets: Table::new(&["", "at most", "measured", ""]),
        };
        report.say(format_args!(
            "# {title}\n\n\
             Written by `cargo bench -p vmm-devices-benches --bench {bench} -- --write <this file>`:\n\
             what was measured, on the machine it ran on.\n\n{about}\n"
        ));
        if let Some(page) = report.picture {
            report.say(format_args!(
                "![Part of the tables below as bars: what is quicker goes to the left, on a \
                 logarithmic scale]({page}.svg)\n"
            ));
        }
        report
    }

    /// How often to repeat what the full benchmark repeats `full` times and the quick one `quick`.
    #[must_use]
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Adds a line, a paragraph or a table.
    pub fn say(&mut self, part: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{part}");
    }

    /// Compares a ratio to the one that it should not exceed.
    pub fn target(&mut self, what: &str, at_most: f64, measured: f64) {
        let verdict = if measured <= at_most { "met" } else { "missed" };
        let (at_most, measured) = (format!("{at_most:.3}"), format!("{measured:.3}"));
        self.targets.row(&[what, &at_most, &measured, verdict]);
    }

    /// Ends with the table of targets; prints everything, and writes the file if there is one.
    ///
    /// # Errors
    ///
    /// If the report or its picture cannot be written. Also if the picture shows a table that is not in
    /// the report.
    pub fn finish(mut self) -> Result<(), Box<dyn Error>> {
        let targets = std::mem::take(&mut self.targets);
        self.say(format_args!("## Targets\n\n{targets}"));
        print!("{}", self.text);
        let Some(file) = self.file else {
            return Ok(());
        };
        if let Some(page) = self.picture {
            std::fs::write(file.with_extension("svg"), chart::svg(page, &self.text)?)?;
        }
        Ok(std::fs::write(file, self.text)?)
    }
}
