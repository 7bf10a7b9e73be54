//! `chat`: talk to everyone in a room, and use the store while talking.
//!
//! A visitor like every other command: what is said is kept in the store ([`room`]), so there is no chat server,
//! and nothing of the chat in the nodes. Three things write to the screen: what the person asked for, what others
//! say, and who joins or leaves the swarm.

mod editor;
mod line;
mod room;
mod screen;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use futures::StreamExt as _;
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

pub(super) use line::check_name;

use super::connect::{Client, Session, Target, connect};
use super::exit::Failure;
use super::inspect::{self, Place};
use super::kv::entry_line;
use super::lock;
use super::render::{Output, note, printable};
use crate::client::{Error, LockGuard};
use crate::id::{NodeId, Version};
use crate::net::Net;
use crate::wire::SwarmView;
use line::{COMMANDS, Line};
use room::{Listener, PRESENCE_EVERY, Room};
use screen::Screen;

/// Between two looks at who is in the swarm.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After the store did not answer a listener.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Most keys that `/scan` shows.
const MAX_SHOWN: usize = 100;

/// `chat`.
#[derive(Debug)]
pub(super) struct Chat {
    /// The person's name; `None`: the user's.
    pub(super) nick: Option<String>,
    /// The room.
    pub(super) room: String,
}

impl Chat {
    pub(super) async fn run(self, target: Target, output: Output) -> Result<(), Failure> {
        let nick = self.nick.unwrap_or_else(user_name);
        let from = rand::rng().random();
        let session = connect(&target).await?;
        let (mut lines, screen) = if io::stdin().is_terminal() && output.terminal {
            editor::from_terminal().map_err(|error| Failure::other(format!("the terminal: {error}")))?
        } else {
            (editor::from_pipe()?, Screen::plain())
        };
        let mut talk =
            Talk::enter(Scene { target, output, screen, room: self.room, nick, from }, session).await?;
        while let Some(line) = lines.recv().await {
            if !talk.handle(&line?).await? {
                break;
            }
        }
        talk.end().await
    }
}

/// What stays the same wherever one talks.
#[derive(Debug, Clone)]
struct Scene {
    target: Target,
    output: Output,
    screen: Screen,
    room: String,
    nick: String,
    /// Random: tells this chat from others of the same name.
    from: u64,
}

/// Talking in a room of one swarm.
struct Talk {
    scene: Scene,
    session: Session,
    room: Room<Net>,
    /// Number of the last message shown.
    shown: watch::Receiver<u64>,
    /// Number of the last message sent.
    said: u64,
    nick: watch::Sender<String>,
    /// Locks held, each with the task that tells of its loss.
    held: BTreeMap<String, (LockGuard<Net>, AbortHandle)>,
    /// Ends with this.
    tasks: JoinSet<()>,
}

impl Talk {
    /// Enters the room: shows the last messages, and from then on what is said and who comes and goes.
    async fn enter(scene: Scene, session: Session) -> Result<Self, Failure> {
        let room = Room::new(session.client.clone(), &scene.room);
        let view = session.client.view().await?;
        let mut listener = room.listen().await?;
        room.be_present(&scene.nick, scene.from).await?;
        scene.screen.line(&format!(
            "you are {} in the room {} of the swarm `{}`, {} alive; /help lists the commands",
            scene.nick,
            scene.room,
            view.name,
            inspect::alive(&view)
        ))?;
        for (_, line) in listener.take_waiting() {
            scene.screen.line(&message(&line))?;
        }

        let (shown_sender, shown) = watch::channel(0);
        let (nick, nick_receiver) = watch::channel(scene.nick.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(hear(listener, scene.screen.clone(), scene.from, shown_sender));
        tasks.spawn(look(session.client.clone(), view, scene.screen.clone()));
        tasks.spawn(stay(room.clone(), nick_receiver, scene.from));
        Ok(Self { scene, session, room, shown, said: 0, nick, held: BTreeMap::new(), tasks })
    }

    /// Does what a line says; false: the person leaves.
    async fn handle(&mut self, text: &str) -> Result<bool, Failure> {
        let line = match line::parse(text) {
            Ok(Line::Quit) => return Ok(false),
            Ok(line) => line,
            Err(sentence) => {
                self.scene.screen.line(&sentence)?;
                return Ok(true);
            }
        };
        match self.answer(line).await {
            Ok(None) => {}
            Ok(Some(answer)) => self.scene.screen.line(&answer)?,
            Err(failure) => self.scene.screen.line(&failure.message)?,
        }
        Ok(true)
    }

    async fn answer(&mut self, line: Line) -> Result<Option<String>, Failure> {
        let client = &self.session.client;
        let output = self.scene.output;
        Ok(Some(match line {
            Line::Empty | Line::Quit => return Ok(None),
            Line::Say(text) => {
                let line = room::Line { nick: self.scene.nick.clone(), text, from: self.scene.from };
                self.said = self.room.say(&line).await?;
                return Ok(None);
            }
            Line::Help => help(),
            Line::Put { key, value } => format!("version {}", client.put(key, value).await?),
            Line::Get { key } => match client.get(key.as_str()).await? {
                Some(entry) => format!("{}   (version {})", printable(&entry.value), entry.version),
                None => format!("`{key}` is not there"),
            },
            Line::Del { key } => {
                if client.delete(key.as_str()).await? {
                    "deleted".to_owned()
                } else {
                    format!("`{key}` is not there")
                }
            }
            Line::Cas { key, expected, value } => {
                let version = client.compare_and_swap(key, expected.map(Version), value).await?;
                format!("version {version}")
            }
            Line::Scan { prefix } => scan(client, prefix).await?,
            Line::Where { key } => {
                let view = client.view().await?;
                Place::of(key.as_bytes(), &view)?.text(&view)
            }
            Line::Lock { name } => self.take_lock(name).await?,
            Line::Unlock { name } => match self.held.remove(&name) {
                Some((guard, warner)) => {
                    warner.abort();
                    guard.release().await?;
                    format!("`{name}` is free")
                }
                None => format!("you do not hold `{name}`"),
            },
            Line::Locks => locks(client).await?,
            Line::Members => inspect::members_text(&client.view().await?, output),
            Line::Ring => inspect::ring_text(&client.view().await?, output),
            Line::Who => self.room.who().await?.join(", "),
            Line::Nick { nick } => {
                self.scene.nick.clone_from(&nick);
                self.nick.send_replace(nick.clone());
                self.room.be_present(&nick, self.scene.from).await?;
                format!("you are {nick}")
            }
            Line::Join { address } => {
                self.join(address).await?;
                return Ok(None);
            }
        }))
    }

    /// Takes a lock, and tells when it is lost.
    async fn take_lock(&mut self, name: String) -> Result<String, Failure> {
        if let Some((guard, _)) = self.held.get(&name)
            && guard.is_held()
        {
            return Ok(format!("you hold `{name}` already (token {})", guard.token()));
        }
        let lock = self.session.client.lock(name.as_str()).note(self.scene.nick.as_str());
        let guard = lock.wait(self.scene.target.timeout).acquire().await?;
        let (lost, screen) = (guard.lost(), self.scene.screen.clone());
        let line = format!("you have lost the lock `{name}`");
        let warner = self.tasks.spawn(async move {
            lost.await;
            // A screen that is gone needs no news.
            let _ = screen.line(&line);
        });
        let answer = format!("you hold `{name}` (token {})", guard.token());
        self.held.insert(name, (guard, warner));
        Ok(answer)
    }

    /// Goes on talking through another node; stays where it is if that does not answer.
    async fn join(&mut self, address: String) -> Result<(), Failure> {
        let mut scene = self.scene.clone();
        scene.target.join = vec![address];
        let session = connect(&scene.target).await?;
        let there = Self::enter(scene, session).await?;
        let before = std::mem::replace(self, there);
        drop(before);
        Ok(())
    }

    /// Shows what is still on its way, and leaves the room.
    async fn end(mut self) -> Result<(), Failure> {
        let said = self.said;
        if !self.scene.screen.is_typed_at() {
            let all_shown = self.shown.wait_for(|shown| *shown >= said);
            if tokio::time::timeout(self.scene.target.timeout, all_shown).await.is_err() {
                note("roundtable: what was said last was written, but not heard back in time");
            }
        }
        for (guard, warner) in std::mem::take(&mut self.held).into_values() {
            warner.abort();
            // If nobody answers, the lease ends by itself.
            drop(guard.release().await);
        }
        // If nobody answers, presence expires by itself.
        let _ = self.room.be_gone(self.scene.from).await;
        Ok(())
    }
}

/// Shows what is said. One's own messages stand on the screen already when they were typed there.
async fn hear(mut listener: Listener<Net>, screen: Screen, from: u64, shown: watch::Sender<u64>) {
    loop {
        match listener.next().await {
            Ok((number, line)) => {
                let typed_here = screen.is_typed_at() && line.from == from;
                if !typed_here && screen.line(&message(&line)).is_err() {
                    return;
                }
                shown.send_replace(number);
            }
            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }
}

/// Shows who joins and leaves the swarm.
async fn look(client: Client, mut before: SwarmView, screen: Screen) {
    let mut answered = true;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let lines = match client.view().await {
            Ok(now) => {
                let mut lines = changes(&before, &now);
                if !answered {
                    lines.insert(0, "the swarm answers again".to_owned());
                }
                answered = true;
                before = now;
                lines
            }
            Err(error) if answered => {
                answered = false;
                vec![format!("the swarm does not answer: {error}")]
            }
            Err(_) => Vec::new(),
        };
        for line in lines {
            if screen.line(&line).is_err() {
                return;
            }
        }
    }
}

/// Keeps the person in the list of those who are in the room.
async fn stay(room: Room<Net>, nick: watch::Receiver<String>, from: u64) {
    let mut ticks = tokio::time::interval(PRESENCE_EVERY);
    loop {
        ticks.tick().await;
        let nick = nick.borrow().clone();
        // Said again in a moment.
        let _ = room.be_present(&nick, from).await;
    }
}

async fn scan(client: &Client, prefix: String) -> Result<String, Error> {
    let mut entries = client.scan(prefix).take(MAX_SHOWN + 1);
    let mut lines = Vec::new();
    while let Some(entry) = entries.next().await {
        let (key, entry) = entry?;
        lines.push(entry_line(&key, &entry));
    }
    if lines.len() > MAX_SHOWN {
        lines.truncate(MAX_SHOWN);
        lines.push("... and more; `roundtable scan` lists all".to_owned());
    }
    if lines.is_empty() {
        lines.push("no keys".to_owned());
    }
    Ok(lines.join("\n"))
}

async fn locks(client: &Client) -> Result<String, Error> {
    let mut locks = std::pin::pin!(client.locks().take(MAX_SHOWN));
    let mut lines = Vec::new();
    while let Some(lock) = locks.next().await {
        let (name, lock) = lock?;
        lines.push(lock::text(&name, &lock));
    }
    if lines.is_empty() {
        lines.push("no locks".to_owned());
    }
    Ok(lines.join("\n"))
}

/// A message as one printable line.
fn message(line: &room::Line) -> String {
    format!("{}: {}", printable(line.nick.as_bytes()), printable(line.text.as_bytes()))
}

fn help() -> String {
    let commands = COMMANDS.iter().map(|(usage, what)| format!("{usage:<32}{what}"));
    let mut lines: Vec<String> = commands.collect();
    lines.push(
        "Anything else is a message to the room. Quote words with spaces: /put 'a key' \"a value\""
            .to_owned(),
    );
    lines.join("\n")
}

/// A line for each member whose standing changed between two views.
fn changes(before: &SwarmView, now: &SwarmView) -> Vec<String> {
    let standings = |view: &SwarmView| -> BTreeMap<NodeId, &'static str> {
        view.members.iter().map(|member| (member.node, inspect::standing(member))).collect()
    };
    let (old, new) = (standings(before), standings(now));
    let alive = inspect::alive(now);
    let changed = new.iter().filter(|(node, standing)| {
        let was = old.get(node).copied();
        // Who was away and is still away is no news, and neither is one suspicion.
        was != Some(**standing) && !(was.is_none() && matches!(**standing, "dead" | "left"))
    });
    let mut lines: Vec<String> = changed
        .map(|(node, standing)| {
            let sign = match *standing {
                "alive" => '+',
                "suspect" => '?',
                "leaving" => '~',
                _ => '-',
            };
            let words = if *standing == "alive" { String::new() } else { format!(" {standing}") };
            format!("members: {alive} alive ({sign} {}{words})", inspect::name(*node))
        })
        .collect();
    let gone = old
        .iter()
        .filter(|(node, standing)| !new.contains_key(node) && !matches!(**standing, "dead" | "left"));
    lines.extend(gone.map(|(node, _)| format!("members: {alive} alive (- {})", inspect::name(*node))));
    lines
}

/// The user's name at this machine, as far as it is one here.
fn user_name() -> String {
    let name = std::env::var("USER").or_else(|_| std::env::var("USERNAME")).unwrap_or_default();
    check_name(&name).unwrap_or_else(|_| "guest".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SwarmId;
    use crate::membership::MemberState;
    use crate::wire::MemberView;

    fn view(members: &[(u8, MemberState)]) -> SwarmView {
        let member = |&(number, state): &(u8, MemberState)| MemberView {
            node: NodeId::from_public_key([number; 32]),
            addresses: Vec::new(),
            weight: 1,
            state,
            since_ms: Some(1_000),
            draining: false,
            on_ring: true,
        };
        SwarmView {
            swarm: SwarmId(1),
            name: "default".to_owned(),
            partitions: 1,
            node: NodeId::from_public_key([1; 32]),
            members: members.iter().map(member).collect(),
            leaders: Vec::new(),
        }
    }

    #[test]
    fn changes_of_membership_are_told_once_each() {
        use MemberState::{Alive, Dead, Left, Suspect};
        let one = view(&[(1, Alive)]);
        let two = view(&[(1, Alive), (2, Alive)]);
        let short = inspect::name(NodeId::from_public_key([2; 32]));
        assert_eq!(changes(&one, &two), [format!("members: 2 alive (+ {short})")]);
        assert!(changes(&two, &two).is_empty());
        let suspect = view(&[(1, Alive), (2, Suspect)]);
        assert_eq!(changes(&two, &suspect), [format!("members: 2 alive (? {short} suspect)")]);
        let dead = view(&[(1, Alive), (2, Dead)]);
        assert_eq!(changes(&suspect, &dead), [format!("members: 1 alive (- {short} dead)")]);
        assert!(changes(&dead, &one).is_empty());
        assert!(changes(&one, &view(&[(1, Alive), (2, Left)])).is_empty());
        assert_eq!(changes(&two, &one), [format!("members: 1 alive (- {short})")]);
    }

    #[test]
    fn what_others_say_cannot_move_the_cursor() {
        let line = room::Line { nick: "eve\x1b[2J".to_owned(), text: "a\nb".to_owned(), from: 0 };
        assert_eq!(message(&line), "eve\\u{1b}[2J: a\\nb");
    }

    #[test]
    fn help_names_every_command() {
        for (usage, _) in COMMANDS {
            assert!(help().contains(usage));
        }
    }
}
