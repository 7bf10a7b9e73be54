//! Durations and byte counts as people write and read them.

use std::time::Duration;

use crate::id::PartitionId;

/// Reads `250ms`, `5s`, `2m`, `1h`, `7d`; a number alone is seconds.
///
/// # Errors
/// A sentence that names the right form.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write for example 250ms, 5s, 2m, 1h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit.trim() {
        "us" => 0.000_001,
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| wrong())
}

/// Reads a duration that must not be zero.
///
/// # Errors
/// A sentence that names the right form.
pub(super) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads `512MiB`, `20GiB`, `1TiB`, also `KB`, `MB`, `GB`, `TB` (powers of 1000); a number alone is bytes.
///
/// # Errors
/// A sentence that names the right form.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write for example 512MiB, 20GiB or 1TB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Writes a duration with at most three digits that matter: `830us`, `12.4ms`, `5s`, `2m 5s`, `3h 20m`.
#[expect(
    clippy::cast_precision_loss,
    reason = "three digits are shown, and f64 is exact to 2^53 microseconds"
)]
pub(super) fn duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let seconds = duration.as_secs();
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..1_000_000 => short(micros as f64 / 1_000.0, "ms"),
        1_000_000..60_000_000 => short(micros as f64 / 1_000_000.0, "s"),
        _ if seconds < 3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        _ if seconds < 86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// Writes a number of bytes: `812 B`, `4.0 KiB`, `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// Writes a count with thin groups, so that a rate can be read at a glance: `52_110`.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// Writes a number of partitions: `1 partition`, `64 partitions`.
pub(super) fn partitions(count: usize) -> String {
    if count == 1 { "1 partition".to_owned() } else { format!("{count} partitions") }
}

/// Writes ascending partitions with runs drawn together: `0-20, 40`.
pub(super) fn ranges(partitions: &[PartitionId]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for partition in partitions {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == partition.0 => *last = partition.0,
            _ => runs.push((partition.0, partition.0)),
        }
    }
    let runs = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn short(amount: f64, unit: &str) -> String {
    let decimals = match amount {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let text = format!("{amount:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("5", 5_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "s", "5 weeks", "-1s", "1.2.3s", "99999999999999999999999d"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains("250ms"), "{error}");
        }
        assert!(parse_positive_duration("0").is_err());
    }

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, bytes) in [("0", 0), ("12B", 12), ("3KB", 3000), ("2MiB", 2 << 20), ("20GiB", 20 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "3 pounds", "99999999TiB"] {
            assert!(parse_bytes(text).expect_err(text).contains("20GiB"));
        }
    }

    #[test]
    fn durations_are_written_short() {
        for (micros, text) in [
            (0, "0us"),
            (830, "830us"),
            (12_400, "12.4ms"),
            (1_000, "1ms"),
            (999_000, "999ms"),
            (100_000, "100ms"),
            (5_000_000, "5s"),
            (125_000_000, "2m 5s"),
            (12_000_000_000, "3h 20m"),
            (172_800_000_000, "2d"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn bytes_and_counts_are_written_for_people() {
        assert_eq!(bytes(812), "812 B");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(52_110), "52_110");
        assert_eq!(count(1_000_000), "1_000_000");
    }

    #[test]
    fn partitions_are_written_with_their_runs_drawn_together() {
        let ranges = |numbers: &[u32]| ranges(&numbers.iter().copied().map(PartitionId).collect::<Vec<_>>());
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(ranges(&[0, 1, 2, 4, 5, 9, 10, 11]), "0-2, 4, 5, 9-11");
        assert_eq!((partitions(1), partitions(64)), ("1 partition".to_owned(), "64 partitions".to_owned()));
    }
}
