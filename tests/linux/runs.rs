// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What runs of mini-vmm with Linux have printed.

use std::collections::BTreeMap;
use std::process::Output;

use serde_json::Value;

/// What a run of mini-vmm has printed, and its exit status.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) lines: Vec<String>,
    pub(crate) status: Option<i32>,
}

impl Run {
    /// The details of a check that the guest has made.
    pub(crate) fn check(&self, name: &str) -> &str {
        let ok = format!("check {name}: ok");
        let details = self.lines.iter().find_map(|line| line.strip_prefix(&ok));
        details.unwrap_or_else(|| panic!("{name}: {self:#?}"))
    }

    /// The statistics.
    pub(crate) fn json(&self) -> Value {
        let line = self.lines.iter().rfind(|line| line.starts_with('{'));
        serde_json::from_str(line.unwrap_or_else(|| panic!("{self:#?}"))).unwrap()
    }
}

/// The runs that a call of `inside` with these cases has made.
pub(crate) fn of(output: &Output, cases: &[&str]) -> BTreeMap<String, Run> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(name) = line.strip_prefix("run ") {
            current = name.to_owned();
            runs.insert(current.clone(), Run::default());
        } else if let Some(status) = line.strip_prefix("ended ") {
            let run = runs.get_mut(&current).unwrap();
            run.status = Some(status.parse().unwrap());
        } else if let Some(run) = runs.get_mut(&current) {
            run.lines.push(line.to_owned());
        }
    }
    for case in cases {
        let ended = runs.get(*case).is_some_and(|run| run.status.is_some());
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(ended, "{case}: {text}\n{complaints}");
    }
    runs
}
