//! One typed line of the chat: a message to the room, or a command. Pure.

/// What a person asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing was typed.
    Empty,
    /// A message to the room.
    Say(String),
    /// A list of the commands.
    Help,
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Read a key.
    Get {
        /// The key.
        key: String,
    },
    /// Remove a key.
    Del {
        /// The key.
        key: String,
    },
    /// Set a key if it is at a version.
    Cas {
        /// The key.
        key: String,
        /// The version; `None`: it must be absent.
        expected: Option<u64>,
        /// Its new value.
        value: String,
    },
    /// List keys.
    Scan {
        /// What they begin with.
        prefix: String,
    },
    /// Who holds a key.
    Where {
        /// The key.
        key: String,
    },
    /// Take a lock.
    Lock {
        /// The lock.
        name: String,
    },
    /// Give it back.
    Unlock {
        /// The lock.
        name: String,
    },
    /// Who holds which lock.
    Locks,
    /// The members of the swarm.
    Members,
    /// Who holds how much.
    Ring,
    /// Who is in the room.
    Who,
    /// Talk through another node.
    Join {
        /// An address or a ticket.
        address: String,
    },
    /// Another name.
    Nick {
        /// The name.
        nick: String,
    },
    /// Leave.
    Quit,
}

/// A command as it is typed, and what it is for: the list behind `/help`, usage errors and completion.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("/put KEY VALUE", "set a key"),
    ("/get KEY", "read a key"),
    ("/del KEY", "remove a key"),
    ("/cas KEY VERSION|absent VALUE", "set a key only if it is at that version"),
    ("/scan [PREFIX]", "list keys"),
    ("/where KEY", "show who holds a key"),
    ("/lock NAME", "take a lock; it is held until /unlock or /quit"),
    ("/unlock NAME", "give a lock to the next"),
    ("/locks", "show who holds which lock"),
    ("/members", "show the swarm's members"),
    ("/ring", "show who holds how much"),
    ("/who", "show who is in the room"),
    ("/join ADDRESS", "talk through the node at an address or ticket"),
    ("/nick NAME", "change your name"),
    ("/help", "show this list"),
    ("/quit", "leave"),
];

/// Most characters of a message, and of a name: what fits a screen.
pub(super) const MAX_MESSAGE_CHARS: usize = 4_000;
const MAX_NAME_CHARS: usize = 32;

/// Understands one line. A line that begins with `/` is a command, with `//` a message that begins with `/`.
///
/// # Errors
/// A sentence that says what is wrong and shows the right usage.
pub(super) fn parse(line: &str) -> Result<Line, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::Empty);
    }
    let Some(command) = line.strip_prefix('/') else {
        return say(line);
    };
    if command.starts_with('/') {
        return say(command);
    }
    let words = split(command)?;
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let wrong = || Err(format!("usage: {}", usage(&name).unwrap_or("/help")));
    let parsed = match (name.as_str(), <[String; 3]>::try_from(words)) {
        ("cas", Ok([key, version, value])) => {
            let expected = match version.as_str() {
                "absent" => None,
                number => match number.parse() {
                    Ok(version) => Some(version),
                    Err(_) => {
                        return Err(format!(
                            "`{number}` is neither a version nor `absent`; usage: {}",
                            usage("cas").unwrap_or_default()
                        ));
                    }
                },
            };
            Line::Cas { key, expected, value }
        }
        (_, Ok(_)) => return unknown_or(&name, wrong),
        (_, Err(words)) => match (name.as_str(), words.as_slice()) {
            ("put", [key, value]) => Line::Put { key: key.clone(), value: value.clone() },
            ("get", [key]) => Line::Get { key: key.clone() },
            ("del", [key]) => Line::Del { key: key.clone() },
            ("scan", []) => Line::Scan { prefix: String::new() },
            ("scan", [prefix]) => Line::Scan { prefix: prefix.clone() },
            ("where", [key]) => Line::Where { key: key.clone() },
            ("lock", [name]) if !name.is_empty() => Line::Lock { name: name.clone() },
            ("unlock", [name]) => Line::Unlock { name: name.clone() },
            ("locks", []) => Line::Locks,
            ("join", [address]) => Line::Join { address: address.clone() },
            ("nick", [nick]) => Line::Nick { nick: check_name(nick)? },
            ("members", []) => Line::Members,
            ("ring", []) => Line::Ring,
            ("who", []) => Line::Who,
            ("help", []) => Line::Help,
            ("quit", []) => Line::Quit,
            _ => return unknown_or(&name, wrong),
        },
    };
    Ok(parsed)
}

/// Checks the name of a person or a room: letters, digits, `-`, `_` and `.`, at most 32.
///
/// # Errors
/// A sentence that says what a name may hold.
pub(in crate::cli) fn check_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(fits) {
        return Err(format!(
            "`{}` is no name: 1 to {MAX_NAME_CHARS} letters, digits, `-`, `_` or `.`",
            name.escape_debug()
        ));
    }
    Ok(name.to_owned())
}

/// The usage of the command with this name.
fn usage(name: &str) -> Option<&'static str> {
    COMMANDS.iter().map(|&(usage, _)| usage).find(|usage| usage[1..].split(' ').next() == Some(name))
}

fn unknown_or(name: &str, known: impl FnOnce() -> Result<Line, String>) -> Result<Line, String> {
    if usage(name).is_some() {
        known()
    } else {
        Err(format!(
            "no command `/{}`; /help lists them, and `//` begins a message with a slash",
            name.escape_debug()
        ))
    }
}

fn say(text: &str) -> Result<Line, String> {
    if text.chars().count() > MAX_MESSAGE_CHARS {
        return Err(format!("a message may have {MAX_MESSAGE_CHARS} characters; nothing was sent"));
    }
    Ok(Line::Say(text.to_owned()))
}

/// Splits into words as a shell does: `'...'` is literal, `"..."` knows `\"`, `\\`, `\n`, `\t`.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a quote ' is not closed".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some('n') => word.push('\n'),
                            Some('t') => word.push('\t'),
                            Some(c @ ('"' | '\\')) => word.push(c),
                            _ => return Err("within \"...\" write \\\" \\\\ \\n or \\t".to_owned()),
                        },
                        Some(c) => word.push(c),
                        None => return Err("a quote \" is not closed".to_owned()),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Whatever is typed or pasted, near a command or not.
        #[test]
        fn no_line_panics(
            command in proptest::sample::select(COMMANDS),
            text in r#"[ -~\PC"'\\/]{0,60}"#,
        ) {
            for line in [text.clone(), format!("/{text}"), format!("{} {text}", command.0)] {
                if let Ok(Line::Say(said)) = parse(&line) {
                    proptest::prop_assert!(said.chars().count() <= MAX_MESSAGE_CHARS);
                }
            }
            // Cut anywhere.
            let name = command.0.split(' ').next().unwrap();
            let _ = parse(&format!("{name} {text}"));
        }
    }

    #[test]
    fn plain_text_is_a_message() {
        assert_eq!(parse("  hello \"there\"  "), Ok(Line::Say("hello \"there\"".to_owned())));
        assert_eq!(parse("//usr is full"), Ok(Line::Say("/usr is full".to_owned())));
        assert_eq!(parse("   "), Ok(Line::Empty));
        assert!(parse(&"x".repeat(MAX_MESSAGE_CHARS + 1)).is_err());
    }

    #[test]
    fn every_command_of_the_list_is_understood() {
        for (usage, _) in COMMANDS {
            let line = usage.replace("VERSION|absent", "absent").replace("[PREFIX]", "prefix");
            assert!(!matches!(parse(&line), Ok(Line::Say(_)) | Err(_)), "{line}: {:?}", parse(&line));
        }
    }

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(
            parse(r#"/put 'a b' "say \"hi\"\n""#),
            Ok(Line::Put { key: "a b".to_owned(), value: "say \"hi\"\n".to_owned() })
        );
        assert_eq!(parse("/put k ''"), Ok(Line::Put { key: "k".to_owned(), value: String::new() }));
        assert!(parse("/put k 'open").is_err());
        assert!(parse(r#"/put k "\x""#).is_err());
    }

    #[test]
    fn cas_takes_a_version_or_absent() {
        let cas = |expected| Ok(Line::Cas { key: "k".to_owned(), expected, value: "v".to_owned() });
        assert_eq!(parse("/cas k 12 v"), cas(Some(12)));
        assert_eq!(parse("/cas k absent v"), cas(None));
        assert!(parse("/cas k twelve v").expect_err("no number").contains("usage: /cas KEY"));
    }

    #[test]
    fn errors_name_the_right_usage() {
        assert_eq!(parse("/put k"), Err("usage: /put KEY VALUE".to_owned()));
        assert_eq!(parse("/put k v w"), Err("usage: /put KEY VALUE".to_owned()));
        assert_eq!(parse("/members all"), Err("usage: /members".to_owned()));
        assert!(parse("/pu k v").expect_err("unknown").contains("no command `/pu`"));
        assert!(parse("/a b c d").expect_err("unknown").contains("no command `/a`"));
        assert!(parse("/").expect_err("unknown").contains("/help"));
        assert!(parse("/nick 'a b'").expect_err("no name").contains("no name"));
    }
}
