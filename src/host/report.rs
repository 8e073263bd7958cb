// SPDX-License-Identifier: BSD-3-Clause
//! Messages and error numbers for nbdkit.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::sys;

/// Shows the user an error. A callback's failure must be shown on its own thread.
pub fn error(message: &str) {
    let message = c_string(message);
    // SAFETY: a terminated string that outlives the call.
    unsafe { sys::nbd_shim_error(message.as_ptr()) }
}

/// Shows the user a line if they asked for debug output.
pub fn debug(message: &str) {
    let message = c_string(message);
    // SAFETY: a terminated string that outlives the call.
    unsafe { sys::nbd_shim_debug(message.as_ptr()) }
}

/// Prints one line for `--dump-plugin`.
pub fn print(line: &str) {
    let line = c_string(line);
    // SAFETY: a terminated string that outlives the call.
    unsafe { sys::nbd_shim_print(line.as_ptr()) }
}

/// Whether all that was printed has been taken.
#[must_use]
pub fn is_printed() -> bool {
    // SAFETY: takes nothing.
    unsafe { sys::nbd_shim_flush() == 0 }
}

/// Ends this process, which has done what it was started for, with what was printed shown. nbdkit has no
/// other way to end well before it serves.
pub fn end_well() -> ! {
    // SAFETY: runs what libraries have registered for the end, and this is the only thread.
    unsafe { libc::exit(0) }
}

/// Sets the error number of the callback that runs on this thread.
pub fn set_errno(errno: i32) {
    // SAFETY: writes a thread-local of nbdkit's; any number is allowed.
    unsafe { sys::nbdkit_set_error(errno) }
}

/// Messages contain no NUL by construction; should one slip in, the message ends there.
fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// Forwards the `log` facade, which the rooms below the plugin use, to nbdkit: errors so that the user
/// sees them; warnings too, once for each kind, which is the record's target; everything else, and a
/// warning that is repeated, to the debug output.
struct Logger;

/// True the first time for each kind of warning.
fn is_first(kind: &str) -> bool {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    warned.insert(kind.to_owned())
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        match record.level() {
            log::Level::Error => error(&text),
            // Nobody would see it where nbdkit has no -v.
            log::Level::Debug | log::Level::Trace if TELLING.load(Ordering::Relaxed) => {
                error(&format!("debug: {text}"));
            }
            log::Level::Warn if is_first(record.target()) => error(&format!("warning: {text}")),
            _ => debug(&text),
        }
    }

    fn flush(&self) {}
}

/// What is only for the debug output is shown as messages.
static TELLING: AtomicBool = AtomicBool::new(false);

/// Shows all that there is to be told, each request included, as messages, whether nbdkit has debug output
/// or not; or no more than before.
pub fn tell_all(on: bool) {
    TELLING.store(on, Ordering::Relaxed);
    let verbose = on || VERBOSE.load(Ordering::Relaxed);
    log::set_max_level(level(verbose));
}

/// What it was said to be when nbdkit was started.
static VERBOSE: AtomicBool = AtomicBool::new(false);

fn level(verbose: bool) -> log::LevelFilter {
    match verbose {
        true => log::LevelFilter::Trace,
        false => log::LevelFilter::Debug,
    }
}

/// Starts forwarding `log` lines. With `verbose` lines about every request come too; without, they
/// are not even formatted.
pub fn forward_log(verbose: bool) {
    static LOGGER: Logger = Logger;
    // Fails when it was set before, and then it is this one.
    let _ = log::set_logger(&LOGGER);
    VERBOSE.store(verbose, Ordering::Relaxed);
    log::set_max_level(level(verbose));
}
