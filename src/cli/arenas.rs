//! Lets a node give back what it has freed.
//!
//! glibc lets threads allocate from arenas of their own, up to eight for each processor, and what is freed in one stays
//! in it. A node works on large pieces in many threads, one after the other, so each arena would come to hold what one of
//! them needed once: after two sorts with 256 MiB for jobs a node had 350 MB, and has 240 MB with two arenas, in no more
//! time. How many there are, glibc reads from the environment when a process begins, and nowhere else without unsafe
//! code. So the process begins once more.

/// Read by glibc. Whoever sets it has chosen.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const VARIABLE: &str = "MALLOC_ARENA_MAX";

/// Begins this process once more, with few arenas, unless somebody has said how many: one for each of the `threads` that
/// do what a node does all the time, and one for all those that compute. If that cannot be done it goes on.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn make_few(threads: usize) {
    use std::os::unix::process::CommandExt as _;

    let mut args = std::env::args_os();
    let (Some(name), Ok(program)) = (args.next(), std::env::current_exe()) else { return };
    if std::env::var_os(VARIABLE).is_none() {
        let arenas = (threads + 1).to_string();
        let error = std::process::Command::new(program).arg0(name).args(args).env(VARIABLE, arenas).exec();
        tracing::debug!(%error, "memory that was freed may stay with this process");
    }
}

/// Other allocators do otherwise.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn make_few(_threads: usize) {}
