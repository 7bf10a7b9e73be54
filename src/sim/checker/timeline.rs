//! A counterexample as a picture: one row per client, one bar per operation, time from left to right.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Counterexample;

/// Pixels of one step of the history, of one row, and left of the first bar.
const STEP: u64 = 90;
const ROW: u64 = 44;
const MARGIN: u64 = 110;

impl Counterexample {
    /// The history as an SVG. Positions are those of the text: the order of invocations and returns, not seconds.
    pub(crate) fn svg(&self) -> String {
        let stamps = self.records.iter().flat_map(|record| {
            let returned = record.returned.as_ref().map(|(at, _)| *at);
            [Some(record.invoked), returned].into_iter().flatten()
        });
        // Only what happened to this key takes room.
        let stamps: std::collections::BTreeSet<u64> = stamps.collect();
        let columns: BTreeMap<u64, u64> = stamps.into_iter().zip(0..).collect();
        let clients: std::collections::BTreeSet<u32> =
            self.records.iter().map(|record| record.client).collect();
        let rows: BTreeMap<u32, u64> = clients.into_iter().zip(0..).collect();
        let width = MARGIN + (columns.len() as u64 + 2) * STEP;
        let height = (rows.len() as u64 + 2) * ROW;
        let mut svg = String::new();
        let mut line = |text: &str| {
            svg.push_str(text);
            svg.push('\n');
        };
        line(&format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" font-size="11">"#
        ));
        line(r#"<rect width="100%" height="100%" fill="white"/>"#);
        let title =
            format!("{} operations on {} that no order explains", self.records.len(), text(&self.key));
        line(&format!(r#"<text x="8" y="20" font-size="14">{title}</text>"#));
        for (client, row) in &rows {
            let y = (row + 1) * ROW + 24;
            line(&format!(r#"<text x="8" y="{y}">client {client}</text>"#));
        }
        for record in &self.records {
            let x = MARGIN + columns[&record.invoked] * STEP;
            let y = (rows[&record.client] + 1) * ROW + 10;
            let (end, answer, color) = match &record.returned {
                Some((at, ret)) => (MARGIN + columns[at] * STEP, ret.to_string(), "#cfe3ff"),
                None => (width - STEP / 2, "unknown".to_owned(), "#eeeeee"),
            };
            let label = text(format!("{} → {answer}", record.op).as_bytes());
            let long = end.saturating_sub(x).max(8);
            line(&format!(
                r##"<rect x="{x}" y="{y}" width="{long}" height="20" fill="{color}" stroke="#456"/>"##
            ));
            line(&format!(r#"<text x="{}" y="{}">{label}</text>"#, x + 3, y + 14));
        }
        // A string takes what is written to it.
        let _ = writeln!(svg, "</svg>");
        svg
    }
}

/// What may stand between two tags.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
