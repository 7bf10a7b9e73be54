//! What people type: the only place that knows clap. Everything behind it takes typed arguments.
//!
//! Flag over environment over default. A mistake ends with exit code 2 and one line that shows the right form.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{FalseyValueParser, OsStringValueParser, TypedValueParser as _};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use super::chat::Chat;
use super::connect::Target;
use super::kv::{Expectation, Source};
use super::render::Format;
use super::units::{parse_bytes, parse_duration, parse_positive_duration};
use super::up::Up;
use super::{Command, Invocation, backup, bench, data, inspect, kv, leave, lock, recover, run, sort};
use crate::compute::{Limits, ProgramName};
use crate::dataset::Format as Records;
use crate::id::FencingToken;
use crate::node::{MIN_JOB_MEMORY, Reach};
use crate::sort::{Key as SortKey, Order};
use crate::state_machine::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

const EXAMPLES: &str = "\
Examples:
  roundtable up                          a node on this machine; in three terminals: three nodes
  roundtable up --lan                    a node for the network; prints the line to join by
  roundtable put greeting hello          through any node of this machine
  roundtable get greeting --join rt1...  through a node elsewhere, by its ticket
  roundtable lock nightly -- ./backup    run a command while no other machine does
  roundtable chat ada                    talk, and use the store while talking

Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 not found, 4 conflict, 5 no quorum,
6 no node or swarm could be reached, 7 unknown (may have been applied), 8 lock not acquired,
9 lock lost while its command ran.

A secret itself may be given in ROUNDTABLE_SECRET.
ROUNDTABLE_LOG=info (or RUST_LOG) shows what happens inside; NO_COLOR turns colours off.";

/// Most threads that a process may be told to use.
const MAX_THREADS: i64 = 1024;

/// Processes that find each other, share one ring, and keep keys on it that a crash does not lose.
#[derive(Debug, Parser)]
#[command(name = "roundtable", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options for every command")]
struct Global {
    /// A node to speak to or to join: an address (192.168.1.7:7400) or a ticket (rt1...); repeatable
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "ROUNDTABLE_JOIN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    join: Vec<String>,

    /// The swarm's name
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "ROUNDTABLE_SWARM",
        hide_env_values = true,
        default_value = "default",
        hide_default_value = true
    )]
    swarm: String,

    /// A file that holds the swarm's secret
    #[arg(long, global = true, value_name = "FILE", env = "ROUNDTABLE_SECRET_FILE", hide_env_values = true)]
    secret_file: Option<PathBuf>,

    /// Do not look for nodes by multicast DNS
    #[arg(long, global = true, env = "ROUNDTABLE_NO_MDNS", hide_env_values = true, value_parser = FalseyValueParser::new())]
    no_mdns: bool,

    /// Where the nodes of this machine leave their addresses, if not in the user's runtime directory
    #[arg(long, global = true, value_name = "DIR", env = "ROUNDTABLE_RUNTIME_DIR", hide_env_values = true)]
    runtime_dir: Option<PathBuf>,

    /// How answers are written
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "ROUNDTABLE_FORMAT",
        hide_env_values = true,
        value_enum,
        default_value_t
    )]
    format: FormatName,

    /// How long an operation may take, for example 500ms or 5s
    #[arg(long, global = true, value_name = "TIME", env = "ROUNDTABLE_TIMEOUT", hide_env_values = true, value_parser = parse_positive_duration, default_value = "5s")]
    timeout: Duration,

    /// Threads of this process; by default one for every two processors
    #[arg(long, global = true, value_name = "N", env = "ROUNDTABLE_THREADS", hide_env_values = true, value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum FormatName {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Run a node
    Up(UpArgs),

    /// Set a key
    #[command(
        after_help = "Examples:\n  roundtable put greeting hello\n  roundtable put session abc --ttl 30m\n  roundtable put picture - < picture.png\n  roundtable lock report -- sh -c 'roundtable put report done --token \"$ROUNDTABLE_LOCK_TOKEN\"'\n\nExit code 4 if --token is lower than one that the key was written with; nothing is written then."
    )]
    Put {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        value: Value,
        /// Remove the key after this time
        #[arg(long, value_name = "TIME", value_parser = parse_positive_duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        token: Token,
    },

    /// Write a key's value to standard output
    #[command(
        after_help = "The value's bytes are written as they are; a line end follows only on a terminal.\nWith --format json: value, its encoding (utf8 or base64), version and time to live.\nExit code 3 if the key is not there."
    )]
    Get {
        #[command(flatten)]
        key: Key,
        /// Let any replica answer from what it has, also without a quorum; may be old
        #[arg(long)]
        stale: bool,
    },

    /// Remove a key
    #[command(
        after_help = "Exit code 3 if the key was not there; 4 if --token is lower than one that it was written with."
    )]
    Del {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        token: Token,
    },

    /// Set a key only if it is at a known version, or absent
    #[command(
        after_help = "Examples:\n  roundtable cas leader node-7 --absent\n  roundtable cas leader node-8 --version 12\n\nExit code 4 if the key is at another version; nothing is written then."
    )]
    Cas {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        value: Value,
        /// The version that the key must be at (put, get and scan show it)
        #[arg(long, value_name = "N", required_unless_present = "absent", conflicts_with = "absent")]
        version: Option<u64>,
        /// The key must not exist
        #[arg(long)]
        absent: bool,
        /// Remove the key after this time
        #[arg(long, value_name = "TIME", value_parser = parse_positive_duration)]
        ttl: Option<Duration>,
    },

    /// Add to a counter and print it
    #[command(
        after_help = "Examples:\n  roundtable incr visits\n  roundtable incr stock -5\n\nA key that does not exist counts as 0. A retry after a lost answer does not count twice."
    )]
    Incr {
        #[command(flatten)]
        key: Key,
        /// How much to add; may be negative
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },

    /// Change when a key is removed by itself
    #[command(after_help = "Examples:\n  roundtable expire session 30m\n  roundtable expire session never")]
    Expire {
        #[command(flatten)]
        key: Key,
        /// From now on, for example 30m; or `never`
        #[arg(value_name = "TIME", value_parser = parse_ttl)]
        ttl: Ttl,
    },

    /// List keys
    #[command(
        after_help = "Each line is key, version and value, separated by tabs; bytes that cannot be printed are escaped.\nKeys come in the order of their bytes. Not a snapshot: a key written meanwhile may or may not be seen."
    )]
    Scan {
        /// Only keys that begin with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: OsString,
        /// At most so many
        #[arg(long, value_name = "N")]
        limit: Option<NonZeroUsize>,
        /// Let any replica answer from what it has; may be old
        #[arg(long)]
        stale: bool,
    },

    /// Print a key's value each time that it changes
    #[command(
        after_help = "Prints the present value first. Changes that follow each other quickly may be seen as\none; a removal alone is not shown.\nEnds with Ctrl-C, or after --count."
    )]
    Watch {
        #[command(flatten)]
        key: Key,
        /// End after so many lines
        #[arg(long, value_name = "N")]
        count: Option<NonZeroUsize>,
    },

    /// Show who is in the swarm
    Members,

    /// Show who holds how much of the key space
    Ring,

    /// Show where a key is, and the way that a request takes
    Where {
        #[command(flatten)]
        key: Key,
    },

    /// Show how a node is
    #[command(
        after_help = "Exit code 0 if the node serves, 5 if a replica of it has no quorum, 6 if it has no swarm or does not answer."
    )]
    Status {
        /// Which node: its id, or the end of it
        #[arg(env = "ROUNDTABLE_NODE", hide_env_values = true)]
        node: Option<String>,
    },

    /// Print the string that lets another machine join (it holds the secret)
    Ticket,

    /// Let a node hand over everything it holds, and end
    #[command(
        after_help = "Without NODE: the one node of this machine. Ctrl-C in its terminal does the same; if it has a\n--data-dir, Ctrl-C does what --restart does. Ends when the node is gone."
    )]
    Leave {
        /// Which node: its id, or the end of it
        node: Option<String>,
        /// Only hand over what it leads, and end: it comes back with what is in its --data-dir
        #[arg(long)]
        restart: bool,
    },

    /// Let partitions whose majority is gone for good go on with what is left of them
    #[command(
        after_help = "Examples:\n  roundtable recover            what is left, what may be lost; changes nothing\n  roundtable recover --force    go on with what is left\n\nFirst try to bring the missing members back: with a majority of its voters a partition goes on by\nitself and nothing is lost. Exit code 0: nothing to recover, or all of it was; 5: there are\npartitions without a quorum."
    )]
    Recover {
        /// Only these (repeatable)
        #[arg(long = "partition", value_name = "N", value_delimiter = ',')]
        partitions: Vec<u32>,
        /// Do it; what never reached the copies that are left is lost, and this cannot be undone
        #[arg(long)]
        force: bool,
        /// Also begin partitions with nothing, of which no copy is left
        #[arg(long)]
        abandon_lost: bool,
    },

    /// Write everything that the swarm holds to a file
    #[command(
        after_help = "Examples:\n  roundtable backup monday.rtb\n  roundtable backup - | ssh elsewhere 'cat > monday.rtb'\n\nKeys, what is left of their time to live, and the tokens that keys were written with; no locks.\nEach partition is as it was at one moment, so whatever was acknowledged before is in the file. It\nis written as FILE.partial and renamed when it is whole and on the disk. --timeout is for each step."
    )]
    Backup {
        /// Where to write; `-`: standard output
        file: PathBuf,
    },

    /// Put a backup back into an empty swarm
    #[command(
        after_help = "The whole file is verified before anything is changed, and a swarm that holds anything is refused\n(exit code 4). The number of partitions may be another one. Versions and fencing tokens go on far\nabove those of the backup. If it is interrupted, give the same file again: it goes on where it\nstopped, and what was written meanwhile stays. --timeout is for each step."
    )]
    Restore {
        /// What `backup` wrote
        file: PathBuf,
    },

    /// Keep data that is larger than any value: write, read, list and remove datasets
    #[command(subcommand)]
    Data(DataSub),

    /// Sort a dataset or a file, on all members at once
    #[command(
        after_help = "Examples:\n  roundtable sort words --output sorted-words\n  roundtable sort big.txt --output sorted.txt\n  roundtable sort people.csv --as csv --by 3 --numeric\n\nINPUT is a dataset if there is one of that name, otherwise a file; `-` is standard input. The output\nis what the input is, a dataset or a file; a path with a slash is always a file. The order is that of\n`sort` in the C locale. It is checked before it is there: the same records, in order."
    )]
    Sort(SortArgs),

    /// Run a program over a dataset, a file or keys, on all members at once
    #[command(
        after_help = "Examples:\n  roundtable run word-count --input text --output counts\n  roundtable run top --arg 10 --arg 2 --input counts     the ten most frequent words\n  roundtable run grep --arg error --input log.txt\n  roundtable run frequency --arg 2 --keys user/          by the second field of key, tab, value\n  roundtable run ./job.wasm --input text --output counts\n\nReady-made programs: count; word-count; frequency [FIELD]; top N [FIELD]; distinct; grep TEXT. Others\nare registered by the process that embeds the node (NodeBuilder::program), or shipped: a WebAssembly\ncomponent, which is put into the swarm as a dataset named .program/ and its hash. It can do nothing but\nread its input and make its output, within the limits of a task.\n\nINPUT is a dataset if there is one of that name, otherwise a file; `-` is standard input. The output\nis what the input is, a dataset or a file; a path with a slash is always a file. It is checked before it\nis there: all records were read, and each pair that was made was used once. Exit code 3: no input of\nthat name, or no member with that program."
    )]
    Run(JobArgs),

    /// Run a command while holding a lock
    #[command(
        after_help = "Examples:\n  roundtable lock nightly -- ./backup.sh\n  roundtable lock pool -n 3 --wait 1m -- ./crunch\n  roundtable lock --list\n\nThe command finds the lock's name in ROUNDTABLE_LOCK_NAME and the fencing token in\nROUNDTABLE_LOCK_TOKEN. Its exit code is passed on. Exit code 8: not acquired, the command\nwas not run. Exit code 9: the lock was lost; the command and all its children were told to end\n(SIGTERM), and were ended (SIGKILL) after the grace time."
    )]
    Lock {
        /// The lock's name
        #[arg(value_name = "NAME", required_unless_present = "list", value_parser = OsStringValueParser::new().try_map(parse_key))]
        name: Option<Bytes>,
        /// Show who holds the lock, or all locks, and who waits
        #[arg(long, conflicts_with_all = ["command", "wait", "permits"])]
        list: bool,
        /// So many may hold it at the same time
        #[arg(short = 'n', long, value_name = "N")]
        permits: Option<NonZeroU32>,
        #[command(flatten)]
        run: RunArgs,
    },

    /// Run a command while being the one who leads
    #[command(
        after_help = "Example:\n  roundtable elect scheduler -- ./scheduler\n\nWaits until it is its turn, and runs the command: the others stand by. As `lock` in all else."
    )]
    Elect {
        /// The election's name
        #[arg(value_name = "NAME", value_parser = OsStringValueParser::new().try_map(parse_key))]
        name: Bytes,
        #[command(flatten)]
        run: RunArgs,
    },

    /// Measure how fast the swarm is from here
    #[command(
        after_help = "Examples:\n  roundtable bench\n  roundtable bench --op get --clients 64 --seconds 30\n  roundtable bench --op lock --clients 16            no two want the same lock\n  roundtable bench --op lock --clients 16 --keys 1   all want the same lock\n  roundtable bench --op mixed --pipeline 16 --format json > result.json\n\nUses keys that begin with bench/ and removes them afterwards unless --keep."
    )]
    Bench(BenchArgs),

    /// Talk to everyone in a room, and use the store while talking
    #[command(
        after_help = "Plain text is a message to the room; /help lists the commands. From a pipe, each line is one entry:\n  printf 'hello\\n/put greeting hello\\n' | roundtable chat bot"
    )]
    Chat {
        /// Your name
        #[arg(value_name = "NICK", env = "ROUNDTABLE_NICK", hide_env_values = true, value_parser = super::chat::check_name)]
        nick: Option<String>,
        /// The room
        #[arg(long, default_value = "lobby", value_parser = super::chat::check_name)]
        room: String,
    },

    /// Print the version of the program and of its protocol
    Version,
}

#[derive(Debug, Subcommand)]
enum DataSub {
    /// Write a dataset
    #[command(
        after_help = "Examples:\n  roundtable data put words words.txt\n  zcat log.gz | roundtable data put log -\n  roundtable data put people people.csv --as csv\n\nIt is cut into blocks of whole records, at most 1 MiB each, and each block is kept by up to three\nmembers. The dataset is there when all of it is, and never changes. Exit code 4 if there is one of\nthat name."
    )]
    Put {
        #[command(flatten)]
        name: DatasetName,
        /// What to write; `-` reads standard input
        file: PathBuf,
        /// What its records are: lines, records (each behind its length, 32 bits little endian), or csv (a line end
        /// within double quotes does not end a record)
        #[arg(long = "as", value_name = "RECORDS", default_value = "lines")]
        records: Records,
    },
    /// Read a dataset
    #[command(after_help = "Byte for byte what was written. Exit code 3 if there is none of that name.")]
    Get {
        #[command(flatten)]
        name: DatasetName,
        /// Where to; standard output unless given
        #[arg(default_value = "-", hide_default_value = true)]
        file: PathBuf,
    },
    /// List the datasets
    List,
    /// Remove a dataset
    #[command(after_help = "Exit code 3 if there is none of that name.")]
    Rm {
        #[command(flatten)]
        name: DatasetName,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct SortArgs {
    /// A dataset, a file, or `-`
    #[arg(value_name = "INPUT")]
    input: OsString,
    /// A dataset or a file; standard output unless given
    #[arg(long, short, value_name = "OUTPUT")]
    output: Option<OsString>,
    /// What to compare: a field (2), fields (2-3), or bytes (bytes:1-10), counted from 1; the whole record unless
    /// given
    #[arg(long, value_name = "KEY")]
    by: Option<SortKey>,
    /// Compare numbers
    #[arg(long, short)]
    numeric: bool,
    /// The other way round
    #[arg(long, short)]
    reverse: bool,
    /// Of records with equal keys only the first
    #[arg(long, short)]
    unique: bool,
    /// Leave records with equal keys in the order of the input
    #[arg(long, short)]
    stable: bool,
    /// What the records of a file are: lines, records or csv
    #[arg(long = "as", value_name = "RECORDS", default_value = "lines")]
    records: Records,
}

fn sort_command(args: SortArgs) -> Command {
    let SortArgs { input, output, by, numeric, reverse, unique, stable, records } = args;
    let order = Order { key: by.unwrap_or_default(), numeric, reverse, unique, stable };
    Command::Sort(sort::Sort { input, output, order, records })
}

#[derive(Debug, Args)]
struct JobArgs {
    /// Its name, or name@version; or a file of shipped code: FILE.wasm, or a path with a slash
    #[arg(value_name = "PROGRAM", value_parser = parse_program)]
    program: run::RunProgram,
    /// A dataset, a file, or `-`
    #[arg(long, short, value_name = "INPUT", required_unless_present = "keys")]
    input: Option<OsString>,
    /// Instead of a dataset: all keys that begin so; a record is the key, a tab, and the value
    #[arg(long, value_name = "PREFIX", conflicts_with = "input")]
    keys: Option<OsString>,
    /// A dataset or a file; standard output unless given
    #[arg(long, short, value_name = "OUTPUT")]
    output: Option<OsString>,
    /// An argument for the program (repeatable)
    #[arg(long = "arg", value_name = "TEXT", allow_hyphen_values = true)]
    arguments: Vec<OsString>,
    /// What the records of a file are: lines, records or csv
    #[arg(long = "as", value_name = "RECORDS", default_value = "lines")]
    records: Records,
    /// What the records of the output are; unless given, as those of the input, and lines for keys
    #[arg(long, value_name = "RECORDS")]
    output_as: Option<Records>,
    /// How long one task may take; at most 10m
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration, default_value = "120s")]
    task_time: Duration,
    /// How much memory shipped code may have in one task; at most 1GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "256MiB")]
    task_memory: u64,
    /// How much shipped code may do in one task: about so many instructions
    #[arg(long, value_name = "FUEL", default_value_t = Limits::default().fuel)]
    task_fuel: u64,
    /// How many bytes one task may make
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "2GiB")]
    task_output: u64,
}

fn parse_program(text: &str) -> Result<run::RunProgram, String> {
    let is_file = text.contains('/') || Path::new(text).extension().is_some_and(|ending| ending == "wasm");
    if is_file {
        return Ok(run::RunProgram::File(text.into()));
    }
    let name = text.parse::<ProgramName>().map_err(|error| error.to_string())?;
    Ok(run::RunProgram::Named(name.to_string()))
}

fn run_command(args: JobArgs) -> Command {
    let JobArgs { program, input, keys, output, arguments, records, output_as, .. } = args;
    let input = match keys {
        Some(prefix) => run::RunInput::Keys(prefix.into_encoded_bytes()),
        None => run::RunInput::Data(input.unwrap_or_default()),
    };
    let limits = Limits {
        fuel: args.task_fuel,
        memory_bytes: args.task_memory,
        time_ms: u64::try_from(args.task_time.as_millis()).unwrap_or(u64::MAX),
        output_bytes: args.task_output,
    };
    Command::Run(run::Run { program, arguments, input, output, records, output_records: output_as, limits })
}

#[derive(Debug, Args)]
struct DatasetName {
    /// The dataset's name: 1 byte to 4 KiB
    #[arg(value_name = "NAME", value_parser = OsStringValueParser::new().try_map(parse_key))]
    name: Bytes,
}

fn data_command(sub: DataSub) -> Command {
    match sub {
        DataSub::Put { name, file, records } => {
            Command::DataPut(data::Put { name: name.name.0, file, records })
        }
        DataSub::Get { name, file } => Command::DataGet(data::Get { name: name.name.0, file }),
        DataSub::List => Command::DataList,
        DataSub::Rm { name } => Command::DataRemove(data::Remove { name: name.name.0 }),
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Give up when it is not acquired after this time; 0s: do not wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// How long it stays taken when this process falls silent; 100ms to 1h
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration, default_value = "10s")]
    lease: Duration,
    /// Between SIGTERM and SIGKILL when the lock is lost; unless given, a twentieth of the lease
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// What others see of the holder, instead of the command and its process id
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Key {
    /// The key: 1 byte to 4 KiB
    #[arg(value_name = "KEY", value_parser = OsStringValueParser::new().try_map(parse_key))]
    key: Bytes,
}

#[derive(Debug, Args)]
struct Value {
    /// The value, up to 1 MiB; `-` reads it from standard input
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: OsString,
}

#[derive(Debug, Args)]
struct Token {
    /// Only if the key was never written with a higher fencing token: that of the lock under which this is done
    /// (which a command finds in its environment, see `lock`)
    // Never taken from the environment by itself: whether a write is fenced is for whoever types it to say.
    #[arg(long, value_name = "N")]
    token: Option<u64>,
}

impl Token {
    fn given(&self) -> Option<FencingToken> {
        self.token.map(FencingToken)
    }
}

/// Bytes as they were typed; a type of its own, because clap gives `Vec` another meaning.
#[derive(Debug, Clone)]
struct Bytes(Vec<u8>);

fn parse_key(text: OsString) -> Result<Bytes, String> {
    match text.into_encoded_bytes() {
        bytes if bytes.is_empty() => Err("a key has at least one byte".to_owned()),
        bytes if bytes.len() > MAX_KEY_BYTES => Err(format!("a key has at most {MAX_KEY_BYTES} bytes")),
        bytes => Ok(Bytes(bytes)),
    }
}

/// How long a key stays; a type of its own, because clap gives `Option` another meaning.
#[derive(Debug, Clone, Copy)]
struct Ttl(Option<Duration>);

fn parse_ttl(text: &str) -> Result<Ttl, String> {
    if text == "never" {
        return Ok(Ttl(None));
    }
    parse_positive_duration(text).map(|duration| Ttl(Some(duration)))
}

#[derive(Debug, Args)]
#[command(after_help = "\
Where it listens decides who can come:
  roundtable up                   only processes of this user on this machine
  roundtable up --lan             who has the secret: it is drawn, and the line to paste printed
  roundtable up --join rt1...     joins by that line from another machine
  roundtable up --lan --open      everyone who reaches this machine. No secret!

Ctrl-C leaves: what the node holds is handed over first. A second one ends it at once (exit 130).
With --data-dir it only stops: others take over what it leads, and it comes back when it is started
again with the same directory. To leave for good: `roundtable leave`.")]
struct UpArgs {
    /// Listen on all interfaces, and be found by multicast DNS
    #[arg(long, env = "ROUNDTABLE_LAN", hide_env_values = true, value_parser = FalseyValueParser::new())]
    lan: bool,
    /// No secret: whoever reaches this machine may join, read and write
    #[arg(long, env = "ROUNDTABLE_OPEN", hide_env_values = true, value_parser = FalseyValueParser::new())]
    open: bool,
    /// Listen exactly here (repeatable), for example /ip4/10.0.0.5/tcp/7400
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ROUNDTABLE_LISTEN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    listen: Vec<String>,
    /// Listen on this port instead of the first free one
    #[arg(long, value_name = "PORT", env = "ROUNDTABLE_PORT", hide_env_values = true)]
    port: Option<u16>,
    /// Into how many partitions a new swarm's keys are cut: 32 unless more than ten members are expected; fixed when it
    /// is founded
    #[arg(long, value_name = "N", env = "ROUNDTABLE_PARTITIONS", hide_env_values = true)]
    partitions: Option<NonZeroU32>,
    /// Keep everything in this directory, and come back from a restart or a crash as the same node
    #[arg(long, value_name = "DIR", env = "ROUNDTABLE_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// After how long a crashed member's replicas are made anew elsewhere
    #[arg(long, value_name = "TIME", env = "ROUNDTABLE_REPLACE_AFTER", hide_env_values = true, value_parser = parse_duration)]
    replace_after: Option<Duration>,
    /// How many bytes of datasets this node keeps at most, for example 20GiB; unless given, 16 GiB
    #[arg(long, value_name = "SIZE", env = "ROUNDTABLE_DATA_LIMIT", hide_env_values = true, value_parser = parse_bytes)]
    data_limit: Option<u64>,
    /// How much memory jobs and sorts take at most on this node, all together, for example 512MiB; at least 128 MiB;
    /// unless given, 1 GiB
    #[arg(long, value_name = "SIZE", env = "ROUNDTABLE_JOB_MEMORY", hide_env_values = true, value_parser = parse_job_memory)]
    job_memory: Option<u64>,
    /// How much this node takes, relative to others
    #[arg(long, value_name = "N", env = "ROUNDTABLE_WEIGHT", hide_env_values = true)]
    weight: Option<NonZeroU32>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// What to do
    #[arg(long, value_enum, default_value_t)]
    op: OperationName,
    /// Clients at work at the same time
    #[arg(long, value_name = "N", default_value = "64")]
    clients: NonZeroUsize,
    /// Operations that each client has under way
    #[arg(long, value_name = "N", default_value = "1")]
    pipeline: NonZeroUsize,
    /// Different keys, chosen at random; locks are shared out among the clients, each takes its own in turn
    #[arg(long, value_name = "N", default_value = "10000")]
    keys: NonZeroUsize,
    /// Size of a value, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    value_size: usize,
    /// How long
    #[arg(long, value_name = "S", default_value = "10")]
    seconds: NonZeroU32,
    /// Separate connections to the swarm
    #[arg(long, value_name = "N", default_value = "1")]
    connections: NonZeroUsize,
    /// Let any replica answer a get; may be old
    #[arg(long)]
    stale: bool,
    /// Leave the keys in the store
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OperationName {
    /// Write
    #[default]
    Put,
    /// Read; the keys are written before the clock starts
    Get,
    /// Half of each
    Mixed,
    /// Take and release locks: each client its own as far as --keys goes; --keys 1: one for all
    Lock,
}

/// Understands the command line.
///
/// # Errors
/// What to print instead (help, version, or what is wrong), and where to.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, Rejected> {
    let cli = Cli::try_parse_from(args).map_err(|error| Rejected(Box::new(error)))?;
    let global = cli.global;
    let target = Target {
        swarm: global.swarm,
        secret_file: global.secret_file,
        join: global.join.into_iter().filter(|address| !address.is_empty()).collect(),
        mdns: !global.no_mdns,
        runtime_dir: global.runtime_dir,
        timeout: global.timeout,
    };
    let format = match global.format {
        FormatName::Text => Format::Text,
        FormatName::Json => Format::Json,
    };
    let command = command(cli.command).map_err(|sentence| {
        let error = Cli::command().error(clap::error::ErrorKind::ArgumentConflict, sentence);
        Rejected(Box::new(error))
    })?;
    Ok(Invocation { target, format, threads: global.threads.map(usize::from), command })
}

fn command(sub: Sub) -> Result<Command, String> {
    Ok(match sub {
        Sub::Up(args) => Command::Up(up(args)?),
        Sub::Put { key, value, ttl, token } => {
            Command::Put(kv::Put { key: key.key.0, value: source(value), ttl, token: token.given() })
        }
        Sub::Get { key, stale } => Command::Get(kv::Get { key: key.key.0, stale }),
        Sub::Del { key, token } => Command::Del(kv::Del { key: key.key.0, token: token.given() }),
        Sub::Cas { key, value, version, absent: _, ttl } => Command::Cas(kv::Cas {
            key: key.key.0,
            value: source(value),
            expected: version.map_or(Expectation::Absent, Expectation::Version),
            ttl,
        }),
        Sub::Incr { key, by } => Command::Incr(kv::Incr { key: key.key.0, by }),
        Sub::Expire { key, ttl } => Command::Expire(kv::Expire { key: key.key.0, ttl: ttl.0 }),
        Sub::Scan { prefix, limit, stale } => {
            Command::Scan(kv::Scan { prefix: prefix.into_encoded_bytes(), limit, stale })
        }
        Sub::Watch { key, count } => Command::Watch(kv::Watch { key: key.key.0, count }),
        Sub::Members => Command::Members,
        Sub::Ring => Command::Ring,
        Sub::Where { key } => Command::Where(inspect::Where { key: key.key.0 }),
        Sub::Status { node } => Command::Status(inspect::Status { node }),
        Sub::Ticket => Command::Ticket,
        Sub::Leave { node, restart } => Command::Leave(leave::Leave { node, restart }),
        Sub::Recover { partitions, force, abandon_lost } => {
            Command::Recover(recover::Recover { partitions, force, abandon_lost })
        }
        Sub::Lock { name, list: true, .. } => Command::Locks(lock::List { name: name.map(|name| name.0) }),
        Sub::Lock { name, permits, run, .. } => {
            let name = name.map(|name| name.0).unwrap_or_default();
            Command::Lock(locked(name, permits.map_or(lock::Kind::Lock, lock::Kind::Semaphore), run)?)
        }
        Sub::Elect { name, run } => Command::Lock(locked(name.0, lock::Kind::Election, run)?),
        Sub::Backup { file } => Command::Backup(backup::Backup { file }),
        Sub::Data(sub) => data_command(sub),
        Sub::Sort(args) => sort_command(args),
        Sub::Run(args) => run_command(args),
        Sub::Restore { file } => Command::Restore(backup::Restore { file }),
        Sub::Bench(args) => Command::Bench(bench_plan(&args)?),
        Sub::Chat { nick, room } => Command::Chat(Chat { nick, room }),
        Sub::Version => Command::Version,
    })
}

fn source(value: Value) -> Source {
    if value.value == "-" { Source::Stdin } else { Source::Given(value.value.into_encoded_bytes()) }
}

fn up(args: UpArgs) -> Result<Up, String> {
    if args.lan && !args.listen.is_empty() {
        return Err("--lan listens everywhere, --listen exactly where it says: give one of them".to_owned());
    }
    if args.port.is_some() && !args.listen.is_empty() {
        return Err("--listen already holds the port: leave --port out".to_owned());
    }
    let reach = match (args.lan, args.listen) {
        (true, _) => Some(Reach::Lan),
        (false, listen) if listen.is_empty() => None,
        (false, listen) => Some(Reach::Exact(listen)),
    };
    Ok(Up {
        reach,
        port: args.port,
        open: args.open,
        partitions: args.partitions.map(NonZeroU32::get),
        data_dir: args.data_dir,
        replace_after: args.replace_after,
        data_limit: args.data_limit,
        job_memory: args.job_memory,
        weight: args.weight.map(NonZeroU32::get),
    })
}

fn parse_job_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < MIN_JOB_MEMORY {
        return Err(format!("jobs need at least {} MiB", MIN_JOB_MEMORY >> 20));
    }
    Ok(bytes)
}

fn locked(name: Vec<u8>, kind: lock::Kind, args: RunArgs) -> Result<lock::Run, String> {
    let mut words = args.command.into_iter();
    let Some(program) = words.next() else {
        return Err("say what to run, behind `--`: roundtable lock NAME -- COMMAND".to_owned());
    };
    Ok(lock::Run {
        name,
        kind,
        wait: args.wait,
        lease: args.lease,
        grace: args.grace,
        note: args.note,
        program,
        args: words.collect(),
    })
}

fn bench_plan(args: &BenchArgs) -> Result<bench::Bench, String> {
    let operation = match args.op {
        OperationName::Put => bench::Mix::Put,
        OperationName::Get => bench::Mix::Get,
        OperationName::Mixed => bench::Mix::Mixed,
        OperationName::Lock => bench::Mix::Lock,
    };
    if args.value_size > MAX_VALUE_BYTES {
        return Err(format!("--value-size may be at most {MAX_VALUE_BYTES} bytes"));
    }
    let under_way = args.clients.get().saturating_mul(args.pipeline.get());
    if under_way > bench::MAX_UNDER_WAY {
        return Err(format!(
            "--clients times --pipeline is {under_way}: at most {} operations may be under way",
            bench::MAX_UNDER_WAY
        ));
    }
    if args.connections > args.clients {
        return Err("--connections may not be more than --clients".to_owned());
    }
    Ok(bench::Bench {
        mix: operation,
        clients: args.clients.get(),
        pipeline: args.pipeline.get(),
        keys: args.keys.get(),
        value_bytes: args.value_size,
        duration: Duration::from_secs(u64::from(args.seconds.get())),
        connections: args.connections.get(),
        stale: args.stale,
        keep: args.keep,
    })
}

/// A command line that is not run: help, the version, or a mistake.
#[derive(Debug)]
pub(super) struct Rejected(Box<clap::Error>);

impl Rejected {
    /// Prints it; whether it was a mistake.
    pub(super) fn print(&self) -> bool {
        // A closed output is no reason to fail.
        let _ = self.0.print();
        self.0.use_stderr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Invocation, String> {
        let args = std::iter::once("roundtable").chain(line.split_whitespace());
        parse(args.map(OsString::from)).map_err(|rejected| rejected.0.to_string())
    }

    fn command_of(line: &str) -> Command {
        parse_words(line).expect(line).command
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_alone_reaches_as_far_as_its_addresses_say() {
        let Command::Up(up) = command_of("up") else { panic!("not up") };
        assert_eq!((up.reach, up.open), (None, false));
        let Command::Up(up) = command_of("up --lan --open --port 4101 --replace-after 1m") else {
            panic!("not up")
        };
        assert_eq!((up.reach, up.open, up.port), (Some(Reach::Lan), true, Some(4101)));
        assert_eq!(up.replace_after, Some(Duration::from_secs(60)));
    }

    #[test]
    fn contradictions_are_usage_errors_that_say_what_to_do() {
        for (line, hint) in [
            ("up --lan --listen /ip4/1.2.3.4/tcp/1", "give one of them"),
            ("up --listen /ip4/1.2.3.4/tcp/1 --port 1", "leave --port out"),
            ("bench --clients 0", "0"),
            ("bench --clients 100000 --pipeline 100", "under way"),
            ("bench --value-size 2000000", "--value-size"),
            ("bench --clients 2 --connections 3", "--connections"),
            ("cas k v", "--version"),
            ("cas k v --version 1 --absent", "--absent"),
            ("expire k", "TIME"),
            ("get k --timeout 0s", "longer than zero"),
            ("chat a/b", "no name"),
            ("lock", "NAME"),
            ("lock name", "COMMAND"),
            ("lock name --list -- true", "--list"),
            ("elect name", "COMMAND"),
        ] {
            let error = parse_words(line).expect_err(line);
            assert!(error.contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn a_dash_reads_standard_input_and_values_may_look_like_flags() {
        let Command::Put(put) = command_of("put k -") else { panic!("not put") };
        assert_eq!(put.value, Source::Stdin);
        let Command::Put(put) = command_of("put k -5") else { panic!("not put") };
        assert_eq!(put.value, Source::Given(b"-5".to_vec()));
        let Command::Incr(incr) = command_of("incr k -5") else { panic!("not incr") };
        assert_eq!(incr.by, -5);
    }

    #[test]
    fn a_write_is_fenced_only_if_that_is_said() {
        let Command::Put(put) = command_of("put k v") else { panic!("not put") };
        assert_eq!(put.token, None);
        let Command::Put(put) = command_of("put k v --ttl 1m --token 17") else { panic!("not put") };
        assert_eq!((put.token, put.ttl), (Some(FencingToken(17)), Some(Duration::from_secs(60))));
        let Command::Del(del) = command_of("del k --token 17") else { panic!("not del") };
        assert_eq!(del.token, Some(FencingToken(17)));
        // An empty variable is a mistake, not a write without a token.
        assert!(
            parse([
                OsString::from("roundtable"),
                "put".into(),
                "k".into(),
                "v".into(),
                "--token".into(),
                "".into()
            ])
            .is_err()
        );
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let invocation =
            parse_words("--format json get k --join a,b --join c --timeout 250ms --no-mdns").expect("valid");
        assert_eq!(invocation.format, Format::Json);
        assert_eq!(invocation.target.join, ["a", "b", "c"]);
        assert_eq!(invocation.target.timeout, Duration::from_millis(250));
        assert!(!invocation.target.mdns);
        assert_eq!(invocation.target.swarm, "default");
    }

    #[test]
    fn what_is_run_under_a_lock_keeps_its_own_flags() {
        let Command::Lock(run) = command_of("lock name -n 3 --wait 1m -- ls -l --wait") else {
            panic!("not lock")
        };
        assert_eq!((run.name.as_slice(), run.wait), (&b"name"[..], Some(Duration::from_secs(60))));
        assert_eq!(run.args, ["-l", "--wait"]);
        assert!(matches!(command_of("lock --list"), Command::Locks(lock::List { name: None })));
    }

    #[test]
    fn recovery_only_explains_unless_it_is_forced() {
        let Command::Recover(recover) = command_of("recover --partition 3,4 --partition 9") else {
            panic!("not recover")
        };
        assert_eq!((recover.partitions.as_slice(), recover.force), (&[3, 4, 9][..], false));
        let Command::Recover(recover) = command_of("recover --force --abandon-lost") else {
            panic!("not recover")
        };
        assert_eq!((recover.partitions.len(), recover.force, recover.abandon_lost), (0, true, true));
    }

    #[test]
    fn a_backup_goes_to_a_file_or_to_standard_output() {
        let Command::Backup(backup) = command_of("backup -") else { panic!("not backup") };
        assert_eq!(backup.file, PathBuf::from("-"));
        let Command::Restore(restore) = command_of("restore monday.rtb --join a") else {
            panic!("not restore")
        };
        assert_eq!(restore.file, PathBuf::from("monday.rtb"));
    }

    #[test]
    fn a_dataset_is_written_as_lines_unless_said_otherwise() {
        let Command::DataPut(put) = command_of("data put words -") else { panic!("not data put") };
        assert_eq!((put.name.as_slice(), put.records), (&b"words"[..], Records::Lines));
        let Command::DataPut(put) = command_of("data put people people.csv --as csv") else {
            panic!("not data put")
        };
        assert_eq!((put.file, put.records), (PathBuf::from("people.csv"), Records::Csv));
        let Command::DataGet(get) = command_of("data get words") else { panic!("not data get") };
        assert_eq!(get.file, PathBuf::from("-"));
        assert!(parse_words("data put words - --as xml").expect_err("no format").contains("lines"));
        let Command::Up(up) = command_of("up --data-limit 20GiB --job-memory 256MiB") else {
            panic!("not up")
        };
        assert_eq!((up.data_limit, up.job_memory), (Some(20 << 30), Some(256 << 20)));
        assert!(parse_words("up --job-memory 64MiB").expect_err("too little").contains("128 MiB"));
    }

    #[test]
    fn a_sort_compares_whole_records_unless_said_otherwise() {
        let Command::Sort(sort) = command_of("sort words") else { panic!("not sort") };
        assert_eq!((sort.order, sort.output), (Order::default(), None));
        let Command::Sort(sort) = command_of("sort people.csv --as csv --by 3 -nru --output sorted") else {
            panic!("not sort")
        };
        let key = SortKey::Fields { first: 3, last: 3 };
        let order = Order { key, numeric: true, reverse: true, unique: true, stable: false };
        assert_eq!((sort.order, sort.output), (order, Some("sorted".into())));
        assert!(parse_words("sort words --by 0").expect_err("no key").contains("bytes:1-10"));
    }

    #[test]
    fn a_program_runs_over_data_or_keys() {
        let Command::Run(run) = command_of("run top@1 --arg 10 --arg -2 --input counts -o best") else {
            panic!("not run")
        };
        assert_eq!(run.program, run::RunProgram::Named("top@1".to_owned()));
        assert_eq!(run.arguments, ["10", "-2"]);
        assert_eq!((run.input, run.output), (run::RunInput::Data("counts".into()), Some("best".into())));
        assert_eq!(run.limits, Limits::default());
        let Command::Run(run) = command_of("run count --keys user/ --task-time 5s") else {
            panic!("not run")
        };
        assert_eq!((run.input, run.limits.time_ms), (run::RunInput::Keys(b"user/".to_vec()), 5000));
        let Command::Run(run) = command_of("run job.wasm -i x --task-memory 1MiB --task-fuel 7") else {
            panic!("not run")
        };
        assert_eq!(run.program, run::RunProgram::File("job.wasm".into()));
        assert_eq!(run.limits, Limits { memory_bytes: 1 << 20, fuel: 7, ..Limits::default() });
        assert!(parse_words("run count").expect_err("no input").contains("--input"));
        assert!(parse_words("run a@b --keys x").expect_err("no name").contains("name@version"));
        assert!(parse_words("run count --keys x --input y").is_err());
    }

    #[test]
    fn expire_never_keeps_the_key() {
        let Command::Expire(expire) = command_of("expire k never") else { panic!("not expire") };
        assert_eq!(expire.ttl, None);
    }
}
