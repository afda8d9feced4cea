// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables of a page of `docs/` as a picture: a bar for each cell.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What is drawn of a page: its name, which of its tables, and which columns of each.
type Picture = (&'static str, &'static [(usize, &'static [&'static str])]);

const READS: &[&str] = &["read 4 KiB", "read 4 KiB, 32", "read 128 KiB"];
const CARDS: &[&str] = &[
    "virtio-net-device",
    "stand-in for Firecracker",
    "stand-in for Cloud Hypervisor",
];
const BUSES: &[&str] = &["same, 1", "same, 32", "same, 1024"];

/// Every page with a picture. Tables are counted from 0.
const PICTURES: &[Picture] = &[
    ("blk-requests", &[(0, READS), (2, READS)]),
    ("bus-dispatch", &[(0, BUSES), (1, &["random, 32"])]),
    ("net-packets", &[(0, CARDS)]),
    ("rng-requests", &[(0, &["64 B", "2 KiB", "64 KiB"])]),
    (
        "vcpu-loop",
        &[(0, &["times kvm-ioctls"]), (1, &["ns, this run"])],
    ),
];

const COLORS: [RGBColor; 3] = [
    RGBColor(0x2f, 0x6f, 0xa8),
    RGBColor(0xd9, 0x6b, 0x27),
    RGBColor(0x7a, 0x9a, 0x3c),
];
/// In pixels: the picture's width, where bars begin and end, and the heights of a bar and of a title.
const WIDTH: i32 = 900;
const BARS: (i32, i32) = (400, 840);
const BAR: i32 = 13;
const TITLE: i32 = 56;

/// The pages that have a picture: `docs/<page>.md` and `docs/<page>.svg`.
pub fn pages() -> impl Iterator<Item = &'static str> {
    PICTURES.iter().map(|(page, _)| *page)
}

/// Draws `page` from its `text`, as SVG.
///
/// # Errors
///
/// If `text` has no such tables.
pub fn svg(page: &str, text: &str) -> Result<String, Box<dyn Error>> {
    let (_, panels) = (PICTURES.iter().find(|(name, _)| *name == page)).ok_or("no such page")?;
    let panels = (panels.iter())
        .map(|(table, columns)| Panel::new(text, *table, columns))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| format!("{page}: a table or a column is missing"))?;
    let mut svg = String::new();
    {
        let height: i32 = panels.iter().map(Panel::height).sum();
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let mut rest = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        rest.fill(&WHITE)?;
        for panel in &panels {
            let (area, below) = rest.split_vertically(panel.height());
            panel.draw(&area)?;
            rest = below;
        }
    }
    Ok(svg)
}

/// The cells of a line, without marks of Markdown, and without what stands in brackets.
fn cells(line: &str) -> Vec<String> {
    let plain = |cell: &str| {
        let name = cell.split(" (").next().unwrap_or(cell);
        name.replace(['*', '`'], "").trim().to_owned()
    };
    line.split('|').skip(1).map(plain).collect()
}

/// A table, or some columns of one.
struct Panel<'a> {
    title: String,
    columns: &'a [&'a str],
    rows: Vec<(String, Vec<String>)>,
}

impl<'a> Panel<'a> {
    fn new(text: &str, table: usize, columns: &'a [&'a str]) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let rules =
            (0..lines.len()).filter(|&at| lines.get(at).is_some_and(|l| l.starts_with("| ---")));
        let rule = rules.into_iter().nth(table)?;
        let (above, below) = (lines.get(..rule)?, lines.get(rule + 1..)?);
        let title = above
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("## "))?;
        let names = cells(above.last()?);
        let place = |column: &&str| names.iter().position(|name| name == column);
        let places: Vec<usize> = columns.iter().map(place).collect::<Option<_>>()?;
        let row = |line: &&str| {
            let cells = cells(line);
            let values = places.iter().map(|at| cells.get(*at).cloned());
            Some((cells.first()?.clone(), values.collect::<Option<_>>()?))
        };
        let rows = below.iter().take_while(|line| line.starts_with('|'));
        Some(Self {
            title: [title.replace('`', ""), names.first()?.clone()].join("  "),
            columns,
            // One in another unit is left out.
            rows: rows
                .filter(|line| !line.starts_with("| *ns"))
                .map(row)
                .collect::<Option<_>>()?,
        })
    }

    /// In pixels.
    fn height(&self) -> i32 {
        let bars = self.rows.len() * (self.columns.len() + 1);
        TITLE + BAR * i32::try_from(bars).unwrap_or(0)
    }

    /// Times begin at 0. A ratio is a bar from 1, on a logarithmic scale: to the left what is quicker.
    fn draw<B: DrawingBackend<ErrorType: 'static>>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), Box<dyn Error>> {
        let time = self.columns.iter().any(|name| name.starts_with("ns"));
        let scale = |cell: &String| {
            let value: f64 = cell.parse().unwrap_or(f64::NAN);
            if time { value } else { value.max(0.01).log2() }
        };
        let all = self.rows.iter().flat_map(|(_, cells)| cells).map(scale);
        // Never so fine that noise looks like a difference.
        let (low, high) = if time { (0.0, 1.0) } else { (-1.0, 1.0) };
        let (least, most) = all.fold((low, high), |(least, most), value| {
            (value.min(least), value.max(most))
        });
        #[expect(clippy::cast_possible_truncation, reason = "at most the width")]
        let x = |value: f64| {
            let part = (value - least) / (most - least);
            BARS.0 + (part * f64::from(BARS.1 - BARS.0)).round() as i32
        };
        let text = |text: &str, at: (i32, i32), align: HPos, size: i32| {
            let style = ("sans-serif", size).into_text_style(area);
            area.draw_text(text, &style.pos(Pos::new(align, VPos::Center)), at)
        };

        text(&self.title, (12, 16), HPos::Left, 19)?;
        let mut legend = 12;
        for (name, color) in self.columns.iter().zip(COLORS) {
            let corners = [(legend, 32), (legend + 10, 42)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            text(name, (legend + 15, 37), HPos::Left, 15)?;
            legend += 35 + 7 * i32::try_from(name.len()).unwrap_or(0);
        }
        let mut y = TITLE;
        for (name, cells) in &self.rows {
            let half = BAR * i32::try_from(cells.len()).unwrap_or(0) / 2;
            text(name, (BARS.0 - 40, y + half), HPos::Right, 15)?;
            for (cell, color) in cells.iter().zip(COLORS) {
                let (one, end) = (x(0.0), x(scale(cell)));
                let corners = [
                    (one.min(end), y + 1),
                    (one.max(end).max(one + 1), y + BAR - 1),
                ];
                area.draw(&Rectangle::new(corners, color.filled()))?;
                let (at, align) = if end < one {
                    (end - 4, HPos::Right)
                } else {
                    (end + 4, HPos::Left)
                };
                text(cell, (at, y + BAR / 2), align, 13)?;
                y += BAR;
            }
            y += BAR;
        }
        let line = [(x(0.0), TITLE - 4), (x(0.0), y - BAR + 4)];
        area.draw(&PathElement::new(line, BLACK))?;
        Ok(())
    }
}
