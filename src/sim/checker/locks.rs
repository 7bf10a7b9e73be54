//! Whether critical sections under a lock were one after the other, as the fenced store saw them, and in the order
//! in which they were asked for.
//!
//! **Exclusion.** Each section writes to one key when it begins and again when it ends, under its token. The versions
//! of these writes are places in one log, so they say without any clock what was before what. A section whose second
//! write was refused was overtaken, and took nothing with it; two that both wrote twice must not overlap.
//!
//! **Fairness.** A place in a queue has an arrival, the log index at which it was asked for. Each holder looks at
//! the queue while it holds. It must see nobody before itself ([`Queue`]); of two that were granted, the one that
//! came first has the lower token; and a wish, which has a name of its own, must not be seen at two places, unless
//! its process stood still or was cut off meanwhile ([`Away`]): then its place may have been over.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{FencingToken, Version};
use serde::{Deserialize, Serialize};

/// Whose wish: the process, the contender in it, and how often that has wished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Wish {
    /// The process.
    pub(crate) process: u32,
    /// The contender.
    pub(crate) lane: u32,
    /// Its wishes before this one.
    pub(crate) number: u32,
}

impl Wish {
    /// As others see it in a lock's queue.
    pub(crate) fn note(self) -> Vec<u8> {
        format!("{}.{}.{}", self.process, self.lane, self.number).into_bytes()
    }

    /// The wish of a note.
    pub(crate) fn of(note: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(note).ok()?.split('.').map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Self { process: next()?, lane: next()?, number: next()? })
    }
}

/// A lock's queue as its holder saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// When the holder had asked.
    pub(crate) at: Duration,
    /// The holder's own arrival.
    pub(crate) holder: Version,
    /// Who waits, in the order of the queue.
    pub(crate) waiters: Vec<(Version, Wish)>,
}

/// One critical section as its holder saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Section {
    /// Whose.
    pub(crate) wish: Wish,
    /// Of its grant.
    pub(crate) token: FencingToken,
    /// When the lock was asked for, by a clock that all holders share.
    pub(crate) asked: Duration,
    /// When the holder learned of the grant.
    pub(crate) granted: Duration,
    /// Just before the holder let go of it.
    pub(crate) released: Duration,
    /// Its first write, if that was acknowledged.
    pub(crate) entered: Option<Version>,
    /// Its last write, if that was acknowledged.
    pub(crate) left: Option<Version>,
    /// How long its last write took.
    pub(crate) wrote_within: Duration,
    /// What it saw in between, if it held the lock then.
    pub(crate) queue: Option<Queue>,
    /// The store refused a write: somebody with a higher token had been there.
    pub(crate) fenced: bool,
    /// The holder was told that the lock was lost before it ended.
    pub(crate) lost: bool,
}

/// A time in which a process was not there, or could not be: its places may have been over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Away {
    /// Which.
    pub(crate) process: u32,
    /// From then on.
    pub(crate) from: Duration,
    /// Until then.
    pub(crate) to: Duration,
}

/// Everything that must not be, in words.
pub(crate) fn violations(sections: &[Section]) -> Vec<String> {
    let mut found = Vec::new();
    for section in sections.iter().filter(|section| section.fenced && !section.lost) {
        found.push(format!("a holder that was overtaken was not told: {section:?}"));
    }
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

/// What the judge of fairness found.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    /// Everything that must not be, in words.
    pub(crate) found: Vec<String>,
    /// Holders that saw others wait: without them nothing was judged.
    pub(crate) judged: usize,
    /// Wishes that lost their place while their process was away.
    pub(crate) excused: usize,
}

/// Whether nobody was passed over who was there.
pub(crate) fn fairness(sections: &[Section], away: &[Away]) -> Fairness {
    let mut fairness = Fairness::default();
    // Each wish at each of its places: when it was seen there first and last.
    let mut places: BTreeMap<Wish, BTreeMap<Version, (Duration, Duration)>> = BTreeMap::new();
    let mut by_arrival: BTreeMap<Version, &Section> = BTreeMap::new();
    for section in sections {
        let Some(queue) = &section.queue else { continue };
        fairness.judged += usize::from(!queue.waiters.is_empty());
        for (arrival, wish) in &queue.waiters {
            if *arrival < queue.holder {
                fairness
                    .found
                    .push(format!("{wish:?}, waiting since {arrival}, was passed over: {section:?}"));
            }
        }
        for (arrival, wish) in queue.waiters.iter().chain([&(queue.holder, section.wish)]) {
            let seen = places.entry(*wish).or_default().entry(*arrival).or_insert((queue.at, queue.at));
            *seen = (seen.0.min(queue.at), seen.1.max(queue.at));
        }
        if let Some(other) = by_arrival.insert(queue.holder, section) {
            fairness.found.push(format!("one place was granted twice: {other:?} and {section:?}"));
        }
    }
    let in_order: Vec<_> = by_arrival.values().collect();
    for pair in in_order.windows(2) {
        if pair[0].token > pair[1].token {
            fairness.found.push(format!("who came later was served first: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    for (wish, places) in places {
        let places: Vec<_> = places.into_iter().collect();
        for pair in places.windows(2) {
            let ((first, (_, last_seen)), (second, (seen_again, _))) = (pair[0], pair[1]);
            let was_away = away
                .iter()
                .any(|away| away.process == wish.process && away.from <= seen_again && away.to >= last_seen);
            if was_away {
                fairness.excused += 1;
            } else {
                fairness.found.push(format!(
                    "{wish:?} was there and lost its place: at {first} until {last_seen:?}, at {second} from {seen_again:?}"
                ));
            }
        }
    }
    fairness
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(process: u32) -> Wish {
        Wish { process, lane: 0, number: 0 }
    }

    fn at(moment: u64) -> Duration {
        Duration::from_millis(moment)
    }

    fn section(token: u64, entered: u64, left: u64) -> Section {
        Section {
            wish: wish(u32::try_from(token).expect("small")),
            token: FencingToken(token),
            asked: at(token * 10),
            granted: at(token * 10 + 5),
            released: at(token * 10 + 8),
            entered: Some(Version(entered)),
            left: Some(Version(left)),
            wrote_within: at(1),
            queue: None,
            fenced: false,
            lost: false,
        }
    }

    /// A section with this token, and who was seen at which place of the queue: the holder first.
    fn saw(token: u64, arrival: u64, waiters: &[(u64, u32)]) -> Section {
        let waiters = waiters.iter().map(|(arrival, process)| (Version(*arrival), wish(*process))).collect();
        let mut section = section(token, 0, 0);
        section.queue = Some(Queue { at: section.granted, holder: Version(arrival), waiters });
        section
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
        let mut trusting = section(2, 4, 5);
        trusting.fenced = true;
        found(&[trusting], "not told");
        let mut late = section(2, 4, 5);
        late.asked = Duration::from_secs(1);
        found(&[section(3, 6, 7), late], "granted after");
    }

    #[test]
    fn in_the_order_of_arrival_is_fair() {
        // The fourth comes while the second holds; the third leaves the queue by itself.
        let served =
            [saw(1, 1, &[(2, 2), (3, 3)]), saw(2, 2, &[(3, 3), (9, 4)]), saw(4, 9, &[]), section(5, 10, 11)];
        let fairness = fairness(&served, &[]);
        assert!(fairness.found.is_empty(), "{:?}", fairness.found);
        assert_eq!((fairness.judged, fairness.excused), (2, 0));
    }

    #[test]
    fn planted_unfairness_is_found() {
        let found = |sections: &[Section], what: &str| {
            let found = fairness(sections, &[]).found;
            assert!(found.iter().any(|one| one.contains(what)), "{found:?}");
        };
        found(&[saw(3, 7, &[(4, 9)])], "was passed over");
        found(&[saw(3, 7, &[]), saw(4, 6, &[])], "served first");
        found(&[saw(3, 7, &[]), saw(4, 7, &[])], "twice");
        // Seen at 4, and granted as one that came at 8.
        found(&[saw(1, 1, &[(4, 9)]), saw(9, 8, &[])], "lost its place");
        found(&[saw(1, 1, &[(4, 9)]), saw(2, 5, &[(8, 9)])], "lost its place");
    }

    #[test]
    fn who_was_away_may_lose_a_place_and_nobody_else() {
        let served = [saw(1, 1, &[(4, 9)]), saw(2, 5, &[(8, 9)])];
        let judge = |process, from, to| {
            let fairness = fairness(&served, &[Away { process, from: at(from), to: at(to) }]);
            (fairness.found.len(), fairness.excused)
        };
        // It was last seen at 15, and again at 25.
        assert_eq!(judge(9, 16, 24), (0, 1));
        assert_eq!(judge(9, 0, 15), (0, 1));
        assert_eq!(judge(8, 16, 24), (1, 0));
        assert_eq!(judge(9, 0, 14), (1, 0));
        assert_eq!(judge(9, 26, 30), (1, 0));
    }

    #[test]
    fn a_wish_is_known_by_its_note() {
        let wish = Wish { process: 1, lane: 20, number: 300 };
        assert_eq!(Wish::of(&wish.note()), Some(wish));
        assert_eq!(Wish::of(b"backup (17)"), None);
    }
}
