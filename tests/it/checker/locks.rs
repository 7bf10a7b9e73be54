//! Whether critical sections under a lock were one after the other, as the fenced store saw them.
//!
//! Each section writes to one key when it begins and again when it ends, under its token. The versions of these
//! writes are places in one log, so they say without any clock what was before what. A section whose second write
//! was refused was overtaken, and took nothing with it; two that both wrote twice must not overlap.

use std::collections::BTreeMap;
use std::time::Duration;

use roundtable::id::{FencingToken, Version};
use serde::{Deserialize, Serialize};

/// One critical section as its holder saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Section {
    /// Of its grant.
    pub(crate) token: FencingToken,
    /// When the lock was asked for, by a clock that all holders share.
    pub(crate) asked: Duration,
    /// When the holder learned of the grant.
    pub(crate) granted: Duration,
    /// Its first write, if that was acknowledged.
    pub(crate) entered: Option<Version>,
    /// Its last write, if that was acknowledged.
    pub(crate) left: Option<Version>,
    /// The store refused a write: somebody with a higher token had been there.
    pub(crate) fenced: bool,
    /// The holder was told that the lock was lost before it ended.
    pub(crate) lost: bool,
}

/// Everything that must not be, in words.
pub(crate) fn violations(sections: &[Section]) -> Vec<String> {
    let mut found = Vec::new();
    let mut by_token: BTreeMap<FencingToken, &Section> = BTreeMap::new();
    for section in sections {
        if let Some(other) = by_token.insert(section.token, section) {
            found.push(format!("one token was granted twice: {other:?} and {section:?}"));
        }
    }
    // Accepted sections, one after the other.
    let mut spans: Vec<(Version, Version, FencingToken)> = sections
        .iter()
        .filter_map(|section| Some((section.entered?, section.left?, section.token)))
        .collect();
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let ((_, left, first), (entered, _, second)) = (pair[0], pair[1]);
        if entered < left {
            found.push(format!("the sections under {first} and {second} overlap"));
        }
        if second <= first {
            found.push(format!("the section under {second} came behind that under {first}"));
        }
    }
    // Who had the lock before another asked for it has the lower token.
    let mut by_grant: Vec<&Section> = sections.iter().collect();
    by_grant.sort_unstable_by_key(|section| section.granted);
    let mut by_asking: Vec<&Section> = sections.iter().collect();
    by_asking.sort_unstable_by_key(|section| section.asked);
    let mut granted = by_grant.into_iter().peekable();
    let mut highest = FencingToken::default();
    for section in by_asking {
        while let Some(earlier) = granted.next_if(|earlier| earlier.granted < section.asked) {
            highest = highest.max(earlier.token);
        }
        if section.token <= highest {
            found.push(format!("{} was granted after {highest}", section.token));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(token: u64, entered: u64, left: u64) -> Section {
        let at = |moment| Duration::from_millis(moment);
        Section {
            token: FencingToken(token),
            asked: at(token * 10),
            granted: at(token * 10 + 5),
            entered: Some(Version(entered)),
            left: Some(Version(left)),
            fenced: false,
            lost: false,
        }
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let mut overtaken = section(2, 4, 0);
        overtaken.left = None;
        assert!(violations(&[section(1, 1, 3), overtaken, section(3, 6, 9)]).is_empty());
    }

    #[test]
    fn planted_faults_are_found() {
        let found = |sections: &[Section], what: &str| {
            let found = violations(sections);
            assert!(found.iter().any(|one| one.contains(what)), "{found:?}");
        };
        found(&[section(1, 1, 3), section(2, 2, 5)], "overlap");
        found(&[section(1, 1, 9), section(2, 2, 5)], "overlap");
        found(&[section(3, 1, 3), section(2, 4, 5)], "came behind");
        found(&[section(3, 1, 3), section(3, 4, 5)], "twice");
        let mut late = section(2, 4, 5);
        late.asked = Duration::from_secs(1);
        found(&[section(3, 6, 7), late], "granted after");
    }
}
