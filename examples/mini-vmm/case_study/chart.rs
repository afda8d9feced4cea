// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as a picture: a bar for each device and size, one panel for exits and one for time.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::announce::Phase;
use super::output::Comparison;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (880, 360);
/// Where the bars begin: one exit, or one microsecond, is still to be seen on a logarithmic scale.
const BASE: f64 = 0.5;
const REGISTER: RGBColor = RGBColor(0xd9, 0x6b, 0x27);
const QUEUE: RGBColor = RGBColor(0x2f, 0x6f, 0xa8);

/// The comparisons as an SVG file.
///
/// # Errors
///
/// If plotters fails, for which a picture in memory gives no reason.
pub(crate) fn svg(comparisons: &[Comparison]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let whole = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        whole.fill(&WHITE)?;
        let (left, right) = whole.split_horizontally(SIZE.0 / 2);
        #[expect(clippy::cast_precision_loss, reason = "one exit in 2^53 is not seen")]
        let exits = |phase: &Phase| phase.exits.total as f64;
        let micros = |phase: &Phase| phase.elapsed.as_secs_f64() * 1e6;
        panel(&left, "exits", comparisons, exits)?;
        panel(&right, "time in microseconds", comparisons, micros)?;
        whole.present()?;
    }
    Ok(svg)
}

fn panel<B: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    comparisons: &[Comparison],
    value: impl Fn(&Phase) -> f64,
) -> Result<(), Box<dyn Error>> {
    // Two bars for each size, next to each other.
    let bars: Vec<(f64, u64)> = (comparisons.iter())
        .flat_map(|c| c.phases().map(|phase| (value(phase), c.bytes())))
        .collect();
    let most = bars.iter().fold(10.0_f64, |most, bar| most.max(bar.0));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (0..bars.len()).into_segmented(),
            (BASE..most * 4.0).log_scale(),
        )?;
    let size = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(bar) => bars.get(*bar).map(|bar| bar.1.to_string()),
        _ => None,
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.len())
        .x_label_formatter(&|at| size(at).unwrap_or_default())
        .x_desc("bytes")
        .draw()?;
    for (first, name, color) in [(0, "mmio-rng-legacy", REGISTER), (1, "virtio-rng", QUEUE)] {
        let bar = |(bar, (height, _)): (usize, &(f64, u64))| {
            let corners = [
                (SegmentValue::Exact(bar), BASE),
                (SegmentValue::Exact(bar + 1), *height),
            ];
            let mut bar = Rectangle::new(corners, color.filled());
            bar.set_margin(0, 0, 4, 4);
            bar
        };
        chart
            .draw_series(bars.iter().enumerate().skip(first).step_by(2).map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}
