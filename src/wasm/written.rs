//! Components for tests, written as text.

/// Code that hands back nothing.
pub(super) const NO_BATCH: &str = "(call $batch (i32.const 0) (i32.const 0))";

/// The component of `written.wat`, with some of what is in braces there.
pub(super) fn component(replaced: &[(&str, &str)]) -> Vec<u8> {
    let otherwise = [
        ("imports", ""),
        ("module", ""),
        ("maximum", ""),
        ("with", ""),
        ("describe", ""),
        ("start", NO_BATCH),
        ("map", NO_BATCH),
        ("combine", NO_BATCH),
        ("reduce", NO_BATCH),
        ("done", ""),
        ("map-name", "map"),
        ("start-export", "(func $start)"),
        ("interface", "roundtable:job/program@0.1.0"),
    ];
    let text =
        replaced.iter().chain(&otherwise).fold(include_str!("written.wat").to_owned(), |text, (what, by)| {
            text.replace(&format!("{{{what}}}"), by)
        });
    wat::parse_str(text).unwrap()
}
