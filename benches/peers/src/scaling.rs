//! How the cost of an operation and of doing nothing grows with the swarm and what it holds, as curves.
//!
//! Along each axis everything else stays as it comes. Costs are CPU time, which does not depend on how many processors
//! the nodes have to share.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde::Serialize;

use crate::load::{KEYS, Op, Task, VALUE_BYTES};
use crate::roundtable::Roundtable;
use crate::setup::Setup;

/// Clients at work at the same time.
const CLIENTS: usize = 64;
/// After the start a swarm may still have something to do.
const SETTLE: Duration = Duration::from_secs(3);
/// Size of a picture.
const PICTURE: (u32, u32) = (900, 380);

/// What is measured: a swarm in memory, and what it holds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) partitions: u32,
    pub(crate) keys: usize,
    pub(crate) value_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 3, partitions: 32, keys: KEYS, value_bytes: VALUE_BYTES }
    }
}

/// What one shape costs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Point {
    /// Of the quantity that the axis varies.
    at: f64,
    /// CPU time of all servers and the client for one, in microseconds.
    put_us: f64,
    get_us: f64,
    puts_per_second: f64,
    gets_per_second: f64,
    /// Percent of a core that one node takes while nobody uses it.
    idle_percent: f64,
    /// Resident memory of one node after all of that, in MiB.
    memory_mib: f64,
}

/// What is varied.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Curve {
    name: &'static str,
    of: &'static str,
    points: Vec<Point>,
}

/// Varies one quantity of the shape.
type Vary = fn(f64) -> Shape;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
fn axes() -> [(&'static str, &'static str, Vec<f64>, Vary); 4] {
    [
        ("nodes", "nodes", vec![3.0, 5.0, 9.0], |at| Shape { nodes: at as usize, ..Shape::default() }),
        ("partitions", "partitions", vec![16.0, 32.0, 64.0, 256.0], |at| Shape {
            partitions: at as u32,
            ..Shape::default()
        }),
        ("keys", "keys", vec![1e4, 1e5, 1e6], |at| Shape { keys: at as usize, ..Shape::default() }),
        ("values", "bytes of a value", vec![100.0, 1024.0, 8192.0, 65536.0], |at| Shape {
            // As much data in all, so that it fits into memory.
            keys: if at > 1024.0 { 1000 } else { KEYS },
            value_bytes: at as usize,
            ..Shape::default()
        }),
    ]
}

/// Measures all curves.
pub(crate) async fn measure(setup: &Setup) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for (name, of, values, vary) in axes() {
        let mut points = Vec::new();
        for at in values {
            let shape = vary(at);
            let point = point(setup, shape, at).await?;
            eprintln!("  {shape:?}: {point:?}");
            points.push(point);
        }
        curves.push(Curve { name, of, points });
    }
    Ok(curves)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
async fn point(setup: &Setup, shape: Shape, at: f64) -> Result<Point> {
    let mut swarm = Roundtable::start_as(setup, shape, false, None).await?;
    tokio::time::sleep(SETTLE).await;
    let span = setup.duration() * crate::IDLE_FACTOR;
    let before = swarm.servers().thread_time()?;
    tokio::time::sleep(span).await;
    let idle = swarm.servers().thread_time()?.saturating_sub(before);
    let mut costs = Vec::new();
    for op in [Op::Put, Op::Get] {
        let sample = swarm.measure(Task { op, clients: CLIENTS, duration: setup.duration() }).await?;
        let operations = sample.operations as f64;
        costs.push(((sample.server_cpu + sample.client_cpu) * 1e6 / operations, operations / sample.seconds));
    }
    let nodes = shape.nodes as f64;
    Ok(Point {
        at,
        put_us: costs[0].0,
        get_us: costs[1].0,
        puts_per_second: costs[0].1,
        gets_per_second: costs[1].1,
        idle_percent: idle.as_secs_f64() / span.as_secs_f64() * 100.0 / nodes,
        memory_mib: swarm.servers().memory()? as f64 / f64::from(1 << 20) / nodes,
    })
}

/// All figures, as a table.
pub(crate) fn table(curves: &[Curve]) -> String {
    let mut table = "| | | put us | get us | put/s | get/s | idle % of a core per node | MiB per node |\n\
                     |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for curve in curves {
        for point in &curve.points {
            let Point { at, put_us, get_us, puts_per_second, gets_per_second, idle_percent, memory_mib } =
                point;
            // A `String` takes everything.
            let _ = writeln!(
                table,
                "| {} | {at} | {put_us:.1} | {get_us:.1} | {puts_per_second:.0} | {gets_per_second:.0} \
                 | {idle_percent:.2} | {memory_mib:.0} |",
                curve.of
            );
        }
    }
    table
}

/// A picture of each curve, in `directory`.
pub(crate) fn draw(curves: &[Curve], directory: &Path) -> Result<()> {
    for curve in curves {
        let path = directory.join(format!("scaling-{}.svg", curve.name));
        let area = SVGBackend::new(&path, PICTURE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let (left, right) = area.split_horizontally(PICTURE.0 / 2);
        let cost: [Line; 2] = [("put", BLUE, |point| point.put_us), ("get", GREEN, |point| point.get_us)];
        panel(&left, curve, "CPU per operation, us", &cost)?;
        let idle: [Line; 1] = [("idle", RED, |point| point.idle_percent)];
        panel(&right, curve, "idle node, % of a core", &idle)?;
        area.present().map_err(drawing)?;
    }
    Ok(())
}

/// What a line is called, and what it shows.
type Line = (&'static str, RGBColor, fn(&Point) -> f64);

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    curve: &Curve,
    title: &str,
    lines: &[Line],
) -> Result<()> {
    let first = curve.points.first().map_or(1.0, |point| point.at);
    let last = curve.points.last().map_or(10.0, |point| point.at);
    let highest = lines.iter().flat_map(|(_, _, of)| curve.points.iter().map(of)).fold(0.0, f64::max);
    let at = (first * 0.9..last * 1.1).log_scale();
    draw_lines(area, curve, title, lines, at, 0.0..highest * 1.2)
}

fn draw_lines<X>(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    curve: &Curve,
    title: &str,
    lines: &[Line],
    at: X,
    height: std::ops::Range<f64>,
) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(at, height)
        .map_err(drawing)?;
    chart.configure_mesh().disable_x_mesh().x_desc(curve.of).draw().map_err(drawing)?;
    for (name, color, of) in lines {
        let color = *color;
        let points: Vec<(f64, f64)> = curve.points.iter().map(|point| (point.at, of(point))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)).point_size(4))
            .map_err(drawing)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2)));
        let figures = points.iter().map(|(x, y)| {
            Text::new(
                format!("{y:.*}", if *y < 10.0 { 2 } else { 0 }),
                (*x, *y),
                ("sans-serif", 13).into_font(),
            )
        });
        chart.draw_series(figures).map_err(drawing)?;
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.3)).draw().map_err(drawing)?;
    Ok(())
}

/// The errors of a picture borrow it.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
