// SPDX-License-Identifier: BSD-3-Clause
//! The boundary between Rust and nbdkit: no panic crosses it, and every failure is reported here,
//! once, on the callback's own thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::client::error::Error;
use crate::config;
use crate::control;
use crate::host::report;

/// What a callback returns to say that it failed.
pub trait Failed {
    /// That value.
    const FAILED: Self;
}

impl Failed for () {
    const FAILED: Self = ();
}

impl Failed for c_int {
    const FAILED: Self = -1;
}

impl Failed for i64 {
    const FAILED: Self = -1;
}

impl Failed for *mut c_void {
    const FAILED: Self = std::ptr::null_mut();
}

impl Failed for *const c_char {
    const FAILED: Self = std::ptr::null();
}

/// Why a callback failed.
#[derive(Debug)]
pub struct Failure {
    errno: i32,
    message: Message,
}

#[derive(Debug)]
enum Message {
    /// Tell the user.
    Tell(String),
    /// The user was told before, once for all requests that it concerns.
    Told(Error),
    /// nbdkit has already said what there is to say.
    ByHost,
}

impl Failure {
    /// A failure that a function of nbdkit's has already reported.
    pub fn by_host() -> Self {
        Self {
            errno: libc::EINVAL,
            message: Message::ByHost,
        }
    }

    /// Something that nbdkit must not do.
    pub fn misuse(message: &str) -> Self {
        Self {
            errno: libc::EINVAL,
            message: Message::Tell(message.to_owned()),
        }
    }
}

impl Failure {
    /// An error, and behind it what `postscript` has to say; asked only if the user is told at all.
    pub fn with_postscript(error: Error, postscript: impl FnOnce() -> Option<String>) -> Self {
        let mut failure = Self::from(error);
        if let Message::Tell(message) = &mut failure.message {
            if let Some(postscript) = postscript() {
                *message = format!("{message}: {postscript}");
            }
        }
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let told = match &error {
            Error::Lost(lost) => !lost.tell_once(),
            Error::Outage(outage) => !outage.tell_once(),
            // It was said when it came to that.
            Error::Doomed { .. } => true,
            // nbdkit said it in its own words.
            error => error.is_unwanted(),
        };
        Self {
            errno: error.errno(),
            message: match told {
                true => Message::Told(error),
                false => Message::Tell(error.to_string()),
            },
        }
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self {
            errno: libc::EINVAL,
            message: Message::Tell(error.to_string()),
        }
    }
}

impl From<control::Error> for Failure {
    fn from(error: control::Error) -> Self {
        Self::misuse(&error.to_string())
    }
}

/// Runs the body of a callback. A failure becomes a message, an error number and the failure value
/// of the return type; so does a panic, with its place and the callback's name.
pub fn guard<T: Failed>(callback: &'static str, body: impl FnOnce() -> Result<T, Failure>) -> T {
    // Unwind safety: what a panic leaves behind is a connection, and that is declared lost by the
    // guards of the client on the way out.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure,
        Err(panic) => panicked(callback, panic.as_ref()),
    };
    match &failure.message {
        Message::Tell(message) => report::error(message),
        Message::Told(error) if error.is_unwanted() => report::debug(&error.to_string()),
        // Only for those who want to see each request.
        Message::Told(error) => log::trace!("{error}"),
        Message::ByHost => (),
    }
    report::set_errno(failure.errno);
    T::FAILED
}

thread_local! {
    /// Where this thread panicked last.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes panics silent, but for their place, which [`guard`] reports. Affects Rust code of this
/// plugin only: every cdylib has its own standard library.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PLACE.with(|cell| cell.replace(place));
    }));
}

fn panicked(callback: &str, panic: &(dyn Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = PLACE.with(RefCell::take);
    Failure {
        errno: libc::EIO,
        message: Message::Tell(format!("internal error in {callback} at {place}: {text}")),
    }
}
