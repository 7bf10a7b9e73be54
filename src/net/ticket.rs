//! Tickets: everything a machine needs to join a swarm, as one string to paste.
//!
//! `rt1` followed by base58 with a checksum, so that a lost or mistyped character is noticed and is not taken
//! for a wrong secret. The digit is the version of the format. A ticket contains the swarm's secret: whoever
//! reads it can join.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::address::{self, AddressError};
use super::identity::Secret;
use crate::codec;

/// What every ticket begins with, whatever its version.
const MARK: &str = "rt";
/// What a ticket of this version begins with.
const PREFIX: &str = "rt1";
/// Longest text that is looked at: decoding base58 takes quadratic time.
const MAX_TICKET_CHARS: usize = 4096;
/// Most addresses in one ticket.
const MAX_TICKET_ADDRESSES: usize = 16;

/// Name, secret and addresses of a swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The swarm's name.
    pub name: String,
    /// What its members share; `None` if anyone may join.
    pub secret: Option<Secret>,
    /// Where members listen, as multiaddresses.
    pub addresses: Vec<String>,
}

/// What is encoded.
#[derive(Serialize, Deserialize)]
struct Content {
    name: String,
    secret: Option<[u8; 32]>,
    addresses: Vec<String>,
}

impl Ticket {
    /// Whether a text is meant as a ticket (and not as an address).
    pub fn looks_like(text: &str) -> bool {
        let text = text.trim();
        text.strip_prefix(MARK).is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit()) && rest.chars().all(|c| c.is_ascii_alphanumeric())
        })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content {
            name: self.name.clone(),
            secret: self.secret.as_ref().map(|secret| *secret.as_bytes()),
            addresses: self.addresses.iter().take(MAX_TICKET_ADDRESSES).cloned().collect(),
        };
        let bytes = codec::encode(&content);
        write!(f, "{PREFIX}{}", bs58::encode(bytes).with_check().into_string())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if !text.starts_with(MARK) {
            return Err(TicketError::NotATicket);
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(match text.chars().nth(MARK.len()) {
                Some(digit) if digit.is_ascii_digit() => TicketError::OtherVersion(digit),
                _ => TicketError::NotATicket,
            });
        };
        if text.len() > MAX_TICKET_CHARS {
            return Err(TicketError::TooLong);
        }
        let bytes = bs58::decode(body).with_check(None).into_vec().map_err(|_| TicketError::Damaged)?;
        let content: Content = codec::decode(&bytes).map_err(|_| TicketError::Damaged)?;
        for address in &content.addresses {
            address::parse(address)?;
        }
        Ok(Self {
            name: content.name,
            secret: content.secret.map(Secret::from_bytes),
            addresses: content.addresses,
        })
    }
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not begin like one.
    #[error("not a ticket: a ticket begins with \"{PREFIX}\"")]
    NotATicket,
    /// It was made by a program of another version.
    #[error("a ticket of version {0}; this program reads version 1")]
    OtherVersion(char),
    /// The checksum is wrong.
    #[error("the ticket is damaged: its checksum is wrong; was all of it copied?")]
    Damaged,
    /// No ticket is that long.
    #[error("too long for a ticket: more than {MAX_TICKET_CHARS} characters")]
    TooLong,
    /// One of its addresses cannot be used by this program.
    #[error("the ticket holds an address that cannot be used: {0}")]
    Address(#[from] AddressError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tickets() -> impl Strategy<Value = Ticket> {
        let address = (any::<[u8; 4]>(), 1..u16::MAX)
            .prop_map(|([a, b, c, d], port)| format!("/ip4/{a}.{b}.{c}.{d}/tcp/{port}"));
        ("[a-z0-9 -]{1,40}", prop::option::of(any::<[u8; 32]>()), prop::collection::vec(address, 0..8))
            .prop_map(|(name, secret, addresses)| Ticket {
                name,
                secret: secret.map(Secret::from_bytes),
                addresses,
            })
    }

    proptest! {
        #[test]
        fn a_ticket_is_read_as_it_was_written(ticket in tickets()) {
            let text = ticket.to_string();
            prop_assert!(Ticket::looks_like(&text));
            prop_assert_eq!(format!(" {text}\n").parse::<Ticket>(), Ok(ticket));
        }

        #[test]
        fn a_lost_or_mistyped_character_is_noticed(ticket in tickets(), at in any::<prop::sample::Index>()) {
            let text = ticket.to_string();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            prop_assert_eq!(text[..at].parse::<Ticket>(), Err(TicketError::Damaged));
            let mut typo = text.clone();
            typo.replace_range(at..=at, if &text[at..=at] == "a" { "b" } else { "a" });
            prop_assert_eq!(typo.parse::<Ticket>(), Err(TicketError::Damaged));
        }

        #[test]
        fn no_text_panics(text in ".{0,100}") {
            let _ = text.parse::<Ticket>();
            let _ = format!("{PREFIX}{text}").parse::<Ticket>();
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!("/ip4/1.2.3.4/tcp/1".parse::<Ticket>(), Err(TicketError::NotATicket));
        assert_eq!("rt2abc".parse::<Ticket>(), Err(TicketError::OtherVersion('2')));
        assert_eq!("rthost:7400".parse::<Ticket>(), Err(TicketError::NotATicket));
        assert!(!Ticket::looks_like("rt1.example.org:7400"));
        assert_eq!(format!("rt1{}", "a".repeat(5000)).parse::<Ticket>(), Err(TicketError::TooLong));
    }

    #[test]
    fn a_ticket_does_not_show_its_secret_in_logs() {
        let ticket = Ticket {
            name: "default".into(),
            secret: Some(Secret::from_bytes([7; 32])),
            addresses: Vec::new(),
        };
        assert!(format!("{ticket:?}").contains("Secret(..)"));
    }
}
